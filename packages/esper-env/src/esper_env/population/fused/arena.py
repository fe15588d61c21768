"""Places of a shard's tensors in flat arrays, one row for each network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esper_env.population.fused.compiler import Tensors
from esper_env.population.shard import Shard
from esper_env.population.stack import Stack
from esper_env.population.structure import IntArray

Array = NDArray[Any]


class Held(NamedTuple):
    """Rows of a stack: the host, or the seeds or gates of some networks."""

    stack: Stack
    places: dict[str, int]  # of its parameters
    networks: IntArray  # (k,)
    unit: int  # with which the parameters are clipped: 0 for the host, 1 + slot for a seed and its gate


class Arena:
    """Places of the parameters of a shard's hosts, seeds and gates, and of the hosts' running statistics.

    A tensor has the same place in every network.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.width = 0  # parameters of a network so far
        self._places: dict[object, dict[str, int]] = {}
        self._host = self._place("host", shard.host)
        self.stats_width = 0
        self._stats: dict[str, int] = {}  # place of the running mean, by the norm's prefix in the host
        for name, value in shard.host.buffers.items():
            if name.endswith("running_mean"):
                self._stats[name.removesuffix("running_mean")] = self.stats_width
                self.stats_width += 2 * value[0].numel()
        self._segments = [self._segment(number) for number in range(len(shard.segments))]

    def segment(self, number: int) -> Tensors:
        """Return the places of a host segment's tensors."""
        return self._segments[number]

    def seed(self, slot: int, blueprint: int) -> Tensors:
        """Return the places of a seed's tensors."""
        return Tensors(self._place((slot, blueprint), self._shard.seed_stack(slot, blueprint)))

    def gate(self, slot: int) -> Tensors:
        """Return the places of a gate's tensors."""
        return Tensors(self._place(("gate", slot), self._shard.gate_stack(slot)))

    def held_host(self) -> Held:
        """Return the hosts."""
        return Held(self._shard.host, self._host, np.arange(self._shard.rows), 0)

    def held_seeds(self, slot: int, blueprint: int, networks: IntArray) -> Held:
        """Return the seeds of a blueprint of some networks."""
        stack = self._shard.seed_stack(slot, blueprint)
        return Held(stack, self._place((slot, blueprint), stack), networks, 1 + slot)

    def held_gates(self, slot: int, networks: IntArray) -> Held:
        """Return the gates of some networks."""
        stack = self._shard.gate_stack(slot)
        return Held(stack, self._place(("gate", slot), stack), networks, 1 + slot)

    def load_stats(self, out: Array) -> None:
        """Write the hosts' running statistics to (n, M)."""
        for values, place in self._running():
            out[:, place : place + values.shape[1]] = values

    def store_stats(self, stats: Array, batches: int) -> None:
        """Write (n, M) to the hosts' buffers, and count the batches."""
        for values, place in self._running():
            values[:] = stats[:, place : place + values.shape[1]]
        for name, value in self._shard.host.buffers.items():
            if name.endswith("num_batches_tracked"):
                value.add_(batches)

    def _running(self) -> Iterator[tuple[Array, int]]:
        buffers = self._shard.host.buffers
        for prefix, place in self._stats.items():
            mean, variance = buffers[f"{prefix}running_mean"].numpy(), buffers[f"{prefix}running_var"].numpy()
            yield mean, place
            yield variance, place + mean.shape[1]

    def _segment(self, number: int) -> Tensors:
        parameters: dict[str, int] = {}
        stats: dict[str, int] = {}
        for full, short in self._shard.segment_names(number):
            if full in self._host:
                parameters[short] = self._host[full]
            elif full.endswith("running_mean"):
                stats[short.removesuffix("running_mean")] = self._stats[full.removesuffix("running_mean")]
        return Tensors(parameters, stats)

    def _place(self, key: object, stack: Stack) -> dict[str, int]:
        if key not in self._places:
            places = self._places[key] = {}
            for name, value in stack.parameters.items():
                places[name] = self.width
                self.width += value[0].numel()
        return self._places[key]


def load(values: dict[str, Tensor], held: Held, out: Array) -> None:
    """Copy rows of a stack's tensors to their places in (n, L)."""
    for name, place in held.places.items():
        tensor = values[name].numpy().reshape(len(values[name]), -1)
        out[held.networks, place : place + tensor.shape[1]] = tensor[held.networks]


def store(values: dict[str, Tensor], held: Held, given: Array) -> None:
    """Copy values of (n, L) back to rows of a stack's tensors."""
    for name, place in held.places.items():
        tensor = values[name].numpy().reshape(len(values[name]), -1)
        tensor[held.networks] = given[held.networks, place : place + tensor.shape[1]]
