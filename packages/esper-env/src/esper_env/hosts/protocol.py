"""The contract of a host, and a base class for hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from typing_extensions import override


class SlotSpec(NamedTuple):
    """A place in the host where a seed can be attached."""

    slot_id: str  # "r0c1"
    channels: int  # of an image's features, or the width of a sequence's
    surface: str  # "post-pool", "pre-pool", "post-layers"
    row: int
    col: int
    action_index: int  # position in the slot head; row-major
    shape: tuple[int, ...]  # of a sample's features: (channels, height, width) or (length, channels)


@runtime_checkable
class HostProtocol(Protocol):
    """An ``nn.Module`` cut into ``len(slots) + 1`` segments; it has no knowledge of seeds.

    In order of execution, segment k maps the features behind slot k-1 to the features in front of slot k. The first
    segment takes the input, the last one returns the logits.
    """

    topology: str  # family of the blueprints that fit, such as "cnn"
    slots: tuple[SlotSpec, ...]  # in action order
    execution_order: tuple[int, ...]  # action index of each slot in order of execution
    segments: nn.ModuleList  # in order of execution


class SegmentedHost(nn.Module):
    """Base class of hosts, see :class:`HostProtocol`; its forward pass runs the segments in turn.

    A subclass sets ``topology``, ``segments``, ``slots`` and ``execution_order``.
    """

    segments: nn.ModuleList

    @override
    def forward(self, x: Tensor) -> Tensor:
        for segment in self.segments:
            x = segment(x)
        return x


def in_action_order(
    placed: list[SlotSpec], wanted: Sequence[str] | None
) -> tuple[tuple[SlotSpec, ...], tuple[int, ...]]:
    """Sort slots into row-major order and number them; ``placed`` lists them in order of execution.

    Returns the slots in action order, and the action index of each slot in order of execution. Raises ``ValueError``
    if an id that the user ``wanted`` does not exist.
    """
    unknown = sorted(set(wanted or ()) - {spec.slot_id for spec in placed})
    if unknown:
        raise ValueError(f"slots {unknown} do not exist in this host; its slots are named r<row>c<column>, as in r0c0")
    ordered = sorted(placed, key=lambda spec: (spec.row, spec.col))
    slots = tuple(spec._replace(action_index=index) for index, spec in enumerate(ordered))
    index_of = {spec.slot_id: spec.action_index for spec in slots}
    return slots, tuple(index_of[spec.slot_id] for spec in placed)
