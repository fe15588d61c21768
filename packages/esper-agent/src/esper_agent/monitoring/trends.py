"""Whether episodes get better, worse, or stay as they were, from one stretch of rollouts to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.payloads import DegradationDetected, ImprovementDetected, PlateauDetected, Trend


class TrendDetector:
    """Compares the mean committed accuracy of the last ``trend_batches`` rollouts with that of as many before them.

    A change of less than ``plateau_points`` is a plateau, one of more than ``trend_points`` an improvement or a
    degradation, and what lies between is neither. Each is reported when it is first true, and not again until the
    verdict has changed.
    """

    def __init__(self, settings: AnomalySettings) -> None:
        self.settings = settings.checked()
        self._means: list[float] = []  # of the latest batches, the oldest first
        self._verdict: str | None = None  # an event type

    def add(self, accuracies: Sequence[float], timesteps: int) -> Trend | None:
        """Take in the committed accuracies (points) of a rollout's episodes; none are no batch."""
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
        """What :meth:`set_state` goes on from; JSON types."""
        return {"means": list(self._means), "verdict": self._verdict}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`get_state`; a part that is missing is a ``KeyError``, and nothing changes."""
        means, verdict = [float(mean) for mean in state["means"]], state["verdict"]
        self._means, self._verdict = means, verdict

    def _kind(self, change: float) -> type[Trend] | None:
        verdicts: tuple[tuple[bool, type[Trend]], ...] = (
            (abs(change) < self.settings.plateau_points, PlateauDetected),
            (change < -self.settings.trend_points, DegradationDetected),
            (change > self.settings.trend_points, ImprovementDetected),
        )
        return next((kind for holds, kind in verdicts if holds), None)
