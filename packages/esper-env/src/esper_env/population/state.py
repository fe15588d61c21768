"""The state of a population, as arrays that do not depend on how its networks are laid out in shards.

| array | content |
|---|---|
| episode_seeds (N,), births (N, S) | seeds of the episodes, and how many seeds each slot has had |
| host/KIND/NAME (N, ...) | a tensor of the hosts; KIND is parameters, momentum or buffers |
| seeds/SLOT/BLUEPRINT/KIND/NAME (k, ...) | of the k networks whose slot holds that blueprint, in their order |
| gates/SLOT/KIND/NAME (k, ...) | of the k networks whose slot holds a seed |
| snapshots/... | the same for the snapshots: hosts, and seeds and gates of ``saved`` slots; no momentum |
| streams/generator (N, L), left (sum,), left_lengths (N,) | the generators, and the rest of the current permutations |

Rows of a stack that belong to no seed are not part of the state: a newborn seed overwrites them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esper_env.persistence.state import check_keys, check_like
from esper_env.persistence.tree import Arrays, Tree, join_tree, split_tree
from esper_env.population.shard import Shard
from esper_env.population.snapshots import Snapshots
from esper_env.population.stack import RowStore, RowTensors, Stack
from esper_env.population.training.minibatches import MinibatchStream
from esper_env.rules.heads import NO_BLUEPRINT

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Networks(NamedTuple):
    """The content of a population: shards, the networks of each, and a stream for every network."""

    shards: list[Shard]
    slices: list[slice]
    streams: list[MinibatchStream]
    snapshots: list[Snapshots]  # of each shard

    @property
    def slots(self) -> int:
        """Number of slots of a network."""
        return len(self.shards[0].slots)


class _Place(NamedTuple):
    """The place of some networks' tensors: the store in each shard, and its path in the state."""

    path: str
    store: Callable[[int], RowStore]  # of a shard
    rows: IntArray  # (k,) networks


def get_networks(networks: Networks, blueprint: IntArray, saved: BoolArray) -> Tree:
    """Return the state of networks with the seeds ``blueprint`` (N, S); ``saved`` (N, S) ones are in snapshots too."""
    shards, streams = networks.shards, [stream.get_state() for stream in networks.streams]
    arrays: Arrays = {
        "episode_seeds": np.concatenate([shard.row_seeds for shard in shards]),
        "births": np.concatenate([shard.births for shard in shards]),
        "streams/generator": np.stack([stream["generator"] for stream in streams]),
        "streams/left": np.concatenate([stream["left"] for stream in streams]),
        "streams/left_lengths": np.array([len(stream["left"]) for stream in streams], dtype=np.int64),
    }
    for place in _places(networks, blueprint, saved):
        parts = [_flat(place.store(shard).read_rows(rows)) for shard, rows, _ in _by_shard(networks, place.rows)]
        arrays |= {f"{place.path}/{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return join_tree({}, arrays)


def set_networks(networks: Networks, state: Tree, blueprint: IntArray, saved: BoolArray) -> None:
    """Load a state of networks with these seeds; ``ValueError`` if it does not fit."""
    if (saved & (blueprint == NO_BLUEPRINT)).any():
        raise ValueError("a snapshot holds a seed where the table has none")
    _check_form(state, get_networks(networks, blueprint, saved))
    if (state["episode_seeds"] < 0).any() or (state["births"] < 0).any():
        raise ValueError("episode_seeds and births have negative numbers; expected 0 or more")
    _set_streams(networks.streams, state["streams"])
    _, given = split_tree(state)
    for place in _places(networks, blueprint, saved):
        for index, rows, here in _by_shard(networks, place.rows):
            store = place.store(index)
            store.write_rows(rows, _rows_of(given, place.path, here, store.tensors()))
    for shard, own in zip(networks.shards, networks.slices, strict=True):
        shard.row_seeds[:], shard.births[:] = state["episode_seeds"][own], state["births"][own]


def _check_form(state: Tree, like: Tree) -> None:
    """Compare with the own state, in which only the number of samples left in the streams may differ."""
    check_keys(state, like)
    streams = state["streams"]
    left = streams.get("left") if isinstance(streams, dict) else None
    if isinstance(left, np.ndarray) and left.ndim == 1:
        like["streams"]["left"] = np.zeros(len(left), dtype=np.int64)
    check_like(state, like)


def _set_streams(streams: Sequence[MinibatchStream], state: Tree) -> None:
    lengths, left = state["left_lengths"], state["left"]
    if (lengths < 0).any() or lengths.sum() != len(left):
        raise ValueError(f"streams: left_lengths sum to {lengths.sum()}; left has {len(left)} numbers")
    pieces = np.split(left, np.cumsum(lengths)[:-1])
    for index, stream in enumerate(streams):
        try:
            stream.set_state({"generator": state["generator"][index], "left": pieces[index]})
        except ValueError as error:
            raise ValueError(f"streams: network {index}: {error}") from error


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
    """Return a shard's stack, or its shelf of that name in the snapshots."""
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


def _rows_of(given: Arrays, path: str, here: BoolArray, own: RowTensors) -> RowTensors:
    """The arrays at a path of the state, as tensors of the rows of one store."""
    return {
        kind: {
            name: torch.from_numpy(given[f"{path}/{kind}/{name}"][here]).to(tensor.device)
            for name, tensor in tensors.items()
        }
        for kind, tensors in own.items()
    }
