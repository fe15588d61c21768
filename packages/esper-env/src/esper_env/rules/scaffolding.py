"""Ledger of boosts between seeds, so that a scaffold is rewarded even after it was pruned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esper_env.persistence.state import ArrayState
from esper_env.rules.slot_table import BoolArray, FloatArray

PairArray = NDArray[np.float64]  # (N, S, S), indexed [environment, booster, boosted]


class ScaffoldLedger(ArrayState):
    """Boosts in accuracy points, per (environment, booster, boosted).

    A pair's boost is max(mean of its measured interactions I_ij, 0) gamma^delay. The delay is the number of steps since
    the pair was last measured. A booster that left keeps its entry. When another seed enters its slot, the entry moves
    to the slot's past, and the new seed starts at 0, both as booster and as boosted.
    """

    STATE = ("_mean", "_count", "_delay", "_past", "_occupied")

    def __init__(self, num_envs: int, num_slots: int, gamma: float) -> None:
        self.gamma = gamma
        pairs = (num_envs, num_slots, num_slots)
        self._mean = np.zeros(pairs)
        self._count = np.zeros(pairs, dtype=np.int64)
        self._delay = np.zeros(pairs, dtype=np.int64)
        self._past = np.zeros(pairs)  # discounted boosts by earlier seeds in the booster's slot
        self._occupied = np.zeros((num_envs, num_slots), dtype=np.bool_)
        self._others = ~np.eye(num_slots, dtype=np.bool_)

    def reset(self, rows: BoolArray) -> None:
        """Clear the environments of ``rows`` (N,)."""
        for array in (self._mean, self._count, self._delay, self._past, self._occupied):
            array[rows] = 0

    def record(self, has_seed: BoolArray, interactions: PairArray, measured: BoolArray) -> None:
        """Record a step: its seeds (N, S), and I_ij in points (N, S, S) where ``measured`` (N, S, S)."""
        arrived = has_seed & ~self._occupied
        self._occupied = has_seed.copy()
        as_booster, as_boosted = arrived[:, :, None], arrived[:, None, :]
        self._past = np.where(as_booster, self._past + self._present(), self._past)
        self._past = np.where(as_boosted, 0.0, self._past) * self.gamma
        for array in (self._mean, self._count, self._delay):
            array[as_booster | as_boosted] = 0

        known = measured & self._others & np.isfinite(interactions)
        self._count += known
        step = np.where(known, interactions, self._mean) - self._mean
        self._mean += step / np.maximum(self._count, 1)
        self._delay = np.where(known, 0, self._delay + 1)

    def boosts(self) -> FloatArray:
        """Return points (N, S) by which other seeds, also pruned ones, have raised the seed in each slot."""
        total: FloatArray = (self._past + self._present()).sum(axis=1)
        return total

    def _present(self) -> PairArray:
        boosts: PairArray = np.maximum(self._mean, 0.0) * self.gamma**self._delay
        return boosts
