"""Trends of the committed accuracy over the rollouts."""

import json

import numpy as np
import pytest
from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.payloads import DegradationDetected, ImprovementDetected, PlateauDetected
from esper_agent.monitoring.trends import TrendDetector
from hypothesis import given
from hypothesis import strategies as st


def reported(means, detector=None):
    """Return the report after each of these rollouts, or None."""
    detector = TrendDetector(AnomalySettings()) if detector is None else detector
    return [detector.add([mean - 1.0, mean + 1.0], 640 * (index + 1)) for index, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (0.0, PlateauDetected),
        (0.49, PlateauDetected),
        (-0.49, PlateauDetected),
        (0.51, None),
        (-0.51, None),
        (1.99, None),
        (-1.99, None),
        (2.01, ImprovementDetected),
        (-2.01, DegradationDetected),
    ],
)
def test_three_rollouts_are_compared_with_the_three_before(change, kind):
    means = [40.0, 43.0, 46.0, 43.0 + change, 40.0 + change, 46.0 + change]
    *early, last = reported(means)
    assert early == [None] * 5
    if kind is None:
        assert last is None
    else:
        assert last == kind(
            timesteps=3840,
            change=pytest.approx(change),
            recent=pytest.approx(43 + change),
            previous=pytest.approx(43.0),
            batches=3,
        )


def test_verdict_is_reported_once_until_another_verdict():
    rising, flat = [40.0, 41.0, 42.0, 43.0, 44.0, 45.0, 46.0, 47.0], [47.0] * 5
    kinds = [event and type(event) for event in reported([*rising, *flat, *[48.5] * 7])]
    # +3 three times, +2.67; +2 and +1, which are neither; +0.33 and 0; +0.5 to +1.5, neither, five times; 0 twice
    expected = [None] * 5 + [ImprovementDetected] + [None] * 5 + [PlateauDetected]
    expected += [None] * 6 + [PlateauDetected, None]
    assert kinds == expected


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.integers(1, 4))
def test_reports_equal_a_plain_computation(means, side):
    detector = TrendDetector(AnomalySettings(trend_batches=side))
    verdict = None
    for index, mean in enumerate(means):
        event = detector.add([mean], index)
        if index + 1 < 2 * side:
            assert event is None
            continue
        window = means[index + 1 - 2 * side : index + 1]
        change = np.mean(window[side:]) - np.mean(window[:side])
        now = (
            "PLATEAU" if abs(change) < 0.5 else "DEGRADATION" if change < -2 else "IMPROVEMENT" if change > 2 else None
        )
        assert (event and event.TYPE) == (f"{now}_DETECTED" if now and now != verdict else None)
        verdict = now


def test_rollout_without_an_ended_episode_is_ignored():
    detector = TrendDetector(AnomalySettings())
    for _ in range(5):
        assert detector.add([50.0], 0) is None
        assert detector.add([], 0) is None
    assert isinstance(detector.add([50.0], 0), PlateauDetected)


@pytest.mark.parametrize("cut", [1, 5, 6, 7, 11])
def test_detector_resumes_from_a_json_state(cut):
    means = [40.0, 41.0, 42.0, 43.0, 44.0, 45.0, 45.0, 45.0, 45.0, 45.0, 45.0, 40.0]
    whole = TrendDetector(AnomalySettings())
    expected = reported(means, whole)
    first, second = TrendDetector(AnomalySettings()), TrendDetector(AnomalySettings())
    head = reported(means[:cut], first)
    second.set_state(json.loads(json.dumps(first.get_state())))
    tail = [second.add([mean - 1.0, mean + 1.0], 640 * (cut + 1 + i)) for i, mean in enumerate(means[cut:])]
    assert head + tail == expected
    assert second.get_state() == whole.get_state()
