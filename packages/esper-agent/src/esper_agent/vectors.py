"""Gymnasium vector environments: making one of any id, and taking its infos apart by environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

import esper_env  # registers the ids
import gymnasium
import numpy as np
from esper_env.checks import is_whole
from esper_env.suggestions import closest, shown
from esper_env.tasks import TASKS
from gymnasium.vector import AutoresetMode, VectorEnv


def find_id(env_id: str) -> str:
    """The registered id that ``env_id`` names: itself, or of "package.module:Id-v0" the last part, once the module has
    been imported, which may lie in the current folder.

    Raises ``ValueError`` for a module that cannot be imported and for an id that is not registered.
    """
    module, colon, name = env_id.rpartition(":") if isinstance(env_id, str) else ("", "", env_id)
    if colon:
        _refuse_file(module, name)
        _import(module, env_id)
    if not isinstance(name, str) or name not in gymnasium.registry:
        raise ValueError(_unknown(name, module))
    return name


def _unknown(name: object, module: str) -> str:
    """What is wrong with an id that no import of ``module`` ("" without one) has registered."""
    own = {known: f"{module}:{known}" if module else known for known in TASKS if known not in esper_env.ENV_IDS}
    known = ", ".join([*own.values(), *esper_env.ENV_IDS])
    elsewhere = "" if module else f"; a task of your own needs the module that registers it in front: my_tasks:{name}"
    near = closest(name, TASKS)
    hint = f"; did you mean {own.get(near, near)!r}?" if near else ""
    return f"{name!r} is not a registered environment; expected one of {known}{elsewhere}{hint}"


def _refuse_file(module: str, name: str) -> None:
    """``ValueError`` for the path of a module, with what to write."""
    path = PurePath(module.replace("\\", "/"))
    if path.suffix != ".py" and len(path.parts) == 1 and not module.startswith("."):
        return
    parts = path.with_suffix("").parts if path.suffix == ".py" else path.parts
    outside = path.is_absolute() or ".." in parts
    dotted = ".".join(parts[-1:] if outside else parts).lstrip(".")
    where = f" in the folder that holds {dotted}" if outside else ""
    raise ValueError(
        f"{f'{module}:{name}'!r} has the path of a file in front; expected the name of a module, without .py and with "
        f"dots for folders: write {f'{dotted}:{name}'!r}{where}"
    )


def _import(module: str, env_id: str) -> None:
    try:
        folder = str(Path.cwd())
        if folder not in sys.path and "" not in sys.path:
            sys.path.append(folder)  # `python -m` has it, the `esper` command does not
        import_module(module)
    except SystemExit as error:
        raise ValueError(
            f"{env_id!r} names a module that ends the process while it is imported: {error!r}; expected one that only "
            "registers tasks"
        ) from error
    except Exception as error:  # whatever a user's module does while it is imported
        top = module.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name in (module, top)
        remedy = f"; install its package, or run the command in the folder that holds {top}" if absent else ""
        raise ValueError(
            f"{env_id!r} names a module that cannot be imported: {type(error).__name__}: {error}{remedy}"
        ) from error


def _esper_ids() -> str:
    return ", ".join(sorted(known for known in gymnasium.registry if known.startswith("Esper-")))


def make_vector(env_id: str, num_envs: int, autoreset_mode: AutoresetMode, **env_kwargs: Any) -> VectorEnv:
    """``gymnasium.make_vec`` with an autoreset mode, for ids with and without a vector environment of their own.

    Raises ``ValueError`` as :func:`find_id`, for a ``num_envs`` below 1 and for settings that it does not take.
    """
    if not is_whole(num_envs, least=1):
        raise ValueError(f"num_envs is {num_envs!r}; expected a whole number of at least 1")
    env_id = find_id(env_id)
    if gymnasium.spec(env_id).vector_entry_point is None:
        modes: dict[str, Any] = {"vector_kwargs": {"autoreset_mode": autoreset_mode}}
    else:
        modes = {"autoreset_mode": autoreset_mode.value}
    try:
        return gymnasium.make_vec(env_id, num_envs=num_envs, **modes, **env_kwargs)
    except TypeError as error:  # a setting that the environment does not have
        foreign, known = ("", "") if env_id in TASKS else ("is no Esper task and ", f"; expected one of {_esper_ids()}")
        raise ValueError(f"{env_id} {foreign}cannot be made with these settings: {error}{known}") from error


def check_growth(observations: gymnasium.Space, env_id: str) -> None:
    """``ValueError`` unless these are the observations of a growing network."""
    if not isinstance(observations, gymnasium.spaces.Dict) or "action_mask" not in observations.spaces:
        raise ValueError(
            f"{env_id} is no Esper task: its observations are {shown(observations)}, without an action_mask; expected "
            f"one of {_esper_ids()}, or a task of your own by register_task"
        )


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
