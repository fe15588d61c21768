"""N growing networks as one Gymnasium vector environment: spaces, seeds, autoreset and infos."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from esper_env.checks import POSITIVE, check_value, is_integer
from esper_env.episodes import EpisodeClock, parse_autoreset_mode, parse_reset
from esper_env.growth import Growth, Observation
from esper_env.infos import Infos, Values, replace_rows, vector_infos
from esper_env.persistence.checkpoint import read_checkpoint, write_checkpoint
from esper_env.persistence.generators import UNKNOWN_SEED, Generators
from esper_env.persistence.state import Stateful, check_keys, get_states, restore, set_states
from esper_env.persistence.tree import Tree
from esper_env.render import RENDER_MODES, Picture, check_render_mode, describe_networks, draw_networks
from esper_env.rules.heads import NO_BLUEPRINT, Op, head_sizes
from esper_env.rules.masks import MaskArray, sample_valid_actions
from esper_env.rules.observation import BOUND, feature_count
from esper_env.suggestions import shown
from esper_env.tasks import TASK_KWARGS, TASKS, TaskConfig, make_task, task_dict
from esper_env.tasks.identity import KIND, LAYOUT, check_origin, task_identity
from esper_env.telemetry import Telemetry
from esper_env.telemetry.memory import available_mib
from esper_env.threads import undisturbed
from esper_env.views import ByEnvironment
from esper_env.workers import WORKER_TIMEOUT, check_workers

EPISODE_SEED_BOUND = 2**62
#: Lower bound of the memory of one network, with its generator, its history and its observation.
LEAST_NETWORK_KIB = 8


def observation_space(num_slots: int) -> gym.spaces.Dict:
    """The observation of one network with S slots.

    ``features`` float32 (31 + 30 S) in [-2, 2]; ``blueprints`` int64 (S), 13 = empty; ``action_mask`` int8, marginal,
    (sum of the head sizes); ``op_slot_mask`` int8 (6 S), row-major over (op, slot).
    """
    sizes = head_sizes(num_slots)
    return gym.spaces.Dict(
        {
            "features": gym.spaces.Box(-BOUND, BOUND, (feature_count(num_slots),), np.float32),
            "blueprints": gym.spaces.Box(0, NO_BLUEPRINT, (num_slots,), np.int64),
            "action_mask": gym.spaces.Box(0, 1, (sum(sizes),), np.int8),
            "op_slot_mask": gym.spaces.Box(0, 1, (len(Op) * num_slots,), np.int8),
        }
    )


class EsperVectorEnv(ByEnvironment, VectorEnv[Observation, NDArray[np.int64], NDArray[Any]]):
    """N networks that grow while they train, stepped together.

    A step carries out one action per network, trains every network for an epoch and measures it. Actions are
    ``MultiDiscrete`` (N, 8): slot, blueprint, style, tempo, alpha_target, alpha_speed, alpha_curve, op, see
    :func:`esper_env.action` and ``docs/environment.md``; an action that the masks exclude acts as WAIT and sets
    ``infos["action_valid"]`` to False. Observations: :func:`observation_space`.

    An episode terminates at the task's ``horizon``: seeds that are not fossilized are discarded, and the last reward
    moves to the accuracy of the committed network. The governor terminates it earlier, after it has rolled the network
    back three times. ``max_episode_steps`` truncates it; if both happen in the same step, both flags are
    True, as with Gymnasium's ``TimeLimit``.

    ``reset(seed=s)`` starts environment i like a single environment with seed s + i. Options: ``reset_mask`` (N,) bool
    resets some environments only; ``topology`` {slot id: blueprint name} starts with those seeds fossilized, to be
    trained from scratch with the host.

    ``copy.deepcopy`` and ``pickle`` make a copy that continues like the original, without its telemetry sinks. The
    process that loads it must have the same task, blueprints and data. Files use :meth:`save_state`, never pickle.

    Args:
        env_id: a registered task; ``gymnasium.make_vec`` fills it in.
        num_envs: networks. At least 8 KiB of memory per network are needed, and more for larger hosts.
        max_episode_steps: steps after which an episode is truncated; None for no limit.
        autoreset_mode: NEXT_STEP (default), SAME_STEP or DISABLED, as ``gymnasium.vector.AutoresetMode`` or its value.
        render_mode: None, "ansi" (text) or "rgb_array" (a picture).
        workers: most processes to spread the networks over; "auto" for one per core, or 1 on a CUDA device. With 1, the
            networks are in this process.
        worker_timeout: seconds that a worker process may take for a request, usually half a step; None for no limit.
        **task_kwargs: settings of the task to replace, documented at :class:`esper_env.tasks.TaskConfig`.

    Raises:
        ValueError, TypeError: an unknown keyword argument or a value that makes no sense, before anything is built.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        workers: int | str = 1,
        worker_timeout: float | None = WORKER_TIMEOUT,
        **task_kwargs: Any,
    ) -> None:
        check_value("num_envs", num_envs, Annotated[int, POSITIVE])
        num_envs = int(num_envs)
        _check_memory(num_envs)
        check_workers(workers, worker_timeout, num_envs)
        check_render_mode(render_mode)
        self.task: TaskConfig = make_task(env_id, **task_kwargs)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self._clock = EpisodeClock(num_envs, max_episode_steps)
        self._growth = undisturbed(Growth)(self.task, num_envs, workers, worker_timeout)
        self.workers, self._worker_timeout = self._growth.workers, worker_timeout
        self.slot_ids = self._growth.slot_ids
        self.topology = self._growth.topology
        self.offered_blueprints = self._growth.offered_blueprints
        self.blueprint_names = self._growth.blueprint_names
        self.dataset_name, self.data_digest = self._growth.dataset_name, self._growth.data_digest
        self.host_parameters = self._growth.host_parameters
        self.reward_config = self._growth.reward_config
        #: Hub of the events; attach a sink with ``env.telemetry.add_sink(JsonlSink("folder"))``.
        self.telemetry: Telemetry = self._growth.telemetry
        self._sites = self._growth.sites
        self._generators = Generators(*zip(*(seeding.np_random() for _ in range(num_envs)), strict=True))
        slots = len(self.slot_ids)
        self.single_observation_space = observation_space(slots)
        self.single_action_space = gym.spaces.MultiDiscrete(list(head_sizes(slots)))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @undisturbed
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Infos]:
        """Start new episodes; see the class for ``seed`` and ``options``.

        Raises ``ValueError`` or ``TypeError`` for seeds, masks or topologies that make no sense, and ``ResetNeeded``
        for a mask that leaves out an environment without an episode; nothing has changed then.
        """
        request = parse_reset(seed, options, self.num_envs, self._sites)
        self._clock.require_started(besides=request.rows)
        for row in np.flatnonzero(request.rows):
            if request.seeds[row] is not None:
                self._generators.rngs[row], self._generators.seeds[row] = seeding.np_random(request.seeds[row])
        infos = vector_infos(self._begin(request.rows, request.planted), request.rows)
        return self._growth.observe(), infos

    @undisturbed
    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Carry out (N, 8) actions, train and measure one epoch.

        Returns observations, rewards (N,) float64, terminated (N,), truncated (N,) and infos. Raises ``ValueError`` for
        actions of a wrong shape, dtype or range and ``ResetNeeded`` for an environment without an episode; nothing has
        changed then.
        """
        command = self._growth.rules.decode(actions, self._growth.table)
        self._clock.require_running(finished_too=self.autoreset_mode is AutoresetMode.NEXT_STEP)
        over = self._clock.finished.copy()  # with NEXT_STEP these are reset instead of stepped
        if over.all():
            infos = vector_infos(self._begin(over, {}), over)
            none = np.zeros(self.num_envs, dtype=np.bool_)
            return self._growth.observe(), np.zeros(self.num_envs), none, none.copy(), infos
        outcome = self._growth.advance(command, over)
        values, stepped = outcome.values, ~over
        terminated = outcome.terminated
        truncated = self._clock.count(stepped, terminated)
        ended = terminated | truncated
        self._growth.recorder.record_ends(ended, terminated, values)
        final: Infos = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            final = self._final_infos(values, ended)
            values = replace_rows(values, self._begin(ended, {}), ended)
        elif over.any():
            values = replace_rows(values, self._begin(over, {}), over)
        infos = vector_infos(values, np.ones_like(over)) | final
        return self._growth.observe(), np.where(stepped, outcome.rewards, 0.0), terminated, truncated, infos

    @undisturbed
    def observe(self) -> Observation:
        """The present observation, as the last reset or step returned it; ``ResetNeeded`` before the first reset."""
        self._clock.require_started()
        return self._growth.observe()

    @undisturbed
    def get_state(self) -> Tree:
        """Return the complete state: networks, optimizers, generators, and the memory of the rules.

        The tree is a nested dict of NumPy arrays and JSON values, all copies. From equal states, the same actions lead
        to the same future; see "Reproducibility" in ``docs/environment.md``.

        Raises:
            ValueError: a generator in ``np_random`` is not PCG64.
        """
        return {"layout": LAYOUT, "identity": self._identity(), **get_states(self._parts())}

    @undisturbed
    def set_state(self, state: Tree) -> None:
        """Continue from a state of this environment, or of one made with the same settings.

        ``data_dir``, ``shard_size``, ``capture`` and the index of the device may differ; results are then equal up to
        rounding. The autoreset mode and the render mode stay as they are.

        Raises:
            ValueError: the state does not fit; the message names the part. Nothing has changed.
        """
        content = check_origin(state, self._identity())
        check_keys(content, self._parts())
        # New generators: a failure leaves the present ones in place, which may be shared and of any kind.
        generators = Generators(self._generators.rngs, self._generators.seeds)
        set_states({"generators": generators}, {"generators": content.pop("generators")})
        parts = {name: part for name, part in self._parts().items() if name != "generators"}
        restore(partial(get_states, parts), partial(set_states, parts), content)
        self._generators = generators

    def save_state(self, path: str | Path) -> Path:
        """Write :meth:`get_state` to a safetensors file, which holds the previous or the new state at every moment.

        Raises:
            CheckpointError: ``path`` exists and is not such a file (a ``ValueError``).
            OSError: the file cannot be written.
        """
        return write_checkpoint(path, self.get_state(), kind=KIND)

    def load_state(self, path: str | Path) -> None:
        """Call :meth:`set_state` with the state in a file.

        Raises:
            CheckpointError: the file is missing, damaged or holds something else (a ``ValueError``).
            ValueError: the state does not fit. Nothing has changed.
        """
        self.set_state(read_checkpoint(path, kind=KIND))

    def action_masks(self) -> NDArray[np.bool_]:
        """(N, sum of the head sizes) the marginal masks under sb3-contrib's name."""
        return self._growth.rules.marginal(self._legal()).astype(np.bool_)

    def sample_valid_actions(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """(N, 8) legal actions: op uniform, then the slot, then the heads the op reads."""
        if not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"rng is {shown(rng)}; expected a numpy.random.Generator, such as numpy.random.default_rng(0)"
            )
        return sample_valid_actions(self._legal(), rng, self.offered_blueprints)

    def split_mask(self, index: int) -> tuple[MaskArray, ...]:
        """One environment's marginal mask by head, for ``single_action_space.sample(mask=...)``.

        Raises ``IndexError`` when there is no environment ``index``.
        """
        return self._growth.rules.split(self._growth.rules.marginal(self._legal_in(index))[0])

    def conditional_masks(self, op: int, index: int) -> tuple[MaskArray, ...]:
        """Return one environment's masks by head given the op; any combination of their values is legal.

        Raises ``ValueError`` if the op is not legal in any slot now, ``IndexError`` if there is no environment
        ``index``.
        """
        return self._growth.rules.split(self._growth.rules.conditional(self._legal_in(index), op)[0])

    def _legal(self) -> NDArray[np.bool_]:
        return self._growth.rules.legal(self._growth.table)

    def _legal_in(self, index: int) -> NDArray[np.bool_]:
        if not is_integer(index) or not 0 <= index < self.num_envs:
            raise IndexError(f"index is {index!r}; expected the number of an environment, 0 to {self.num_envs - 1}")
        return self._legal()[index : index + 1]

    @undisturbed
    def render(self) -> tuple[str, ...] | tuple[Picture, ...] | None:
        """A text or picture per environment, None without a render mode; ``ResetNeeded`` before the first reset."""
        if self.render_mode is None:
            return None
        self._clock.require_started()
        table, signals, horizon = self._growth.table, self._growth.signals, self.task.horizon
        if self.render_mode == "ansi":
            return describe_networks(table, signals, self.slot_ids, self.blueprint_names, horizon)
        return draw_networks(table, signals, horizon)

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002
        """Flush and close the telemetry sinks, and end the workers."""
        if hasattr(self, "_growth"):
            self._growth.close()

    def check_reset(self, seed: int | None, options: dict[str, Any] | None, known: Sequence[str]) -> None:
        """Raise what :meth:`reset` would, with only the ``known`` options."""
        parse_reset(seed, options, self.num_envs, self._sites, known)

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """Each environment's generator of episode seeds, until it is reset with a seed."""
        return tuple(self._generators.rngs)

    @np_random.setter  # type: ignore[override]
    def np_random(self, rngs: Sequence[np.random.Generator]) -> None:
        if any(not isinstance(rng, np.random.Generator) for rng in rngs):
            raise TypeError(f"np_random is {shown(rngs)}; expected a numpy.random.Generator for each environment")
        if len(rngs) != self.num_envs:
            raise ValueError(f"np_random has {len(rngs)} generators; expected one for each of {self.num_envs}")
        self._generators = Generators(rngs, [UNKNOWN_SEED] * self.num_envs)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """Seed of each environment's generator, -1 if unknown."""
        return tuple(self._generators.seeds)

    def share_generators(self, rngs: Sequence[np.random.Generator], seeds: Sequence[int]) -> None:
        """Draw episode seeds from ``rngs``, one per environment, which started from ``seeds``."""
        self.np_random = tuple(rngs)
        self._generators.seeds = list(seeds)

    @undisturbed
    def __getstate__(self) -> dict[str, Any]:
        """Return the content of a copy: the settings of the task, the state of the networks, and all attributes."""
        settings = {name: value for name, value in task_dict(self.task).items() if name in TASK_KWARGS}
        networks = {"layout": LAYOUT, "identity": self._identity(), **get_states(self._growth.parts())}
        plain = {name: value for name, value in vars(self).items() if name != "_sites"}  # blueprints may be lambdas
        return {**plain, "task": (self.task.env_id, settings), "_growth": networks}

    @undisturbed
    def __setstate__(self, state: dict[str, Any]) -> None:
        env_id, settings = state["task"]
        if env_id not in TASKS:
            raise ValueError(
                f"the copied environment {env_id!r} is not registered in this process; import the module that "
                "registers it first"
            )
        task = make_task(env_id, **settings)
        growth = Growth(task, state["num_envs"], state["workers"], state["_worker_timeout"])
        vars(self).update({**state, "task": task, "_growth": growth})
        self._sites, self.blueprint_names = growth.sites, growth.blueprint_names
        growth.telemetry = growth.recorder.hub = self.telemetry
        set_states(growth.parts(), check_origin(state["_growth"], self._identity()))

    def __copy__(self) -> EsperVectorEnv:
        return deepcopy(self)  # a shallow copy would share the clock of the episodes

    def _parts(self) -> dict[str, Stateful]:
        return {"clock": self._clock, "generators": self._generators, **self._growth.parts()}

    def _identity(self) -> Tree:
        return {
            **task_identity(self.task),
            "data_digest": self.data_digest,
            "dataset_name": self.dataset_name,
            "device_kind": self._growth.device.type,
            "max_episode_steps": self._clock.limit,
            "num_envs": self.num_envs,
            "offered_blueprints": {str(value): name for value, name in self.blueprint_names.items()},
            "slot_ids": list(self.slot_ids),
        }

    def _begin(self, rows: NDArray[np.bool_], planted: dict[int, int]) -> Values:
        """Start episodes in ``rows`` (N,); return the infos' values, valid in those rows."""
        seeds = np.zeros(self.num_envs, dtype=np.int64)
        for row in np.flatnonzero(rows):
            seeds[row] = self._generators.rngs[row].integers(EPISODE_SEED_BOUND)
        values = self._growth.begin(rows, seeds, planted)
        self._clock.start(rows)
        return values

    def _final_infos(self, values: Values, ended: NDArray[np.bool_]) -> Infos:
        """SAME_STEP: the last observations and infos of the episodes that ``ended`` (N,)."""
        last = self._growth.observe()
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(ended):
            final_obs[row] = {key: value[row].copy() for key, value in last.items()}
        return {
            "final_obs": final_obs,
            "_final_obs": ended.copy(),
            "final_info": vector_infos(values, ended),
            "_final_info": ended.copy(),
        }


def _check_memory(num_envs: int) -> None:
    """Raise ``ValueError`` if even the smallest networks would not fit into the memory of the machine."""
    needed, available = num_envs * LEAST_NETWORK_KIB / 2**20, available_mib() / 2**10
    if needed > available:
        raise ValueError(
            f"`num_envs` is {num_envs}; that many networks need more than {needed:,.0f} GiB of memory, but this "
            f"machine has {available:,.1f}; use fewer"
        )
