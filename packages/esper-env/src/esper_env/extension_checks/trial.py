"""A host, and every blueprint that it is offered at every slot, tried as they will run before anything is played."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from esper_env.extension_checks.construction import alike, build_reproducibly
from esper_env.extension_checks.hosts import run_segments
from esper_env.extension_checks.seeds import check_seed
from esper_env.hosts.protocol import HostProtocol
from esper_env.population.engine.layouts import LAYOUTS
from esper_env.population.shard import Shard
from esper_env.seeds.registry import BlueprintEntry, offered_blueprints

SAMPLES = 3  # of a trial: an odd number that few layers have


def some_of(samples: Tensor) -> Tensor:
    """``SAMPLES`` of the samples (B, ...), one more than once if there are fewer."""
    return samples[torch.arange(SAMPLES, device=samples.device) % len(samples)]


def try_blueprints(shard: Shard) -> None:
    """Build every blueprint of the host's topology for every slot and run it forward and backward, on the CPU.

    Raises:
        ValueError: a factory fails, or makes what cannot be a seed (see
            :func:`~esper_env.extension_checks.seeds.check_seed`) or does not run with many networks at once.
    """
    for slot in shard.slots:
        for entry in offered_blueprints(shard.topology):
            try_blueprint(entry, slot.shape, shard.dtype, shard.together)


@cache
def try_blueprint(entry: BlueprintEntry, shape: tuple[int, ...], dtype: torch.dtype, together: bool) -> None:
    """Try a blueprint on features of a shape, (C, H, W) or (T, C). What has passed is not tried again."""
    module = build_reproducibly(lambda: entry.build(shape[0] if len(shape) == 3 else shape[1])).to(dtype)
    generator = torch.Generator().manual_seed(0)
    samples = (2 * torch.rand(SAMPLES, math.prod(shape), generator=generator) - 1).to(dtype).view(SAMPLES, *shape)
    check_seed(module, entry.name, samples)
    layout, what = LAYOUTS[len(shape), together](), f"blueprint {entry.name!r}"
    own = {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}
    tried = [samples, samples, samples[:1]]  # twice the same: nothing of the first pass may be in the second
    with torch.no_grad():
        expected = [layout.from_samples(functional_call(module, own, (x,))[None]) for x in tried]
    for x, alone in zip(tried, expected, strict=True):
        with _told_of(what, "the blueprint's factory", together):
            out = layout.call(module, _one_row(module), layout.from_samples(x[None]), training=True)
            torch.autograd.backward(out.float().square().mean())
        _check_same(what, out.detach(), alone)


def try_host(shard: Shard, samples: Tensor) -> None:
    """Run the host of :func:`~esper_env.extension_checks.hosts.check_forward`, laid out as it will be, on samples
    (B, ...): forward and backward in training, forward in eval mode.

    Raises:
        ValueError: it fails, or computes something else than by itself.
    """
    template = shard.host.template
    assert isinstance(template, HostProtocol)
    what = f"the host {type(template).__name__}"
    trained = [_one_row(segment) for segment in template.segments]
    with _told_of(what, "the host", shard.together), shard.autocast():
        x = shard.layout.from_samples(samples[None])
        for segment, own in zip(template.segments, trained, strict=True):
            x = shard.layout.call(segment, own, x, training=True)
        torch.autograd.backward(x.float().square().mean())
    _check_buffers(template, trained, samples, what)
    rows = {name: value.detach()[None] for name, value in [*template.named_parameters(), *template.named_buffers()]}
    for x in (samples, samples[:1]):
        with torch.no_grad():
            _try_inference(shard, rows, x, run_segments(template, x, training=False), what)


def _try_inference(shard: Shard, rows: dict[str, Tensor], samples: Tensor, expected: list[Tensor], what: str) -> None:
    """The segments as they are evaluated, against the features and logits that they make by themselves."""
    layout, *features, logits = shard.layout, *expected
    out = layout.from_samples(samples[None])
    for number in range(len(expected)):
        with _told_of(what, "the host", shard.together):
            out = shard.infer_segment(number, shard.inference_tensors(number, rows), out)
        if number < len(features):
            _check_same(what, out, layout.from_samples(features[number][None]))
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(len(samples), -1)
    _check_same(what, layout.losses(out, labels[None]), losses.mean(1)[None])


def _check_buffers(template: HostProtocol, trained: list[dict[str, Tensor]], samples: Tensor, what: str) -> None:
    """Whatever buffer a pass in training has changed where the host is run by itself, it has changed here."""
    x = samples
    for segment, own in zip(template.segments, trained, strict=True):
        held = [(module, dict(module._buffers)) for module in segment.modules()]
        values = {name: value.clone() for name, value in segment.named_buffers()}
        with torch.no_grad():
            x = segment.train()(x)
        found = {name: value.detach().clone() for name, value in segment.named_buffers()}
        for module, buffers in held:  # as they were: the same tensors with the same values
            module._buffers.update(buffers)
        for name, value in segment.named_buffers():
            value.copy_(values[name])
            if torch.equal(own[name][0], values[name]) and not torch.equal(found[name], values[name]):
                raise ValueError(
                    f"{what} assigns a new tensor to its buffer {name!r}, which is lost: a network's buffers are kept "
                    "outside its module; write into the buffer instead (copy_, lerp_, add_)"
                )


def _check_same(what: str, out: Tensor, expected: Tensor) -> None:
    if not alike(out, expected):
        raise ValueError(
            f"{what} computes something else among other networks than by itself; it has to be a function of its input "
            "and its parameters alone, without state of its own, and one that torch.func.vmap can batch"
        )


def _one_row(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors as those of one network."""
    rows = {name: value.detach()[None].clone() for name, value in module.named_buffers(remove_duplicate=False)}
    for name, value in module.named_parameters(remove_duplicate=False):
        rows[name] = value.detach()[None].clone().requires_grad_()
    return rows


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
                "and make it with shard_size=1"
            ) from error
        raise ValueError(f"{what} cannot be trained ({first_line}); change {culprit}") from error
