"""Adapter from Gymnasium vector environments to Stable-Baselines3's ``VecEnv``.

from esper_agent import make_sb3_env
from stable_baselines3 import PPO

env = make_sb3_env("Esper-Digits-v0", num_envs=16, seed=0)
PPO("MultiInputPolicy", env, n_steps=40, device="cpu").learn(20_000)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from esper_env.checks import is_whole
from esper_env.persistence import Tree
from esper_env.suggestions import closest
from esper_env.tasks import TASK_KWARGS, TASKS
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from typing_extensions import override

from esper_agent.vectors import find_id, make_vector, split_infos

_FINAL_KEYS = frozenset({"final_obs", "_final_obs", "final_info", "_final_info"})
_SINGLE_SPACES = {"observation_space": "single_observation_space", "action_space": "single_action_space"}


class GymVecEnv(VecEnv):
    """A Gymnasium ``VectorEnv`` with same-step autoreset as a Stable-Baselines3 ``VecEnv``.

    Observations and rewards are copies. At the end of an episode, the info belongs to the final step, with
    ``terminal_observation``, and ``reset_infos`` has the info of the reset. ``TimeLimit.truncated`` is True if the
    episode was truncated and not terminated.

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
                f"the vector environment's autoreset mode is {mode}; Stable-Baselines3 needs AutoresetMode.SAME_STEP, "
                "so make it with autoreset_mode=AutoresetMode.SAME_STEP"
            )
        self.vec_env: Any = vec_env  # VectorEnv does not declare all methods used here
        self.spec = vec_env.spec
        self._actions: np.ndarray | None = None
        super().__init__(vec_env.num_envs, vec_env.single_observation_space, vec_env.single_action_space)

    # Stepping

    @override
    def reset(self) -> VecEnvObs:
        observation, infos = self.vec_env.reset(seed=self._next_seed(), options=self._next_options())
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = split_infos(infos, self.num_envs)
        return _copied(observation)

    @override
    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    @override
    def step_wait(self) -> VecEnvStepReturn:
        observation, rewards, terminated, truncated, infos = self.vec_env.step(self._actions)
        done = np.logical_or(terminated, truncated)
        step_infos = split_infos({key: infos[key] for key in infos if key not in _FINAL_KEYS}, self.num_envs)
        if done.any():
            self._take_final(step_infos, infos, done)
        for index, info in enumerate(step_infos):
            info["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        return _copied(observation), np.array(rewards, dtype=np.float32), done, step_infos

    def _take_final(self, step_infos: list[dict[str, Any]], infos: dict[str, Any], done: np.ndarray) -> None:
        """Replace the reset info of each finished environment with the info of its final step."""
        missing = {"final_obs", "final_info"} - infos.keys()
        if missing:
            raise RuntimeError(
                f"an episode ended, but the vector environment's infos lack {sorted(missing)}; "
                "a SAME_STEP environment must return both"
            )
        finals = split_infos({"obs": infos["final_obs"], "info": infos["final_info"]}, self.num_envs)
        for index in np.flatnonzero(done):
            self.reset_infos[index] = step_infos[index]
            step_infos[index] = {**finals[index]["info"], "terminal_observation": _copied(finals[index]["obs"])}

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

    # State

    def get_state(self) -> Tree:
        """Return the state of the vector environment, which must have ``get_state``."""
        return self.vec_env.get_state()

    def set_state(self, state: Tree) -> None:
        """Restore a state of ``get_state``, and drop seeds and options for the next reset."""
        self.vec_env.set_state(state)
        self._reset_seeds()
        self._reset_options()

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
            values = self._call_vector(self._find(method_name), method_name, method_args, method_kwargs)
        return self._selected(values, indices)

    def _call_vector(
        self, method: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Sequence[Any] | np.ndarray:
        result = method(*args, **kwargs)
        if result is None:
            return [None] * self.num_envs
        if isinstance(result, (np.ndarray, list, tuple)) and len(result) == self.num_envs:
            return result
        raise TypeError(
            f"env_method({name!r}): the vector environment returned a {type(result).__name__}; expected one entry "
            f"for each of its {self.num_envs} environments; call it on `.vec_env` instead"
        )

    @override
    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        if isinstance(self.vec_env.unwrapped, SyncVectorEnv):
            values = [is_wrapped(env, wrapper_class) for env in self.vec_env.unwrapped.envs]
        else:
            values = [False] * self.num_envs
        return self._selected(values, indices)


def _copied(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _copied(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_copied(value) for value in observation)
    return np.array(observation)


#: Arguments of Stable-Baselines3's ``make_vec_env`` that differ here, with the remedy.
_REPLACED_ARGUMENTS = {
    "env_kwargs": "give settings of the environment as keyword arguments, such as horizon=20",
    "vec_env_kwargs": "give settings of the environment as keyword arguments, such as horizon=20",
}

_OWN_ARGUMENTS = ("num_envs", "seed", "monitor_file")


def _reject_misnamed(env_id: str, given: Iterable[str]) -> None:
    """Raise ``TypeError`` for an argument that has a different name here; environments of others may take any."""
    known = (*_OWN_ARGUMENTS, *TASK_KWARGS)
    for name in given:
        near = closest(name, known) if name not in known and find_id(env_id) in TASKS else None
        hint = f"did you mean {near!r}?" if near in _OWN_ARGUMENTS else ""
        if name in _REPLACED_ARGUMENTS or hint:
            raise TypeError(f"make_sb3_env has no argument {name!r}; {_REPLACED_ARGUMENTS.get(name, hint)}")


def make_sb3_env(
    env_id: str, num_envs: int = 1, seed: int | None = None, *, monitor_file: str | None = None, **env_kwargs: Any
) -> VecMonitor:
    """``gymnasium.make_vec`` + :class:`GymVecEnv` + ``VecMonitor``, seeded for its first reset.

    Args:
        env_id: a registered id, such as ``Esper-Digits-v0``; importing this module registers Esper's ids.
        num_envs: number of environments.
        seed: environment i is first reset with ``seed + i``; None draws entropy.
        monitor_file: path of the CSV of ``VecMonitor``; None for no file.
        **env_kwargs: passed to ``make_vec``, for example ``horizon=20`` or ``max_episode_steps=10``.

    Raises:
        TypeError: an argument that has a different name here, such as those of Stable-Baselines3's ``make_vec_env``.
        ValueError: an unknown id, or invalid numbers or settings.
    """
    _reject_misnamed(env_id, env_kwargs)
    if seed is not None and not is_whole(seed):
        raise ValueError(f"seed is {seed!r}; expected a whole number of at least 0, or None")
    adapted = GymVecEnv(make_vector(env_id, num_envs, AutoresetMode.SAME_STEP, **env_kwargs))
    adapted.seed(seed)
    return VecMonitor(adapted, filename=monitor_file)
