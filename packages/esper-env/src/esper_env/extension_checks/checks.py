"""Checks for behaviour of custom hosts and blueprints that would silently give wrong numbers.

The checks run a module's **segments** in turn; a blueprint has a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from esper_env.extension_checks.construction import TRIAL_SEED
from esper_env.extension_checks.modes import OwnDraws
from esper_env.hosts.protocol import HostProtocol, SlotSpec
from esper_env.seeds.registry import offered_blueprints

#: Maps a module's parameters to the ones that it runs with.
Change = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Segments = Sequence[nn.Module] | nn.ModuleList

#: Layers of PyTorch that draw random numbers.
_NOISY = (nn.modules.dropout._DropoutNd, nn.RReLU)
#: Largest change of a parameter; reveals behaviour that a small initial value hides.
SCRAMBLE = 0.5
#: Largest number of positions at which a sequence is cut to test for look-ahead.
MOST_CUTS = 32


def check_attributes(host: object) -> None:
    """Check that an object has the attributes of a host, and that slots, segments and parameters fit together.

    Raises:
        TypeError: the object is not a ``torch.nn.Module`` or lacks attributes.
        ValueError: the attributes do not fit together, or the topology has no blueprints.
    """
    complaint, remedy = f"the host {type(host).__name__} cannot be grown", "see HostProtocol in esper_env.hosts"
    missing = [name for name in HostProtocol.__annotations__ if not hasattr(host, name)]
    if missing:
        raise TypeError(f"{complaint}: it lacks {', '.join(missing)}; {remedy}")
    if not isinstance(host, nn.Module) or not isinstance(host, HostProtocol):
        raise TypeError(f"{complaint}: it is not a torch.nn.Module; {remedy}")
    problem = _attribute_problem(host)
    if problem:
        raise ValueError(f"{complaint}: {problem}; {remedy}")
    offered_blueprints(host.topology)


def _attribute_problem(host: HostProtocol) -> str | None:
    """Return the first problem of a host's attributes, or None."""
    assert isinstance(host, nn.Module)
    slots, order, segments = host.slots, host.execution_order, host.segments
    if not _are_slots(slots):
        return (
            f"slots is {slots!r}, expected SlotSpecs with different ids, action indices 0, 1, ... and features of one "
            "kind of shape, (channels, height, width) or (length, channels)"
        )
    if not isinstance(order, Sequence) or sorted(order) != list(range(len(slots))):
        return f"execution_order is {order!r}, expected each of 0..{len(slots) - 1} once"
    if not isinstance(segments, nn.ModuleList) or len(segments) != len(slots) + 1:
        kind = type(segments).__name__
        kind += f" of {len(segments)}" if isinstance(segments, nn.ModuleList) else ""
        return f"segments is a {kind}, expected a torch.nn.ModuleList of {len(slots) + 1} for {len(slots)} slots"
    inside = {id(value) for value in [*segments.parameters(), *segments.buffers()]}
    outside = [name for name, value in [*host.named_parameters(), *host.named_buffers()] if id(value) not in inside]
    return f"{', '.join(outside)} belong to none of its segments" if outside else None


def _are_slots(slots: object) -> bool:
    if not isinstance(slots, Sequence) or not slots or not all(isinstance(slot, SlotSpec) for slot in slots):
        return False
    if not all(isinstance(slot.slot_id, str) and isinstance(slot.shape, tuple) for slot in slots):
        return False
    return (
        len({slot.slot_id for slot in slots}) == len(slots)
        and [slot.action_index for slot in slots] == list(range(len(slots)))
        and {len(slot.shape) for slot in slots} in ({2}, {3})
        and all(slot.channels == slot.shape[0 if len(slot.shape) == 3 else 1] for slot in slots)
    )


def check_hooks(module: nn.Module, what: str) -> None:
    """Raise ``ValueError`` if a module has hooks for gradients, which training calls for no or not every network."""
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"{what} has a hook on its parameter {name!r}, which is never called, because parameters are stored "
                "outside the module; remove it"
            )
    for name, layer in module.named_modules():
        if layer._backward_hooks or layer._backward_pre_hooks:
            raise ValueError(
                f"{what} has a backward hook on {f'its layer {name!r}' if name else 'itself'}, which is not called "
                "when many networks are trained at once; remove it"
            )


@torch.no_grad()
def check_host(host: HostProtocol, what: str, samples: Tensor, classes: int) -> None:
    """Run a host with checked attributes on samples (B, ...) with B > 1; its buffers stay unchanged.

    Raises ``ValueError`` if a segment fails or writes into its input, or features or logits do not have the declared
    shape. Also if the host draws random numbers, or a prediction depends on other samples or on later tokens.
    """
    for training in (True, False):
        *features, logits = _run_without_drawing(what, host.segments, samples, training=training)
    for index, x in zip(host.execution_order, features, strict=True):
        slot = host.slots[index]
        if x.shape[1:] != slot.shape:
            raise ValueError(
                f"{what} has features of {tuple(x.shape[1:])} at slot {slot.slot_id}, which declares {slot.shape}"
            )
    causal = len(host.slots[0].shape) == 2
    expected = (*samples.shape, classes) if causal else (len(samples), classes)
    if logits.shape != expected:
        raise ValueError(
            f"{what} turns {tuple(samples.shape)} into {tuple(logits.shape)}; expected {expected}: one logit for each "
            f"of the {classes} classes"
        )
    _check_dependence(what, host.segments, samples, training=False, causal=causal)


@torch.no_grad()
def check_seed(module: nn.Module, what: str, x: Tensor) -> None:
    """Try a freshly built seed on features ``x``, (B, C, H, W) or (B, T, C) with B > 1, which stay unchanged.

    Raises ``ValueError`` if it fails, changes shape or dtype, writes into its input or its buffers, draws random
    numbers, mixes samples, or looks ahead in a sequence.
    """
    if len(list(module.named_parameters())) < len(list(module.named_parameters(remove_duplicate=False))):
        raise ValueError(f"{what} uses a parameter in two places; give each place its own")
    (out,) = _run_without_drawing(what, [module], x, training=True)
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(
            f"{what} turns {tuple(x.shape)} {x.dtype} into {tuple(out.shape)} {out.dtype}; expected a module that "
            "keeps both: change the blueprint's factory"
        )
    before = {key: value.clone() for key, value in module.named_buffers()}
    module(x)
    for key, value in module.named_buffers():
        if not torch.equal(value, before[key]):
            raise ValueError(
                f"{what} writes into its buffer {key!r}; seeds keep no statistics: normalise with GroupNorm or "
                "LayerNorm"
            )
    _check_dependence(what, [module], x, training=True, causal=x.dim() == 3)


def run_segments(what: str, segments: Segments, x: Tensor, *, training: bool, change: Change = dict) -> list[Tensor]:
    """Run segments with copies of their tensors and changed parameters; return the output of each."""
    outputs = []
    for number, segment in enumerate(segments):
        where = f"segment {number} of {what}" if len(segments) > 1 else what
        segment.train(training)
        tensors = {**dict(segment.named_buffers()), **change(dict(segment.named_parameters()))}
        given = x.clone()
        untouched = given._version
        try:
            x = functional_call(segment, {key: value.clone() for key, value in tensors.items()}, (given,))
        except Exception as error:
            raise ValueError(f"{where} cannot run on {tuple(given.shape)} {given.dtype} ({error})") from error
        if not isinstance(x, Tensor):
            raise ValueError(f"{where} returns a {type(x).__name__} for {tuple(given.shape)}; expected a tensor")
        if given._version != untouched:
            raise ValueError(f"{where} writes into its input, which is needed unchanged; use inplace=False")
        outputs.append(x)
    return outputs


def _run_without_drawing(what: str, segments: Segments, x: Tensor, *, training: bool) -> list[Tensor]:
    outputs, draws = [], OwnDraws(TRIAL_SEED)
    try:
        with draws:
            outputs = run_segments(what, segments, x, training=training)
    except ValueError:
        if not draws.drawn:
            raise
    if draws.drawn:
        layers = [(f"{number}." if len(segments) > 1 else "", segment) for number, segment in enumerate(segments)]
        noisy = [
            f"{prefix}{name} ({type(layer).__name__})"
            for prefix, segment in layers
            for name, layer in segment.named_modules()
            if isinstance(layer, _NOISY)
        ]
        found = f" ({', '.join(noisy)})" if noisy else ""
        raise ValueError(f"{what} draws from the global generator when it runs; remove dropout and other noise{found}")
    return outputs


def _check_dependence(what: str, segments: Segments, samples: Tensor, *, training: bool, causal: bool) -> None:
    """Check that outputs are deterministic and depend on no other sample and on no later position."""
    runs = [partial(run_segments, what, segments, training=training, change=change) for change in (dict, _scrambled)]
    for run in runs:
        out = run(x=samples)[-1]
        if not is_close(run(x=samples)[-1], out):
            raise ValueError(f"{what} is not deterministic: two passes on the same samples differ")
        for place in range(len(samples)):
            single = run(x=samples[place : place + 1])[-1]
            if single.shape != out[:1].shape or not is_close(single[0], out[place]):
                raise ValueError(f"{what} mixes samples: its output for one depends on the others")
    for run in runs if causal else ():  # relies on independent samples
        _check_order(what, run, samples[0])


def _check_order(what: str, run: Callable[..., list[Tensor]], sample: Tensor) -> None:
    """Check that no position of a sequence depends on a later one, by changing later tokens or features."""
    out, places = run(x=sample[None])[-1][0], _cut_positions(len(sample))
    changes: list[Callable[[Tensor], Tensor]] = [lambda tokens: (tokens + 1) % 2]
    if sample.is_floating_point():
        changes = [partial(torch.add, other=step) for step in (1.0, -1.0, 50.0, -50.0)]
    for change in changes:
        changed = torch.stack([torch.cat([sample[:cut], change(sample[cut:])]) for cut in places])
        for seen, cut in zip(run(x=changed)[-1], places, strict=True):
            if not is_close(seen[:cut], out[:cut]):
                raise ValueError(f"{what} looks ahead: its output before position {cut} depends on later positions")


def _scrambled(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters far from birth, where a zero or small scale hides the layers behind it."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + SCRAMBLE * (2 * torch.rand(value.shape, generator=generator, dtype=torch.float32) - 1).to(value)
        for name, value in parameters.items()
    }


def _cut_positions(length: int) -> list[int]:
    """Return the positions 1..length-1 of a sequence, or ``MOST_CUTS`` of them evenly spread."""
    count = min(length - 1, MOST_CUTS)
    return [1 + (length - 1) * index // count for index in range(count)]


def is_close(one: Tensor, other: Tensor) -> bool:
    """True if the tensors are equal up to rounding by another order of summation or an accelerator's precision."""
    tolerance = 1e-4 if one.device.type == "cpu" else 1e-2
    finite = other[other.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=tolerance * size, equal_nan=True)
