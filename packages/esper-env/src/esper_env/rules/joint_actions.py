"""Joint actions: all actions that differ in their effect, numbered from 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.checks import array_of
from esper_env.rules.actions import READ_HEADS
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_NAMES, HEAD_RELEVANCE, NUM_HEADS, Head, Op, head_sizes
from esper_env.rules.slot_table import BoolArray, IntArray
from esper_env.suggestions import shown

_DEFAULTS = np.asarray(HEAD_DEFAULTS, dtype=np.int64)
#: Heads from the slowest to the fastest in the numbering.
_ORDER = [Head.OP, *(head for head in Head if head != Head.OP)]


class JointActions:
    """All joint actions of some slots and blueprints. Heads that an op does not read are at their defaults.

    They are ordered by op, then by slot, then by the other heads in their order. Action 0 is WAIT.

    Args:
        num_slots: number of slots.
        offered_blueprints: values of the blueprint head that GERMINATE accepts.
    """

    def __init__(self, num_slots: int, offered_blueprints: Sequence[int]) -> None:
        self._sizes = head_sizes(num_slots)
        values = {head: list(range(size)) for head, size in zip(Head, self._sizes, strict=True)}
        values[Head.BLUEPRINT] = sorted(offered_blueprints)
        blocks = []
        for op in Op:
            grid = np.meshgrid(*(values[head] for head in READ_HEADS[op]), indexing="ij")
            block = np.tile(_DEFAULTS, (grid[0].size if grid else 1, 1))
            block[:, Head.OP] = op
            for head, column in zip(READ_HEADS[op], grid, strict=True):
                block[:, head] = column.ravel()
            blocks.append(block)
        self.actions: IntArray = np.concatenate(blocks)  # (K, 8)
        self.actions.flags.writeable = False
        self._codes = self._encode(self.actions)  # ascending
        self._op_slot = self.actions[:, Head.OP] * num_slots + self.actions[:, Head.SLOT]

    def __len__(self) -> int:
        return len(self.actions)

    def mask(self, op_slot_mask: NDArray[np.int8]) -> NDArray[np.int8]:
        """Return the exact masks (..., K) for ``op_slot_mask`` (..., 6 S): 1 for every legal joint action."""
        return op_slot_mask[..., self._op_slot]

    def index(self, actions: ArrayLike) -> IntArray:
        """Return the numbers (...) of actions (..., 8) with the same effects.

        Raises:
            ValueError: ``actions`` are not eight integers each, a value is outside its head, or a blueprint is not
                offered.
        """
        array = array_of(actions)
        if array.shape[-1:] != (NUM_HEADS,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"action is {shown(actions)}; expected {NUM_HEADS} integers ({', '.join(HEAD_NAMES)})")
        inside: BoolArray = np.all((array >= 0) & (array < self._sizes), axis=-1)
        codes = self._encode(np.where(inside[..., None], array, _DEFAULTS))
        index: IntArray = np.minimum(np.searchsorted(self._codes, codes), len(self) - 1)
        known = inside & (self._codes[index] == codes)
        if not known.all():
            wrong = array[tuple(np.argwhere(~known)[0])]
            raise ValueError(
                f"action is {wrong.tolist()}; expected values below {list(self._sizes)}, and a blueprint that is "
                "offered"
            )
        return index

    def _encode(self, actions: IntArray) -> IntArray:
        """Return a number for each action (..., 8), equal for actions of the same effect."""
        read = np.where(HEAD_RELEVANCE[actions[..., Head.OP]], actions, _DEFAULTS)
        columns = tuple(read[..., head] for head in _ORDER)
        codes: IntArray = np.asarray(np.ravel_multi_index(columns, [self._sizes[head] for head in _ORDER]))
        return codes
