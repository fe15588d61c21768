"""What every host here shares: running from slot to slot, and the order of the slots."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from esper_env.hosts.protocol import SlotSpec


class SegmentedHost(nn.Module):
    """A network as a list of segments with a slot between each two; see :class:`HostProtocol`.

    A subclass sets ``topology``, ``segments``, ``slots`` and ``execution_order``.
    """

    topology: str
    slots: tuple[SlotSpec, ...]
    execution_order: tuple[int, ...]
    segments: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_between(x, None, None)

    def forward_between(self, features: Tensor, start: str | None, stop: str | None) -> Tensor:
        """Run from behind slot ``start`` (None: the input) to in front of slot ``stop`` (None: the logits).

        Raises:
            ValueError: an unknown slot, or ``stop`` is not ahead of ``start``.
        """
        first = 0 if start is None else self._position(start) + 1
        last = len(self.segments) - 1 if stop is None else self._position(stop)
        if last < first:
            raise ValueError(f"cannot run from slot {start!r} to slot {stop!r}: the host only runs forward")
        for segment in self.segments[first : last + 1]:
            features = segment(features)
        return features

    def _position(self, slot_id: str) -> int:
        """Place of the slot in the order of execution."""
        order = [self.slots[index].slot_id for index in self.execution_order]
        if slot_id not in order:
            raise ValueError(f"slot {slot_id!r} is not known; this host has {', '.join(order)}")
        return order.index(slot_id)


def in_action_order(
    placed: list[SlotSpec], wanted: Sequence[str] | None
) -> tuple[tuple[SlotSpec, ...], tuple[int, ...]]:
    """Slots sorted row-major with their action index, and the action index of each in order of execution.

    ``placed`` is in order of execution, of the ``wanted`` ids alone (None: all). ``ValueError`` for ids that are not
    among them, and for no slot at all.
    """
    unknown = sorted(set(wanted or ()) - {spec.slot_id for spec in placed})
    if unknown:
        raise ValueError(f"slots {unknown} do not exist in this host; its slots are named r<row>c<column>, as in r0c0")
    if not placed:
        raise ValueError("slots is empty; an environment needs at least one slot")
    ordered = sorted(placed, key=lambda spec: (spec.row, spec.col))
    slots = tuple(spec._replace(action_index=index) for index, spec in enumerate(ordered))
    index_of = {spec.slot_id: spec.action_index for spec in slots}
    return slots, tuple(index_of[spec.slot_id] for spec in placed)
