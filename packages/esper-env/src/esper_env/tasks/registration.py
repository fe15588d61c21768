"""What makes tasks known to Gymnasium, and tasks of the user's own."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from gymnasium.envs.registration import parse_env_id, register, registry

from esper_env.suggestions import did_you_mean, shown
from esper_env.tasks import TASKS, CNNSpec, TaskConfig, TransformerSpec, refuse_of_host, refuse_unknown


def register_task(env_id: str, *, base: str = "Esper-Digits-v0", **changes: Any) -> TaskConfig:
    """Make a task of your own known, to Gymnasium too: ``gymnasium.make(env_id)`` works from then on.

    The task has the numbers of ``base`` except for ``changes``, which are fields of :class:`TaskConfig`. Among them:

    * ``host``: a ``CNNSpec`` or ``TransformerSpec``, or a function from the data to a module that follows
      ``esper_env.hosts.HostProtocol``;
    * ``data``: an ``ImageData`` or a ``TextData``, or a function that returns one.

    Raises:
        ValueError: an id that is taken or malformed, an unknown ``base``, a value that makes no sense, a spec of which
            no host can be made. A host of your own is tried when an environment is made, with its data.
        TypeError: an id that is no text, a field that no task has.
    """
    if not isinstance(env_id, str):
        raise TypeError(f"the id of a task is {shown(env_id)}; expected a text such as 'Mine-v0'")
    if not isinstance(base, str) or base not in TASKS:
        raise ValueError(f"base is {shown(base)}; expected one of {', '.join(TASKS)}{did_you_mean(base, TASKS)}")
    known = [item.name for item in fields(TaskConfig) if item.name != "env_id"]
    refuse_of_host(changes, TASKS[base], "a task has no field")
    refuse_unknown(changes, known, "a task has no field")
    if env_id in TASKS or env_id in registry:
        raise ValueError(f"{env_id!r} is registered already; choose another id")
    parse_env_id(env_id)
    task = replace(TASKS[base], env_id=env_id, **changes)
    _try_spec(task)
    announce(env_id)
    TASKS[env_id] = task
    return task


def announce(env_id: str) -> None:
    """Register an id with Gymnasium; one that it knows already stays as it is."""
    if env_id not in registry:
        register(
            id=env_id,
            entry_point="esper_env.env:EsperEnv",
            vector_entry_point="esper_env.vector_env:EsperVectorEnv",
            kwargs={"env_id": env_id},
        )


def _try_spec(task: TaskConfig) -> None:
    """``ValueError`` where the numbers of a spec make no host."""
    from esper_env.population.build import host_builder  # here: registering the package's own tasks needs no PyTorch

    if isinstance(task.host, CNNSpec | TransformerSpec):
        host_builder(task)()
