"""Healthy networks put aside in main memory, to go back to when one breaks."""

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

#: What of a stack is put aside: all but the momentum, which starts anew after a rollback.
KINDS = ("parameters", "buffers")


class Mismatch(NamedTuple):
    """Names of tensors that the snapshot lacks, and that the network lacks; both are empty in a sound system."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class Shelf(RowStore):
    """What is put aside of a stack, in main memory. A row holds zeros until it is written."""

    def __init__(self, stack: Stack) -> None:
        self._device = torch.device("cpu")
        own = stack.tensors()
        self._tensors: RowTensors = {
            kind: {name: torch.zeros_like(value, device="cpu") for name, value in own[kind].items()} for kind in KINDS
        }

    def tensors(self) -> RowTensors:
        return self._tensors


class Snapshots:
    """The last snapshot of each network of a shard: host and fossilized seeds, parameters and buffers.

    Gates are kept with their seeds, whatever the operator, as a seed and its gate are born together.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._shelves: dict[str, Shelf] = {}

    def shelf(self, stack: Stack, name: str) -> Shelf:
        """Where a stack is put aside, by name; made when it is first used."""
        if name not in self._shelves:
            self._shelves[name] = Shelf(stack)
        return self._shelves[name]

    def take(self, structure: Structure, rows: Rows) -> None:
        """Put the networks of ``rows`` (k,) of the shard aside."""
        for name, stack, members in self._stacks(structure, rows):
            values = stack.read_rows(members.tolist())
            kept = {kind: {key: value.cpu() for key, value in values[kind].items()} for kind in KINDS}
            self.shelf(stack, name).write_rows(members.tolist(), kept)

    def restore(self, structure: Structure, row: int) -> Mismatch:
        """Put one network's host and fossilized seeds back, bit for bit, with zero momentum."""
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
        """The stacks that hold hosts and fossilized seeds of some networks, each with those of the networks."""
        shard = self._shard
        yield "host", shard.host, rows
        for slot in range(len(shard.slots)):
            fossils = rows[structure.fossilized[rows, slot]]
            for blueprint in np.unique(structure.blueprint[fossils, slot]).tolist():
                members = fossils[structure.blueprint[fossils, slot] == blueprint]
                yield f"seeds/{slot}/{blueprint}", shard.seed_stack(slot, blueprint), members
            if len(fossils):
                yield f"gates/{slot}", shard.gate_stack(slot), fossils
