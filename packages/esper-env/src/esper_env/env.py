"""One growing network as a Gymnasium environment: a vector of one."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from esper_env.checks import array_of
from esper_env.growth import Observation
from esper_env.infos import Infos, single_info
from esper_env.persistence.checkpoint import read_checkpoint, write_checkpoint
from esper_env.persistence.tree import Tree
from esper_env.render import RENDER_MODES
from esper_env.rules.heads import HEAD_NAMES, NUM_HEADS
from esper_env.suggestions import shown
from esper_env.tasks import TaskConfig, make_task
from esper_env.tasks.identity import KIND
from esper_env.vector_env import EsperVectorEnv
from esper_env.views import NetworkView, row_of


class EsperEnv(NetworkView, gym.Env[Observation, NDArray[np.int64]]):
    """A growing network as an environment; :class:`esper_env.vector_env.EsperVectorEnv` documents the contract.

    >>> import gymnasium, esper_env
    >>> env = gymnasium.make("Esper-Digits-v0", horizon=5)
    >>> observation, info = env.reset(seed=0)
    >>> observation["features"].shape, env.unwrapped.dataset_name
    ((121,), 'digits')
    >>> germinate = esper_env.action("germinate", "r0c0", blueprint="conv_light")
    >>> observation, reward, terminated, truncated, info = env.step(germinate)
    >>> bool(info["action_succeeded"]), int(observation["blueprints"][0])
    (True, 1)
    >>> env.close()

    Args:
        env_id: a registered task; ``gymnasium.make`` fills it in.
        render_mode: None, "ansi" (text) or "rgb_array" (a picture).
        **task_kwargs: settings of the task to replace, documented at :class:`esper_env.tasks.TaskConfig`.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(self, env_id: str, *, render_mode: str | None = None, **task_kwargs: Any) -> None:
        make_task(env_id, **task_kwargs)  # rejects arguments of vectors, such as autoreset_mode
        self._vector = EsperVectorEnv(
            env_id, 1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **task_kwargs
        )
        self.render_mode = render_mode
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self.task: TaskConfig = self._vector.task
        self.slot_ids = self._vector.slot_ids
        self.topology = self._vector.topology
        self.offered_blueprints = self._vector.offered_blueprints
        self.blueprint_names = self._vector.blueprint_names
        self.dataset_name, self.data_digest = self._vector.dataset_name, self._vector.data_digest
        self.host_parameters = self._vector.host_parameters
        self.reward_config = self._vector.reward_config
        self.telemetry = self._vector.telemetry

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Infos]:
        """Start an episode.

        Args:
            seed: seed of the environment's generator; None continues the present one.
            options: ``{"topology": {slot id: blueprint name}}`` plants seeds at the start.

        Raises:
            ValueError, TypeError: invalid seed or options; nothing has changed.
        """
        if isinstance(seed, Sequence | np.ndarray):
            raise TypeError(f"seed is {shown(seed)}; expected an integer or None, as this is one environment")
        self._vector.check_reset(seed, options, ("topology",))
        super().reset(seed=None if seed is None else int(seed))
        self._share_generator()
        observations, infos = self._vector.reset(options=options)
        return row_of(observations, 0), single_info(infos, 0)

    def step(self, action: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, Infos]:
        """Apply an action (8,), then train and evaluate one epoch."""
        actions = array_of(action)[None]
        if actions.shape != (1, NUM_HEADS):
            raise ValueError(
                f"action has shape {actions.shape[1:]}; expected ({NUM_HEADS},), one number per head "
                f"({', '.join(HEAD_NAMES)})"
            )
        observations, rewards, terminated, truncated, infos = self._vector.step(actions)
        return (
            row_of(observations, 0),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            single_info(infos, 0),
        )

    def get_state(self) -> Tree:
        """Return the state, as :meth:`EsperVectorEnv.get_state`, including ``np_random``."""
        self._share_generator()
        return self._vector.get_state()

    def set_state(self, state: Tree) -> None:
        """Restore a state, as :meth:`EsperVectorEnv.set_state`. Raises ``ValueError`` and then changes nothing."""
        self._vector.set_state(state)
        (self._np_random,), (self._np_random_seed,) = self._vector.np_random, self._vector.np_random_seed

    def save_state(self, path: str | Path) -> Path:
        """Save the state to a file, as :meth:`EsperVectorEnv.save_state`."""
        return write_checkpoint(path, self.get_state(), kind=KIND)

    def load_state(self, path: str | Path) -> None:
        """Load the state from a file, as :meth:`EsperVectorEnv.load_state`."""
        self.set_state(read_checkpoint(path, kind=KIND))

    def _share_generator(self) -> None:
        """Make the vector use Gymnasium's generator of this environment."""
        self._vector.share_generators((self.np_random,), (self.np_random_seed,))

    def close(self) -> None:
        """Flush and close the telemetry sinks."""
        self._vector.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, with the generator and without the task, which the copied vector has."""
        self._share_generator()
        return {name: value for name, value in vars(self).items() if name != "task"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.task = self._vector.task

    def __copy__(self) -> EsperEnv:
        return deepcopy(self)
