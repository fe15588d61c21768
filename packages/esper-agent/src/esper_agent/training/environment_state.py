"""The state of an environment as a learner sees it: of each of Stable-Baselines3's layers, and of the vector below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from esper_env.persistence.checkpoint import CheckpointError
from esper_env.persistence.tree import Tree
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from esper_agent.sb3 import GymVecEnv
from esper_agent.training.learner_state import expect_keys, expect_like


class _Layer(NamedTuple):
    read: Callable[[Any], Tree]
    put: Callable[[Any, Tree], None]


def _normaliser(layer: VecNormalize) -> Tree:
    statistics = layer.ret_rms
    return {
        "returns": layer.returns.copy(),
        "mean": np.array(statistics.mean),
        "var": np.array(statistics.var),
        "count": float(statistics.count),
    }


def _put_normaliser(layer: VecNormalize, tree: Tree) -> None:
    layer.returns = tree["returns"].copy()
    layer.ret_rms.mean, layer.ret_rms.var = tree["mean"].copy(), tree["var"].copy()
    layer.ret_rms.count = tree["count"]


def _monitor(layer: VecMonitor) -> Tree:
    return {
        "returns": layer.episode_returns.copy(),
        "lengths": layer.episode_lengths.copy(),
        "episodes": int(layer.episode_count),
    }


def _put_monitor(layer: VecMonitor, tree: Tree) -> None:
    layer.episode_returns, layer.episode_lengths = tree["returns"].copy(), tree["lengths"].copy()
    layer.episode_count = tree["episodes"]


#: Layers whose state is known; what ``esper train`` puts around an environment.
_LAYERS: Mapping[type[VecEnv], _Layer] = {
    VecNormalize: _Layer(_normaliser, _put_normaliser),
    VecMonitor: _Layer(_monitor, _put_monitor),
}
_VECTOR = "vector"


def environment_state(env: VecEnv) -> Tree:
    """The state of every layer; ``CheckpointError`` as of :func:`check_layers`."""
    wrappers, base = check_layers(env)
    return {name: layer.read(wrapper) for name, (wrapper, layer) in wrappers.items()} | {_VECTOR: base.get_state()}


def check_environment(env: VecEnv, tree: Tree) -> None:
    """``CheckpointError`` unless the layers are those of the tree, with as many environments."""
    wrappers, _ = check_layers(env)
    expect_keys(tree, {**wrappers, _VECTOR: None}, "environment")
    for name, (wrapper, layer) in wrappers.items():
        expect_like(tree[name], layer.read(wrapper), f"environment/{name}")


def put_environment(env: VecEnv, tree: Tree) -> None:
    """Put a checked tree back. The vector checks its own part, and raises before anything has changed."""
    wrappers, base = check_layers(env)
    base.set_state(tree[_VECTOR])
    for name, (wrapper, layer) in wrappers.items():
        layer.put(wrapper, tree[name])


def check_layers(env: VecEnv) -> tuple[dict[str, tuple[VecEnv, _Layer]], GymVecEnv]:
    """The wrappers, from the outside in, and what they are around.

    Raises ``CheckpointError`` for a layer whose state nobody could save: training would not go on where it was.
    """
    wrappers: dict[str, tuple[VecEnv, _Layer]] = {}
    while isinstance(env, VecEnvWrapper):
        known = _LAYERS.get(type(env))
        if known is None or (isinstance(env, VecNormalize) and env.norm_obs):
            what = "which normalises observations" if known else "which is none of VecNormalize and VecMonitor"
            raise CheckpointError(f"the environment is wrapped in {type(env).__name__}, {what}; {_REMEDY}")
        wrappers[type(env).__name__] = env, known
        env = env.venv
    if not isinstance(env, GymVecEnv):
        raise CheckpointError(f"the environment is a {type(env).__name__}, not made by make_sb3_env; {_REMEDY}")
    inner = env.vec_env
    if inner.unwrapped is not inner or not (hasattr(inner, "get_state") and hasattr(inner, "set_state")):
        raise CheckpointError(f"{type(inner).__name__} has no get_state and set_state; {_REMEDY}")
    return wrappers, env


_REMEDY = "its state cannot be saved, so train without checkpoints (checkpoint_every=0)"
