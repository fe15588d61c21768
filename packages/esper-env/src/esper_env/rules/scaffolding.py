"""A ledger of which seed raised which other seed's contribution, so that a scaffold is paid even when it is gone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from esper_env.persistence.state import ArrayState
from esper_env.rules.slot_table import BoolArray, FloatArray

PairArray = NDArray[np.float64]  # (N, S, S), indexed [environment, booster, boosted]


class ScaffoldLedger(ArrayState):
    """Boosts in accuracy points, per (environment, booster, boosted).

    A pair's boost is the mean of its measured interactions I_ij (noise averages out), never below 0, times
    gamma^delay, where delay is the number of steps since the pair was last measured. A booster that left its slot
    keeps its entry; when another seed moves in, the entry joins the slot's past and the newcomer starts at 0. A
    boosted seed that left has nothing to collect: a newcomer's column starts at 0.
    """

    STATE = ("_mean", "_count", "_delay", "_past", "_occupied")

    def __init__(self, num_envs: int, num_slots: int, gamma: float) -> None:
        self.gamma = gamma
        pairs = (num_envs, num_slots, num_slots)
        self._mean = np.zeros(pairs)
        self._count = np.zeros(pairs, dtype=np.int64)
        self._delay = np.zeros(pairs, dtype=np.int64)
        self._past = np.zeros(pairs)  # discounted boosts by earlier seeds of the booster's slot
        self._occupied = np.zeros((num_envs, num_slots), dtype=np.bool_)
        self._others = ~np.eye(num_slots, dtype=np.bool_)

    def reset(self, rows: BoolArray) -> None:
        """Forget everything in the environments of ``rows`` (N,)."""
        for array in (self._mean, self._count, self._delay, self._past, self._occupied):
            array[rows] = 0

    def record(self, has_seed: BoolArray, interactions: PairArray, measured: BoolArray) -> None:
        """Enter one step: the seeds present after it (N, S), and I_ij in points (N, S, S) where ``measured``."""
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
        """(N, S) points by which the others, present or gone, have raised the seed in each slot."""
        total: FloatArray = (self._past + self._present()).sum(axis=1)
        return total

    def _present(self) -> PairArray:
        boosts: PairArray = np.maximum(self._mean, 0.0) * self.gamma**self._delay
        return boosts
