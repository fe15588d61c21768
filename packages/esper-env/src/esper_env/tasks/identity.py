"""The identity of an environment: a state can only be loaded where everything in it is equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from esper_env.persistence.tree import Tree, split_tree
from esper_env.tasks.config import TaskConfig, task_dict

#: Version of the layout of a state. Other versions cannot be loaded.
FORMAT = 4
#: Kind of the checkpoints that hold a state.
KIND = "esper environment"
#: Settings of a task that decide where and how fast it runs, not what it computes. The data are compared by digest.
_FREE = frozenset({"dataset", "data_dir", "device", "shard_size", "auto_shard_size", "capture"})


def task_identity(task: TaskConfig) -> Tree:
    """Return the settings of a task that decide what it computes, as JSON values."""
    return {name: _json_value(value) for name, value in task_dict(task).items() if name not in _FREE}


def check_origin(state: Tree, identity: Tree) -> Tree:
    """Return the content of a state without its format and identity.

    Raises:
        ValueError: ``state`` is not a state, has another format, or comes from an environment of another identity.
    """
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        raise ValueError("this is not the state of an environment; expected a tree from get_state")
    if type(state.get("format")) is not int or state["format"] != FORMAT:
        raise ValueError(
            f"the state has format {state.get('format')!r}; this version of esper-env reads format {FORMAT}. "
            "Load it with the version that saved it"
        )
    _check_identity(state["identity"], identity)
    return {name: part for name, part in state.items() if name not in ("format", "identity")}


def _check_identity(found: Tree, own: Tree) -> None:
    try:
        found, arrays = split_tree(found)
    except ValueError as error:
        raise ValueError(f"identity: {error}") from error
    if arrays:
        raise ValueError(f"identity: {sorted(arrays)} are arrays; expected JSON values")
    differing = [
        f"{name} is {found.get(name, 'missing')!r} in the state and {own.get(name, 'unknown')!r} here"
        for name in sorted(found.keys() | own.keys())
        if name not in found or name not in own or found[name] != own[name]
    ]
    if differing:
        other_data = "data_digest" in found and found["data_digest"] != own.get("data_digest")
        what = "on other data (another file, or one that has changed since), so " if other_data else ""
        raise ValueError(
            f"the state was saved {what}in another environment: {'; '.join(differing)}. "
            "Make the environment with the state's values, or load a state saved in an environment like this one"
        )


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
