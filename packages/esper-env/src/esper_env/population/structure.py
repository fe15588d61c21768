"""The part of the slot table that the population depends on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from esper_env.rules.slot_table import DOWN, BoolArray, FloatArray, IntArray, SlotTable
from esper_env.rules.stages import Stage

__all__ = ["BoolArray", "FloatArray", "IntArray", "Structure"]


class Structure(NamedTuple):
    """The seeds of n networks; each field is (n, S) in action order."""

    blueprint: IntArray
    operator: IntArray
    alpha: FloatArray
    blended: BoolArray  # the seed is blended into the host's features
    training: BoolArray  # the seed trains in isolation
    frozen: BoolArray  # blended, but neither seed nor gate is updated
    fossilized: BoolArray

    @classmethod
    def of(cls, table: SlotTable) -> Structure:
        """Return the structure of a slot table; the arrays are copies."""
        blended = table.is_blended
        return cls(
            table.blueprint.copy(),
            table.operator.copy(),
            table.alpha.copy(),
            blended,
            table.stage == Stage.TRAINING,
            blended & (table.alpha_mode == DOWN),
            table.stage == Stage.FOSSILIZED,
        )

    def rows(self, rows: slice | IntArray) -> Structure:
        """Return the structure of some networks."""
        return Structure._make(column[rows] for column in self)

    def signature(self) -> bytes:
        """Return a key that is equal where training runs the same operations on the same rows.

        Alphas and freezing are values, so the key does not depend on them.
        """
        runs = self.blended | self.training
        kinds = (np.where(runs, self.blueprint, -1), np.where(runs, self.operator, -1), self.training)
        return b"".join(np.ascontiguousarray(kind).tobytes() for kind in kinds)

    def alpha_on(self, networks: IntArray, slot: int) -> FloatArray:
        """(k,) alphas of the seeds at a slot when they are on; 1 for seeds that train in isolation."""
        return np.where(self.training[networks, slot], 1.0, self.alpha[networks, slot])
