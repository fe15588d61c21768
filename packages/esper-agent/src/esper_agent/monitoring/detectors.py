"""Anomalies in the metrics of a round of updates, and their thresholds.

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from esper_env.checks import NON_NEGATIVE, POSITIVE, SHARE, Interval, check
from esper_env.rules import HEAD_NAMES

from esper_agent.monitoring.payloads import (
    Anomaly,
    EntropyCollapse,
    GradientAnomaly,
    NumericalInstability,
    RatioCollapse,
    RatioExplosion,
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
    trend_batches: Annotated[int, POSITIVE] = 3
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
_LOSSES = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "grad_norm")
_RATIOS = tuple(f"{head}_{name}" for head in HEAD_NAMES for name in ("ratio_mean", "ratio_max", "ratio_min"))


class _Finding(NamedTuple):
    """A metric that has passed its threshold."""

    quantity: str
    value: float
    threshold: float | None


class _Round(NamedTuple):
    """Input of a rule."""

    metrics: Mapping[str, float]
    progress: float
    settings: AnomalySettings


def detect(metrics: Mapping[str, float], timesteps: int, progress: float, settings: AnomalySettings) -> list[Anomaly]:
    """Return the anomalies of one round of updates, only the worst of each type.

    Args:
        metrics: ``last_update`` of a ``FactoredRecurrentPPO``; metrics that it lacks are skipped.
        timesteps: environment steps so far.
        progress: completed share of the run, 0 to 1.
        settings: thresholds.
    """
    seen = _Round(metrics, progress, settings)
    found = ((kind, rule(seen)) for kind, rule in _RULES.items())
    return [
        kind(timesteps=timesteps, quantity=finding.quantity, value=finding.value, threshold=finding.threshold)
        for kind, finding in found
        if finding is not None
    ]


def _of_heads(metrics: Mapping[str, float], statistic: str) -> Iterator[tuple[str, float]]:
    """Yield each head's (name, value) of a statistic, except NaN."""
    for head in HEAD_NAMES:
        value = metrics.get(f"{head}_{statistic}", math.nan)
        if not math.isnan(value):
            yield f"{head}_{statistic}", value


def _highest(seen: _Round, statistic: str, limit: float) -> _Finding | None:
    name, value = max(_of_heads(seen.metrics, statistic), key=lambda pair: pair[1], default=("", -math.inf))
    return _Finding(name, value, limit) if value > limit else None


def _lowest(seen: _Round, statistic: str, limit: float) -> _Finding | None:
    name, value = min(_of_heads(seen.metrics, statistic), key=lambda pair: pair[1], default=("", math.inf))
    return _Finding(name, value, limit) if value < limit else None


def _ratio_explosion(seen: _Round) -> _Finding | None:
    return _highest(seen, "ratio_high", seen.settings.ratio_explosion)


def _ratio_collapse(seen: _Round) -> _Finding | None:
    return _lowest(seen, "ratio_low", seen.settings.ratio_collapse)


def _entropy_collapse(seen: _Round) -> _Finding | None:
    op = seen.metrics.get("op_choice_entropy", math.nan)
    if op < seen.settings.op_entropy_floor:
        return _Finding("op_choice_entropy", op, seen.settings.op_entropy_floor)
    arguments = {name: value for name, value in seen.metrics.items() if name != "op_choice_entropy"}
    return _lowest(seen._replace(metrics=arguments), "choice_entropy", seen.settings.argument_entropy_floor)


def _value_collapse(seen: _Round) -> _Finding | None:
    name, limit = "explained_variance", seen.settings.value_collapse
    value = seen.metrics.get(name)
    if value is None:
        return None
    if not math.isfinite(value):
        return _Finding(name, value, None)
    late = seen.progress >= seen.settings.value_collapse_after
    return _Finding(name, value, limit) if late and value < limit else None


def _numerical_instability(seen: _Round) -> _Finding | None:
    for name in (*_LOSSES, *_RATIOS):
        value = seen.metrics.get(name, 0.0)
        if not math.isfinite(value):
            return _Finding(name, value, None)
    skipped = seen.metrics.get("skipped_updates", 0.0)
    return _Finding("skipped_updates", skipped, 0.0) if skipped > 0 else None


def _gradient_anomaly(seen: _Round) -> _Finding | None:
    norm = seen.metrics.get("grad_norm")
    if norm is None or not math.isfinite(norm):
        return None
    most = seen.settings.gradient_explosion * seen.metrics["max_grad_norm"]
    least = seen.settings.gradient_vanishing
    if norm > most:
        return _Finding("grad_norm", norm, most)
    return _Finding("grad_norm", norm, least) if norm < least else None


_RULES: dict[type[Anomaly], Callable[[_Round], _Finding | None]] = {
    NumericalInstability: _numerical_instability,
    RatioExplosion: _ratio_explosion,
    RatioCollapse: _ratio_collapse,
    ValueCollapse: _value_collapse,
    GradientAnomaly: _gradient_anomaly,
    EntropyCollapse: _entropy_collapse,
}
