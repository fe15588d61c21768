"""Grow a neural network while it trains, as a Gymnasium environment.

Importing this package registers the environments and loads no PyTorch::

    import esper_env
    env = gymnasium.make("Esper-Digits-v0")
    envs = gymnasium.make_vec("Esper-Digits-v0", num_envs=16)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

from esper_env.tasks import TASKS

if TYPE_CHECKING:
    from esper_env.env import EsperEnv
    from esper_env.networks.seeds import register_blueprint
    from esper_env.vector_env import EsperVectorEnv

__version__ = "0.1.0"
__all__ = ["ENV_IDS", "EsperEnv", "EsperVectorEnv", "register_blueprint"]

ENV_IDS: tuple[str, ...] = tuple(TASKS)

_HOMES = {
    "EsperEnv": "esper_env.env",
    "EsperVectorEnv": "esper_env.vector_env",
    "register_blueprint": "esper_env.networks.seeds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def _register() -> None:
    for env_id in ENV_IDS:
        if env_id not in registry:
            register(
                id=env_id,
                entry_point="esper_env.env:EsperEnv",
                vector_entry_point="esper_env.vector_env:EsperVectorEnv",
                kwargs={"env_id": env_id},
            )


_register()
