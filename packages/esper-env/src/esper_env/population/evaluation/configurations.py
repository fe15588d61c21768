"""Configurations of seeds, and the Shapley values that follow from their scores.

A configuration is a bit mask over slots in order of execution. Configurations of a network share every computation up
to the first slot in which they differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np

from esper_env.population.structure import BoolArray, FloatArray, IntArray

#: Up to this many seeds, Shapley values are exact; above it they are averaged over sampled orders.
EXACT_SHAPLEY_SEEDS = 6
SHAPLEY_SAMPLES = 64


@dataclass(frozen=True)
class ConfigurationSet:
    """Distinct (network, mask) pairs, sorted."""

    networks: IntArray
    masks: IntArray
    slots: int

    @classmethod
    def of(cls, networks: IntArray, masks: IntArray, slots: int) -> ConfigurationSet:
        """Return the distinct pairs among the given ones."""
        keys = np.unique((networks << slots) | masks)
        return cls(keys >> slots, keys & ((1 << slots) - 1), slots)

    def find(self, networks: IntArray, masks: IntArray) -> IntArray:
        """Return the positions of pairs that are in the set."""
        keys = (self.networks << self.slots) | self.masks
        return np.searchsorted(keys, (networks << self.slots) | masks)


def bits(active: BoolArray) -> IntArray:
    """Pack (n, S) booleans in order of execution into (n,) masks."""
    return active.astype(np.int64) @ (1 << np.arange(active.shape[1], dtype=np.int64))


def players_of(mask: int) -> list[int]:
    """Return the bits of a mask, lowest first."""
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def submasks(mask: int) -> list[int]:
    """Return all subsets of a mask, including the empty one and the mask itself."""
    subsets, sub = [0], mask
    while sub:
        subsets.append(sub)
        sub = (sub - 1) & mask
    return subsets


class ShapleyGame:
    """Shapley values (Shapley 1953) of the seeds in a mask: exact up to ``EXACT_SHAPLEY_SEEDS``, sampled above.

    ``masks`` are the configurations whose scores :meth:`values` needs.
    """

    def __init__(self, mask: int, rng: np.random.Generator) -> None:
        self._mask = mask
        players = players_of(mask)
        self._orders: list[list[int]] = []
        if len(players) > EXACT_SHAPLEY_SEEDS:
            self._orders = [[players[k] for k in rng.permutation(len(players))] for _ in range(SHAPLEY_SAMPLES)]
            prefixes = {sum(1 << bit for bit in order[:end]) for order in self._orders for end in range(len(order) + 1)}
            self.masks = sorted(prefixes)
        else:
            self.masks = sorted(submasks(mask))

    def values(self, value: dict[int, float], slots: int) -> FloatArray:
        """Return (S,) values in order of execution, from the score of every mask in ``masks``."""
        return self._sampled(value, slots) if self._orders else self._exact(value, slots)

    def _exact(self, value: dict[int, float], slots: int) -> FloatArray:
        result = np.zeros(slots)
        count = self._mask.bit_count()
        for player in players_of(self._mask):
            for subset in submasks(self._mask & ~(1 << player)):
                size = subset.bit_count()
                weight = factorial(size) * factorial(count - size - 1) / factorial(count)
                result[player] += weight * (value[subset | 1 << player] - value[subset])
        return result

    def _sampled(self, value: dict[int, float], slots: int) -> FloatArray:
        result = np.zeros(slots)
        for order in self._orders:
            on = 0
            for player in order:
                result[player] += (value[on | 1 << player] - value[on]) / len(self._orders)
                on |= 1 << player
        return result
