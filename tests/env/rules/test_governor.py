"""Governor against plain Python for one environment, and on hand-made losses."""

import math

import numpy as np
import pytest
from esper_env.rules.governor import Governor, GovernorConfig, Reason
from hypothesis import given
from hypothesis import strategies as st

CLASSES = 10
GUESSING = math.log(CLASSES)
NAN, INF = math.nan, math.inf
ONE = np.array([True])


class PlainGovernor:
    """One environment by the documented rules."""

    def __init__(self, classes, config):
        self.guessing, self.config = math.log(classes), config
        self.history, self.panics, self.rollbacks = [], 0, 0

    def begin(self, loss):
        self.history, self.panics, self.rollbacks = ([loss] if math.isfinite(loss) else []), 0, 0

    def reason(self, finite, loss):
        config, known = self.config, self.history
        if not finite or not math.isfinite(loss):
            return Reason.NON_FINITE
        if not known:
            return Reason.HEALTHY
        mean = math.fsum(known) / len(known)
        learned = len(known) >= config.min_history and mean < config.collapse_mean * self.guessing
        if learned and abs(loss - self.guessing) <= config.collapse_width * self.guessing:
            return Reason.COLLAPSE
        limits = (
            mean + config.sigmas * math.sqrt(math.fsum((x - mean) * (x - mean) for x in known) / len(known)),
            config.mean_factor * mean,
            config.guessing_factor * self.guessing,
        )
        return Reason.DIVERGENCE if all(loss > limit for limit in limits) else Reason.HEALTHY

    def judge(self, finite, loss):
        """Return (reason, panics, roll back)."""
        reason = self.reason(finite, loss)
        if reason == Reason.HEALTHY:
            self.history = [*self.history, loss][-self.config.window :]
            self.panics = 0
            return reason, 0, False
        self.panics += 1
        at_once = reason in (Reason.NON_FINITE, Reason.COLLAPSE)
        return reason, self.panics, at_once or self.panics >= self.config.patience

    def rolled_back(self, loss):
        self.panics, self.rollbacks = 0, self.rollbacks + 1
        self.history = [min(loss, self.guessing)] if math.isfinite(loss) else []


def make(losses=(), classes=CLASSES, **settings):
    """Return a governor of one environment with three slots and a history of healthy ``losses``."""
    governor = Governor(1, 3, classes, GovernorConfig(**settings))
    if losses:
        governor.reset(ONE, np.array([losses[0]]))
        for loss in losses[1:]:
            assert judged(governor, loss)[0] == Reason.HEALTHY
    return governor


def judged(governor, loss, finite=True):
    """Return (reason, panics, roll back) of the only environment."""
    judgement = governor.judge(np.array([finite]), np.array([loss]))
    return Reason(judgement.reason[0]), int(judgement.panics[0]), bool(judgement.roll_back[0])


CONFIGS = st.builds(
    lambda least, more, **rest: GovernorConfig(window=least + more, min_history=least, **rest),
    least=st.integers(1, 10),
    more=st.integers(0, 6),
    patience=st.integers(1, 4),
    sigmas=st.sampled_from([1.0, 6.0]),
    mean_factor=st.sampled_from([1.5, 3.0]),
    guessing_factor=st.sampled_from([0.5, 2.0]),
)
#: In units of ln K: learning, guessing and its edges, spikes small and large, and what is not finite.
LOSSES = st.one_of(
    st.sampled_from([0.125, 0.25, 0.375, 0.5]),
    st.sampled_from([0.93, 0.94, 1.0, 1.06, 1.07]),
    st.sampled_from([1.5, 2.25, 4.0, 50.0, 1e300]),
    st.sampled_from([NAN, INF, -INF]),
)
EPOCHS = st.lists(st.tuples(st.booleans() | st.just(True), LOSSES), min_size=1, max_size=40)


@given(
    lives=st.lists(EPOCHS, min_size=1, max_size=4),
    starts=st.lists(LOSSES, min_size=4, max_size=4),
    classes=st.integers(2, 20),
    config=CONFIGS,
    saved_at=st.integers(0, 40),
)
def test_judgements_equal_those_of_one_environment_in_plain_python(lives, starts, classes, config, saved_at):
    """The others do not matter, nor does a checkpoint on the way."""
    count, unit = len(lives), math.log(classes)
    governor = Governor(count, 2, classes, config)
    plain = [PlainGovernor(classes, config) for _ in lives]
    first = np.array(starts[:count]) * unit
    governor.reset(np.ones(count, dtype=bool), first)
    for one, loss in zip(plain, first.tolist(), strict=True):
        one.begin(loss)
    for epoch in range(max(map(len, lives))):
        if epoch == saved_at:
            other = Governor(count, 2, classes, config)
            other.set_state(governor.get_state())
            governor = other
        now = [life[epoch % len(life)] for life in lives]
        finite, loss = np.array([f for f, _ in now]), np.array([x for _, x in now]) * unit
        judgement = governor.judge(finite, loss)
        restored = np.array([0.5 + 0.25 * (epoch % 5)] * count) * unit
        for row, one in enumerate(plain):
            expected = one.judge(bool(finite[row]), float(loss[row]))
            assert (judgement.reason[row], judgement.panics[row], judgement.roll_back[row]) == expected
            if expected[2]:
                one.rolled_back(float(restored[row]))
        governor.rolled_back(judgement.roll_back, restored)
        assert governor.rollbacks.tolist() == [one.rollbacks for one in plain]
        assert governor.exhausted.tolist() == [one.rollbacks >= config.max_rollbacks for one in plain]


@pytest.mark.parametrize(("finite", "loss"), [(False, 0.5), (True, NAN), (True, INF), (True, -INF), (False, NAN)])
def test_non_finite_values_are_a_fault_at_once_and_before_others(finite, loss):
    assert judged(make([1.0]), loss, finite) == (Reason.NON_FINITE, 1, True)
    assert judged(make([0.5] * 10), GUESSING, False)[0] == Reason.NON_FINITE  # not a collapse


@pytest.mark.parametrize(("known", "expected"), [(9, Reason.HEALTHY), (10, Reason.COLLAPSE)])
def test_collapse_needs_ten_healthy_losses(known, expected):
    assert judged(make([0.5] * known), GUESSING) == (expected, known - 9, known == 10)


@pytest.mark.parametrize(("mean", "expected"), [(0.6, Reason.HEALTHY), (np.nextafter(0.6, 0), Reason.COLLAPSE)])
def test_collapse_needs_a_trained_network(mean, expected):
    """Classes and settings with which the mean is exact."""
    governor = make([mean * GUESSING], window=1, min_history=1)
    assert judged(governor, GUESSING)[0] == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.9349, Reason.HEALTHY),
        (0.9351, Reason.COLLAPSE),
        (1.0649, Reason.COLLAPSE),
        (1.0651, Reason.HEALTHY),
    ],
)
def test_collapse_is_within_six_and_a_half_percent_of_guessing(share, expected):
    assert judged(make([0.5] * 10), share * GUESSING)[0] == expected


SPREAD = [1.0, 3.0]  # mean 2, deviation 1
FLAT = [2.0, 2.0]


@pytest.mark.parametrize(
    ("history", "loss", "divergent"),
    [
        (SPREAD, 8.0, False),  # mean + 6 deviations
        (SPREAD, 8.001, True),
        (FLAT, 6.0, False),  # 3 x mean
        (FLAT, 6.001, True),
        ([0.1, 0.1], 2 * GUESSING, False),
        ([0.1, 0.1], 2 * GUESSING + 0.001, True),
    ],
)
def test_divergence_exceeds_all_three_limits(history, loss, divergent):
    expected = (Reason.DIVERGENCE, 1, False) if divergent else (Reason.HEALTHY, 0, False)
    assert judged(make(history), loss) == expected


def test_rollback_after_three_consecutive_divergent_epochs():
    governor = make([0.5] * 3)
    assert [judged(governor, 9.0)[1:] for _ in range(3)] == [(1, False), (2, False), (3, True)]


def test_threshold_is_reported_and_unaffected_by_spikes():
    governor = make(SPREAD)
    thresholds = [governor.judge(ONE, np.array([loss])).threshold[0] for loss in (50.0, 500.0, NAN, 2.5)]
    np.testing.assert_array_equal(thresholds, [8.0, 8.0, NAN, NAN])
    learned = make([0.5] * 10).judge(ONE, np.array([GUESSING]))
    assert learned.threshold[0] == GUESSING


def test_history_is_limited_to_the_window():
    governor = make([2.0, *[0.5] * 19])
    assert judged(governor, GUESSING)[0] == Reason.COLLAPSE
    governor = make([4.5] * 11 + [0.5] * 9)
    assert judged(governor, GUESSING)[0] == Reason.HEALTHY  # the mean is above 0.6 ln K
    governor = make([4.5] * 11 + [0.5] * 20)
    assert judged(governor, GUESSING)[0] == Reason.COLLAPSE


def test_only_non_finite_values_are_faults_without_history():
    governor = make([NAN])
    assert judged(governor, 1e6) == (Reason.HEALTHY, 0, False)
    assert judged(make([INF]), NAN)[0] == Reason.NON_FINITE


def test_restored_network_starts_a_new_history():
    """Without its seeds it may be close to guessing for a while."""
    governor = make([0.5] * 20)
    assert judged(governor, NAN)[2]
    governor.rolled_back(ONE, np.array([12.0]))
    for _ in range(12):
        assert judged(governor, GUESSING) == (Reason.HEALTHY, 0, False)
    governor = make([0.5] * 20)
    governor.rolled_back(ONE, np.array([0.5]))
    for _ in range(8):
        assert judged(governor, 0.5)[0] == Reason.HEALTHY
    assert judged(governor, GUESSING)[0] == Reason.HEALTHY  # nine losses are known
    assert judged(governor, GUESSING)[0] == Reason.COLLAPSE


def test_restored_loss_counts_as_guessing_at_most():
    governor = make([0.5] * 20)
    governor.rolled_back(ONE, np.array([1000.0]))
    assert [judged(governor, 20.0)[2] for _ in range(3)] == [False, False, True]


def test_third_rollback_exhausts_the_governor():
    governor = make([0.5])
    seen = []
    for _ in range(3):
        governor.rolled_back(ONE, np.array([0.5]))
        seen.append((int(governor.rollbacks[0]), bool(governor.exhausted[0])))
    assert seen == [(1, False), (2, False), (3, True)]


def test_reset_changes_its_rows_only():
    governor = Governor(2, 3, CLASSES)
    both, second = np.array([True, True]), np.array([False, True])
    governor.reset(both, np.array([0.5, 0.5]))
    for _ in range(9):
        governor.judge(both, np.array([0.5, 0.5]))
    governor.rolled_back(second, np.array([0.5, 0.5]))
    governor.judge(both, np.array([9.0, 9.0]))
    governor.snapshots_taken(both, np.array([7, 7]), np.ones((2, 3), dtype=bool))
    governor.reset(second, np.array([NAN, 2.0]))
    assert governor.rollbacks.tolist() == [0, 0]
    assert governor.snapshot_epoch.tolist() == [7, 0]
    assert governor.saved.tolist() == [[True] * 3, [False] * 3]
    judgement = governor.judge(both, np.array([GUESSING, GUESSING]))
    assert judgement.reason.tolist() == [Reason.COLLAPSE, Reason.HEALTHY]
    assert judgement.panics.tolist() == [2, 0]


def due(governor, epoch, *fossils):
    fossilized = np.isin(np.arange(3), fossils)[None]
    wanted = bool(governor.snapshots_due(np.array([epoch]), fossilized)[0])
    if wanted:
        governor.snapshots_taken(ONE, np.array([epoch]), fossilized)
    return wanted


def test_snapshots_are_due_every_five_epochs_and_after_a_fossilization():
    governor = make([0.5])
    taken = [epoch for epoch in range(1, 20) if judged(governor, 0.5) and due(governor, epoch, *[1] * (epoch >= 7))]
    assert taken == [5, 7, 12, 17]
    assert governor.saved.tolist() == [[False, True, False]]


def test_unhealthy_network_is_never_due_for_a_snapshot():
    governor = make([0.5])
    for epoch, loss in enumerate([0.5] * 3 + [9.0] * 2, start=1):
        judged(governor, loss)
        assert not due(governor, epoch, 0) or epoch == 1
    judged(governor, NAN)
    assert not due(governor, 50, 0, 1)
    judged(governor, 0.5)
    assert due(governor, 51, 0, 1)


def test_state_of_another_shape_is_rejected():
    with pytest.raises(ValueError, match="history"):
        Governor(2, 3, CLASSES).set_state(Governor(1, 3, CLASSES).get_state())


@pytest.mark.parametrize("name", ["window", "min_history", "patience", "snapshot_epochs", "max_rollbacks"])
def test_governor_config_rejects_counts_below_one(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0; expected a positive integer"):
        GovernorConfig(**{name: 0})


def test_governor_rejects_contradicting_settings():
    with pytest.raises(ValueError, match="`window` is 9; `min_history` needs at least 10"):
        GovernorConfig(window=9)
    with pytest.raises(ValueError, match="classes is 1; expected at least 2"):
        Governor(1, 1, 1)
