"""Trends of the committed accuracy over the rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.payloads import DegradationDetected, ImprovementDetected, PlateauDetected, Trend


class TrendDetector:
    """Compares the mean committed accuracy of the last ``trend_batches`` rollouts with the same number before them.

    A change of less than ``plateau_points`` is a plateau. A change of more than ``trend_points`` is an improvement or a
    degradation. The detector reports a verdict once, and again only after the verdict has changed.

    Args:
        settings: thresholds.
    """

    def __init__(self, settings: AnomalySettings) -> None:
        self.settings = settings
        self._means: list[float] = []  # of the latest rollouts, oldest first
        self._verdict: str | None = None  # an event type

    def add(self, accuracies: Sequence[float], timesteps: int) -> Trend | None:
        """Add the episodes of a rollout and return a new verdict, or None.

        Args:
            accuracies: committed accuracies in percent; a rollout without any is ignored.
            timesteps: environment steps so far.
        """
        if not accuracies:
            return None
        side = self.settings.trend_batches
        self._means = [*self._means, float(np.mean(accuracies))][-2 * side :]
        if len(self._means) < 2 * side:
            return None
        previous, recent = float(np.mean(self._means[:side])), float(np.mean(self._means[side:]))
        kind = self._kind(recent - previous)
        before, self._verdict = self._verdict, kind.TYPE if kind else None
        if kind is None or before == kind.TYPE:
            return None
        return kind(timesteps=timesteps, change=recent - previous, recent=recent, previous=previous, batches=side)

    def get_state(self) -> dict[str, Any]:
        """Return the state for ``set_state``, of JSON types."""
        return {"means": list(self._means), "verdict": self._verdict}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``get_state``.

        Raises:
            KeyError: the state is incomplete; nothing has changed.
        """
        means, verdict = [float(mean) for mean in state["means"]], state["verdict"]
        self._means, self._verdict = means, verdict

    def _kind(self, change: float) -> type[Trend] | None:
        verdicts: tuple[tuple[bool, type[Trend]], ...] = (
            (abs(change) < self.settings.plateau_points, PlateauDetected),
            (change < -self.settings.trend_points, DegradationDetected),
            (change > self.settings.trend_points, ImprovementDetected),
        )
        return next((kind for holds, kind in verdicts if holds), None)
