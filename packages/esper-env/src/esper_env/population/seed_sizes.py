"""Trainable scalars of the seeds and gates that networks have added."""

from __future__ import annotations

import numpy as np

from esper_env.population.shard import Shard
from esper_env.population.structure import BoolArray, IntArray, Structure
from esper_env.rules.heads import NO_BLUEPRINT, Operator


class SeedSizes:
    """Sizes of the seeds and gates attached so far, by slot and blueprint; equal in every shard."""

    def __init__(self, slots: int) -> None:
        self._seeds = np.zeros((slots, NO_BLUEPRINT), dtype=np.int64)
        self._gates = np.zeros(slots, dtype=np.int64)

    def note(self, shard: Shard, slot: int, blueprint: int) -> None:
        """Note the sizes of a seed and its gate at a slot of a shard."""
        self._seeds[slot, blueprint] = shard.seed_stack(slot, blueprint).size
        self._gates[slot] = shard.gate_stack(slot).size

    def added(self, structure: Structure, counted: BoolArray) -> IntArray:
        """(N,) trainable scalars of the counted seeds (N, S), including the gates in use."""
        seeds = self._seeds[np.arange(len(self._gates)), np.where(counted, structure.blueprint, 0)]
        gates = np.where(structure.operator == Operator.GATE, self._gates, 0)
        added: IntArray = ((seeds + gates) * counted).sum(axis=1)
        return added
