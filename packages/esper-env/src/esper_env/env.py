"""One growing network as a Gymnasium environment: a vector of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from esper_env.growth import Observation
from esper_env.infos import Infos, single_info
from esper_env.persistence.checkpoint import read_checkpoint, write_checkpoint
from esper_env.persistence.tree import Tree
from esper_env.render import RENDER_MODES, Picture
from esper_env.rules.masks import MaskArray
from esper_env.tasks import TaskConfig, make_task
from esper_env.tasks.identity import KIND
from esper_env.vector_env import EsperVectorEnv


class EsperEnv(gym.Env[Observation, NDArray[np.int64]]):
    """A network that grows while it trains; see :class:`esper_env.vector_env.EsperVectorEnv` for the contract.

    >>> import gymnasium, esper_env
    >>> env = gymnasium.make("Esper-Digits-v0", horizon=5)
    >>> observation, info = env.reset(seed=0)
    >>> observation["features"].shape, info["dataset_name"]
    ((121,), 'digits')
    >>> germinate = [0, 1, 2, 1, 2, 0, 0, 1]  # conv_light in slot 0
    >>> observation, reward, terminated, truncated, info = env.step(germinate)
    >>> info["action_succeeded"], int(observation["blueprints"][0])
    (True, 1)
    >>> env.close()

    Args:
        env_id: a registered task; ``gymnasium.make`` fills it in.
        render_mode: None, "ansi" (text) or "rgb_array" (a picture).
        task_kwargs: numbers of the task to replace (``esper_env.tasks.config.TASK_KWARGS``).
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(self, env_id: str, *, render_mode: str | None = None, **task_kwargs: Any) -> None:
        make_task(env_id, **task_kwargs)  # what only a vector has, such as autoreset_mode, is unknown here
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
        self.dataset_name = self._vector.dataset_name
        self.host_parameters = self._vector.host_parameters
        self.reward_config = self._vector.reward_config
        self.telemetry = self._vector.telemetry

    @property
    def data_digest(self) -> str:
        """Tells the data apart from all others, whatever their name."""
        return self._vector.data_digest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Infos]:
        """Start an episode; ``options={"topology": {slot id: blueprint name}}`` plants seeds from the start.

        Raises ``ValueError`` or ``TypeError`` for a seed or options that make no sense; nothing has changed then.
        """
        if isinstance(seed, Sequence | np.ndarray):
            raise TypeError(f"seed is {seed!r}; expected an integer or None, as this is one environment")
        self._vector.check_reset(seed, options, ("topology",))
        super().reset(seed=None if seed is None else int(seed))
        self._share_generator()
        observations, infos = self._vector.reset(options=options)
        return _first(observations), single_info(infos, 0)

    def step(self, action: NDArray[np.int64]) -> tuple[Observation, float, bool, bool, Infos]:
        """Carry out one action (8,), train and measure one epoch."""
        observations, rewards, terminated, truncated, infos = self._vector.step(np.asarray(action)[None])
        return _first(observations), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), single_info(infos, 0)

    def observe(self) -> Observation:
        """The present observation, as the last reset or step returned it; ``ResetNeeded`` before the first reset."""
        return _first(self._vector.observe())

    def get_state(self) -> Tree:
        """All that the future depends on, as :meth:`EsperVectorEnv.get_state`; ``np_random`` is part of it."""
        self._share_generator()
        return self._vector.get_state()

    def set_state(self, state: Tree) -> None:
        """Go on from :meth:`get_state`, as :meth:`EsperVectorEnv.set_state`; ``ValueError`` before anything changes."""
        self._vector.set_state(state)
        (self._np_random,), (self._np_random_seed,) = self._vector.np_random, self._vector.np_random_seed

    def save_state(self, path: str | Path) -> Path:
        """Write :meth:`get_state` to a file; see :meth:`EsperVectorEnv.save_state`."""
        return write_checkpoint(path, self.get_state(), kind=KIND)

    def load_state(self, path: str | Path) -> None:
        """Call :meth:`set_state` with the state in a file; see :meth:`EsperVectorEnv.load_state`."""
        self.set_state(read_checkpoint(path, kind=KIND))

    def action_masks(self) -> NDArray[np.bool_]:
        """(sum of the head sizes,) the marginal mask under sb3-contrib's name."""
        masks: NDArray[np.bool_] = self._vector.action_masks()[0]
        return masks

    def sample_valid_actions(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """(8,) a legal action: op uniform, then the slot, then the heads the op reads."""
        actions: NDArray[np.int64] = self._vector.sample_valid_actions(rng)[0]
        return actions

    def split_mask(self) -> tuple[MaskArray, ...]:
        """The marginal mask by head, for ``action_space.sample(mask=...)``."""
        return self._vector.split_mask(0)

    def conditional_masks(self, op: int) -> tuple[MaskArray, ...]:
        """Masks by head given the op: any combination of what is on is legal; an impossible op is a ``ValueError``."""
        return self._vector.conditional_masks(op, 0)

    def render(self) -> str | Picture | None:
        """The network as text or picture, None without a render mode."""
        frames = self._vector.render()
        return frames[0] if frames is not None else None

    def _share_generator(self) -> None:
        """Let the vector draw from the generator that Gymnasium keeps for this environment."""
        self._vector.share_generators((self.np_random,), (self.np_random_seed,))

    def close(self) -> None:
        """Stop the worker threads, write what waits for the telemetry's sinks, and close them."""
        self._vector.close()


def _first(observations: Observation) -> Observation:
    return {key: value[0].copy() for key, value in observations.items()}
