"""Interquartile means and bootstrap intervals for returns of few episodes.

The interquartile mean drops the lowest and the highest quarter of the values: steadier than the mean when a few
episodes go astray, and less blind to them than the median. Intervals are percentile bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Statistic = Callable[..., Any]

#: What to pass instead, by number of dimensions.
_EXPECTED = {
    1: "one dimension; strata need stratified=True, and a (runs, episodes) table crossed_bootstrap",
    2: "(runs, episodes)",
}


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval; ``low`` and ``high`` are NaN where one value cannot give an interval."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """True when the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Any:
    """Mean of the middle half: ``floor(n/4)`` values are dropped at either end.

    A float for one-dimensional values, an array otherwise.
    """
    return stats.trim_mean(_checked(values), 0.25, axis=axis)


def bootstrap_interval(
    samples: ArrayLike | Sequence[ArrayLike],
    statistic: Statistic = interquartile_mean,
    *,
    stratified: bool = False,
    level: float = 0.95,
    resamples: int = 5_000,
    seed: int = 0,
) -> Estimate:
    """The statistic of the values and its percentile bootstrap interval.

    Args:
        samples: the values; with ``stratified`` a sequence of strata (one per task, or per run), each resampled
            within itself and pooled for the statistic, so that every stratum keeps its weight.
        statistic: called as ``statistic(values, axis=-1)``; it has to be vectorised.
        stratified: whether ``samples`` are strata.
        level: share of intervals that should cover the truth.
        resamples: bootstrap resamples.
        seed: of the resampling; the same seed gives the same interval.
    """
    parts: Any = samples if stratified else [samples]
    strata = [_checked(part, 1) for part in parts]

    def pooled(*parts: NDArray[np.float64], axis: int = -1) -> Any:
        return statistic(np.concatenate(parts, axis=axis), axis=axis)

    return _bootstrap(strata, pooled, paired=False, level=level, resamples=resamples, seed=seed)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    statistic: Statistic = np.mean,
    *,
    level: float = 0.95,
    resamples: int = 5_000,
    seed: int = 0,
) -> Estimate:
    """``statistic(first) - statistic(second)`` where entry i of both comes from the same episode seed.

    Pairs are resampled together, so what makes an episode easy for both does not widen the interval.
    """
    left, right = _checked(first, 1), _checked(second, 1)
    if left.shape != right.shape:
        raise ValueError(
            f"{left.size} and {right.size} values cannot be paired; evaluate both policies on the same episode seeds"
        )

    def difference(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> Any:
        return statistic(a, axis=axis) - statistic(b, axis=axis)

    return _bootstrap([left, right], difference, paired=True, level=level, resamples=resamples, seed=seed)


def crossed_bootstrap(
    table: ArrayLike,
    statistic: Statistic = interquartile_mean,
    *,
    level: float = 0.95,
    resamples: int = 5_000,
    seed: int = 0,
) -> Estimate:
    """A statistic of a (runs, episodes) table whose rows and columns are both samples, with its interval.

    Training runs and episodes are resampled independently of each other (Owen 2007, "The pigeonhole bootstrap"), so
    the interval speaks about other training seeds and other episodes alike. For a difference between two policies, pass
    the table of paired differences.
    """
    values = _checked(table, 2)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95")
    value = float(statistic(values.ravel(), axis=-1))
    runs, episodes = values.shape
    if min(runs, episodes) < 2:
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    for index in range(resamples):
        rows, columns = rng.integers(runs, size=runs), rng.integers(episodes, size=episodes)
        drawn[index] = statistic(values[np.ix_(rows, columns)].ravel(), axis=-1)
    tail = (1.0 - level) / 2.0
    return Estimate(value, float(np.quantile(drawn, tail)), float(np.quantile(drawn, 1.0 - tail)))


def _bootstrap(
    samples: list[NDArray[np.float64]], statistic: Statistic, *, paired: bool, level: float, resamples: int, seed: int
) -> Estimate:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95")
    value = float(statistic(*samples, axis=-1))
    if min(sample.size for sample in samples) < 2:
        return Estimate(value, float("nan"), float("nan"))
    interval = stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        axis=-1,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _checked(values: ArrayLike, dimensions: int | None = None) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("there are no values to take a statistic of; run at least one episode")
    if dimensions is not None and array.ndim != dimensions:
        raise ValueError(f"the values have shape {array.shape}; expected {_EXPECTED[dimensions]}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite")
    return array
