"""Interquartile means and bootstrap intervals for the returns of few episodes.

The interquartile mean drops the lowest and the highest quarter of the values. It is more robust than the mean and more
efficient than the median. Intervals are percentile bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Statistic = Callable[..., Any]

#: Expected input, by number of dimensions.
_EXPECTED = {
    1: "one dimension; strata need stratified=True, and a (runs, episodes) table crossed_bootstrap",
    2: "(runs, episodes)",
}


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval; ``low`` and ``high`` are NaN for a single value."""

    value: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """True if the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Any:
    """Mean of the middle half of the values, without ``floor(n/4)`` values at either end.

    Returns a float for one-dimensional values, an array otherwise.
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
    """Compute a statistic of the values and its percentile bootstrap interval.

    Args:
        samples: the values; with ``stratified`` a sequence of strata (one per task, or per run). Each stratum is
            resampled separately and keeps its weight in the pooled statistic.
        statistic: called as ``statistic(values, axis=-1)``; must be vectorised.
        stratified: True if ``samples`` are strata.
        level: confidence level.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Raises:
        ValueError: no values, values that are not finite, a wrong shape, or an invalid level.
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
    """Compute ``statistic(first) - statistic(second)``, where entry i of both has the same episode seed.

    Pairs are resampled together, so the shared difficulty of an episode does not widen the interval.
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
    """Compute a statistic of a (runs, episodes) table and its interval.

    Training runs and episodes are resampled independently (Owen 2007, "The pigeonhole bootstrap"). So the interval
    covers other training seeds and other episodes. For a difference of two policies, pass the table of paired
    differences.
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
        raise ValueError("there are no values for a statistic; play at least one episode")
    if dimensions is not None and array.ndim != dimensions:
        raise ValueError(f"the values have shape {array.shape}; expected {_EXPECTED[dimensions]}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite; expected finite numbers"
        )
    return array
