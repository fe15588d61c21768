"""Diagnostics of training: anomalies of updates, trends of episodes, and suspected reward hacking."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from esper_env.persistence import check_keys, check_like
from esper_env.telemetry import Payload, Telemetry
from stable_baselines3.common.callbacks import BaseCallback

from esper_agent.monitoring.detectors import AnomalySettings, TrendDetector, detect
from esper_agent.monitoring.payloads import (
    Anomaly,
    NumericalInstability,
    PPOUpdateCompleted,
    RewardHackingSuspected,
    TrainingStarted,
    Trend,
)
from esper_agent.monitoring.reward_hacking import RewardHackingDetector
from esper_agent.ppo.errors import NonFiniteUpdateError
from esper_agent.ppo.ppo import FactoredRecurrentPPO

_KINDS: tuple[type[Payload], ...] = (*Anomaly.__subclasses__(), RewardHackingSuspected, *Trend.__subclasses__())
#: Name under ``diagnostics/`` -> type of the events that it counts, such as "plateau" for PLATEAU_DETECTED.
COUNTED = {kind.TYPE.rpartition("_")[0].lower(): kind.TYPE for kind in _KINDS}


class DiagnosticsCallback(BaseCallback):
    """Detects abnormal training of a ``FactoredRecurrentPPO`` in growth environments.

    After each round of updates it logs the number of events since the last round under ``diagnostics/``: of all
    ``anomalies`` of updates, and of each event type. It emits the same events to the hub, with TRAINING_STARTED at the
    start and PPO_UPDATE_COMPLETED after every round. An anomaly makes the hub emit in full detail for
    ``escalation_epochs``.

    Training that diverges raises an exception, and Stable-Baselines3 does not notify callbacks of it.
    :meth:`reporting_divergence` reports its last round::

        diagnostics = DiagnosticsCallback(hub=hub)
        with diagnostics.reporting_divergence():
            model.learn(20_000, callback=diagnostics)

    Args:
        settings: thresholds.
        hub: a ``Telemetry``, or None to use only the logger.

    Raises:
        TypeError: at the start of training, if the model is not a ``FactoredRecurrentPPO``.
    """

    model: FactoredRecurrentPPO

    def __init__(self, settings: AnomalySettings | None = None, hub: Telemetry | None = None) -> None:
        super().__init__()
        self.settings = AnomalySettings() if settings is None else settings
        self.hub = hub
        self._slot_ids: tuple[str, ...] = ()
        self._reset()

    def _reset(self) -> None:
        self._trends, self._hacking = TrendDetector(self.settings), RewardHackingDetector(self.settings)
        self._accuracies: list[float] = []  # committed, of the episodes that ended in this rollout
        self._counts: Counter[str] = Counter()  # event types since the last record
        self._updates_seen = 0

    @contextmanager
    def reporting_divergence(self) -> Iterator[None]:
        """Report the round of updates in which training raises a ``NonFiniteUpdateError``, which passes through."""
        try:
            yield
        except NonFiniteUpdateError:
            self._report_update()
            if not self._counts[NumericalInstability.TYPE]:  # the updates were finite, the policy is not
                self._report(
                    NumericalInstability(
                        timesteps=self.num_timesteps, quantity="decisions", value=math.nan, threshold=None
                    )
                )
            self._record()
            self.logger.dump(self.num_timesteps)
            raise

    def get_state(self) -> dict[str, Any]:
        """Return the state for ``set_state``, of JSON types."""
        return {
            "trends": self._trends.get_state(),
            "hacking": self._hacking.get_state(),
            "accuracies": list(self._accuracies),
            "counts": dict(self._counts),
            "updates_seen": self._updates_seen,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``get_state`` before training starts.

        Raises:
            ValueError: the state has other keys or types.
        """
        check_keys(state, self.get_state())
        counts = dict.fromkeys(state["counts"], 0)
        check_like({name: state[name] for name in ("counts", "updates_seen")}, {"counts": counts, "updates_seen": 0})
        self._trends.set_state(state["trends"])
        self._hacking.set_state(state["hacking"])
        self._accuracies = [float(accuracy) for accuracy in state["accuracies"]]
        self._counts, self._updates_seen = Counter(state["counts"]), state["updates_seen"]

    # Stable-Baselines3's hooks

    def _on_training_start(self) -> None:
        if not isinstance(self.model, FactoredRecurrentPPO):
            raise TypeError(f"the model is a {type(self.model).__name__}; diagnostics read a FactoredRecurrentPPO")
        env = self.training_env
        self._slot_ids = env.get_attr("slot_ids")[0]
        if self.num_timesteps == 0:  # training starts instead of resuming
            self._reset()
            self._updates_seen = self.model._n_updates
        self._hacking.scale = env.get_attr("reward_config")[0].scale
        if self.hub is not None:
            self.hub.emit(
                TrainingStarted(
                    env_id=env.get_attr("task")[0].env_id,
                    dataset=env.get_attr("dataset_name")[0],
                    num_envs=env.num_envs,
                    seed=self.model.seed,
                    timesteps=self.num_timesteps,
                    total_timesteps=self.model._total_timesteps,
                )
            )

    def _on_rollout_start(self) -> None:
        self._after_updates()

    def _on_step(self) -> bool:
        infos, dones = self.locals["infos"], self.locals["dones"]
        for payload, env, episode, epoch, slot in self._hacking.observe(infos, dones):
            slot_id = None if slot is None else self._slot_ids[slot]
            self._report(payload, env=env, episode=episode, epoch=epoch, slot=slot_id)
        self._accuracies += [float(info["committed_val_accuracy"]) for info in infos if info["committed_measured"]]
        return True

    def _on_rollout_end(self) -> None:
        trend = self._trends.add(self._accuracies, self.num_timesteps)
        self._accuracies = []
        if trend is not None:
            self._report(trend)

    def _on_training_end(self) -> None:
        self._after_updates()

    # Reports

    def _after_updates(self) -> None:
        if self.model._n_updates > self._updates_seen:
            self._report_update()
            self._record()

    def _report_update(self) -> None:
        model = self.model
        # An untrained critic predicted the values of the first rollout.
        untrained, self._updates_seen = self._updates_seen == 0, model._n_updates
        if self.hub is not None:
            self.hub.emit(PPOUpdateCompleted(timesteps=self.num_timesteps, metrics=dict(model.last_update)))
        progress = 0.0 if untrained else 1.0 - model._current_progress_remaining
        for anomaly in detect(model.last_update, self.num_timesteps, progress, self.settings):
            self._report(anomaly)

    def _report(self, payload: Payload, **where: Any) -> None:
        self._counts[payload.TYPE] += 1
        self._counts["anomalies"] += isinstance(payload, Anomaly)
        if self.hub is None:
            return
        self.hub.emit(payload, **where)
        if isinstance(payload, Anomaly):
            self.hub.escalate(self.settings.escalation_epochs)

    def _record(self) -> None:
        self.logger.record("diagnostics/anomalies", self._counts["anomalies"])
        for name, event_type in COUNTED.items():
            self.logger.record(f"diagnostics/{name}", self._counts[event_type], exclude="stdout")
        self._counts.clear()
