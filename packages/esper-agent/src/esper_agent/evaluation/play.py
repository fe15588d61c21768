"""Evaluation episodes of a policy, each with its own seed, and their records."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from esper_env.checks import POSITIVE, SEED, check_value
from esper_env.persistence import replaced
from esper_env.rules import NUM_OPS, Op
from esper_env.workers import Workers
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from esper_agent.vectors import check_growth, make_vector, split_infos, spread_over

#: Fields of a record that are measured at the horizon, with their keys in the last info.
COMMITTED = {
    "committed_val_accuracy": "committed_val_accuracy",
    "test_accuracy": "test_accuracy",
    "parameters_added": "committed_parameters_added",
}


def committed_results(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``COMMITTED`` from the last info of an episode, None where it has no result."""
    return {
        name: np.asarray(info[key]).item() if info["committed_measured"] else None for name, key in COMMITTED.items()
    }


class Policy(Protocol):
    """Interface of a policy: ``predict`` as in Stable-Baselines3."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Return actions (N, 8) and the next state of the policy."""
        ...


#: A policy, or a function that returns one for a vector environment.
PolicySource = Policy | Callable[[VectorEnv], Policy]


@dataclass(frozen=True)
class EpisodeRecord:
    """A complete episode. Accuracies are percentages, returns are undiscounted.

    The fields of ``COMMITTED`` are measured at the horizon, and None if ``max_episode_steps`` truncated the episode.
    """

    policy: str
    env_id: str
    dataset: str
    episode: int  # 0, 1, ... of this evaluation
    seed: int  # of the environment's reset
    episode_return: float
    length: int  # steps
    truncated: bool  # before the horizon
    committed_val_accuracy: float | None
    test_accuracy: float | None  # of the committed network
    parameters_added: int | None  # trainable scalars of the committed seeds
    germinated: int  # successful actions, as in the next two
    fossilized: int
    pruned: int
    invalid_actions: int
    op_counts: tuple[int, ...]  # effective ops, indexed by ``Op``

    @property
    def wait_share(self) -> float:
        """Share of the steps whose effective op was WAIT."""
        return self.op_counts[Op.WAIT] / self.length

    def row(self) -> dict[str, Any]:
        """Columns of a CSV file; ``return`` for ``episode_return``, and one column per op for ``op_counts``."""
        columns = {"return" if name == "episode_return" else name: value for name, value in vars(self).items()}
        counts = columns.pop("op_counts")
        return columns | {"wait_share": self.wait_share} | {f"op_{op.name.lower()}": counts[op] for op in Op}


def run_episodes(
    policy: PolicySource,
    env_id: str,
    episodes: int,
    seed: int = 0,
    *,
    name: str | None = None,
    num_envs: int = 8,
    env_kwargs: Mapping[str, Any] | None = None,
    deterministic: bool = True,
    workers: int | str = 1,
    progress: Callable[[int], None] | None = None,
) -> list[EpisodeRecord]:
    """Play episodes of a policy; episode i uses environment seed ``seed + i``, independent of ``num_envs``.

    The policy's recurrent state is reset with each episode. Torch's global generator is seeded with ``seed`` for the
    evaluation and restored afterwards. With ``deterministic=False``, the samples of a policy depend on ``num_envs``.

    Args:
        policy: an object with ``predict``, or a function that makes it from the vector environment.
        env_id: a registered id.
        episodes: number of episodes.
        seed: seed of the first episode.
        name: name of the policy in the records, default its class.
        num_envs: maximum number of parallel episodes.
        env_kwargs: keyword arguments of ``gymnasium.make_vec``.
        deterministic: passed to ``predict``; True plays the greedy policy. If acting now and later are worth the same,
            the greedy policy may WAIT forever although the sampled policy acts soon.
        workers: processes that the environments are spread over, at most one per parallel episode; "auto" for one per
            core.
        progress: called after every step with the number of episodes that it finished; an exception ends the play.

    Returns:
        The records in the order of the episodes.

    Raises:
        ValueError: invalid numbers, an unknown id or settings, or a task other than Esper's.
        TypeError: ``policy`` is neither.
    """
    check_value("episodes", episodes, Annotated[int, POSITIVE])
    check_value("num_envs", num_envs, Annotated[int, POSITIVE])
    check_value("seed", seed, Annotated[int, SEED])
    check_value("workers", workers, Workers)
    rows = -(-episodes // -(-episodes // num_envs))  # as many for each round
    settings = {**(env_kwargs or {}), **spread_over(workers, rows)}
    vector = make_vector(env_id, rows, AutoresetMode.DISABLED, **settings)
    try:
        check_growth(vector.single_observation_space, env_id)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            playing: Any = policy if hasattr(policy, "predict") or not callable(policy) else policy(vector)
            if not hasattr(playing, "predict"):
                raise TypeError(
                    f"the policy is a {type(playing).__name__}; expected an object with predict, or a function that "
                    "returns one"
                )
            play = _Play(vector, playing, name or type(playing).__name__, env_id, episodes, seed, deterministic)
            return play.run(progress or (lambda _finished: None))
    finally:
        vector.close()


class _Play:
    """Episodes in the rows of a vector environment without autoreset; a finished row takes the next episode."""

    def __init__(
        self, vector: VectorEnv, policy: Policy, name: str, env_id: str, episodes: int, seed: int, deterministic: bool
    ) -> None:
        self.vector: Any = vector  # VectorEnv does not declare one seed per environment
        self.policy, self.name, self.env_id = policy, name, env_id
        self.episodes, self.seed, self.deterministic = episodes, seed, deterministic
        # MaskablePPO takes the mask as an argument; other policies read it from the observation.
        self.wants_masks = "action_masks" in inspect.signature(policy.predict).parameters
        rows = vector.num_envs
        self.episode = np.arange(rows)  # of each row; rows with numbers from ``episodes`` on are not recorded
        self.returns = np.zeros(rows)
        self.lengths = np.zeros(rows, dtype=np.int64)
        self.invalid = np.zeros(rows, dtype=np.int64)
        self.op_counts = np.zeros((rows, NUM_OPS), dtype=np.int64)
        self.successes = np.zeros((rows, NUM_OPS), dtype=np.int64)

    def run(self, progress: Callable[[int], None]) -> list[EpisodeRecord]:
        records: list[EpisodeRecord] = []
        observation, _ = self.vector.reset(seed=[self.seed + int(episode) for episode in self.episode])
        state, starts = None, np.ones(self.vector.num_envs, dtype=bool)
        while len(records) < self.episodes:
            actions, state = self._predict(observation, state, starts)
            observation, rewards, terminated, truncated, infos = self.vector.step(actions)
            self._count(rewards, infos)
            starts = terminated | truncated
            finished = self._records(np.flatnonzero(starts), truncated & ~terminated, infos)
            records += finished
            progress(len(finished))
            if starts.any() and len(records) < self.episodes:
                observation = self._restart(starts)
        return sorted(records, key=lambda record: record.episode)

    def _predict(self, observation: Any, state: Any, starts: NDArray[np.bool_]) -> tuple[Any, Any]:
        masks = {"action_masks": observation["action_mask"].astype(bool)} if self.wants_masks else {}
        return self.policy.predict(
            observation, state=state, episode_start=starts, deterministic=self.deterministic, **masks
        )

    def _count(self, rewards: NDArray, infos: Mapping[str, Any]) -> None:
        rows, ops = np.arange(len(rewards)), np.asarray(infos["op"])
        self.returns += rewards
        self.lengths += 1
        self.invalid += ~np.asarray(infos["action_valid"])
        self.op_counts[rows, ops] += 1
        self.successes[rows, ops] += np.asarray(infos["action_succeeded"])

    def _records(self, rows: NDArray, truncated: NDArray[np.bool_], infos: Mapping[str, Any]) -> list[EpisodeRecord]:
        finals = split_infos(infos, self.vector.num_envs) if len(rows) else []
        return [
            EpisodeRecord(
                policy=self.name,
                env_id=self.env_id,
                dataset=self.vector.unwrapped.get_attr("dataset_name")[0],
                episode=int(self.episode[row]),
                seed=self.seed + int(self.episode[row]),
                episode_return=float(self.returns[row]),
                length=int(self.lengths[row]),
                truncated=bool(truncated[row]),
                **committed_results(finals[row]),
                germinated=int(self.successes[row, Op.GERMINATE]),
                fossilized=int(self.successes[row, Op.FOSSILIZE]),
                pruned=int(self.successes[row, Op.PRUNE]),
                invalid_actions=int(self.invalid[row]),
                op_counts=tuple(self.op_counts[row].tolist()),
            )
            for row in rows
            if self.episode[row] < self.episodes
        ]

    def _restart(self, rows: NDArray[np.bool_]) -> Any:
        """Start the next episodes in finished rows; surplus rows play on unrecorded."""
        following = self.episode.max() + 1
        self.episode[rows] = np.arange(following, following + rows.sum())
        for column in (self.returns, self.lengths, self.invalid, self.op_counts, self.successes):
            column[rows] = 0
        seeds = [self.seed + int(episode) for episode in self.episode]
        observation, _ = self.vector.reset(seed=seeds, options={"reset_mask": rows.copy()})
        return observation


def write_csv(records: Sequence[Any], path: str | Path) -> None:
    """Write the ``row()`` of each record or summary to a CSV file, complete or not at all."""
    if not records:
        raise ValueError("there are no records to write; play at least one episode")
    with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0].row()))
        writer.writeheader()
        writer.writerows(record.row() for record in records)
