"""Healthy networks put aside in main memory, to go back to when one breaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.networks.population.network import Shard
from esper_env.networks.population.stack import Stack
from esper_env.networks.population.structure import Structure

Rows = NDArray[np.int64]


class Mismatch(NamedTuple):
    """Names of tensors that the snapshot lacks, and that the network lacks; both are empty in a sound system."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class Snapshots:
    """The last snapshot of each network of a shard: host and fossilized seeds, parameters and buffers.

    Gates are kept with their seeds, whatever the operator, as a seed and its gate are born together.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        #: Name of a stack -> its tensors by qualified name, each with a row for every network of the shard.
        self.tensors: dict[str, dict[str, Tensor]] = {}

    def take(self, structure: Structure, rows: Rows) -> None:
        """Put the networks of ``rows`` (k,) of the shard aside."""
        for name, stack, members in self._stacks(structure, rows):
            kept = self.tensors.setdefault(name, self._blank(stack))
            for key, value in stack.values().items():
                kept[key][members] = value[members].cpu()

    def restore(self, structure: Structure, row: int) -> Mismatch:
        """Put one network's host and fossilized seeds back, bit for bit, with zero momentum."""
        missing: list[str] = []
        unexpected: list[str] = []
        for name, stack, _ in self._stacks(structure, np.array([row])):
            kept, own = self.tensors.get(name, {}), stack.values()
            missing += [f"{name}.{key}" for key in own if key not in kept]
            unexpected += [f"{name}.{key}" for key in kept if key not in own]
            with torch.no_grad():
                for key in own.keys() & kept.keys():
                    own[key][row].copy_(kept[key][row])
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
                yield f"seed {slot} {blueprint}", shard.seed_stack(slot, blueprint), members
            if len(fossils):
                yield f"gate {slot}", shard.gate_stack(slot), fossils

    def _blank(self, stack: Stack) -> dict[str, Tensor]:
        return {key: torch.zeros_like(value, device="cpu") for key, value in stack.values().items()}
