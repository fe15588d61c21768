"""What a module must honour to be a host, checked where a population is built."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from esper_env.networks.construction import watched_generator
from esper_env.networks.hosts.protocol import HostProtocol, SlotSpec
from esper_env.networks.seeds.registry import offered_blueprints

REMEDY = "see HostProtocol in esper_env.networks.hosts"


def check_host(host: object) -> None:
    """Check how a host is put together.

    Raises:
        TypeError: no ``torch.nn.Module``, or attributes are missing.
        ValueError: slots and segments that do not fit together, parameters outside the segments, dropout.
    """
    if not isinstance(host, nn.Module) or not isinstance(host, HostProtocol):
        missing = [name for name in (*HostProtocol.__annotations__, "forward_between") if not hasattr(host, name)]
        kind = "it lacks " + ", ".join(missing) if missing else "it is no torch.nn.Module"
        raise TypeError(f"the host is a {type(host).__name__}, which is none: {kind}; {REMEDY}")
    problem = _slot_problem(host) or _module_problem(host)
    if problem:
        raise ValueError(f"the host {type(host).__name__} cannot be grown: {problem}; {REMEDY}")
    offered_blueprints(host.topology)


def _slot_problem(host: HostProtocol) -> str | None:
    slots, order = host.slots, host.execution_order
    if not slots or not all(isinstance(slot, SlotSpec) for slot in slots):
        return f"slots is {slots!r}, expected at least one SlotSpec"
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
    if any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in host.modules()):
        return "it has dropout, which draws from the global generator"
    segments = host.segments
    assert isinstance(segments, nn.ModuleList)
    inside = {id(value) for value in [*segments.parameters(), *segments.buffers()]}
    outside = [name for name, value in [*host.named_parameters(), *host.named_buffers()] if id(value) not in inside]
    return f"{', '.join(outside)} belong to none of its segments" if outside else None


@torch.no_grad()
def check_forward(host: nn.Module, samples: Tensor, classes: int) -> None:
    """Run a host of :func:`check_host` on a few samples (B, ...).

    Raises:
        ValueError: features or logits of another shape than announced; a prediction that depends on later tokens;
            random numbers drawn in training.
    """
    assert isinstance(host, HostProtocol)
    name = type(host).__name__
    with watched_generator(samples.device) as drawn:
        _features(copy.deepcopy(host).train(), samples)
        if drawn():
            raise ValueError(f"the host {name} draws from the global generator when it trains; {REMEDY}")
    host.eval()
    features = _features(host, samples)
    for index, x in zip(host.execution_order, features[:-1], strict=True):
        slot = host.slots[index]
        if x.shape[1:] != slot.shape:
            raise ValueError(
                f"the host {name} has features of {tuple(x.shape[1:])} at slot {slot.slot_id}, which says "
                f"{slot.shape}; {REMEDY}"
            )
    logits = features[-1]
    sequences = len(host.slots[0].shape) == 2
    expected = (*samples.shape, classes) if sequences else (len(samples), classes)
    if logits.shape != expected:
        raise ValueError(
            f"the host {name} turns {tuple(samples.shape)} into {tuple(logits.shape)}; expected {expected}: one logit "
            f"for each of the {classes} classes"
        )
    if sequences and not torch.equal(_but_last(host, samples), logits[:, :-1]):
        raise ValueError(f"the host {name} looks ahead: its first predictions depend on the last token")


def _features(host: nn.Module, x: Tensor) -> list[Tensor]:
    """What each segment makes of what the one before it made."""
    assert isinstance(host, HostProtocol)
    made, name = [], type(host).__name__
    for number, segment in enumerate(host.segments):
        given = x.clone()
        untouched = given._version
        try:
            x = segment(given)
        except Exception as error:
            raise ValueError(
                f"segment {number} of the host {name} cannot run on {tuple(given.shape)} ({error})"
            ) from error
        if given._version != untouched:
            raise ValueError(
                f"segment {number} of the host {name} writes into its input, which seeds still need; begin it with a "
                "layer that does not (inplace=False)"
            )
        made.append(x)
    return made


def _but_last(host: nn.Module, tokens: Tensor) -> Tensor:
    """The predictions for all but the last position, after another last token."""
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 2
    logits: Tensor = host(changed)
    return logits[:, :-1]
