"""Flat arrays of a shard's tensors, one row for each network, for compiled functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.population.fused.compiler import Tensors
from esper_env.population.shard import Shard
from esper_env.population.stack import Stack
from esper_env.population.structure import BoolArray, IntArray
from esper_env.rules.heads import NO_BLUEPRINT

Array = NDArray[Any]
#: Keys of stacks: HOST, (slot, blueprint) for a seed, (GATE, slot) for a gate.
HOST, GATE = "host", "gate"


class Values(NamedTuple):
    """Parameters, momentum and running statistics of n networks."""

    theta: Array  # (n, L) parameters
    velocity: Array  # (n, L) the momentum of the optimizer
    stats: Array  # (n, M) running statistics


class Arena:
    """Places of the parameters, momentum and running statistics of a shard's networks, the same in every network.

    After :meth:`move_in`, the parameters and the momentum of the shard's stacks are views of flat arrays. Running
    statistics are copied in both directions, because PyTorch's normalisation only updates contiguous tensors.
    """

    def __init__(self, shard: Shard) -> None:
        self._stacks: dict[Any, Stack] = {HOST: shard.host}
        for slot in range(len(shard.slots)):
            for entry in shard.blueprints:
                self._stacks[slot, entry.value] = shard.seed_stack(slot, entry.value)
            self._stacks[GATE, slot] = shard.gate_stack(slot)
        #: Place and length of every parameter, by stack and name.
        self._pieces: dict[Any, dict[str, tuple[int, int]]] = {}
        self._columns: dict[Any, slice] = {}  # of each stack
        self.width = 0  # L, the scalar parameters of a network
        for key, stack in self._stacks.items():
            own, start = self._pieces.setdefault(key, {}), self.width
            for name, value in stack.parameters.items():
                own[name] = self.width, value[0].numel()
                self.width += value[0].numel()
            self._columns[key] = slice(start, self.width)
        self._places: dict[str, int] = {}  # of running means, by the layer's prefix; the variance follows
        self._stats_width = 0
        for name, value in shard.host.buffers.items():
            if name.endswith("running_mean"):
                self._places[name.removesuffix("running_mean")] = self._stats_width
                self._stats_width += 2 * value[0].numel()
        self.dtype = np.float64 if shard.dtype is torch.float64 else np.float32
        self._theta, self._velocity = (np.zeros((shard.rows, self.width), self.dtype) for _ in range(2))
        self._counters = [v for name, v in shard.host.buffers.items() if name.endswith("num_batches_tracked")]
        self._segments = [self._segment(shard, number) for number in range(len(shard.segments))]

    def move_in(self) -> None:
        """Make the stacks' tensors views of the flat arrays."""
        for key, stack in self._stacks.items():
            for name, (place, _) in self._pieces[key].items():
                _move(stack.parameters, name, self._theta, place)
                _move(stack.momentum, name, self._velocity, place)

    def segment(self, number: int) -> Tensors:
        """Return the places of a host segment's tensors."""
        return self._segments[number]

    def tensors(self, *key: Any) -> Tensors:
        """Return the places of the tensors of a seed (slot, blueprint) or a gate (GATE, slot)."""
        return Tensors({name: place for name, (place, _) in self._pieces[key].items()})

    def pieces(self, key: Any, unit: int) -> Iterator[tuple[int, int, int]]:
        """Yield the place, the length and ``unit`` for every parameter of a stack."""
        for place, length in self._pieces[key].values():
            yield place, length, unit

    def values(self) -> Values:
        """Return the arrays of parameters and momentum themselves, and a copy of the running statistics."""
        stats = np.zeros((len(self._theta), self._stats_width), self.dtype)
        for value, columns in self._running():
            stats[:, columns] = value
        return Values(self._theta, self._velocity, stats)

    def store(self, stats: Array, batches: int) -> None:
        """Write the running statistics (n, M) to the stacks, and add ``batches`` to the batch counters."""
        for value, columns in self._running():
            value[:] = stats[:, columns]
        for counter in self._counters:
            counter.add_(batches)

    def _running(self) -> Iterator[tuple[Array, slice]]:
        for prefix, place in self._places.items():
            mean, variance = (self._stacks[HOST].buffers[f"{prefix}running_{kind}"].numpy() for kind in ("mean", "var"))
            size = mean.shape[1]
            yield mean, slice(place, place + size)
            yield variance, slice(place + size, place + 2 * size)

    def finite(self, stats: Array, blueprint: IntArray) -> BoolArray:
        """(n,) True if the running statistics and the parameters of a network are finite, including seeds and gates.

        ``stats`` (n, M) are the running statistics, ``blueprint`` (n, S) the blueprints of the seeds.
        """
        finite: BoolArray = np.logical_and.reduce(np.isfinite(stats), axis=1)
        for key, columns in self._columns.items():
            if key == HOST:
                held = np.ones(len(finite), np.bool_)
            else:
                held = blueprint[:, key[1]] != NO_BLUEPRINT if key[0] == GATE else blueprint[:, key[0]] == key[1]
            if held.any():
                finite[held] &= np.isfinite(self._theta[held, columns]).all(axis=1)
        return finite

    def _segment(self, shard: Shard, number: int) -> Tensors:
        parameters: dict[str, int] = {}
        stats: dict[str, int] = {}
        for full, short in shard.segment_names(number):
            if full in self._pieces[HOST]:
                parameters[short] = self._pieces[HOST][full][0]
            elif full.endswith("running_mean"):
                stats[short.removesuffix("running_mean")] = self._places[full.removesuffix("running_mean")]
        return Tensors(parameters, stats)


def _move(tensors: dict[str, Tensor], name: str, to: Array, place: int) -> None:
    """Replace a tensor (n, ...) by a view of the zeros ``to`` (n, L) from ``place`` on; keep its values."""
    value = tensors[name]
    view = torch.from_numpy(to[:, place : place + value[0].numel()]).view(value.shape)
    tensors[name] = view.copy_(value) if value.any() else view  # zeros take no memory until they are written
