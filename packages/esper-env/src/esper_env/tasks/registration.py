"""Registration of tasks with Gymnasium, custom tasks included."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from gymnasium.envs.registration import parse_env_id, register, registry

from esper_env.suggestions import did_you_mean, shown
from esper_env.tasks.config import TASKS, CNNSpec, TaskConfig, TransformerSpec, reject_unknown


def register_task(env_id: str, *, base: str = "Esper-Digits-v0", **changes: Any) -> TaskConfig:
    """Register a custom task, with Gymnasium as well: ``gymnasium.make(env_id)`` works from then on.

    A custom host is tried with the task's data when an environment is made.

    Args:
        env_id: id of the new task, such as "Mine-v0".
        base: id of the task whose settings it takes.
        **changes: settings that differ, fields of :class:`TaskConfig`. ``host`` is a ``CNNSpec``, a ``TransformerSpec``
            or a function from the data to a module that follows ``esper_env.hosts.HostProtocol``; ``data`` is an
            ``ImageData``, a ``TextData`` or a function that returns one.

    Returns:
        The task.

    Raises:
        ValueError: an id that is taken or malformed, an unknown ``base``, a value outside its range, or a spec that
            describes no host.
        TypeError: an id that is not a string, or an unknown field.
    """
    if not isinstance(env_id, str):
        raise TypeError(f"the id of a task is {shown(env_id)}; expected a string such as 'Mine-v0'")
    if not isinstance(base, str) or base not in TASKS:
        raise ValueError(f"`base` is {shown(base)}; expected one of {', '.join(TASKS)}{did_you_mean(base, TASKS)}")
    known = [item.name for item in fields(TaskConfig) if item.name != "env_id"]
    reject_unknown(changes, known, TASKS[base], "register_task()")
    if env_id in TASKS or env_id in registry:
        raise ValueError(f"{env_id!r} is already registered; choose another id")
    parse_env_id(env_id)
    task = replace(TASKS[base], env_id=env_id, **changes)
    if isinstance(task.host, CNNSpec | TransformerSpec):
        from esper_env.population.build import host_builder  # registering the package's own tasks needs no PyTorch

        host_builder(task)()
    announce(env_id)
    TASKS[env_id] = task
    return task


def announce(env_id: str) -> None:
    """Register an id with Gymnasium; an id that Gymnasium knows keeps its entry."""
    if env_id not in registry:
        register(
            id=env_id,
            entry_point="esper_env.env:EsperEnv",
            vector_entry_point="esper_env.vector_env:EsperVectorEnv",
            kwargs={"env_id": env_id},
        )
