"""Registration of tasks with Gymnasium, custom tasks included."""

from __future__ import annotations

import dataclasses
from typing import Any

from gymnasium.envs.registration import parse_env_id, register, registry

from esper_env.suggestions import did_you_mean, shown
from esper_env.tasks.config import TASKS, CNNSpec, TaskConfig, TransformerSpec, reject_unknown

#: Ids of the package's own tasks.
BUILT_IN: tuple[str, ...] = tuple(TASKS)


def register_task(env_id: str, *, base: str = "Esper-Digits-v0", replace: bool = False, **changes: Any) -> TaskConfig:
    """Register a custom task, with Gymnasium as well: ``gymnasium.make(env_id)`` works from then on.

    A custom host is tried with the task's data when an environment is made.

    Args:
        env_id: id of the new task, such as "Mine-v0".
        base: id of the task whose settings it takes.
        replace: True to replace a custom task of this id. Existing environments keep the old task.
        **changes: settings that differ, fields of :class:`TaskConfig`. ``host`` is a ``CNNSpec``, a ``TransformerSpec``
            or a function from the data to a module that follows ``esper_env.hosts.HostProtocol``; ``data`` is an
            ``ImageData``, a ``TextData`` or a function that returns one.

    Returns:
        The task.

    Raises:
        ValueError: an id that is taken or malformed, an unknown ``base``, a value outside its range, or a spec that
            describes no host. The package's own tasks cannot be replaced.
        TypeError: an id that is not a string, or an unknown field.
    """
    if not isinstance(env_id, str):
        raise TypeError(f"the id of a task is {shown(env_id)}; expected a string such as 'Mine-v0'")
    if not isinstance(base, str) or base not in TASKS:
        raise ValueError(f"`base` is {shown(base)}; expected one of {', '.join(TASKS)}{did_you_mean(base, TASKS)}")
    known = [item.name for item in dataclasses.fields(TaskConfig) if item.name != "env_id"]
    reject_unknown(changes, known, TASKS[base], "register_task()")
    if env_id in TASKS or env_id in registry:
        custom = env_id in TASKS and env_id not in BUILT_IN
        if not (custom and replace):
            remedy = ", or pass replace=True" if custom else ""
            raise ValueError(f"{env_id!r} is already registered; choose another id{remedy}")
    parse_env_id(env_id)
    task = dataclasses.replace(TASKS[base], env_id=env_id, **changes)
    if isinstance(task.host, CNNSpec | TransformerSpec):
        # Registering the package's own tasks needs no PyTorch.
        from esper_env.extension_checks.construction import TRIAL_SEED, seeded_construction
        from esper_env.population.build import host_builder

        with seeded_construction(TRIAL_SEED):
            host_builder(task)()
    announce(env_id)
    TASKS[env_id] = task
    return task


def unregister_task(env_id: str) -> None:
    """Remove a custom task, from Gymnasium's registry as well. Existing environments keep it.

    Args:
        env_id: id of the task.

    Raises:
        ValueError: there is no such task, or it belongs to the package.
    """
    if not isinstance(env_id, str) or env_id not in TASKS:
        custom = [known for known in TASKS if known not in BUILT_IN]
        raise ValueError(
            f"{shown(env_id)} is not a registered task; expected one of {', '.join(custom) or 'your custom tasks'}"
            f"{did_you_mean(env_id, custom)}"
        )
    if env_id in BUILT_IN:
        raise ValueError(f"{env_id!r} belongs to the package and cannot be unregistered")
    del TASKS[env_id]
    registry.pop(env_id, None)


def announce(env_id: str) -> None:
    """Register an id with Gymnasium; an id that Gymnasium knows keeps its entry."""
    if env_id not in registry:
        register(
            id=env_id,
            entry_point="esper_env.env:EsperEnv",
            vector_entry_point="esper_env.vector_env:EsperVectorEnv",
            kwargs={"env_id": env_id},
        )
