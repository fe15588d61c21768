"""Interquartile means against hand-computed numbers; intervals against independent resampling."""

import math

import numpy as np
import pytest
from esper_agent.evaluation.statistics import (
    bootstrap_interval,
    crossed_bootstrap,
    interquartile_mean,
    paired_difference,
)


def test_interquartile_mean_drops_a_quarter_at_either_end():
    assert interquartile_mean([1000, 1, 2, 3, 4, 5, 6, -1000]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([1, 2, 6]) == pytest.approx(3.0)  # too few values to drop any
    rows = np.array([[0, 1, 3, 100], [5, 5, 7, 7]])
    assert interquartile_mean(rows).tolist() == interquartile_mean(rows.T, axis=0).tolist() == [2.0, 6.0]


@pytest.mark.parametrize(
    "interval",
    [lambda values: bootstrap_interval(values, np.mean), lambda values: paired_difference(values, np.zeros(40))],
    ids=["one sample", "pairs"],
)
def test_interval_has_the_percentiles_of_resampled_means(interval):
    values = np.random.default_rng(3).normal(size=40)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    estimate = interval(values)
    means = np.random.default_rng(11).choice(values, (10_000, 40)).mean(axis=1)
    assert estimate.value == pytest.approx(values.mean())
    assert [estimate.low, estimate.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    assert estimate == interval(values)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_pairing_removes_shared_variance():
    rng = np.random.default_rng(1)
    shared = rng.normal(scale=10, size=50)
    first, second = shared + 1.0 + rng.normal(scale=0.1, size=50), shared + rng.normal(scale=0.1, size=50)
    paired, broken_pairs = paired_difference(first, second), paired_difference(first, rng.permutation(second))
    assert paired.value == pytest.approx(1.0, abs=0.1)
    assert paired.low > 0 > broken_pairs.low


@pytest.mark.parametrize(
    ("estimate", "value"), [(bootstrap_interval([3.0]), 3.0), (crossed_bootstrap([[1.0, 2.0, 3.0, 4.0]]), 2.5)]
)
def test_single_value_has_no_interval(estimate, value):
    assert estimate.value == value
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


@pytest.mark.parametrize("differ", ["runs", "episodes"])
def test_crossed_bootstrap_includes_the_variance_of_either_side(differ):
    values = np.array([0.0, 0.1, 0.2, 0.3, 0.35, 0.45, 0.6, 0.8])
    table = np.repeat(values[:, None], 200, axis=1)
    if differ == "episodes":
        table = table.T
    estimate = crossed_bootstrap(table)
    means = interquartile_mean(np.random.default_rng(1).choice(values, (20_000, 8)))
    assert estimate.value == pytest.approx(0.325)
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    pooled = bootstrap_interval(table.ravel())
    assert estimate.high - estimate.low > 5 * (pooled.high - pooled.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([]), "no values"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "1 of 2 values are not finite"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "2 and 1 values cannot be paired"),
        (lambda: bootstrap_interval([[1.0, 2.0]] * 3), r"shape \(3, 2\); expected one dimension"),
        (lambda: crossed_bootstrap([1.0, 2.0]), r"shape \(2,\); expected \(runs, episodes\)"),
    ],
)
def test_statistics_reject_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
