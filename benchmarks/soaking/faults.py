"""Faults that a soak injects into the state of a vector environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np

#: Factor of the host's weights in an explosion.
EXPLOSION = 30.0


class Fault(Enum):
    """A kind of fault; ``must_be_caught`` is True if the governor must roll every network back at once."""

    NAN_WEIGHT = ("a parameter of host or seed is not a number", True)
    INFINITE_BUFFER = ("a running statistic of the host is infinite", True)
    EXPLOSION = ("the host's parameters are too large", False)
    COLLAPSE = ("the host's parameters are zero", False)

    def __init__(self, words: str, must_be_caught: bool) -> None:
        self.words, self.must_be_caught = words, must_be_caught

    def __str__(self) -> str:
        return self.words


FAULTS = tuple(Fault)


def inject(fault: Fault, state: Mapping[str, Any], row: int, rng: np.random.Generator) -> int | None:
    """Inject a fault into one network of a state, in place; return the seed's slot, or None for the host."""
    return _INJECT[fault](state, row, rng)


def _nan_weight(state: Mapping[str, Any], row: int, rng: np.random.Generator) -> int | None:
    places = list(_parameters(state, row))
    slot, values, index = places[rng.integers(len(places))]
    _set_one(values, index, np.nan, rng)
    return slot


def _infinite_buffer(state: Mapping[str, Any], row: int, rng: np.random.Generator) -> None:
    buffers = state["population"]["host"]["buffers"]
    names = [name for name, values in buffers.items() if values.dtype.kind == "f"]
    _set_one(buffers[names[rng.integers(len(names))]], row, np.inf, rng)


def _explosion(state: Mapping[str, Any], row: int, rng: np.random.Generator) -> None:  # noqa: ARG001
    for values in state["population"]["host"]["parameters"].values():
        values[row] *= EXPLOSION


def _collapse(state: Mapping[str, Any], row: int, rng: np.random.Generator) -> None:  # noqa: ARG001
    for values in state["population"]["host"]["parameters"].values():
        values[row] = 0


_INJECT: dict[Fault, Callable[[Mapping[str, Any], int, np.random.Generator], int | None]] = {
    Fault.NAN_WEIGHT: _nan_weight,
    Fault.INFINITE_BUFFER: _infinite_buffer,
    Fault.EXPLOSION: _explosion,
    Fault.COLLAPSE: _collapse,
}


def _parameters(state: Mapping[str, Any], row: int) -> Iterator[tuple[int | None, np.ndarray, int]]:
    """Parameters of a network's host (slot None) and seeds, as (slot, array, row of the network)."""
    population, blueprint = state["population"], state["table"]["blueprint"]
    yield from ((None, values, row) for values in population["host"]["parameters"].values())
    for slot, kinds in population.get("seeds", {}).items():
        for kind, tensors in kinds.items():
            holders = np.flatnonzero(blueprint[:, int(slot)] == int(kind)).tolist()
            if row in holders:
                yield from ((int(slot), values, holders.index(row)) for values in tensors["parameters"].values())


def _set_one(values: np.ndarray, row: int, value: float, rng: np.random.Generator) -> None:
    """Set one element of a row."""
    values[(row, *(rng.integers(size) for size in values.shape[1:]))] = value
