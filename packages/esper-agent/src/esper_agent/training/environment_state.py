"""The state of an environment and of the Stable-Baselines3 wrappers around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from esper_env.persistence import Accessors, CheckpointError, Stateful, Tree, check_like
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from esper_agent.sb3 import GymVecEnv

_REMEDY = "its state cannot be saved, so train without checkpoints (checkpoint_every=0)"


def environment_parts(env: VecEnv) -> dict[str, Stateful]:
    """Wrappers with their state, from the outside in, and the vector environment inside.

    Raises:
        CheckpointError: a wrapper or the vector environment has a state that cannot be saved, so a resumed run would
            not be exact.
    """
    parts: dict[str, Stateful] = {}
    while isinstance(env, VecEnvWrapper):
        get, put = _WRAPPERS.get(type(env), (None, None))
        if get is None or put is None or (isinstance(env, VecNormalize) and env.norm_obs):
            what = "which normalises observations" if get else "which is neither VecNormalize nor VecMonitor"
            raise CheckpointError(f"the environment is wrapped in {type(env).__name__}, {what}; {_REMEDY}")
        parts[type(env).__name__] = Accessors(partial(get, env), partial(put, env))
        env = env.venv
    if not isinstance(env, GymVecEnv):
        raise CheckpointError(f"the environment is a {type(env).__name__}, not made by make_sb3_env; {_REMEDY}")
    inner = env.vec_env
    if inner.unwrapped is not inner or not (hasattr(inner, "get_state") and hasattr(inner, "set_state")):
        raise CheckpointError(f"{type(inner).__name__} has no get_state and set_state; {_REMEDY}")
    vector = Accessors(inner.get_state, inner.set_state)
    return {**parts, "vector": vector, "seeds": Accessors(partial(_seeds, env), partial(_set_seeds, env))}


def _seeds(env: GymVecEnv) -> Tree:
    """Seeds for the next reset."""
    return {"next": list(env._seeds)}


def _set_seeds(env: GymVecEnv, tree: Tree) -> None:
    seeds = tree.get("next")
    if not isinstance(seeds, list) or len(seeds) != env.num_envs:
        raise ValueError(f"next is {seeds!r}; expected {env.num_envs} seeds")
    env._seeds = list(seeds)


def _normaliser(layer: VecNormalize) -> Tree:
    statistics = layer.ret_rms
    return {
        "returns": layer.returns.copy(),
        "mean": np.array(statistics.mean),
        "var": np.array(statistics.var),
        "count": float(statistics.count),
    }


def _set_normaliser(layer: VecNormalize, tree: Tree) -> None:
    check_like(tree, _normaliser(layer))
    layer.returns = tree["returns"].copy()
    layer.ret_rms.mean, layer.ret_rms.var = tree["mean"].copy(), tree["var"].copy()
    layer.ret_rms.count = tree["count"]


def _monitor(layer: VecMonitor) -> Tree:
    return {
        "returns": layer.episode_returns.copy(),
        "lengths": layer.episode_lengths.copy(),
        "episodes": int(layer.episode_count),
    }


def _set_monitor(layer: VecMonitor, tree: Tree) -> None:
    check_like(tree, _monitor(layer))
    layer.episode_returns, layer.episode_lengths = tree["returns"].copy(), tree["lengths"].copy()
    layer.episode_count = tree["episodes"]


#: The wrappers that `esper train` uses.
_WRAPPERS: Mapping[type[VecEnv], tuple[Callable[[Any], Tree], Callable[[Any, Tree], None]]] = {
    VecNormalize: (_normaliser, _set_normaliser),
    VecMonitor: (_monitor, _set_monitor),
}
