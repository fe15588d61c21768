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

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esper_env.persistence.state import check_keys, check_like
from esper_env.persistence.tree import Tree, join_tree, split_tree
from esper_env.population.shard import Shard
from esper_env.population.snapshots import Snapshots
from esper_env.population.stack import RowStore
from esper_env.population.structure import BoolArray, IntArray
from esper_env.population.training.minibatches import MinibatchStream
from esper_env.rules.heads import NO_BLUEPRINT


class Networks(NamedTuple):
    """The content of a population: shards, the networks of each, and a stream for every network."""

    shards: list[Shard]
    slices: list[slice]
    streams: list[MinibatchStream]
    snapshots: list[Snapshots]  # of each shard


def get_networks(networks: Networks, blueprint: IntArray, saved: BoolArray) -> Tree:
    """Return the state of networks with the seeds ``blueprint`` (N, S); ``saved`` (N, S) ones are in snapshots too."""
    shards, streams = networks.shards, [stream.get_state() for stream in networks.streams]
    pieces: dict[str, list[NDArray[Any]]] = {
        "episode_seeds": [shard.row_seeds for shard in shards],
        "births": [shard.births for shard in shards],
        "streams/generator": [stream["generator"][None] for stream in streams],
        "streams/left": [stream["left"] for stream in streams],
        "streams/left_lengths": [np.array([len(stream["left"])], dtype=np.int64) for stream in streams],
    }
    for path, store, rows in _stores(networks, blueprint, saved):
        for kind, named in store.read_rows(rows).items():
            for name, value in named.items():
                pieces.setdefault(f"{path}/{kind}/{name}", []).append(value.cpu().numpy())
    return join_tree({}, {name: np.concatenate(parts) for name, parts in pieces.items()})


def set_networks(networks: Networks, state: Tree, blueprint: IntArray, saved: BoolArray) -> None:
    """Load a state of networks with these seeds; raise ``ValueError`` if it does not fit."""
    if (saved & (blueprint == NO_BLUEPRINT)).any():
        raise ValueError("a snapshot holds a seed where the table has none")
    _check_form(state, get_networks(networks, blueprint, saved))
    if (state["episode_seeds"] < 0).any() or (state["births"] < 0).any():
        raise ValueError("episode_seeds and births have negative numbers; expected 0 or more")
    _set_streams(networks.streams, state["streams"])
    _, given = split_tree(state)
    loaded: Counter[str] = Counter()  # rows of each path; the shards come in the order of their networks
    for path, store, rows in _stores(networks, blueprint, saved):
        here = slice(loaded[path], loaded[path] + len(rows))
        loaded[path] += len(rows)
        for kind, named in store.tensors().items():
            values = {name: torch.tensor(given[f"{path}/{kind}/{name}"][here]) for name in named}
            store.write_rows(rows, {kind: values})
    for shard, own in zip(networks.shards, networks.slices, strict=True):
        shard.row_seeds[:], shard.births[:] = state["episode_seeds"][own], state["births"][own]


def join_networks(states: Sequence[Tree]) -> Tree:
    """Return the state of the networks of several populations, in their order."""
    pieces: dict[str, list[NDArray[Any]]] = {}
    for state in states:
        for path, array in split_tree(state)[1].items():
            pieces.setdefault(path, []).append(array)
    return join_tree({}, {path: np.concatenate(parts) for path, parts in pieces.items()})


def divide_networks(state: Tree, like: Sequence[Tree]) -> list[Tree]:
    """Return the state of each of several populations, the reverse of :func:`join_networks`.

    Args:
        state: of all networks.
        like: states of the populations with the same seeds.

    Raises:
        ValueError: the state does not fit them.
    """
    _check_form(state, join_networks(like))
    _, arrays = split_tree(state)
    lengths = arrays["streams/left_lengths"]
    _check_lengths(lengths, arrays["streams/left"])
    starts: Counter[str] = Counter()
    parts = []
    for own in like:
        sizes = {path: len(array) for path, array in split_tree(own)[1].items()}
        first = starts["streams/left_lengths"]
        sizes["streams/left"] = int(lengths[first : first + sizes["streams/left_lengths"]].sum())
        parts.append({path: arrays[path][starts[path] : starts[path] + size] for path, size in sizes.items()})
        starts.update(sizes)
    return [join_tree({}, part) for part in parts]


def _stores(networks: Networks, blueprint: IntArray, saved: BoolArray) -> Iterator[tuple[str, RowStore, list[int]]]:
    """The stores of each shard in turn: path in the state, store, and rows that belong to the state."""
    kept = np.where(saved, blueprint, NO_BLUEPRINT)
    for shard, own, snapshots in zip(networks.shards, networks.slices, networks.snapshots, strict=True):
        for name, stack, rows in shard.stacks(blueprint[own]):
            yield name, stack, rows.tolist()
        for name, stack, rows in shard.stacks(kept[own]):
            yield f"snapshots/{name}", snapshots.shelf(stack, name), rows.tolist()


def _check_form(state: Tree, like: Tree) -> None:
    """Compare with the own state, in which only the number of samples left in the streams may differ."""
    check_keys(state, like)
    streams = state["streams"]
    left = streams.get("left") if isinstance(streams, dict) else None
    if isinstance(left, np.ndarray) and left.ndim == 1:
        like["streams"]["left"] = np.zeros(len(left), dtype=np.int64)
    check_like(state, like)


def _check_lengths(lengths: IntArray, left: IntArray) -> None:
    if (lengths < 0).any() or lengths.sum() != len(left):
        raise ValueError(f"streams: left_lengths sum to {lengths.sum()}; left has {len(left)} numbers")


def _set_streams(streams: Sequence[MinibatchStream], state: Tree) -> None:
    lengths, left = state["left_lengths"], state["left"]
    _check_lengths(lengths, left)
    pieces = np.split(left, np.cumsum(lengths)[:-1])
    for index, stream in enumerate(streams):
        try:
            stream.set_state({"generator": state["generator"][index], "left": pieces[index]})
        except ValueError as error:
            raise ValueError(f"streams: network {index}: {error}") from error
