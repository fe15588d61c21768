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


def test_interquartile_mean_uses_the_axis():
    rows = np.array([[0, 1, 3, 100], [5, 5, 7, 7]])
    assert interquartile_mean(rows).tolist() == [2.0, 6.0]
    assert interquartile_mean(rows.T, axis=0).tolist() == [2.0, 6.0]


def test_interval_has_the_percentiles_of_resampled_means():
    values = np.random.default_rng(3).normal(size=40)
    estimate = bootstrap_interval(values, np.mean, resamples=4000)
    rng = np.random.default_rng(11)
    means = [np.mean(rng.choice(values, 40)) for _ in range(4000)]
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(np.percentile(means, 2.5), abs=0.03)
    assert estimate.high == pytest.approx(np.percentile(means, 97.5), abs=0.03)


@pytest.mark.parametrize(
    "interval",
    [
        lambda values, **settings: bootstrap_interval(values, np.mean, **settings),
        lambda values, **settings: paired_difference(values, np.zeros_like(values), **settings),
        lambda values, **settings: crossed_bootstrap(np.repeat(values[:, None], 2, axis=1), np.mean, **settings),
    ],
    ids=["one sample", "pairs", "table"],
)
def test_level_is_the_share_of_resampled_means_inside(interval):
    values = np.random.default_rng(3).normal(size=40)
    means = np.random.default_rng(11).choice(values, (10_000, 40)).mean(axis=1)
    estimate = interval(values, level=0.5)
    assert estimate.low == pytest.approx(np.percentile(means, 25), abs=0.02)
    assert estimate.high == pytest.approx(np.percentile(means, 75), abs=0.02)


def test_intervals_cover_the_truth_at_their_level():
    rng = np.random.default_rng(0)
    covered = 0
    for repeat in range(100):
        estimate = bootstrap_interval(rng.normal(2.0, 1.0, size=40), np.mean, resamples=400, seed=repeat)
        covered += estimate.low <= 2.0 <= estimate.high
    assert 0.86 <= covered / 100 <= 0.99


def test_strata_are_resampled_separately():
    """Two tasks at different levels; unstratified resampling varies the number of values from each."""
    low, high = np.zeros(20), np.full(20, 100.0)
    stratified = bootstrap_interval([low, high], np.mean, stratified=True)
    blind = bootstrap_interval(np.concatenate([low, high]), np.mean)
    assert (stratified.low, stratified.value, stratified.high) == (50.0, 50.0, 50.0)
    assert blind.high - blind.low > 20


def test_pairing_removes_shared_variance():
    rng = np.random.default_rng(1)
    shared = rng.normal(scale=10, size=50)
    first, second = shared + 1.0 + rng.normal(scale=0.1, size=50), shared + rng.normal(scale=0.1, size=50)
    paired = paired_difference(first, second)
    broken_pairs = paired_difference(first, rng.permutation(second))
    assert paired.value == pytest.approx(1.0, abs=0.1)
    assert paired.excludes_zero()
    assert not broken_pairs.excludes_zero()


def test_paired_difference_takes_the_statistic():
    first, second = [1.0, 2.0, 3.0, 1000.0], [0.0, 1.0, 2.0, 3.0]
    assert paired_difference(first, second, interquartile_mean).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("estimate", "value"), [(bootstrap_interval([3.0]), 3.0), (crossed_bootstrap([[1.0, 2.0, 3.0, 4.0]]), 2.5)]
)
def test_single_value_has_no_interval(estimate, value):
    assert estimate.value == value
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert not estimate.excludes_zero()


def test_seed_fixes_the_interval_and_keeps_the_global_generator():
    values = np.arange(20.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


@pytest.mark.parametrize("differ", ["runs", "episodes"])
def test_crossed_bootstrap_includes_the_variance_of_either_side(differ):
    values = np.array([0.0, 0.1, 0.2, 0.6, 0.8])
    table = np.repeat(values[:, None], 200, axis=1)
    if differ == "episodes":
        table = table.T
    estimate = crossed_bootstrap(table, np.mean)
    means = np.random.default_rng(1).choice(values, (20_000, 5)).mean(axis=1)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=0.03)
    pooled = bootstrap_interval(table.ravel(), np.mean)
    assert estimate.high - estimate.low > 5 * (pooled.high - pooled.low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean([]), "no values"),
        (lambda: bootstrap_interval([1.0, float("nan")]), "1 of 2 values are not finite"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95), "level is 95"),
        (lambda: paired_difference([1.0, 2.0], [1.0]), "2 and 1 values cannot be paired"),
        (lambda: bootstrap_interval(3.0), r"shape \(\); expected one dimension"),
        (lambda: bootstrap_interval([[1.0, 2.0]] * 3), r"shape \(3, 2\); expected one dimension; strata need strat"),
        (lambda: bootstrap_interval([1.0, 2.0], stratified=True), r"shape \(\); expected one dimension"),
        (lambda: paired_difference([[1.0, 2.0]] * 2, [[1.0, 2.0]] * 2), r"shape \(2, 2\); expected one dimension"),
        (lambda: crossed_bootstrap(2.0), r"shape \(\); expected \(runs, episodes\)"),
        (lambda: crossed_bootstrap([1.0, 2.0]), r"shape \(2,\); expected \(runs, episodes\)"),
        (lambda: crossed_bootstrap([[1.0, 2.0]] * 2, level=2), "level is 2"),
    ],
)
def test_statistics_reject_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
