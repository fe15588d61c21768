"""Adapter from Gymnasium vector environments to Stable-Baselines3's ``VecEnv``.

from esper_agent import make_sb3_env
from stable_baselines3 import PPO

env = make_sb3_env("Esper-Digits-v0", num_envs=16, seed=0)
PPO("MultiInputPolicy", env, n_steps=40, device="cpu").learn(20_000)
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import gymnasium
import numpy as np
from esper_env.checks import SEED, check_value
from esper_env.paths import user_path
from esper_env.suggestions import closest
from esper_env.tasks import TASK_KWARGS
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from typing_extensions import override

from esper_agent.vectors import UnexpectedArgumentError, make_vector, split_infos

_FINAL_KEYS = frozenset({"final_obs", "_final_obs", "final_info", "_final_info"})
_ARGUMENTS = (
    "env_id",
    "num_envs",
    "seed",
    "monitor_file",
    "workers",
    "vectorization_mode",
)  # of make_sb3_env, to suggest
_SINGLE_SPACES = {"observation_space": "single_observation_space", "action_space": "single_action_space"}


class GymVecEnv(VecEnv):
    """A Gymnasium ``VectorEnv`` with same-step autoreset as a Stable-Baselines3 ``VecEnv``.

    Observations and rewards are copies. At the end of an episode, the info belongs to the final step, with
    ``terminal_observation``, and ``reset_infos`` has the info of the reset. Infos that Gymnasium's vector wrappers add
    to a step, such as ``RecordEpisodeStatistics``, belong to that step, even if it ends an episode.
    ``TimeLimit.truncated`` is True if the episode was truncated and not terminated.

    ``env_method(name)`` calls a method of the vector once; it must return one entry per environment. ``get_attr(name)``
    repeats an attribute of the vector. On ``SyncVectorEnv`` and ``AsyncVectorEnv``, both access the single
    environments.

    Args:
        vec_env: the vector environment.

    Raises:
        TypeError: ``vec_env`` is not a ``gymnasium.vector.VectorEnv``.
        ValueError: its autoreset mode is not ``AutoresetMode.SAME_STEP``.
    """

    def __init__(self, vec_env: VectorEnv) -> None:
        if not isinstance(vec_env, VectorEnv):
            raise TypeError(
                f"vec_env is a {type(vec_env).__name__}; expected a gymnasium.vector.VectorEnv, such as "
                "gymnasium.make_vec returns"
            )
        mode = vec_env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the vector environment's autoreset mode is {mode}; Stable-Baselines3 needs AutoresetMode.SAME_STEP: "
                f"use {_call_with_same_step(vec_env)}, or make_sb3_env"
            )
        self.vec_env: Any = vec_env  # VectorEnv does not declare all methods used here
        self.spec = vec_env.spec
        self._innermost = _innermost_wrapper(vec_env)
        self._actions: np.ndarray | None = None
        super().__init__(vec_env.num_envs, vec_env.single_observation_space, vec_env.single_action_space)

    # Stepping

    @override
    def reset(self) -> VecEnvObs:
        observation, infos = self.vec_env.reset(seed=self._next_seed(), options=self._next_options())
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = split_infos(infos, self.num_envs)
        return copy.deepcopy(observation)

    @override
    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    @override
    def step_wait(self) -> VecEnvStepReturn:
        (observation, rewards, terminated, truncated, infos), own_keys = self._step()
        done = np.logical_or(terminated, truncated)
        others = {key: value for key, value in infos.items() if key not in _FINAL_KEYS}
        own = {key: value for key, value in others.items() if key in own_keys}
        step_infos = split_infos(own, self.num_envs)
        if done.any():
            self._take_final(step_infos, infos, done)
        added = split_infos({key: value for key, value in others.items() if key not in own_keys}, self.num_envs)
        for index, info in enumerate(step_infos):
            info |= added[index]
            info["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        return copy.deepcopy(observation), np.array(rewards, dtype=np.float32), done, step_infos

    def _step(self) -> tuple[Any, frozenset[str]]:
        """Step the vector; return the result, and the keys of its infos without those that its wrappers added."""
        if self._innermost is None:
            result = self.vec_env.step(self._actions)
            return result, frozenset(result[4])
        observed = _ObservedKeys(self._innermost.env)
        self._innermost.env = observed
        try:
            return self.vec_env.step(self._actions), observed.keys
        finally:
            self._innermost.env = observed.env

    def _take_final(self, step_infos: list[dict[str, Any]], infos: dict[str, Any], done: np.ndarray) -> None:
        """Replace the reset info of each finished environment with the info of its final step."""
        finals = split_infos({"obs": infos["final_obs"], "info": infos["final_info"]}, self.num_envs)
        for index in np.flatnonzero(done):
            self.reset_infos[index] = step_infos[index]
            step_infos[index] = {**finals[index]["info"], "terminal_observation": copy.deepcopy(finals[index]["obs"])}

    def _next_seed(self) -> int | list[int | None] | None:
        """Seed for the vector's ``reset``; consecutive seeds become their first, which every vector accepts."""
        first = self._seeds[0]
        if all(seed is None for seed in self._seeds):
            return None
        if first is not None and self._seeds == [first + index for index in range(self.num_envs)]:
            return first
        return list(self._seeds)

    def _next_options(self) -> dict[str, Any] | None:
        first = self._options[0]
        if any(options != first for options in self._options):
            raise ValueError(
                "set_options received different options per environment; expected one dict for all, as Gymnasium's "
                "vector environments take"
            )
        return first or None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Set seeds ``seed, seed + 1, ...`` for the next reset; None draws entropy without a global generator."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        return super().seed(seed)

    @override
    def close(self) -> None:
        self.vec_env.close()

    @override
    def get_images(self) -> Sequence[np.ndarray | None]:
        frames = self.vec_env.render()
        return [None] * self.num_envs if frames is None else list(frames)

    # Attributes and methods

    @property
    def _has_single_envs(self) -> bool:
        return isinstance(self.vec_env.unwrapped, (SyncVectorEnv, AsyncVectorEnv))

    def _selected(self, values: Sequence[Any] | np.ndarray, indices: VecEnvIndices) -> list[Any]:
        return [values[index] for index in self._get_indices(indices)]

    def _find(self, name: str) -> Any:
        """Attribute of the outermost wrapper, or of the vector, that has it."""
        layer = self.vec_env
        while not hasattr(layer, name) and isinstance(layer, VectorWrapper):
            layer = layer.env
        return getattr(layer, name)

    @override
    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        if attr_name in _SINGLE_SPACES:
            values: Sequence[Any] = [getattr(self.vec_env, _SINGLE_SPACES[attr_name])] * self.num_envs
        elif self._has_single_envs:
            values = self.vec_env.unwrapped.get_attr(attr_name)
        else:
            values = [self._find(attr_name)] * self.num_envs
        return self._selected(values, indices)

    @override
    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        targets = list(self._get_indices(indices))
        if self._has_single_envs:
            values = list(self.vec_env.unwrapped.get_attr(attr_name))
            for index in targets:
                values[index] = value
            self.vec_env.unwrapped.set_attr(attr_name, values)
            return
        if sorted(targets) != list(range(self.num_envs)):
            raise ValueError(
                f"set_attr({attr_name!r}) received environments {targets}, but the vector environment has one "
                "attribute for all; omit indices"
            )
        setattr(self.vec_env.unwrapped, attr_name, value)

    @override
    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        if self._has_single_envs:
            values = self.vec_env.unwrapped.call(method_name, *method_args, **method_kwargs)
        else:
            result = self._find(method_name)(*method_args, **method_kwargs)
            values = [None] * self.num_envs if result is None else result
            if not isinstance(values, (np.ndarray, list, tuple)) or len(values) != self.num_envs:
                raise TypeError(
                    f"env_method({method_name!r}): the vector environment returned a {type(values).__name__}; expected "
                    f"one entry for each of its {self.num_envs} environments; call it on `.vec_env` instead"
                )
        return self._selected(values, indices)

    @override
    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        if isinstance(self.vec_env.unwrapped, SyncVectorEnv):
            values = [is_wrapped(env, wrapper_class) for env in self.vec_env.unwrapped.envs]
        else:
            values = [False] * self.num_envs
        return self._selected(values, indices)


class _ObservedKeys(VectorWrapper):
    """Records the keys of a vector's infos before its other wrappers add theirs."""

    keys: frozenset[str] = frozenset()

    @override
    def step(self, actions: Any) -> Any:
        result = self.env.step(actions)
        self.keys = frozenset(result[4])
        return result


def _innermost_wrapper(vec_env: VectorEnv) -> VectorWrapper | None:
    """Return the wrapper directly around the vector, or None without wrappers."""
    innermost = None
    while isinstance(vec_env, VectorWrapper):
        innermost, vec_env = vec_env, vec_env.env
    return innermost


def _call_with_same_step(vec_env: VectorEnv) -> str:
    """Return a call that makes the same vector with same-step autoreset."""
    env_id, base = vec_env.spec.id if vec_env.spec is not None else "ID", type(vec_env.unwrapped)
    mode = AutoresetMode.SAME_STEP.value
    arguments = f"autoreset_mode={mode!r}"
    if base in (SyncVectorEnv, AsyncVectorEnv) or "autoreset_mode" not in inspect.signature(base).parameters:
        kind = "async" if base is AsyncVectorEnv else "sync"
        arguments = f"vectorization_mode={kind!r}, vector_kwargs={{'autoreset_mode': {mode!r}}}"
    return f"gymnasium.make_vec({env_id!r}, num_envs={vec_env.num_envs}, {arguments})"


def make_sb3_env(
    env_id: str, num_envs: int = 1, seed: int | None = None, *, monitor_file: str | None = None, **env_kwargs: Any
) -> VecMonitor:
    """``gymnasium.make_vec`` + :class:`GymVecEnv` + ``VecMonitor``, seeded for its first reset.

    Args:
        env_id: a registered id, such as ``Esper-Digits-v0``; importing this module registers Esper's ids.
        num_envs: number of environments.
        seed: environment i is first reset with ``seed + i``; None draws entropy.
        monitor_file: path of the CSV of ``VecMonitor``; None for no file.
        **env_kwargs: passed to ``make_vec``, for example ``horizon=20``, ``max_episode_steps=10``, ``workers=2`` or
            ``vectorization_mode="async"``.

    Raises:
        ValueError: an unknown id, or invalid numbers or settings.
        TypeError: an unknown keyword argument (also a ``ValueError``).
    """
    check_value("seed", seed, Annotated[int, SEED] | None)
    try:
        vector = make_vector(env_id, num_envs, AutoresetMode.SAME_STEP, **env_kwargs)
    except UnexpectedArgumentError as error:
        near = closest(error.argument, [*_ARGUMENTS, *TASK_KWARGS])
        if near not in _ARGUMENTS:
            raise
        raise UnexpectedArgumentError(
            f"make_sb3_env() got an unexpected keyword argument {error.argument!r}; did you mean {near!r}?",
            error.argument,
        ) from error
    adapted = GymVecEnv(vector)
    adapted.seed(seed)
    return VecMonitor(adapted, filename=None if monitor_file is None else str(user_path(monitor_file)))
