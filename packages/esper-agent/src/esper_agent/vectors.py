"""Gymnasium vector environments: making one of any id, and taking its infos apart by environment."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import esper_env  # noqa: F401  (registers the ids)
import gymnasium
import numpy as np
from esper_env.checks import is_whole
from esper_env.suggestions import did_you_mean
from esper_env.tasks import TASKS
from gymnasium.vector import AutoresetMode, VectorEnv


def make_vector(env_id: str, num_envs: int, autoreset_mode: AutoresetMode, **env_kwargs: Any) -> VectorEnv:
    """``gymnasium.make_vec`` with an autoreset mode, for ids with and without a vector environment of their own.

    Raises ``ValueError`` for an id that is not registered, naming those of Esper, and for a ``num_envs`` below 1.
    """
    if not is_whole(num_envs, least=1):
        raise ValueError(f"num_envs is {num_envs!r}; expected a whole number of at least 1")
    module, colon, name = env_id.rpartition(":") if isinstance(env_id, str) else ("", "", "")
    if colon:  # "package.module:Id-v0", as gymnasium.make takes it
        try:
            import_module(module)
        except Exception as error:  # whatever a user's module does while it is imported
            raise ValueError(
                f"{env_id!r} names a module that cannot be imported: {type(error).__name__}: {error}"
            ) from error
        env_id = name
    if not isinstance(env_id, str) or env_id not in gymnasium.registry:
        known = ", ".join(sorted(known for known in gymnasium.registry if known.startswith("Esper-")))
        hint = did_you_mean(env_id, TASKS)
        raise ValueError(f"{env_id!r} is not a registered environment; expected one of {known}{hint}")
    if gymnasium.spec(env_id).vector_entry_point is None:
        modes: dict[str, Any] = {"vector_kwargs": {"autoreset_mode": autoreset_mode}}
    else:
        modes = {"autoreset_mode": autoreset_mode.value}
    try:
        return gymnasium.make_vec(env_id, num_envs=num_envs, **modes, **env_kwargs)
    except TypeError as error:  # a setting that the environment does not have
        raise ValueError(f"{env_id} cannot be made with these settings: {error}") from error


def split_infos(infos: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """One info dict per environment, of plain Python scalars and own arrays.

    ``infos`` is what a Gymnasium vector environment returns: every ``key`` holds one entry per environment (an array
    with first axis ``num_envs``, a list, or a nested dict of the same form), and the boolean array ``_key`` says which
    environments have it; a key without a mask belongs to all. A value that is not one entry per environment (a
    string, a scalar) is given to every environment.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        present = infos.get(f"_{key}")
        for index, entry in enumerate(_entries(value, num_envs)):
            if present is None or present[index]:
                rows[index][key] = entry
    return rows


def _entries(value: Any, num_envs: int) -> list[Any]:
    """The entry of each environment; arrays are copied, NumPy scalars become Python ones."""
    if isinstance(value, Mapping):
        return list(split_infos(value, num_envs))
    if isinstance(value, np.ndarray) and value.ndim == 1 and len(value) == num_envs and value.dtype != object:
        return value.tolist()
    per_env = (isinstance(value, np.ndarray) and value.ndim > 0) or isinstance(value, (list, tuple))
    if per_env and len(value) == num_envs:
        return [_plain(entry) for entry in value]
    return [_plain(value) for _ in range(num_envs)]


def _plain(entry: Any) -> Any:
    if isinstance(entry, np.generic):
        return entry.item()
    if isinstance(entry, np.ndarray):
        return entry.copy()
    if isinstance(entry, Mapping):
        return {key: _plain(value) for key, value in entry.items()}
    return entry
