"""Checks of a host before a population uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from esper_env.checks import is_whole
from esper_env.extension_checks.probes import cut_positions, has_dropout, is_close, scrambled, watched_generator
from esper_env.hosts.protocol import HostProtocol, SlotSpec
from esper_env.seeds.registry import offered_blueprints

#: Maps a module's parameters to the ones that it runs with.
Change = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

REMEDY = "see HostProtocol in esper_env.hosts"


def check_host(host: object) -> None:
    """Check the attributes of a host.

    Raises:
        TypeError: the host is not a ``torch.nn.Module`` or lacks attributes.
        ValueError: slots and segments do not fit together, parameters lie outside the segments, or there is dropout.
    """
    if not isinstance(host, nn.Module) or not isinstance(host, HostProtocol):
        missing = [name for name in HostProtocol.__annotations__ if not hasattr(host, name)]
        kind = "it lacks " + ", ".join(missing) if missing else "it is not a torch.nn.Module"
        raise TypeError(f"the host is a {type(host).__name__}, which cannot be grown: {kind}; {REMEDY}")
    problem = _kind_problem(host) or _slot_problem(host) or _module_problem(host)
    if problem:
        raise ValueError(f"the host {type(host).__name__} cannot be grown: {problem}; {REMEDY}")
    offered_blueprints(host.topology)


def _kind_problem(host: HostProtocol) -> str | None:
    """Check attribute types; return the problem, or None."""
    if not isinstance(host.topology, str):
        return f"topology is {host.topology!r}, expected a string such as 'cnn'"
    if not isinstance(host.segments, nn.ModuleList):
        return f"segments is a {type(host.segments).__name__}, expected a torch.nn.ModuleList"
    slots = host.slots
    if not isinstance(slots, Sequence) or not slots or not all(isinstance(slot, SlotSpec) for slot in slots):
        return f"slots is {slots!r}, expected at least one SlotSpec"
    for slot in slots:
        whole = (slot.channels, slot.row, slot.col, slot.action_index)
        shape = slot.shape if isinstance(slot.shape, tuple) else (None,)
        if not isinstance(slot.slot_id, str) or not all(is_whole(value) for value in (*whole, *shape)):
            return f"a slot is {slot!r}, expected a string as id, integers, and a tuple of integers as shape"
    order = host.execution_order
    if not isinstance(order, Sequence) or not all(is_whole(place) for place in order):
        return f"execution_order is {order!r}, expected each of 0..{len(slots) - 1} once"
    return None


def _slot_problem(host: HostProtocol) -> str | None:
    """Check that slots and segments fit together; return the problem, or None."""
    slots, order = host.slots, host.execution_order
    if len({slot.slot_id for slot in slots}) < len(slots):
        return f"its slots are {[slot.slot_id for slot in slots]}, expected different ids"
    if [slot.action_index for slot in slots] != list(range(len(slots))):
        return f"the action indices of its slots are {[slot.action_index for slot in slots]}, expected 0, 1, ..."
    if sorted(order) != list(range(len(slots))):
        return f"execution_order is {order!r}, expected each of 0..{len(slots) - 1} once"
    if len(host.segments) != len(slots) + 1:
        return f"it has {len(host.segments)} segments for {len(slots)} slots, expected {len(slots) + 1}"
    if len({len(slot.shape) for slot in slots}) > 1 or len(slots[0].shape) not in (2, 3):
        shapes = [slot.shape for slot in slots]
        return f"the shapes of its slots are {shapes}, expected (channels, height, width) or (length, channels)"
    for slot in slots:
        if slot.channels != slot.shape[0 if len(slot.shape) == 3 else 1]:
            return f"slot {slot.slot_id} has {slot.channels} channels and features of {slot.shape}"
    return None


def _module_problem(host: nn.Module) -> str | None:
    """Check for dropout and for tensors outside the segments; return the problem, or None."""
    if has_dropout(host):
        return "it has dropout, which draws from the global generator"
    segments = host.segments
    assert isinstance(segments, nn.ModuleList)
    inside = {id(value) for value in [*segments.parameters(), *segments.buffers()]}
    outside = [name for name, value in [*host.named_parameters(), *host.named_buffers()] if id(value) not in inside]
    return f"{', '.join(outside)} belong to none of its segments" if outside else None


@torch.no_grad()
def check_forward(host: nn.Module, samples: Tensor, classes: int) -> None:
    """Run a host that passed :func:`check_host` on samples (B, ...) with B > 1; its buffers stay unchanged.

    Raises:
        ValueError: a segment fails or writes into its input, features or logits have another shape than declared, the
            host draws random numbers, or a prediction depends on other samples or on later tokens.
    """
    assert isinstance(host, HostProtocol)
    what = f"the host {type(host).__name__}"
    for training in (True, False):
        with watched_generator(samples.device) as drawn:
            features = run_segments(host, samples, training=training)
            if drawn():
                raise ValueError(f"{what} draws from the global generator when it runs; {REMEDY}")
    _check_shapes(host, features, samples, classes)
    for change in (dict, scrambled):
        _check_predictions(host, samples, change)


def _check_predictions(host: nn.Module, samples: Tensor, change: Change) -> None:
    """Check that predictions are deterministic and depend on no other sample and on no later token."""
    assert isinstance(host, HostProtocol)
    what = f"the host {type(host).__name__}"

    def predict(x: Tensor) -> Tensor:
        return run_segments(host, x, training=False, change=change)[-1]

    logits = predict(samples)
    if not is_close(predict(samples), logits):
        raise ValueError(f"{what} is not deterministic: two passes on the same samples differ; {REMEDY}")
    for place in range(len(samples)):
        single = predict(samples[place : place + 1])
        if single.shape != logits[:1].shape or not is_close(single[0], logits[place]):
            raise ValueError(
                f"{what} mixes samples: in eval mode, its prediction for one depends on the others; {REMEDY}"
            )
    if len(host.slots[0].shape) == 2:
        places = cut_positions(samples.shape[1])
        for changed, cut in zip(predict(_with_other_ends(samples[0], places)), places, strict=True):
            if not is_close(changed[:cut], logits[0, :cut]):
                raise ValueError(
                    f"{what} looks ahead: its predictions before position {cut} depend on the tokens from there on"
                )


def run_segments(host: nn.Module, x: Tensor, *, training: bool, change: Change = dict) -> list[Tensor]:
    """Run the segments with copies of their tensors and changed parameters; return the output of each segment.

    Raises:
        ValueError: a segment fails or writes into its input.
    """
    assert isinstance(host, HostProtocol)
    outputs, name = [], type(host).__name__
    for number, segment in enumerate(host.segments):
        segment.train(training)
        tensors = {**dict(segment.named_buffers()), **change(dict(segment.named_parameters()))}
        own = {key: value.clone() for key, value in tensors.items()}
        given = x.clone()
        untouched, shape = given._version, tuple(given.shape)
        try:
            x = functional_call(segment, own, (given,))
        except Exception as error:
            raise ValueError(f"segment {number} of the host {name} cannot run on {shape} ({error})") from error
        if not isinstance(x, Tensor):
            raise ValueError(f"segment {number} of the host {name} returns a {type(x).__name__} for {shape}; {REMEDY}")
        if given._version != untouched:
            raise ValueError(
                f"segment {number} of the host {name} writes into its input, which seeds still need; begin it with a "
                "layer that does not work in place (inplace=False)"
            )
        outputs.append(x)
    return outputs


def _check_shapes(host: HostProtocol, features: list[Tensor], samples: Tensor, classes: int) -> None:
    name = type(host).__name__
    for index, x in zip(host.execution_order, features[:-1], strict=True):
        slot = host.slots[index]
        if x.shape[1:] != slot.shape:
            raise ValueError(
                f"the host {name} has features of {tuple(x.shape[1:])} at slot {slot.slot_id}, which declares "
                f"{slot.shape}; {REMEDY}"
            )
    logits = features[-1]
    expected = (*samples.shape, classes) if len(host.slots[0].shape) == 2 else (len(samples), classes)
    if logits.shape != expected:
        raise ValueError(
            f"the host {name} turns {tuple(samples.shape)} into {tuple(logits.shape)}; expected {expected}: one logit "
            f"for each of the {classes} classes"
        )


def _with_other_ends(tokens: Tensor, places: list[int]) -> Tensor:
    """(places, T) the tokens (T,), changed from each place on."""
    changed = tokens.repeat(len(places), 1)
    for sequence, cut in zip(changed, places, strict=True):
        sequence[cut:] = (sequence[cut:] + 1) % 2
    return changed
