"""Vector environments of any registered id, and their infos by environment."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
from esper_env.checks import POSITIVE, check_value
from esper_env.suggestions import did_you_mean, shown
from esper_env.tasks import TASKS  # the import registers the ids
from gymnasium.envs.registration import VectorizeMode, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv


class UnexpectedArgumentError(TypeError, ValueError):
    """A keyword argument that an environment does not have; also a ``ValueError``, because it may be a setting."""

    def __init__(self, message: str, argument: str) -> None:
        super().__init__(message)
        self.argument = argument


def find_id(env_id: str) -> str:
    """Return the registered id of ``env_id``.

    "package.module:Id-v0" imports the module first, also from the current folder, and then names "Id-v0".

    Raises:
        ValueError: the module cannot be imported, or the id is not registered.
    """
    module, colon, name = env_id.rpartition(":") if isinstance(env_id, str) else ("", "", env_id)
    if colon:
        _import(module, env_id)
    if not isinstance(name, str) or name not in gymnasium.registry:
        elsewhere = "" if module else f"; put the module that registers a custom task in front: my_tasks:{name}"
        raise ValueError(
            f"{name!r} is not a registered environment; expected one of {', '.join(TASKS)}{elsewhere}"
            f"{did_you_mean(name, TASKS)}"
        )
    return name


def _import(module: str, env_id: str) -> None:
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # `python -m` adds it, the `esper` command does not
    try:
        import_module(module)
    except (Exception, SystemExit) as error:  # the import runs the user's code
        raise ValueError(
            f"{env_id!r} names a module that cannot be imported: {type(error).__name__}: {error}; expected the dotted "
            "name of a module that registers tasks, in the current folder or installed, such as my_tasks:MyTask-v0"
        ) from error


def make_vector(env_id: str, num_envs: int, autoreset_mode: AutoresetMode, /, **env_kwargs: Any) -> VectorEnv:
    """Call ``gymnasium.make_vec`` for an id that :func:`find_id` accepts, and set the autoreset mode.

    The vector is a ``SyncVectorEnv`` if the id has no native vector, or only one with another autoreset mode.

    Args:
        env_id: a registered id.
        num_envs: number of environments.
        autoreset_mode: autoreset mode of the vector.
        **env_kwargs: further keyword arguments of ``make_vec``, such as ``vectorization_mode="async"``.

    Raises:
        ValueError: an unknown id, a ``num_envs`` below 1, or a vector that does not have the mode.
        UnexpectedArgumentError: an unknown setting (a ``TypeError`` and a ``ValueError``).
    """
    check_value("num_envs", num_envs, Annotated[int, POSITIVE])
    env_id = find_id(env_id)
    arguments = _in_mode(env_id, autoreset_mode, env_kwargs)
    try:
        return gymnasium.make_vec(env_id, num_envs=num_envs, **arguments)
    except TypeError as error:
        foreign = "" if env_id in TASKS else f"; it is not one of the Esper tasks {', '.join(TASKS)}"
        message = f"{env_id} cannot be made with these settings: {error}{foreign}"
        unexpected = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None:
            raise ValueError(message) from error
        raise UnexpectedArgumentError(message, unexpected[1]) from error


def spread_over(workers: int | str, num_envs: int) -> dict[str, Any]:
    """Return the keyword arguments of ``make_vec`` for up to ``workers`` processes, at most one per environment.

    There are none for one process, because only the vectors of Esper's tasks have workers.
    """
    if workers == 1:
        return {}
    return {"workers": workers if isinstance(workers, str) else min(workers, num_envs)}


def _in_mode(env_id: str, mode: AutoresetMode, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of ``make_vec`` that set the autoreset mode."""
    vector_kwargs = dict(env_kwargs.get("vector_kwargs") or {})
    arguments = {**env_kwargs, "vector_kwargs": vector_kwargs}
    for place in (arguments, vector_kwargs):
        given = place.pop("autoreset_mode", mode)
        if given not in (mode, mode.value, mode.name):
            raise ValueError(f"`autoreset_mode` is {given!r}; expected {mode}, or omit the argument")
    entry_point, wanted = gymnasium.spec(env_id).vector_entry_point, env_kwargs.get("vectorization_mode")
    native = wanted in (VectorizeMode.VECTOR_ENTRY_POINT, VectorizeMode.VECTOR_ENTRY_POINT.value)
    if entry_point is not None and (native or wanted is None):
        accepted = _mode_arguments(load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point, mode)
        if accepted is not None:
            return arguments | accepted
    if native:
        raise ValueError(
            f"`vectorization_mode` is {VectorizeMode.VECTOR_ENTRY_POINT.value!r}, but {env_id} has no vector with "
            f"{mode}; expected 'sync' or 'async'"
        )
    vector_kwargs["autoreset_mode"] = mode
    return arguments | {"vectorization_mode": wanted or VectorizeMode.SYNC}


def _mode_arguments(entry_point: Callable[..., Any], mode: AutoresetMode) -> dict[str, Any] | None:
    """Return the arguments with which a vector entry point sets the autoreset mode; None if its mode differs."""
    parameters = inspect.signature(entry_point).parameters
    if "autoreset_mode" in parameters:
        return {"autoreset_mode": mode.value}
    return {} if getattr(entry_point, "metadata", {}).get("autoreset_mode") is mode else None


def check_growth(observations: gymnasium.Space, env_id: str) -> None:
    """Raise ``ValueError`` unless these are the observations of a growing network."""
    if not isinstance(observations, gymnasium.spaces.Dict) or "action_mask" not in observations.spaces:
        raise ValueError(
            f"{env_id} is not an Esper task: its observations are {described(observations)}, without an action_mask; "
            f"expected one of {', '.join(TASKS)}, or a custom task from register_task"
        )


def described(space: gymnasium.Space) -> str:
    """Return a space by its kind, shape and type, without its bounds."""
    if isinstance(space, gymnasium.spaces.Dict):
        return f"Dict({', '.join(f'{key}: {described(part)}' for key, part in space.items())})"
    if isinstance(space, gymnasium.spaces.Box):
        return f"Box({space.shape}, {space.dtype})"
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return f"MultiDiscrete({shown(space.nvec.ravel().tolist())})"
    return shown(space) if isinstance(space, gymnasium.spaces.Discrete) else type(space).__name__


def split_infos(infos: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Split the infos of a Gymnasium vector environment into one dict per environment.

    Args:
        infos: each ``key`` has one entry per environment: an array with first axis ``num_envs``, a list, or a nested
            dict. The boolean array ``_key`` marks the environments that have it; without it, all have it. Every
            environment receives values of another form, such as a string.
        num_envs: number of environments.

    Returns:
        Dicts with Python scalars and copied arrays.
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
    """Entry of each environment, with copied arrays and Python scalars."""
    if isinstance(value, Mapping):
        return list(split_infos(value, num_envs))
    if isinstance(value, np.ndarray) and value.ndim == 1 and len(value) == num_envs and value.dtype != object:
        return value.tolist()
    per_env = (isinstance(value, np.ndarray) and value.ndim > 0) or isinstance(value, (list, tuple))
    if per_env and len(value) == num_envs:
        return [_to_python(entry) for entry in value]
    return [_to_python(value) for _ in range(num_envs)]


def _to_python(entry: Any) -> Any:
    if isinstance(entry, np.generic):
        return entry.item()
    if isinstance(entry, np.ndarray):
        return entry.copy()
    if isinstance(entry, Mapping):
        return {key: _to_python(value) for key, value in entry.items()}
    return entry
