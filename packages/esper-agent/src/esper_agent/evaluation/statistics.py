"""Interquartile means and bootstrap intervals for the returns of few episodes.

The interquartile mean drops the lowest and the highest quarter of the values. It is more robust than the mean and more
efficient than the median. Intervals are 95% percentile bootstrap intervals with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # loads scipy.stats when it is used
from numpy.typing import ArrayLike, NDArray

#: Function of values and an axis, vectorised.
Statistic = Callable[..., Any]

LEVEL, RESAMPLES, SEED = 0.95, 5_000, 0


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval; ``low`` and ``high`` are NaN for a single value."""

    value: float
    low: float
    high: float


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Any:
    """Mean of the middle half of the values, without ``floor(n/4)`` values at either end.

    Returns a float for one-dimensional values, an array otherwise.
    """
    return scipy.stats.trim_mean(_checked(values), 0.25, axis=axis)


def bootstrap_interval(values: ArrayLike, statistic: Statistic = interquartile_mean) -> Estimate:
    """Compute a statistic of the values (n,) and its interval, which is NaN for a single value.

    Raises:
        ValueError: no values, values that are not finite, or a wrong shape.
    """
    sample = _checked(values, 1)
    value = float(statistic(sample, axis=-1))
    if sample.size < 2:
        return Estimate(value, float("nan"), float("nan"))
    interval = scipy.stats.bootstrap(
        [sample],
        statistic,
        vectorized=True,
        axis=-1,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def paired_difference(first: ArrayLike, second: ArrayLike) -> Estimate:
    """Compute the mean of ``first - second`` and its interval, where entry i of both has the same episode seed.

    Pairs are resampled together, so the shared difficulty of an episode does not widen the interval.

    Raises:
        ValueError: different numbers of values, or as in :func:`bootstrap_interval`.
    """
    left, right = _checked(first, 1), _checked(second, 1)
    if left.shape != right.shape:
        raise ValueError(
            f"{left.size} and {right.size} values cannot be paired; evaluate both policies on the same episode seeds"
        )
    return bootstrap_interval(left - right, np.mean)


def crossed_bootstrap(table: ArrayLike) -> Estimate:
    """Compute the interquartile mean of a (runs, episodes) table and its interval.

    Training runs and episodes are resampled independently (Owen 2007, "The pigeonhole bootstrap"). So the interval
    covers other training seeds and other episodes. For a difference of two policies, pass the table of paired
    differences.
    """
    values = _checked(table, 2)
    value = float(interquartile_mean(values.ravel()))
    runs, episodes = values.shape
    if min(runs, episodes) < 2:
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(SEED)
    drawn = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        rows, columns = rng.integers(runs, size=runs), rng.integers(episodes, size=episodes)
        drawn[index] = interquartile_mean(values[np.ix_(rows, columns)].ravel())
    tail = (1.0 - LEVEL) / 2.0
    return Estimate(value, float(np.quantile(drawn, tail)), float(np.quantile(drawn, 1.0 - tail)))


def _checked(values: ArrayLike, dimensions: int | None = None) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("there are no values for a statistic; play at least one episode")
    if dimensions is not None and array.ndim != dimensions:
        expected = "one dimension" if dimensions == 1 else "(runs, episodes)"
        raise ValueError(f"the values have shape {array.shape}; expected {expected}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite; expected finite numbers"
        )
    return array
