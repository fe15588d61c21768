"""What a host must offer so that seeds can be attached to it."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


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
    """A network cut into ``len(slots) + 1`` segments; it has no knowledge of seeds.

    Segment k maps the features behind slot k-1 (in execution order; the input for k = 0) to those in front of slot k
    (the logits for the last one). ``slots`` is in action order, ``execution_order[k]`` is the action index of the
    k-th slot on the way forward. ``topology`` names the family of blueprints that fit.
    """

    topology: str
    slots: tuple[SlotSpec, ...]
    execution_order: tuple[int, ...]
    segments: nn.ModuleList

    def forward_between(self, features: Tensor, start: str | None, stop: str | None) -> Tensor:
        """Run from behind slot ``start`` (None: the input) to in front of slot ``stop`` (None: the logits)."""
        ...
