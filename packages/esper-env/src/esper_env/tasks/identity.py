"""The identity of an environment: a state can only be loaded where everything in it is equal."""

from __future__ import annotations

import json
from typing import Any

from esper_env.persistence.tree import Tree
from esper_env.suggestions import shown
from esper_env.tasks.config import TaskConfig, task_dict

#: Version of the tree of a state. Other versions cannot be loaded. ``persistence`` has the format of the file.
LAYOUT = 6
#: Kind of the checkpoints that hold a state.
KIND = "esper environment"
#: Settings of a task that decide where and how fast it runs, not what it computes. The data are compared by digest.
_FREE = frozenset({"dataset", "data_dir", "device", "shard_size", "auto_shard_size", "engine", "capture"})


def task_identity(task: TaskConfig) -> Tree:
    """Return the settings of a task that decide what it computes, as JSON values."""
    return {name: value for name, value in task_dict(task).items() if name not in _FREE}


def check_origin(state: Tree, identity: Tree) -> Tree:
    """Return the content of a state without its layout and identity.

    Raises:
        ValueError: ``state`` is not a state, has another layout, or comes from an environment of another identity.
    """
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        raise ValueError("this is not the state of an environment; expected a tree from get_state")
    if type(state.get("layout")) is not int or state["layout"] != LAYOUT:
        raise ValueError(
            f"the state has layout {shown(state.get('layout'))}; this version of esper-env reads layout {LAYOUT}. "
            "Load it with the version that saved it"
        )
    found = state["identity"]
    names = sorted(found.keys() | identity.keys())
    pairs = {name: (found.get(name, "missing"), identity.get(name, "unknown")) for name in names}
    differing = {name: pair for name, pair in pairs.items() if _text(pair[0]) != _text(pair[1])}
    if differing:
        listed = "; ".join(
            f"{name} is {saved!r} in the state and {own!r} here" for name, (saved, own) in differing.items()
        )
        other_data = "data_digest" in differing and "data_digest" in found
        what = "on other data (another file, or one that has changed since), so " if other_data else ""
        raise ValueError(
            f"the state was saved {what}in another environment: {listed}. Make the environment with the state's "
            "values, or load a state saved in an environment like this one"
        )
    return {name: part for name, part in state.items() if name not in ("layout", "identity")}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
