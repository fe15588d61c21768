"""Checks of a soak: steps, comparisons of steps, and restored networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from esper_env.rules import IS_LIVE, NO_BLUEPRINT, Head, Op


def check_step(vector: Any, before: Mapping[str, Any], actions: np.ndarray, result: tuple[Any, ...]) -> Counter[str]:
    """Count the mismatches of a step that followed the observation ``before``."""
    observation, rewards, terminated, truncated, infos = result
    wrong: Counter[str] = Counter()
    wrong["an observation outside its space"] += int(not vector.observation_space.contains(observation))
    wrong["a reward that is not finite"] += int((~np.isfinite(rewards)).sum())
    ended = terminated | truncated
    valid, op = (_of_step(infos, key, ended) for key in ("action_valid", "op"))
    wrong["an action whose validity differs from the masks"] += int((valid != _legal(vector, before, actions)).sum())
    wrong["an illegal action that was carried out"] += int((~valid & (op != Op.WAIT)).sum())
    return wrong


def _of_step(infos: Mapping[str, Any], key: str, ended: np.ndarray) -> np.ndarray:
    """An info of the step, from ``final_info`` where the episode ended."""
    values = infos[key] if key in infos else np.zeros_like(infos["final_info"][key])
    return np.where(ended, infos["final_info"][key], values) if ended.any() else values


def _legal(vector: Any, before: Mapping[str, Any], actions: np.ndarray) -> np.ndarray:
    """(N,) True where the masks of an observation allow the action."""
    op, slot = actions[:, Head.OP], actions[:, Head.SLOT]
    masks = before["op_slot_mask"].reshape(len(actions), len(Op), -1)
    offered = np.isin(actions[:, Head.BLUEPRINT], vector.offered_blueprints)
    possible = masks[np.arange(len(actions)), op, slot].astype(bool)
    return (op == Op.WAIT) | (possible & ((op != Op.GERMINATE) | offered))


def differences(one: Any, other: Any, ignored: np.ndarray | None = None) -> int:
    """Count the arrays of two results that differ in any environment except the ``ignored`` ones."""
    left, right = dict(_leaves(one)), dict(_leaves(other))
    if left.keys() != right.keys():
        shared = left.keys() & right.keys()
        # The end of an ignored environment's episode adds keys to the infos of the step.
        missing = [name for name in left.keys() ^ right.keys() if ignored is None or "final_" not in name]
        return len(missing) + sum(not _same(left[name], right[name], ignored) for name in shared)
    return sum(not _same(left[name], right[name], ignored) for name in left)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}/{key}")
    elif isinstance(tree, tuple):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{name}/{index}")
    else:
        yield name, tree


def _same(one: np.ndarray, other: np.ndarray, ignored: np.ndarray | None) -> bool:
    kept = np.ones(len(one), dtype=bool)
    if ignored is not None:
        kept[ignored] = False
    if one.dtype == object:
        pairs = zip(one[kept].tolist(), other[kept].tolist(), strict=True)
        return all(differences(a, b) == 0 if isinstance(a, Mapping) else a == b for a, b in pairs)
    return np.array_equal(one[kept], other[kept], equal_nan=one.dtype.kind == "f")


def check_rolled_back(state: Mapping[str, Any], row: int) -> Counter[str]:
    """Count the mismatches of a restored network, in the state after the step of the rollback."""
    wrong: Counter[str] = Counter()
    population = state["population"]
    for path, rows in _kept_stacks(state, row):
        own, kept = _at(population, path), _at(population["snapshots"], path)
        for kind, tensors in kept.items():  # parameters, and buffers where there are any
            for name, values in tensors.items():
                same = np.array_equal(own[kind][name][rows[0]], values[rows[1]])
                wrong["a tensor that differs from the snapshot"] += int(not same)
        for values in own.get("momentum", {}).values():
            wrong["a momentum that is not zero"] += int(values[rows[0]].any())
    wrong["a live seed after a rollback"] += int(IS_LIVE[state["table"]["stage"][row]].sum())
    return wrong


def _kept_stacks(state: Mapping[str, Any], row: int) -> Iterator[tuple[tuple[str, ...], tuple[int, int]]]:
    """Paths of a network's host, fossilized seeds and gates, with its rows in the stacks and in the snapshots."""
    yield ("host",), (row, row)
    blueprint, saved = state["table"]["blueprint"], state["governor"]["saved"]
    for slot in np.flatnonzero(saved[row]).tolist():
        kind = int(blueprint[row, slot])
        same_kind, seeds = blueprint[:, slot] == kind, blueprint[:, slot] != NO_BLUEPRINT
        for path, held in ((("seeds", str(slot), str(kind)), same_kind), (("gates", str(slot)), seeds)):
            rows = (np.flatnonzero(where).tolist().index(row) for where in (held, held & saved[:, slot]))
            yield path, (next(rows), next(rows))


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
