"""Wrappers that number the joint actions, for algorithms that need a ``Discrete`` action space.

``FlatActions`` wraps a single environment, ``FlatVectorActions`` the vector of ``gymnasium.make_vec``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from esper_env.checks import array_of
from esper_env.env import EsperEnv
from esper_env.growth import Observation
from esper_env.infos import Infos
from esper_env.rules.joint_actions import JointActions
from esper_env.suggestions import shown
from esper_env.vector_env import EsperVectorEnv

__all__ = ["FlatActions", "FlatVectorActions"]

E = TypeVar("E", EsperEnv, EsperVectorEnv)


class FlatActions(gym.Wrapper[Observation, Any, Observation, Any], gym.utils.RecordConstructorArgs):
    """An Esper environment whose action space is ``Discrete(K)`` over its joint actions.

    Actions that differ only in heads that their op does not read are one joint action. The observation's and the info's
    ``action_mask`` is int8 (K,), exactly 1 where an action is legal. It replaces the factored masks; ``op_slot_mask``
    is left out. Action 0 is WAIT, and the others are ordered by op, then slot, then the other heads in their order.

    >>> import esper_env, gymnasium
    >>> env = esper_env.FlatActions(gymnasium.make("Esper-Digits-v0", horizon=5))
    >>> observation, info = env.reset(seed=0)
    >>> env.action_space, int(info["action_mask"].sum())
    (Discrete(1543), 757)
    >>> esper_env.describe_action(env.action(1), env=env)
    'GERMINATE conv_light in r0c0: style LINEAR_ADD, tempo FAST (3 epochs), alpha_target HALF (0.5)'
    >>> env.close()

    Args:
        env: a single Esper environment, whose observations no wrapper has changed.

    Raises:
        TypeError: ``env`` is another kind of environment.
    """

    def __init__(self, env: gym.Env[Observation, NDArray[np.int64]]) -> None:
        base = _base(env, EsperEnv, "FlatVectorActions for a vector")
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._base = base
        self._joint = _joint_actions(self._base, env.observation_space)
        self.action_space = gym.spaces.Discrete(len(self._joint))
        self.observation_space = _flat_space(env.observation_space, len(self._joint))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Infos]:
        """Start an episode, as :meth:`EsperEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._flat(observation, info)

    def step(self, action: int) -> tuple[Observation, float, bool, bool, Infos]:
        """Carry out a joint action, as :meth:`EsperEnv.step`. Raises ``ValueError`` for any other value."""
        observation, reward, terminated, truncated, info = self.env.step(self.action(action))
        observation, info = self._flat(observation, info)
        return observation, float(reward), terminated, truncated, info

    def action(self, action: int) -> NDArray[np.int64]:
        """Return the action (8,) of a joint action 0..K-1; raise ``ValueError`` for any other value."""
        return self._joint.actions[_numbers(action, (), len(self._joint))].copy()

    def index(self, action: ArrayLike) -> int:
        """Return the number of an action (8,); raise ``ValueError`` if it has none.

        Heads that its op does not read are ignored.
        """
        return int(self._joint.index(action))

    def action_masks(self) -> NDArray[np.bool_]:
        """Exact mask (K,) of the current state, under the name that sb3-contrib expects."""
        return self._joint.mask(self._base.observe()["op_slot_mask"]).astype(np.bool_)

    def _flat(self, observation: Observation, info: Infos) -> tuple[Observation, Infos]:
        flat = _flat_observation(observation, self._joint)
        return flat, {**info, "action_mask": flat["action_mask"].copy()}


class FlatVectorActions(
    VectorWrapper[Observation, NDArray[np.int64], Observation, NDArray[np.int64], NDArray[Any]],
    gym.utils.RecordConstructorArgs,
):
    """:class:`FlatActions` for the vector of ``gymnasium.make_vec``: actions (N,), masks (N, K).

    The masks in ``infos["final_obs"]`` and ``infos["final_info"]`` are exact, too.

    Args:
        env: an Esper vector environment, whose observations no wrapper has changed.

    Raises:
        TypeError: ``env`` is another kind of environment.
    """

    def __init__(self, env: VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]) -> None:
        base = _base(env, EsperVectorEnv, "FlatActions for a single environment, or in wrappers=[FlatActions]")
        gym.utils.RecordConstructorArgs.__init__(self)
        VectorWrapper.__init__(self, env)
        self._base = base
        self._joint = _joint_actions(self._base, env.single_observation_space)
        self.single_action_space = gym.spaces.Discrete(len(self._joint))
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.single_observation_space = _flat_space(env.single_observation_space, len(self._joint))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, Infos]:
        """Start episodes, as :meth:`EsperVectorEnv.reset`."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._flat(observations, infos)

    def step(self, actions: NDArray[np.int64]) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], Infos]:
        """Carry out joint actions (N,), as :meth:`EsperVectorEnv.step`. Raises ``ValueError`` for other values."""
        observations, rewards, terminated, truncated, infos = self.env.step(self.action(actions))
        observations, infos = self._flat(observations, infos)
        return observations, rewards, terminated, truncated, infos

    def action(self, actions: ArrayLike) -> NDArray[np.int64]:
        """Return the actions (N, 8) of joint actions (N,); raise ``ValueError`` for other values."""
        return self._joint.actions[_numbers(actions, (self.num_envs,), len(self._joint))]

    def index(self, actions: ArrayLike) -> NDArray[np.int64]:
        """Return the numbers (N,) of actions (N, 8), as :meth:`FlatActions.index`."""
        return self._joint.index(actions)

    def action_masks(self) -> NDArray[np.bool_]:
        """Exact masks (N, K) of the current state, under the name that sb3-contrib expects."""
        return self._joint.mask(self._base.observe()["op_slot_mask"]).astype(np.bool_)

    def _flat(self, observations: Observation, infos: Infos) -> tuple[Observation, Infos]:
        flat = _flat_observation(observations, self._joint)
        changed = dict(infos)
        if "action_mask" in infos:
            changed["action_mask"] = np.where(infos["_action_mask"][:, None], flat["action_mask"], np.int8(0))
        if "final_obs" in infos:
            final_obs = np.full(self.num_envs, None, dtype=object)
            masks = np.zeros_like(flat["action_mask"])
            for row in np.flatnonzero(infos["_final_obs"]):
                final_obs[row] = _flat_observation(infos["final_obs"][row], self._joint)
                masks[row] = final_obs[row]["action_mask"]
            changed["final_obs"] = final_obs
            changed["final_info"] = {**infos["final_info"], "action_mask": masks}
        return flat, changed


def _base(env: Any, kind: type[E], other: str) -> E:
    base = getattr(env, "unwrapped", env)
    if not isinstance(base, kind):
        raise TypeError(f"env is {shown(env)}; expected an {kind.__name__} (use {other})")
    return base


def _joint_actions(base: EsperEnv | EsperVectorEnv, space: gym.Space[Any]) -> JointActions:
    if not isinstance(space, gym.spaces.Dict) or not {"action_mask", "op_slot_mask"} <= space.keys():
        raise TypeError(
            f"the environment's observations are {shown(space)}, without 'action_mask' and 'op_slot_mask'; apply this "
            "wrapper before wrappers that change observations"
        )
    return JointActions(len(base.slot_ids), base.offered_blueprints)


def _flat_space(space: Any, count: int) -> Any:
    """The space of observations with the mask of ``count`` joint actions in place of the factored masks."""
    spaces = {key: value for key, value in space.items() if key != "op_slot_mask"}
    return gym.spaces.Dict(spaces | {"action_mask": gym.spaces.Box(0, 1, (count,), np.int8)})


def _flat_observation(observation: Observation, joint: JointActions) -> Observation:
    flat = {key: value for key, value in observation.items() if key != "op_slot_mask"}
    return flat | {"action_mask": joint.mask(observation["op_slot_mask"])}


def _numbers(given: ArrayLike, shape: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Return the numbers of actions as an array of a shape; raise ``ValueError`` unless they are 0 to ``count`` - 1."""
    array = array_of(given)
    if array.shape != shape or not np.issubdtype(array.dtype, np.integer) or ((array < 0) | (array >= count)).any():
        what = "an integer" if not shape else f"{shape} integers"
        raise ValueError(f"action is {shown(given)}; expected {what} in [0, {count - 1}]")
    return array.astype(np.int64)
