"""Stable-Baselines3 callbacks for growth: metrics of episodes, evaluation, and a clean stop."""

from __future__ import annotations

import signal
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any

import numpy as np
import torch
from esper_env.checks import POSITIVE, check_value
from esper_env.persistence import Tree, check_keys, check_like
from esper_env.rules import NUM_OPS, Op, Rejection
from stable_baselines3.common.callbacks import BaseCallback

from esper_agent.evaluation.play import COMMITTED, EpisodeRecord, committed_results, run_episodes


class TrainingMetricsCallback(BaseCallback):
    """Logs metrics of each rollout's steps and of recent episodes under ``rollout/`` and ``lifecycle/``.

    ``wait_share`` and ``op_*`` are the shares of the rollout's effective ops, and ``invalid_share`` is the share of
    illegal actions. ``rejected_share`` is the share of the actions other than WAIT that are illegal or fail a gate.
    ``rollbacks`` counts the governor's rollbacks. ``committed_val_accuracy``, ``test_accuracy`` and
    ``parameters_added`` are means over terminated episodes. ``lifecycle/fossilized_blueprint/*`` and
    ``lifecycle/fossilized_slot/*`` count the seeds fossilized in the rollout.

    Args:
        window: number of recent episodes in the means.
    """

    def __init__(self, window: int = 100) -> None:
        super().__init__()
        self._episodes: dict[str, deque[float]] = {name: deque(maxlen=window) for name in COMMITTED}
        self._op_counts = np.zeros(NUM_OPS, dtype=np.int64)
        self._counts: Counter[str] = Counter()

    def get_state(self) -> Tree:
        """Return the latest episodes, and the counts of the current rollout."""
        episodes = {name: np.array(values, dtype=np.float64) for name, values in self._episodes.items()}
        counts = np.array(list(self._counts.values()), dtype=np.int64)  # no dict: a name may have any character
        return {**episodes, "op_counts": self._op_counts.copy(), "counted": list(self._counts), "counts": counts}

    def set_state(self, state: Tree) -> None:
        """Continue from a state."""
        check_keys(state, (*self._episodes, "op_counts", "counted", "counts"))
        for name in self._episodes:
            check_like(state[name], np.zeros(len(state[name])), name)
        check_like(state["op_counts"], self._op_counts, "op_counts")
        check_value("counted", state["counted"], tuple[str, ...])
        check_like(state["counts"], np.zeros(len(state["counted"]), dtype=np.int64), "counts")
        self._op_counts = state["op_counts"].copy()
        self._counts = Counter(dict(zip(state["counted"], state["counts"].tolist(), strict=True)))
        for name, values in self._episodes.items():
            values.clear()
            values.extend(state[name].tolist())

    def _on_training_start(self) -> None:
        env = self.training_env
        self._slot_ids, self._blueprints = env.get_attr("slot_ids")[0], env.get_attr("blueprint_names")[0]

    def _on_step(self) -> bool:
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            op, valid, succeeded = int(info["op"]), bool(info["action_valid"]), bool(info["action_succeeded"])
            self._op_counts[op] += 1
            self._counts["invalid"] += not valid
            self._counts["commands"] += op != Op.WAIT or not valid
            self._counts["rejected"] += info["rejection"] not in (Rejection.NONE, Rejection.ROLLED_BACK)
            self._counts["rollbacks"] += bool(info["rollback"])
            if op == Op.FOSSILIZE and succeeded:
                slot = int(info["slot"])
                self._counts[f"fossilized_slot/{self._slot_ids[slot]}"] += 1
                self._counts[f"fossilized_blueprint/{self._blueprints[int(info['slot_blueprint'][slot])]}"] += 1
            if done:
                for name, value in committed_results(info).items():
                    if value is not None:
                        self._episodes[name].append(value)
        return True

    def _on_rollout_end(self) -> None:
        steps = int(self._op_counts.sum())
        shares = self._op_counts / max(steps, 1)
        self.logger.record("rollout/wait_share", float(shares[Op.WAIT]))
        self.logger.record("rollout/invalid_share", self._counts["invalid"] / max(steps, 1))
        if self._counts["commands"]:
            self.logger.record("rollout/rejected_share", self._counts["rejected"] / self._counts["commands"])
        self.logger.record("rollout/rollbacks", self._counts["rollbacks"])
        for op in [op for op in Op if op != Op.WAIT]:
            self.logger.record(f"rollout/op_{op.name.lower()}", float(shares[op]), exclude="stdout")
        for name, values in self._episodes.items():
            if values:
                self.logger.record(f"rollout/{name}", float(np.mean(values)))
        for what, names in (("blueprint", self._blueprints.values()), ("slot", self._slot_ids)):
            for name in names:
                key = f"fossilized_{what}/{name}"
                self.logger.record(f"lifecycle/{key}", self._counts[key], exclude="stdout")
        self._op_counts[:] = 0
        self._counts.clear()


class PeriodicEvaluation(BaseCallback):
    """Evaluates the deterministic policy on held-out episodes at a fixed interval and logs means under ``eval/``.

    The means include the share of WAIT: an exploring policy can look active although its mode only waits. The episodes
    are the same each time, so the curves are comparable. ``records`` holds the latest ones. ``cancelled`` is True if
    ``stop`` cancelled an evaluation, whose values are then missing.

    Args:
        env_id: the environment.
        every: timesteps between two evaluations.
        episodes: number of episodes.
        seed: of the first episode.
        env_kwargs: settings of the environment.
        workers: processes that the episodes are spread over, at most one for each.
        stop: cancels a running evaluation when it stops the training.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(
        self,
        env_id: str,
        every: int,
        episodes: int,
        seed: int,
        env_kwargs: Mapping[str, Any] | None = None,
        workers: int | str = 1,
        stop: StopOnInterrupt | None = None,
    ) -> None:
        super().__init__()
        check_value("every", every, Annotated[int, POSITIVE])
        self.env_id, self.every, self.episodes, self.seed = env_id, every, episodes, seed
        self.env_kwargs, self.workers = dict(env_kwargs or {}), workers
        self.records: list[EpisodeRecord] = []
        self.cancelled = False
        self._stop = stop

    def _on_training_start(self) -> None:
        self._schedule()

    def _schedule(self) -> None:
        self._next = (self.num_timesteps // self.every + 1) * self.every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps < self._next:
            return
        self._schedule()
        self.cancelled = True  # unless it reaches its end
        with suppress(_CancelledError):
            self.records = run_episodes(
                self.model,
                self.env_id,
                self.episodes,
                self.seed,
                name="model",
                env_kwargs=self.env_kwargs,
                workers=self.workers,
                progress=self._check,
            )
            for name, value in evaluation_means(self.records).items():
                self.logger.record(f"eval/{name}", value)
            self.cancelled = False

    def _check(self, _finished: int) -> None:
        if self._stop is not None and self._stop.interrupted:
            raise _CancelledError


class _CancelledError(Exception):
    """Training stops during an evaluation."""


#: Fields of an episode whose means are logged, by Stable-Baselines3's names where it has one.
_MEANS = {"mean_reward": "episode_return", "mean_ep_length": "length"} | {
    name: name for name in ("wait_share", *COMMITTED)
}


def evaluation_means(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Return the mean of each value over the episodes that have it, by the names under which it is logged."""
    known = {
        name: [value for record in records if (value := getattr(record, field)) is not None]
        for name, field in _MEANS.items()
    }
    return {name: float(np.mean(values)) for name, values in known.items() if values}


class SingleThreadedPolicy(BaseCallback):
    """Trains the policy with a single intra-op thread; the environment's workers keep theirs.

    The policy is too small to gain from more threads, which would compete with the workers.
    """

    def _on_training_start(self) -> None:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def _on_training_end(self) -> None:
        torch.set_num_threads(self._threads)

    def _on_step(self) -> bool:
        return True


class SignalInterruptError(KeyboardInterrupt):
    """A ``KeyboardInterrupt`` that a signal raised; ``signal`` is its number."""

    def __init__(self, number: int, text: str = "") -> None:
        super().__init__(text)
        self.signal = number


class StopOnInterrupt(BaseCallback):
    """Ends training at the next step after Ctrl-C or SIGTERM, with an intact model.

    A second signal ends it at once: it raises ``SignalInterruptError``, which is a ``KeyboardInterrupt``.
    A signal in the last step of a rollout ends training at the first step of the next rollout, after the updates.

        with StopOnInterrupt() as stop:
            model.learn(20_000, callback=stop)
        if stop.interrupted:
            ...

    ``signal`` is the number of the signal, or None. Outside the main thread it does nothing, because Python delivers
    signals to the main thread only.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def interrupted(self) -> bool:
        """True if training is to stop."""
        return self.signal is not None

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) or signal.SIG_DFL for number in self.SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.interrupted:
            raise SignalInterruptError(number)
        self.signal = number

    def _on_step(self) -> bool:
        buffer = getattr(self.model, "rollout_buffer", None)
        ends_rollout = buffer is not None and buffer.pos + 1 >= buffer.buffer_size
        return not self.interrupted or ends_rollout
