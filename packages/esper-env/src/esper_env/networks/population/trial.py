"""Every blueprint that a host is offered, tried at every slot before anything is played."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from esper_env.networks.construction import build_reproducibly
from esper_env.networks.hosts.protocol import HostProtocol
from esper_env.networks.population.layout import LAYOUTS
from esper_env.networks.population.network import Shard
from esper_env.networks.seeds.contract import check_seed
from esper_env.networks.seeds.registry import BlueprintEntry, offered_blueprints


def try_blueprints(shard: Shard) -> None:
    """Build every blueprint of the host's topology for every slot and run it forward and backward, on the CPU.

    No legal action fails afterwards for what a blueprint is.

    Raises:
        ValueError: a factory fails, or makes what cannot be a seed; see
            :func:`~esper_env.networks.seeds.contract.check_seed`.
    """
    for slot in shard.slots:
        for entry in offered_blueprints(shard.topology):
            try_blueprint(entry, slot.shape, shard.dtype, shard.together)


@cache
def try_blueprint(entry: BlueprintEntry, shape: tuple[int, ...], dtype: torch.dtype, together: bool) -> None:
    """Try a blueprint on features of a shape, (C, H, W) or (T, C). What has passed is not tried again."""
    module = build_reproducibly(lambda: entry.build(shape[0] if len(shape) == 3 else shape[1])).to(dtype)
    samples = torch.linspace(-1.0, 1.0, 2 * math.prod(shape), dtype=dtype).view(2, *shape)
    check_seed(module, entry.name, samples)
    layout = LAYOUTS[len(shape), together]()
    with _told_of(f"blueprint {entry.name!r}", "the blueprint's factory", together):
        _differentiate(layout.call(module, _one_row(module), layout.from_samples(samples[None]), training=True))


def try_host(shard: Shard, samples: Tensor) -> None:
    """Run the host forward and backward on a few samples (B, ...), laid out as it will be; ``ValueError``."""
    template, x = copy.deepcopy(shard.host.template), shard.layout.from_samples(samples[None])
    assert isinstance(template, HostProtocol)
    with _told_of(f"the host {type(template).__name__}", "the host", shard.together):
        for segment in template.segments:
            x = shard.layout.call(segment, _one_row(segment), x, training=True)
        _differentiate(x)


def _one_row(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors as those of one network."""
    rows = {name: value.detach()[None].clone() for name, value in module.named_buffers(remove_duplicate=False)}
    for name, value in module.named_parameters(remove_duplicate=False):
        rows[name] = value.detach()[None].clone().requires_grad_()
    return rows


def _differentiate(out: Tensor) -> None:
    torch.autograd.backward(out.float().square().mean())


@contextmanager
def _told_of(what: str, culprit: str, together: bool) -> Iterator[None]:
    """Errors of PyTorch as a ``ValueError`` that says what could not be run, and what helps."""
    try:
        yield
    except Exception as error:
        first_line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if together:
            raise ValueError(
                f"{what} cannot be trained for many networks at once, which goes through torch.func.vmap where a layer "
                f"has no rule of its own ({first_line}); change {culprit}, or register the task with auto_shard_size=1 "
                "and leave shard_size alone"
            ) from error
        raise ValueError(f"{what} cannot be trained ({first_line}); change {culprit}") from error
