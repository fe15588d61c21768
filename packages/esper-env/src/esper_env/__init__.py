"""Grow a neural network while it trains, as a Gymnasium environment.

Importing this package registers the environments and loads no PyTorch::

    import esper_env
    env = gymnasium.make("Esper-Digits-v0")
    envs = gymnasium.make_vec("Esper-Digits-v0", num_envs=16)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esper_env.tasks import CNNSpec, TransformerSpec
from esper_env.tasks.registration import BUILT_IN, announce, register_task, unregister_task

if TYPE_CHECKING:
    from esper_env.actions import action, describe_action
    from esper_env.data import ImageData, TextData
    from esper_env.env import EsperEnv
    from esper_env.seeds import register_blueprint, register_topology, unregister_blueprint
    from esper_env.vector_env import EsperVectorEnv
    from esper_env.wrappers import FlatActions, FlatVectorActions

__version__ = "0.1.0"
__all__ = [
    "ENV_IDS",
    "CNNSpec",
    "EsperEnv",
    "EsperVectorEnv",
    "FlatActions",
    "FlatVectorActions",
    "ImageData",
    "TextData",
    "TransformerSpec",
    "action",
    "describe_action",
    "register_blueprint",
    "register_task",
    "register_topology",
    "unregister_blueprint",
    "unregister_task",
]

ENV_IDS: tuple[str, ...] = BUILT_IN

_HOMES = {
    "EsperEnv": "esper_env.env",
    "EsperVectorEnv": "esper_env.vector_env",
    "FlatActions": "esper_env.wrappers",
    "FlatVectorActions": "esper_env.wrappers",
    "ImageData": "esper_env.data",
    "TextData": "esper_env.data",
    "action": "esper_env.actions",
    "describe_action": "esper_env.actions",
    "register_blueprint": "esper_env.seeds",
    "register_topology": "esper_env.seeds",
    "unregister_blueprint": "esper_env.seeds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


for _env_id in ENV_IDS:
    announce(_env_id)
