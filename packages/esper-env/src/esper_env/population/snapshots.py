"""Snapshots of healthy networks in main memory, to restore a network that breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from esper_env.population.shard import Shard
from esper_env.population.stack import RowStore, Stack
from esper_env.population.structure import IntArray, Structure
from esper_env.rules.heads import NO_BLUEPRINT

#: Kinds of tensors in a snapshot. Momentum is left out: it is zero after a rollback.
KINDS = ("parameters", "buffers")


class Mismatch(NamedTuple):
    """Names of tensors that the snapshot lacks, and that the network lacks; both are empty in a sound system."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


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

    def restore(self, structure: Structure, row: int) -> Mismatch:
        """Restore one network's host and fossilized seeds bit for bit, with zero momentum."""
        missing: list[str] = []
        unexpected: list[str] = []
        for name, stack, _ in self._stacks(structure, np.array([row])):
            own = stack.tensors()
            shelf = self._shelves[name].read_rows([row]) if name in self._shelves else {}
            for kind in KINDS:
                kept = shelf.get(kind, {})
                missing += [f"{name}/{kind}/{key}" for key in own[kind] if key not in kept]
                unexpected += [f"{name}/{kind}/{key}" for key in kept if key not in own[kind]]
                stack.write_rows([row], {kind: {key: value for key, value in kept.items() if key in own[kind]}})
            stack.clear_momentum([row])
        return Mismatch(tuple(missing), tuple(unexpected))

    def _stacks(self, structure: Structure, rows: IntArray) -> Iterator[tuple[str, Stack, list[int]]]:
        """The stacks with hosts and fossilized seeds of some networks, each with its rows among ``rows``."""
        fossils = np.where(structure.fossilized, structure.blueprint, NO_BLUEPRINT)
        for name, stack, holders in self._shard.stacks(fossils):
            members = np.intersect1d(holders, rows)
            if len(members):
                yield name, stack, members.tolist()
