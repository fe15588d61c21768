"""The state of a population, as arrays that do not depend on how its networks are laid out in shards.

| array | content |
|---|---|
| episode_seeds (N,), births (N, S) | what the networks started from, and how many seeds each slot has had |
| host/KIND/NAME (N, ...) | a tensor of the hosts; KIND is parameters, momentum or buffers |
| seeds/SLOT/BLUEPRINT/KIND/NAME (k, ...) | of the k networks whose slot holds that blueprint, in their order |
| gates/SLOT/KIND/NAME (k, ...) | of the k networks whose slot holds a seed |
| snapshots/... | likewise what the governor has put aside: hosts, and seeds and gates of ``saved`` slots; no momentum |
| streams/generator (N, L), left (sum,), left_lengths (N,) | the minibatches to come |

Rows of a stack that belong to no seed are not here: whoever moves in has fresh ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esper_env.persistence.state import Commit, check_arrays
from esper_env.persistence.tree import Arrays, Tree, arrays_of, join_tree
from esper_env.population.shard import Shard
from esper_env.population.snapshots import Snapshots
from esper_env.population.stack import RowStore, RowTensors, Stack
from esper_env.population.training.minibatches import MinibatchStream
from esper_env.rules.heads import NO_BLUEPRINT

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
_NAME = "population"


class Networks(NamedTuple):
    """What a population holds: shards, which networks each has, and a stream for every network."""

    shards: list[Shard]
    slices: list[slice]
    streams: list[MinibatchStream]
    snapshots: list[Snapshots]  # of each shard

    @property
    def slots(self) -> int:
        """Number of slots of a network."""
        return len(self.shards[0].slots)


class _Place(NamedTuple):
    """Where the tensors of some networks are: what holds them in each shard, and its name in the state."""

    path: str
    store: Callable[[int], RowStore]  # of a shard
    rows: IntArray  # (k,) networks


class _Write(NamedTuple):
    """What one store is about to take in."""

    store: RowStore
    rows: list[int]  # of the shard
    values: RowTensors


def networks_state(networks: Networks, blueprint: IntArray, saved: BoolArray) -> Tree:
    """The state of networks whose slots hold ``blueprint`` (N, S), the ``saved`` ones (N, S) in their snapshots too."""
    shards, streams = networks.shards, [stream.get_state() for stream in networks.streams]
    arrays: Arrays = {
        "episode_seeds": np.concatenate([shard.row_seeds for shard in shards]),
        "births": np.concatenate([shard.births for shard in shards]),
        "streams/generator": np.stack([generator.numpy() for generator, _ in streams]),
        "streams/left": np.concatenate([left.cpu().numpy() for _, left in streams]),
        "streams/left_lengths": np.array([len(left) for _, left in streams], dtype=np.int64),
    }
    for place in _places(networks, blueprint, saved):
        parts = [_flat(place.store(shard).read_rows(rows)) for shard, rows, _ in _by_shard(networks, place.rows)]
        arrays |= {f"{place.path}/{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return join_tree({}, arrays)


def prepare_networks(networks: Networks, state: Tree, blueprint: IntArray, saved: BoolArray) -> Commit:
    """Check the state of networks as :func:`networks_state` takes it; returns what puts it in place.

    Raises ``ValueError`` for missing, unknown or misshapen arrays, and for values that no stream can have.
    """
    given = arrays_of(state, _NAME)
    if (saved & (blueprint == NO_BLUEPRINT)).any():
        raise ValueError(f"{_NAME} of the state: a snapshot holds a seed where the table has none")
    places = list(_places(networks, blueprint, saved))
    left = given.get("streams/left", np.zeros(0, dtype=np.int64))
    like: Arrays = {
        "episode_seeds": np.zeros(len(blueprint), dtype=np.int64),
        "births": np.zeros(blueprint.shape, dtype=np.int64),
        "streams/generator": np.stack([stream.get_state()[0].numpy() for stream in networks.streams]),
        "streams/left": np.zeros(left.size, dtype=np.int64),
        "streams/left_lengths": np.zeros(len(blueprint), dtype=np.int64),
    }
    for place in places:
        one = place.store(_by_shard(networks, place.rows)[0][0]).read_rows([0])
        like |= {f"{place.path}/{name}": _rows_like(row, len(place.rows)) for name, row in _flat(one).items()}
    check_arrays(_NAME, given, like)
    if (given["episode_seeds"] < 0).any() or (given["births"] < 0).any():
        raise ValueError(f"{_NAME} of the state: episode_seeds and births must be 0 or greater")
    streams = _prepared_streams(networks, given)
    writes = [write for place in places for write in _prepared_writes(networks, place, given)]

    def commit() -> None:
        for store, rows, values in writes:
            store.write_rows(rows, values)
        for stream, (generator, rest) in zip(networks.streams, streams, strict=True):
            stream.go_on(generator, rest)
        for shard, own in zip(networks.shards, networks.slices, strict=True):
            shard.row_seeds[:], shard.births[:] = given["episode_seeds"][own], given["births"][own]

    return commit


def _places(networks: Networks, blueprint: IntArray, saved: BoolArray) -> Iterator[_Place]:
    kept = np.where(saved, blueprint, NO_BLUEPRINT)
    for prefix, held, aside in (("", blueprint, False), ("snapshots/", kept, True)):
        for name, stack, rows in _stacks(networks, held):
            yield _Place(prefix + name, partial(_store, networks, stack, name if aside else None), rows)


def _stacks(networks: Networks, blueprint: IntArray) -> Iterator[tuple[str, Callable[[Shard], Stack], IntArray]]:
    """The stacks of hosts, of the seeds in the slots, and of their gates, each with its networks (k,)."""
    yield "host", lambda shard: shard.host, np.arange(len(blueprint))
    for slot in range(networks.slots):
        held = blueprint[:, slot]
        for kind in np.unique(held[held != NO_BLUEPRINT]).tolist():
            stack = partial(Shard.seed_stack, slot=slot, blueprint=kind)
            yield f"seeds/{slot}/{kind}", stack, np.flatnonzero(held == kind)
        if (held != NO_BLUEPRINT).any():
            yield f"gates/{slot}", partial(Shard.gate_stack, slot=slot), np.flatnonzero(held != NO_BLUEPRINT)


def _store(networks: Networks, stack: Callable[[Shard], Stack], shelf: str | None, shard: int) -> RowStore:
    """A shard's stack, or the shelf of that name on which it is put aside."""
    own = stack(networks.shards[shard])
    return own if shelf is None else networks.snapshots[shard].shelf(own, shelf)


def _by_shard(networks: Networks, rows: IntArray) -> list[tuple[int, list[int], BoolArray]]:
    """The shards that hold some of ``rows`` (k,), the rows within each, and which of the k they are."""
    found = []
    for shard, own in enumerate(networks.slices):
        here = (rows >= own.start) & (rows < own.stop)
        if here.any():
            found.append((shard, (rows[here] - own.start).tolist(), here))
    return found


def _flat(values: RowTensors) -> Arrays:
    return {f"{kind}/{name}": each.cpu().numpy() for kind, part in values.items() for name, each in part.items()}


def _rows_like(row: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.broadcast_to(row, (rows, *row.shape[1:]))


def _prepared_writes(networks: Networks, place: _Place, given: Arrays) -> Iterator[_Write]:
    for shard, rows, here in _by_shard(networks, place.rows):
        store = place.store(shard)
        values = {
            kind: {
                name: torch.from_numpy(given[f"{place.path}/{kind}/{name}"][here]).to(own.device)
                for name, own in tensors.items()
            }
            for kind, tensors in store.tensors().items()
        }
        yield _Write(store, rows, values)


def _prepared_streams(networks: Networks, given: Arrays) -> list[tuple[torch.Generator, torch.Tensor]]:
    lengths, left = given["streams/left_lengths"], given["streams/left"]
    if (lengths < 0).any() or lengths.sum() != len(left):
        raise ValueError(f"{_NAME} of the state: left_lengths sum to {lengths.sum()}; left has {len(left)} numbers")
    pieces: list[Any] = np.split(left, np.cumsum(lengths)[:-1])
    return [
        stream.prepared(generator, piece)
        for stream, generator, piece in zip(networks.streams, given["streams/generator"], pieces, strict=True)
    ]
