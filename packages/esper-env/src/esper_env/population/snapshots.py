"""Snapshots of healthy networks in main memory, to restore a network that breaks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from esper_env.population.shard import Shard
from esper_env.population.stack import RowStore, Stack
from esper_env.population.structure import IntArray, Structure
from esper_env.rules.heads import NO_BLUEPRINT

#: Kinds of tensors in a snapshot. Momentum is left out: it is zero after a rollback.
KINDS = ("parameters", "buffers")


class Snapshots:
    """The latest snapshot of each network of a shard: parameters and buffers of the host and the fossilized seeds.

    A snapshot holds the gate of each seed, whatever the operator, because a seed and its gate are created together.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._shelves: dict[str, RowStore] = {}

    def shelf(self, stack: Stack, name: str) -> RowStore:
        """Return the snapshots of a stack's rows, by name; zeros until they are written."""
        if name not in self._shelves:
            own = stack.tensors()
            zeros = {kind: {key: torch.zeros_like(v, device="cpu") for key, v in own[kind].items()} for kind in KINDS}
            self._shelves[name] = RowStore(zeros, torch.device("cpu"))
        return self._shelves[name]

    def take(self, structure: Structure, rows: IntArray) -> None:
        """Copy the networks of ``rows`` (k,) of the shard."""
        for name, stack, members in self._stacks(structure, rows):
            values = stack.read_rows(members)
            self.shelf(stack, name).write_rows(members, {kind: values[kind] for kind in KINDS})

    def restore(self, structure: Structure, row: int) -> None:
        """Restore one network's host and fossilized seeds bit for bit, with zero momentum."""
        for name, stack, _ in self._stacks(structure, np.array([row])):
            stack.write_rows([row], self._shelves[name].read_rows([row]))
            stack.clear_momentum([row])

    def _stacks(self, structure: Structure, rows: IntArray) -> Iterator[tuple[str, Stack, list[int]]]:
        """The stacks with hosts and fossilized seeds of some networks, each with its rows among ``rows``."""
        fossils = np.where(structure.fossilized, structure.blueprint, NO_BLUEPRINT)
        for name, stack, holders in self._shard.stacks(fossils):
            members = np.intersect1d(holders, rows)
            if len(members):
                yield name, stack, members.tolist()
