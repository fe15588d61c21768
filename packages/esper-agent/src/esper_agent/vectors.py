"""Vector environments of any registered id, and their infos by environment."""

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
    """Return the registered id of ``env_id``.

    "package.module:Id-v0" imports the module first, also from the current folder, and then names "Id-v0".

    Raises:
        ValueError: the module cannot be imported, or the id is not registered.
    """
    module, colon, name = env_id.rpartition(":") if isinstance(env_id, str) else ("", "", env_id)
    if colon:
        _reject_file(module, name)
        _import(module, env_id)
    if not isinstance(name, str) or name not in gymnasium.registry:
        raise ValueError(_unknown(name, module))
    return name


def _unknown(name: object, module: str) -> str:
    """Error text for an id that is not registered after the import of ``module`` ("" for none)."""
    own = {known: f"{module}:{known}" if module else known for known in TASKS if known not in esper_env.ENV_IDS}
    known = ", ".join([*own.values(), *esper_env.ENV_IDS])
    elsewhere = "" if module else f"; put the module that registers a custom task in front: my_tasks:{name}"
    near = closest(name, TASKS)
    hint = f"; did you mean {own.get(near, near)!r}?" if near else ""
    return f"{name!r} is not a registered environment; expected one of {known}{elsewhere}{hint}"


def _reject_file(module: str, name: str) -> None:
    """Raise ``ValueError`` for the path of a module, with the correct name."""
    path = PurePath(module.replace("\\", "/"))
    if path.suffix != ".py" and len(path.parts) == 1 and not module.startswith("."):
        return
    parts = path.with_suffix("").parts if path.suffix == ".py" else path.parts
    outside = path.is_absolute() or ".." in parts
    dotted = ".".join(parts[-1:] if outside else parts).lstrip(".")
    where = f" in the folder that holds {dotted}" if outside else ""
    raise ValueError(
        f"{f'{module}:{name}'!r} starts with the path of a file; expected the name of a module, with dots for folders "
        f"and without .py: write {f'{dotted}:{name}'!r}{where}"
    )


def _import(module: str, env_id: str) -> None:
    try:
        folder = str(Path.cwd())
        if folder not in sys.path and "" not in sys.path:
            sys.path.append(folder)  # `python -m` adds it, the `esper` command does not
        import_module(module)
    except SystemExit as error:
        raise ValueError(
            f"{env_id!r} names a module that exits during its import: {error!r}; expected a module that only "
            "registers tasks"
        ) from error
    except Exception as error:  # the import runs the user's code
        top = module.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name in (module, top)
        remedy = f"; install its package, or run the command in the folder that holds {top}" if absent else ""
        raise ValueError(
            f"{env_id!r} names a module that cannot be imported: {type(error).__name__}: {error}{remedy}"
        ) from error


def _esper_ids() -> str:
    return ", ".join(sorted(known for known in gymnasium.registry if known.startswith("Esper-")))


def make_vector(env_id: str, num_envs: int, autoreset_mode: AutoresetMode, **env_kwargs: Any) -> VectorEnv:
    """Call ``gymnasium.make_vec`` with an autoreset mode, for ids with and without a vector entry point.

    Args:
        env_id: a registered id, or "module:id"; see :func:`find_id`.
        num_envs: number of environments.
        autoreset_mode: Gymnasium's autoreset mode.
        **env_kwargs: settings of the environment.

    Raises:
        ValueError: an unknown id, a ``num_envs`` below 1, or an unknown setting.
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
    except TypeError as error:  # an unknown setting
        foreign, known = (
            ("", "") if env_id in TASKS else ("is not an Esper task and ", f"; expected one of {_esper_ids()}")
        )
        raise ValueError(f"{env_id} {foreign}cannot be made with these settings: {error}{known}") from error


def check_growth(observations: gymnasium.Space, env_id: str) -> None:
    """Raise ``ValueError`` unless these are the observations of a growing network."""
    if not isinstance(observations, gymnasium.spaces.Dict) or "action_mask" not in observations.spaces:
        raise ValueError(
            f"{env_id} is not an Esper task: its observations are {shown(observations)}, without an action_mask; "
            f"expected one of {_esper_ids()}, or a custom task from register_task"
        )


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
