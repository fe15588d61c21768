"""Anomalies in the metrics of a round of updates, trends of episodes, and their thresholds.

    for anomaly in detect(model.last_update, model.num_timesteps, progress, AnomalySettings()):
        print(anomaly.sentence())

The ratio rules use the 5% and 95% quantiles of each head's rows rather than the extreme row: about 40 different rows of
a rollout read a head such as the blueprint's, 8 times each. In three healthy runs on Esper-Digits-v0 (52 rounds, 32 of
them from one run of 20,000 steps) the smallest ratio of a round fell to 0.0004 and was below 0.1 in 7 rounds. The
largest rose to 8.4 and was above 5 in 3 rounds, and the 1% quantile fell to 0.005. The 5% and 95% quantiles stayed
between 0.17 and 1.9.

The entropy rules use the rows in which a head has a choice. The slot head has one in about 60% of the rows that read
it, so a plain mean of 0.6 can be a uniform policy. In the same runs the op head's entropy stayed above 0.47. The alpha
target rightly converges to FULL, and its entropy fell to 0.017. The mean gradient norm was between 1.3 and 20, and the
explained variance was above 0.39 after a quarter of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from esper_env.checks import NON_NEGATIVE, POSITIVE, SHARE, Interval, check
from esper_env.persistence import check_keys
from esper_env.rules import HEAD_NAMES
from esper_env.suggestions import shown

from esper_agent.monitoring.payloads import (
    Anomaly,
    DegradationDetected,
    EntropyCollapse,
    GradientAnomaly,
    ImprovementDetected,
    NumericalInstability,
    PlateauDetected,
    RatioCollapse,
    RatioExplosion,
    Trend,
    ValueCollapse,
)

ABOVE_ONE = Interval(1, ends="()")


@dataclass(frozen=True)
class AnomalySettings:
    """Thresholds of anomalies and trends of training."""

    ratio_explosion: Annotated[float, ABOVE_ONE] = 5.0
    """A head's ratios explode if their 95% quantile is above this."""
    ratio_collapse: Annotated[float, Interval(0, 1, "[)")] = 0.1
    """A head's ratios collapse if their 5% quantile is below this."""
    value_collapse: Annotated[float, Interval(high=1)] = 0.1
    """The critic has collapsed if it explains less than this share of the return variance."""
    value_collapse_after: Annotated[float, SHARE] = 0.25
    """Share of the run before the critic is judged."""
    gradient_explosion: Annotated[float, ABOVE_ONE] = 10.0
    """Gradients explode if their mean norm is above this many times max_grad_norm."""
    gradient_vanishing: Annotated[float, NON_NEGATIVE] = 0.01
    """Gradients vanish if their mean norm is below this; Adam's epsilon dominates such gradients."""
    op_entropy_floor: Annotated[float, SHARE] = 0.2
    """The op head has stopped exploring if its normalised entropy, over the rows with a choice, is below this. It is
    reached when one op has about 97% probability."""
    argument_entropy_floor: Annotated[float, SHARE] = 0.001
    """The same for each other head. A head may rightly settle on one value; below this it can no longer leave it."""
    escalation_epochs: Annotated[int, POSITIVE] = 5
    """Epochs of full detail after an anomaly."""
    trend_rollouts: Annotated[int, POSITIVE] = 3
    """Rollouts in each of the two compared groups of episodes."""
    plateau_points: Annotated[float, NON_NEGATIVE] = 0.5
    """Training has reached a plateau if the accuracy changes by less than this many points."""
    trend_points: Annotated[float, NON_NEGATIVE] = 2.0
    """Training improves or degrades if the accuracy changes by more than this many points."""
    hacking_ratio: Annotated[float, ABOVE_ONE] = 5.0
    """An episode was overpaid where it was paid for growth more than this many times what its seeds are worth."""
    hacking_points: Annotated[float, NON_NEGATIVE] = 10.0
    """Pay for growth of up to this many points is never suspicious: one seed led to HOLDING has half of it."""
    ransom_points: Annotated[float, NON_NEGATIVE] = 0.1
    """A network depends on a seed whose contribution is above this many points."""
    ransom_loss: Annotated[float, NON_NEGATIVE] = 2.0
    """Such a seed is kept to ransom where accuracy is more than this many points lower than before it was planted."""
    ransom_epochs: Annotated[int, POSITIVE] = 5
    """Epochs in HOLDING or FOSSILIZED before a seed can be suspected."""

    def __post_init__(self) -> None:
        check(self)
        if self.plateau_points > self.trend_points:
            raise ValueError(
                f"`plateau_points` is {self.plateau_points}; expected at most `trend_points`, {self.trend_points}: a "
                "change cannot be both a plateau and a trend"
            )


#: Metrics that must be finite. ``ValueCollapse`` covers the explained variance.
_FINITE = (
    *("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "grad_norm"),
    *(f"{head}_{name}" for head in HEAD_NAMES for name in ("ratio_mean", "ratio_max", "ratio_min")),
)
_ARGUMENTS = tuple(head for head in HEAD_NAMES if head != "op")

#: Name, value and threshold of a metric that has passed its threshold; no threshold if the value is not finite.
_Finding = tuple[str, float, float | None]


def detect(metrics: Mapping[str, float], timesteps: int, progress: float, settings: AnomalySettings) -> list[Anomaly]:
    """Return the anomalies of one round of updates, only the worst of each type.

    Args:
        metrics: ``last_update`` of a ``FactoredRecurrentPPO``; metrics that it lacks are skipped.
        timesteps: environment steps so far.
        progress: completed share of the run, 0 to 1.
        settings: thresholds.
    """
    found = {
        NumericalInstability: _instability(metrics),
        RatioExplosion: _above(_of_heads(metrics, "ratio_high"), settings.ratio_explosion),
        RatioCollapse: _below(_of_heads(metrics, "ratio_low"), settings.ratio_collapse),
        ValueCollapse: _value_collapse(metrics, progress, settings),
        GradientAnomaly: _gradient_anomaly(metrics, settings),
        EntropyCollapse: _below(_of_heads(metrics, "choice_entropy", ("op",)), settings.op_entropy_floor)
        or _below(_of_heads(metrics, "choice_entropy", _ARGUMENTS), settings.argument_entropy_floor),
    }
    return [
        kind(timesteps=timesteps, quantity=finding[0], value=finding[1], threshold=finding[2])
        for kind, finding in found.items()
        if finding is not None
    ]


def _of_heads(metrics: Mapping[str, float], statistic: str, heads: Sequence[str] = HEAD_NAMES) -> dict[str, float]:
    names = [f"{head}_{statistic}" for head in heads]
    return {name: metrics[name] for name in names if name in metrics}


def _above(values: Mapping[str, float], limit: float) -> _Finding | None:
    beyond = [name for name, value in values.items() if value > limit]
    worst = max(beyond, key=values.__getitem__, default=None)
    return None if worst is None else (worst, values[worst], limit)


def _below(values: Mapping[str, float], limit: float) -> _Finding | None:
    beyond = [name for name, value in values.items() if value < limit]
    worst = min(beyond, key=values.__getitem__, default=None)
    return None if worst is None else (worst, values[worst], limit)


def _instability(metrics: Mapping[str, float]) -> _Finding | None:
    for name in _FINITE:
        if not math.isfinite(metrics.get(name, 0.0)):
            return name, metrics[name], None
    return _above({"skipped_updates": metrics.get("skipped_updates", 0.0)}, 0.0)


def _value_collapse(metrics: Mapping[str, float], progress: float, settings: AnomalySettings) -> _Finding | None:
    name = "explained_variance"
    if not math.isfinite(metrics.get(name, 0.0)):
        return name, metrics[name], None
    late = name in metrics and progress >= settings.value_collapse_after
    return _below({name: metrics[name]}, settings.value_collapse) if late else None


def _gradient_anomaly(metrics: Mapping[str, float], settings: AnomalySettings) -> _Finding | None:
    if not math.isfinite(metrics.get("grad_norm", math.nan)):
        return None
    norm = {"grad_norm": metrics["grad_norm"]}
    most = settings.gradient_explosion * metrics["max_grad_norm"]
    return _above(norm, most) or _below(norm, settings.gradient_vanishing)


class TrendDetector:
    """Compares mean committed accuracies: of the last ``trend_rollouts`` rollouts, and of as many before them.

    A change of less than ``plateau_points`` is a plateau. A change of more than ``trend_points`` is an improvement or a
    degradation. The detector reports a verdict once, and again only after the verdict has changed.
    """

    def __init__(self, settings: AnomalySettings) -> None:
        self.settings = settings
        self._means: list[float] = []  # of the latest rollouts, oldest first
        self._verdict: str | None = None  # an event type

    def add(self, accuracies: Sequence[float], timesteps: int) -> Trend | None:
        """Add the committed accuracies of a rollout, in percent, and return a new verdict, or None.

        A rollout without any episodes is ignored. ``timesteps`` are the environment steps so far.
        """
        if not accuracies:
            return None
        side = self.settings.trend_rollouts
        self._means = [*self._means, float(np.mean(accuracies))][-2 * side :]
        if len(self._means) < 2 * side:
            return None
        previous, recent = float(np.mean(self._means[:side])), float(np.mean(self._means[side:]))
        change = recent - previous
        kind: type[Trend] | None = None
        if abs(change) < self.settings.plateau_points:
            kind = PlateauDetected
        elif abs(change) > self.settings.trend_points:
            kind = ImprovementDetected if change > 0 else DegradationDetected
        before, self._verdict = self._verdict, kind.TYPE if kind else None
        if kind is None or before == kind.TYPE:
            return None
        return kind(timesteps=timesteps, change=change, recent=recent, previous=previous, rollouts=side)

    def get_state(self) -> dict[str, Any]:
        """Return the state for ``set_state``, of JSON types."""
        return {"means": list(self._means), "verdict": self._verdict}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``get_state``; raise ``ValueError`` if it has other keys or types."""
        check_keys(state, ("means", "verdict"))
        if state["verdict"] not in (None, *(kind.TYPE for kind in Trend.__subclasses__())):
            raise ValueError(f"verdict is {shown(state['verdict'])}; expected the type of a trend's event, or None")
        self._means, self._verdict = [float(mean) for mean in state["means"]], state["verdict"]
