"""Anomalies, trends and their thresholds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from esper_agent.monitoring.detectors import AnomalySettings, TrendDetector, detect
from esper_agent.monitoring.payloads import (
    DegradationDetected,
    EntropyCollapse,
    GradientAnomaly,
    ImprovementDetected,
    NumericalInstability,
    PlateauDetected,
    RatioCollapse,
    RatioExplosion,
    ValueCollapse,
)
from esper_env.rules.heads import HEAD_NAMES
from esper_env.telemetry import Severity
from hypothesis import given
from hypothesis import strategies as st

DEFAULTS = AnomalySettings()
#: Worst metrics of a healthy round of updates.
HEALTHY = {
    "loss": 0.4,
    "policy_gradient_loss": -0.01,
    "value_loss": 0.4,
    "entropy_loss": -2.0,
    "approx_kl": 0.03,
    "skipped_updates": 0.0,
    "explained_variance": 0.25,
    "grad_norm": 20.0,
    "max_grad_norm": 10.0,
    **{f"{head}_ratio_mean": 1.0 for head in HEAD_NAMES},
    **{f"{head}_ratio_max": 5.5 for head in HEAD_NAMES},
    **{f"{head}_ratio_min": 0.04 for head in HEAD_NAMES},
    **{f"{head}_ratio_high": 2.5 for head in HEAD_NAMES},
    **{f"{head}_ratio_low": 0.25 for head in HEAD_NAMES},
    **{f"{head}_choice_entropy": 0.05 for head in HEAD_NAMES},
    "op_choice_entropy": 0.4,
}


def found(progress=0.5, settings=DEFAULTS, **changes):
    """Return the anomalies of healthy metrics after some changes."""
    return detect(HEALTHY | changes, 640, progress, settings)


def test_healthy_metrics_have_no_anomaly():
    assert found() == []


def test_missing_metrics_are_skipped():
    assert detect({"skipped_updates": 0.0}, 640, 1.0, DEFAULTS) == []


@pytest.mark.parametrize(
    ("name", "inside", "outside", "kind", "limit"),
    [
        ("slot_ratio_high", 5.0, 5.01, RatioExplosion, 5.0),
        ("tempo_ratio_low", 0.1, 0.099, RatioCollapse, 0.1),
        ("explained_variance", 0.1, 0.099, ValueCollapse, 0.1),
        ("grad_norm", 100.0, 100.1, GradientAnomaly, 100.0),
        ("grad_norm", 0.01, 0.0099, GradientAnomaly, 0.01),
        ("op_choice_entropy", 0.2, 0.199, EntropyCollapse, 0.2),
        ("style_choice_entropy", 0.001, 0.00099, EntropyCollapse, 0.001),
        ("skipped_updates", 0.0, 1.0, NumericalInstability, 0.0),
    ],
)
def test_anomaly_starts_beyond_its_threshold(name, inside, outside, kind, limit):
    assert found(**{name: inside}) == []
    (anomaly,) = found(**{name: outside})
    assert anomaly == kind(timesteps=640, quantity=name, value=outside, threshold=pytest.approx(limit))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_metric_is_numerical_instability(value):
    ratios = [f"{head}_ratio_{statistic}" for head in HEAD_NAMES for statistic in ("mean", "max", "min")]
    for name in ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "grad_norm", *ratios):
        (anomaly,) = found(**{name: value})
        assert (type(anomaly), anomaly.quantity, anomaly.threshold) == (NumericalInstability, name, None)
        assert anomaly.SEVERITY is Severity.ERROR


def test_critic_has_a_quarter_of_the_run_to_learn():
    assert found(progress=0.2499, explained_variance=-3.0) == []
    assert [type(anomaly) for anomaly in found(progress=0.25, explained_variance=-3.0)] == [ValueCollapse]
    (anomaly,) = found(progress=0.0, explained_variance=math.nan)
    assert (type(anomaly), anomaly.threshold) == (ValueCollapse, None)


def test_worst_head_is_reported():
    explosion, collapse = found(slot_ratio_high=7.0, style_ratio_high=9.0, slot_ratio_low=0.02, op_ratio_low=0.01)
    assert (explosion.quantity, collapse.quantity) == ("style_ratio_high", "op_ratio_low")


def test_anomalies_of_different_types_are_all_reported():
    kinds = {type(anomaly) for anomaly in found(skipped_updates=2.0, op_ratio_high=6.0, grad_norm=0.0)}
    assert kinds == {NumericalInstability, RatioExplosion, GradientAnomaly}


@given(st.floats(1.5, 50.0), st.floats(0.1, 100.0))
def test_thresholds_come_from_the_settings(limit, value):
    settings = replace(DEFAULTS, ratio_explosion=limit, gradient_explosion=limit)
    anomalies = found(settings=settings, op_ratio_high=value, grad_norm=value, max_grad_norm=1.0)
    worst = max(value, 2.5)  # of the other heads
    expected = [RatioExplosion] * (worst > limit) + [GradientAnomaly] * (value > limit)
    assert [type(anomaly) for anomaly in anomalies] == expected


def test_plateau_cannot_overlap_a_trend():
    with pytest.raises(ValueError, match=r"`plateau_points` is 3\.0; expected at most `trend_points`, 2\.0"):
        replace(DEFAULTS, plateau_points=3.0)


# Trends


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (0.49, PlateauDetected),
        (-0.49, PlateauDetected),
        (0.51, None),
        (-1.99, None),
        (2.01, ImprovementDetected),
        (-2.01, DegradationDetected),
    ],
)
def test_three_rollouts_are_compared_with_the_three_before(change, kind):
    detector = TrendDetector(DEFAULTS)
    means = [40.0, 43.0, 46.0, 43.0 + change, 40.0 + change, 46.0 + change]
    *early, last = [detector.add([mean - 1.0, mean + 1.0], 640 * index) for index, mean in enumerate(means)]
    assert early == [None] * 5
    expected = {"change": change, "recent": 43.0 + change, "previous": 43.0}
    approximate = {name: pytest.approx(value) for name, value in expected.items()}
    assert last == (kind and kind(timesteps=3200, rollouts=3, **approximate))


@given(st.lists(st.floats(40, 45), min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 20))
def test_trends_equal_a_plain_computation_and_resume_from_a_json_state(means, side, cut):
    settings = AnomalySettings(trend_rollouts=side)
    detector, verdict = TrendDetector(settings), None
    for index, mean in enumerate(means):
        if index == cut:
            state, detector = json.loads(json.dumps(detector.get_state())), TrendDetector(settings)
            detector.set_state(state)
        assert detector.add([], index) is None
        event = detector.add([mean], index)
        if index + 1 < 2 * side:
            assert event is None
            continue
        window = means[index + 1 - 2 * side : index + 1]
        change = np.mean(window[side:]) - np.mean(window[:side])
        now = "PLATEAU" if abs(change) < 0.5 else None
        now = now or ("DEGRADATION" if change < -2 else "IMPROVEMENT" if change > 2 else None)
        assert (event and event.TYPE) == (f"{now}_DETECTED" if now and now != verdict else None)
        verdict = now
