"""Trials of a host, and of every blueprint at each of its slots, in the layout in which they will run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper_env.extension_checks.checks import check_hooks, check_host, check_seed, is_close, run_segments
from esper_env.extension_checks.construction import build_reproducibly
from esper_env.hosts.protocol import HostProtocol
from esper_env.population.engine.layouts import LAYOUTS
from esper_env.population.shard import Shard
from esper_env.seeds.registry import BlueprintEntry

#: Samples of a trial: an odd number that few layers have as a size.
SAMPLES = 3
#: How to run a host that cannot be batched.
_STAND_ALONE = "register the task with auto_shard_size=1 and make it with shard_size=1"


@cache
def try_blueprint(entry: BlueprintEntry, shape: tuple[int, ...], dtype: torch.dtype, batched: bool) -> None:
    """Build a blueprint for features of a shape, (C, H, W) or (T, C), and run it forward and backward on the CPU.

    Raises ``ValueError`` if that fails, or as :func:`~esper_env.extension_checks.checks.check_seed` does. A blueprint
    that passed is not tried again.
    """
    what = f"blueprint {entry.name!r}"
    module = build_reproducibly(lambda: entry.build(shape[0] if len(shape) == 3 else shape[1]), what).to(dtype)
    check_hooks(module, what)
    generator = torch.Generator().manual_seed(0)
    samples = 2 * torch.rand(SAMPLES, math.prod(shape), generator=generator, dtype=torch.float32) - 1
    samples = samples.to(dtype).view(SAMPLES, *shape)
    check_seed(module, what, samples)
    layout = LAYOUTS[len(shape), batched]()
    tried = [samples, samples, samples[:1]]  # the same twice, to detect state that is kept between passes
    with torch.no_grad():
        expected = [layout.from_samples(run_segments(what, [module], x, training=True)[0][None]) for x in tried]
    for x, result in zip(tried, expected, strict=True):
        with _failures_as_value_errors(what, batched, "register the blueprint with batched=False"):
            out = layout.call(module, _one_row(module), layout.from_samples(x[None]), training=True)
            torch.autograd.backward(out.float().square().mean())
        _check_same(what, out.detach(), result)


def try_host(shard: Shard, plain: nn.Module, samples: Tensor, classes: int) -> None:
    """Run a host on the first samples (B, ...), by itself and in the shard's layout, forward and backward.

    ``plain`` is another host of the same kind, which may be changed. Raises ``ValueError`` if
    :func:`~esper_env.extension_checks.checks.check_host` does, or if the host fails or computes something else
    in the layout.
    """
    template = shard.host.template
    assert isinstance(template, HostProtocol)
    what = f"the host {type(template).__name__}"
    samples = samples[torch.arange(SAMPLES, device=samples.device) % len(samples)]
    check_hooks(template, what)
    check_host(template, what, samples, classes)
    trained = [_one_row(segment) for segment in template.segments]
    with _failures_as_value_errors(what, shard.batched), shard.autocast():
        x = shard.layout.from_samples(samples[None])
        for segment, own in zip(template.segments, trained, strict=True):
            x = shard.layout.call(segment, own, x, training=True)
        torch.autograd.backward(x.float().square().mean())
    _check_buffers(what, plain.to(samples.device, shard.dtype), trained, samples)
    rows = {name: value.detach()[None] for name, value in [*template.named_parameters(), *template.named_buffers()]}
    for x in (samples, samples[:1]):
        with torch.no_grad():
            logits = run_segments(what, template.segments, x, training=False)[-1]
            out = shard.layout.from_samples(x[None])
            for number in range(len(template.segments)):
                with _failures_as_value_errors(what, shard.batched):
                    out = shard.infer_segment(number, shard.inference_tensors(number, rows), out)
            labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
            losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(len(x), -1)
            _check_same(what, shard.layout.losses(out, labels[None]), losses.mean(1)[None])


@torch.no_grad()
def _check_buffers(what: str, plain: nn.Module, trained: list[dict[str, Tensor]], x: Tensor) -> None:
    """Check that a training pass in the layout changed every buffer that a pass of the plain segments changes."""
    assert isinstance(plain, HostProtocol)
    for segment, own in zip(plain.segments, trained, strict=True):
        before = {name: value.clone() for name, value in segment.named_buffers()}
        x = segment.train()(x)
        for name, value in segment.named_buffers():
            if torch.equal(own[name][0], before[name]) and not torch.equal(value, before[name]):
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
def _failures_as_value_errors(what: str, batched: bool, stand_alone: str = _STAND_ALONE) -> Iterator[None]:
    """Convert errors of a pass to a ``ValueError`` with a remedy; ``stand_alone`` is the remedy of a batched pass."""
    try:
        yield
    except Exception as error:
        first_line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        way, remedy = "", "change it"
        if batched:
            way = " for many networks at once, which uses torch.func.vmap for layers without a batching rule"
            remedy = f"change it, or {stand_alone}"
        raise ValueError(f"{what} cannot be trained{way} ({first_line}); {remedy}") from error
