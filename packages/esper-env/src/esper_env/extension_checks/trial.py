"""Trials of a host, and of every blueprint at each of its slots, in the layout in which they will run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from esper_env.extension_checks.construction import build_reproducibly
from esper_env.extension_checks.hosts import run_segments
from esper_env.extension_checks.probes import SAMPLES, is_close
from esper_env.extension_checks.seeds import check_seed
from esper_env.hosts.protocol import HostProtocol
from esper_env.population.engine.layouts import LAYOUTS
from esper_env.population.shard import Shard
from esper_env.seeds.registry import BlueprintEntry, offered_blueprints


def try_blueprints(shard: Shard) -> None:
    """Build every blueprint of the host's topology for every slot, and run it forward and backward on the CPU.

    Raises:
        ValueError: a factory fails, or its module fails :func:`~esper_env.extension_checks.seeds.check_seed` or does
            not run in the shard's layout.
    """
    for slot in shard.slots:
        for entry in offered_blueprints(shard.topology):
            try_blueprint(entry, slot.shape, shard.dtype, shard.batched)


@cache
def try_blueprint(entry: BlueprintEntry, shape: tuple[int, ...], dtype: torch.dtype, batched: bool) -> None:
    """Try a blueprint on features of a shape, (C, H, W) or (T, C); a blueprint that passed is not tried again."""
    module = build_reproducibly(lambda: entry.build(shape[0] if len(shape) == 3 else shape[1])).to(dtype)
    generator = torch.Generator().manual_seed(0)
    samples = (2 * torch.rand(SAMPLES, math.prod(shape), generator=generator) - 1).to(dtype).view(SAMPLES, *shape)
    check_seed(module, entry.name, samples)
    layout, what = LAYOUTS[len(shape), batched](), f"blueprint {entry.name!r}"
    own = {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}
    tried = [samples, samples, samples[:1]]  # the same twice, to detect state that is kept between passes
    with torch.no_grad():
        expected = [layout.from_samples(functional_call(module, own, (x,))[None]) for x in tried]
    for x, result in zip(tried, expected, strict=True):
        with _failures_as_value_errors(what, "the blueprint's factory", batched):
            out = layout.call(module, _one_row(module), layout.from_samples(x[None]), training=True)
            torch.autograd.backward(out.float().square().mean())
        _check_same(what, out.detach(), result)


def try_host(shard: Shard, samples: Tensor) -> None:
    """Run a host on samples (B, ...) in the shard's layout: forward and backward in training, forward in eval mode.

    Raises:
        ValueError: the host fails, or computes something else than outside the layout.
    """
    template = shard.host.template
    assert isinstance(template, HostProtocol)
    what = f"the host {type(template).__name__}"
    trained = [_one_row(segment) for segment in template.segments]
    with _failures_as_value_errors(what, "the host", shard.batched), shard.autocast():
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
    """Compare the segments in their evaluated form with the features and logits of the plain segments."""
    layout, *features, logits = shard.layout, *expected
    out = layout.from_samples(samples[None])
    for number in range(len(expected)):
        with _failures_as_value_errors(what, "the host", shard.batched):
            out = shard.infer_segment(number, shard.inference_tensors(number, rows), out)
        if number < len(features):
            _check_same(what, out, layout.from_samples(features[number][None]))
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(len(samples), -1)
    _check_same(what, layout.losses(out, labels[None]), losses.mean(1)[None])


def _check_buffers(template: HostProtocol, trained: list[dict[str, Tensor]], samples: Tensor, what: str) -> None:
    """Check that a training pass changed the same buffers as a pass of the plain segments does."""
    x = samples
    for segment, own in zip(template.segments, trained, strict=True):
        held = [(module, dict(module._buffers)) for module in segment.modules()]
        values = {name: value.clone() for name, value in segment.named_buffers()}
        with torch.no_grad():
            x = segment.train()(x)
        found = {name: value.detach().clone() for name, value in segment.named_buffers()}
        for module, buffers in held:  # restore the tensors, then their values
            module._buffers.update(buffers)
        for name, value in segment.named_buffers():
            value.copy_(values[name])
            if torch.equal(own[name][0], values[name]) and not torch.equal(found[name], values[name]):
                raise ValueError(
                    f"{what} assigns a new tensor to its buffer {name!r}, which is lost, because buffers are stored "
                    "outside the module; write into the buffer instead (copy_, lerp_, add_)"
                )


def _check_same(what: str, out: Tensor, expected: Tensor) -> None:
    if not is_close(out, expected):
        raise ValueError(
            f"{what} computes something else in a batch of networks than stand-alone; its output must depend on its "
            "input and parameters only, without hidden state, and torch.func.vmap must be able to batch it"
        )


def _one_row(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors with a leading dimension of one network."""
    rows = {name: value.detach()[None].clone() for name, value in module.named_buffers(remove_duplicate=False)}
    for name, value in module.named_parameters(remove_duplicate=False):
        rows[name] = value.detach()[None].clone().requires_grad_()
    return rows


@contextmanager
def _failures_as_value_errors(what: str, culprit: str, batched: bool) -> Iterator[None]:
    """Convert errors of a pass to a ``ValueError`` with a remedy."""
    try:
        yield
    except Exception as error:
        first_line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if batched:
            raise ValueError(
                f"{what} cannot be trained for many networks at once, which uses torch.func.vmap for layers without a "
                f"batching rule ({first_line}); change {culprit}, or register the task with auto_shard_size=1 "
                "and make it with shard_size=1"
            ) from error
        raise ValueError(f"{what} cannot be trained ({first_line}); change {culprit}") from error
