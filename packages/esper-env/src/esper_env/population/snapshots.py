"""Snapshots of healthy networks in main memory, to restore a network that breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esper_env.population.shard import Shard
from esper_env.population.stack import RowStore, RowTensors, Stack
from esper_env.population.structure import Structure

Rows = NDArray[np.int64]

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

    def take(self, structure: Structure, rows: Rows) -> None:
        """Copy the networks of ``rows`` (k,) of the shard."""
        for name, stack, members in self._stacks(structure, rows):
            values = stack.read_rows(members.tolist())
            kept = {kind: {key: value.cpu() for key, value in values[kind].items()} for kind in KINDS}
            self.shelf(stack, name).write_rows(members.tolist(), kept)

    def restore(self, structure: Structure, row: int) -> Mismatch:
        """Restore one network's host and fossilized seeds bit for bit, with zero momentum."""
        missing: list[str] = []
        unexpected: list[str] = []
        for name, stack, _ in self._stacks(structure, np.array([row])):
            shelf, own = self._shelves.get(name), stack.tensors()
            kept: RowTensors = {kind: {} for kind in KINDS} if shelf is None else shelf.read_rows([row])
            for kind in KINDS:
                missing += [f"{name}/{kind}/{key}" for key in own[kind] if key not in kept[kind]]
                unexpected += [f"{name}/{kind}/{key}" for key in kept[kind] if key not in own[kind]]
            known = {
                kind: {key: value.to(own[kind][key].device) for key, value in kept[kind].items() if key in own[kind]}
                for kind in KINDS
            }
            stack.write_rows([row], known)
            stack.clear_momentum([row])
        return Mismatch(tuple(missing), tuple(unexpected))

    def _stacks(self, structure: Structure, rows: Rows) -> Iterator[tuple[str, Stack, Rows]]:
        """The stacks with hosts and fossilized seeds of some networks, each with its rows among ``rows``."""
        shard = self._shard
        yield "host", shard.host, rows
        for slot in range(len(shard.slots)):
            fossils = rows[structure.fossilized[rows, slot]]
            for blueprint in np.unique(structure.blueprint[fossils, slot]).tolist():
                members = fossils[structure.blueprint[fossils, slot] == blueprint]
                yield f"seeds/{slot}/{blueprint}", shard.seed_stack(slot, blueprint), members
            if len(fossils):
                yield f"gates/{slot}", shard.gate_stack(slot), fossils
