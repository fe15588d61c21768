"""Checks that an environment has the spaces that the policy reads, and that no wrapper changes indices or masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from esper_env.rules import NUM_OPS, head_sizes
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from esper_agent.sb3 import GymVecEnv
from esper_agent.vectors import described


def reject_vector(env: object) -> None:
    """Raise ``TypeError`` for a vector environment of Gymnasium."""
    if isinstance(env, VectorEnv):
        raise TypeError(
            "`env` is a gymnasium.vector.VectorEnv; expected a vector environment of Stable-Baselines3: use "
            "esper_agent.make_sb3_env(id, num_envs), or wrap it in GymVecEnv"
        )


def check_env(env: VecEnv) -> None:
    """Check the spaces of a vector environment and the normalisation of its observations.

    Raises:
        ValueError: the spaces are not those of a growth environment, or indices or masks are normalised; the message
            names the wrapper.
    """
    try:
        check_spaces(env.observation_space, env.action_space)
    except ValueError as error:
        wrappers = [
            type(outer).__name__
            for outer, inner in _layers(env)
            if any(_space(outer, kind) != _space(inner, kind) for kind in ("observation_space", "action_space"))
        ]
        remedy = f"; remove the wrapper {', '.join(wrappers)}" if wrappers else ""
        raise ValueError(f"{error}{remedy}") from None
    for layer, _ in _layers(env):
        normalised = layer.norm_obs_keys or [] if isinstance(layer, VecNormalize) and layer.norm_obs else []
        others = [key for key in normalised if key != "features"]
        if others:
            raise ValueError(
                f"VecNormalize normalises {', '.join(others)} of the observation; expected unchanged indices and "
                'masks: use VecNormalize(env, norm_obs=False), or norm_obs_keys=["features"]'
            )


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Check that the spaces belong to a growth environment; ``ValueError`` otherwise."""
    nvec = action_space.nvec.ravel().tolist() if isinstance(action_space, spaces.MultiDiscrete) else [1]
    sizes = head_sizes(nvec[0])
    if nvec != list(sizes):
        raise ValueError(
            f"action space is {described(action_space)}; expected the heads of an Esper environment, "
            "MultiDiscrete(head_sizes(slots))"
        )
    shapes = {"blueprints": (nvec[0],), "action_mask": (sum(sizes),), "op_slot_mask": (NUM_OPS * nvec[0],)}
    given = dict(observation_space) if isinstance(observation_space, spaces.Dict) else {}
    features = given.get("features")
    if not (
        isinstance(features, spaces.Box)
        and len(features.shape) == 1
        and all(key in given and _holds_integers(given[key], shape) for key, shape in shapes.items())
    ):
        raise ValueError(
            f"observation space is {described(observation_space)}; expected a Dict of flat features and the integers "
            f"{', '.join(f'{key} {shape}' for key, shape in shapes.items())}: do not flatten or stack the observation"
        )


def _holds_integers(space: spaces.Space, shape: tuple[int, ...]) -> bool:
    return space.shape == shape and space.dtype is not None and np.issubdtype(space.dtype, np.integer)


def _layers(env: VecEnv) -> Iterator[tuple[Any, Any]]:
    """Yield every wrapper and the environment inside it, from the outside in; of several environments the first."""
    outer: Any = env
    while True:
        if isinstance(outer, VecEnvWrapper):
            inner: Any = outer.venv
        elif isinstance(outer, GymVecEnv):
            inner = outer.vec_env
        elif isinstance(outer, VectorWrapper | gymnasium.Wrapper):
            inner = outer.env
        elif isinstance(outer, DummyVecEnv | SyncVectorEnv):
            inner = outer.envs[0]
        else:
            return
        yield outer, inner
        outer = inner


def _space(layer: Any, kind: str) -> spaces.Space:
    space: spaces.Space = getattr(layer, f"single_{kind}" if isinstance(layer, VectorEnv) else kind)
    return space
