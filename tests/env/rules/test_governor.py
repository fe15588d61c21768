"""Governor against plain Python for one environment, and on hand-made losses."""

import math

import numpy as np
import pytest
from esper_env.rules.governor import Governor, Reason
from hypothesis import given
from hypothesis import strategies as st

CLASSES = 10
GUESSING = math.log(CLASSES)
NAN, INF = math.nan, math.inf
ONE = np.array([True])


class PlainGovernor:
    """One environment by the documented rules."""

    def __init__(self, classes, loss):
        self.guessing = math.log(classes)
        self.history, self.panics, self.rollbacks = ([loss] if math.isfinite(loss) else []), 0, 0

    def reason(self, finite, loss):
        known = self.history
        if not finite or not math.isfinite(loss):
            return Reason.NON_FINITE
        if not known:
            return Reason.HEALTHY
        mean = math.fsum(known) / len(known)
        deviation = math.sqrt(math.fsum((x - mean) * (x - mean) for x in known) / len(known))
        if len(known) >= 10 and mean < 0.6 * self.guessing and abs(loss - self.guessing) <= 0.065 * self.guessing:
            return Reason.COLLAPSE
        divergent = loss > max(mean + 6 * deviation, 3 * mean, 2 * self.guessing)
        return Reason.DIVERGENCE if divergent else Reason.HEALTHY

    def judge(self, finite, loss):
        """Return (reason, panics, roll back)."""
        reason = self.reason(finite, loss)
        if reason == Reason.HEALTHY:
            self.history = [*self.history, loss][-20:]
            self.panics = 0
            return reason, 0, False
        self.panics += 1
        return reason, self.panics, reason != Reason.DIVERGENCE or self.panics >= 3

    def rolled_back(self, loss):
        self.panics, self.rollbacks = 0, self.rollbacks + 1
        self.history = [min(loss, self.guessing)] if math.isfinite(loss) else []


def make(losses):
    """Return a governor of one environment with three slots and a history of healthy ``losses``."""
    governor = Governor(1, 3, CLASSES)
    governor.reset(ONE, np.array([losses[0]]))
    for loss in losses[1:]:
        assert judged(governor, loss)[0] == Reason.HEALTHY
    return governor


def judged(governor, loss, finite=True):
    """Return (reason, panics, roll back) of the only environment."""
    judgement = governor.judge(np.array([finite]), np.array([loss]))
    return Reason(judgement.reason[0]), int(judgement.panics[0]), bool(judgement.roll_back[0])


#: In units of ln K: learning, guessing and its edges, spikes small and large, and what is not finite.
LOSSES = st.one_of(
    st.sampled_from([0.125, 0.25, 0.375, 0.5]),
    st.sampled_from([0.93, 0.94, 1.0, 1.06, 1.07]),
    st.sampled_from([1.5, 2.25, 4.0, 50.0, 1e300]),
    st.sampled_from([NAN, INF, -INF]),
)
#: Runs of epochs with the same loss, in which networks learn, diverge and are restored.
RUNS = st.tuples(st.integers(1, 12), st.booleans() | st.just(True), st.sampled_from([0.125, 0.5]) | LOSSES)
LIVES = st.lists(RUNS, min_size=1, max_size=12)


@given(
    lives=st.lists(LIVES, min_size=1, max_size=4),
    starts=st.lists(LOSSES, min_size=4, max_size=4),
    classes=st.integers(2, 20),
    saved_at=st.integers(0, 40),
)
def test_judgements_equal_those_of_one_environment_in_plain_python(lives, starts, classes, saved_at):
    """The others do not matter, nor does a checkpoint on the way."""
    count, unit = len(lives), math.log(classes)
    epochs = [[epoch for times, *epoch in life for _ in range(times)] for life in lives]
    first = np.array(starts[:count]) * unit
    governor = Governor(count, 2, classes)
    governor.reset(np.ones(count, dtype=bool), first)
    plain = [PlainGovernor(classes, loss) for loss in first.tolist()]
    for epoch in range(max(map(len, epochs))):
        if epoch == saved_at:
            other = Governor(count, 2, classes)
            other.set_state(governor.get_state())
            governor = other
        now = [life[epoch % len(life)] for life in epochs]
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
        assert governor.exhausted.tolist() == [one.rollbacks >= 3 for one in plain]


@pytest.mark.parametrize(("finite", "loss"), [(False, 0.5), (True, NAN), (True, -INF)])
def test_non_finite_values_are_a_fault_at_once_and_before_others(finite, loss):
    assert judged(make([NAN]), 1e6) == (Reason.HEALTHY, 0, False)  # without history, nothing else is a fault
    assert judged(make([NAN]), loss, finite) == (Reason.NON_FINITE, 1, True)
    assert judged(make([0.5] * 10), GUESSING, False)[0] == Reason.NON_FINITE  # not a collapse


@pytest.mark.parametrize(
    ("history", "share", "collapse"),
    [
        ([0.5] * 9, 1.0, False),
        ([0.5] * 10, 1.0, True),
        ([0.601 * GUESSING] * 10, 1.0, False),
        ([0.599 * GUESSING] * 10, 1.0, True),
        ([0.5] * 10, 0.9349, False),
        ([0.5] * 10, 0.9351, True),
        ([0.5] * 10, 1.0649, True),
        ([0.5] * 10, 1.0651, False),
        ([20.0] + [0.5] * 19, 1.0, False),  # the mean is above 0.6 ln K
        ([20.0] + [0.5] * 20, 1.0, True),  # until the first loss is forgotten
    ],
)
def test_collapse_needs_ten_losses_a_trained_network_and_a_loss_close_to_guessing(history, share, collapse):
    expected = (Reason.COLLAPSE, 1, True) if collapse else (Reason.HEALTHY, 0, False)
    assert judged(make(history), share * GUESSING) == expected


SPREAD = [1.0, 3.0]  # mean 2, deviation 1
FLAT = [2.0, 2.0]


@pytest.mark.parametrize(
    ("history", "loss", "divergent"),
    [
        (SPREAD, 8.0, False),  # mean + 6 deviations
        (SPREAD, 8.001, True),
        (FLAT, 6.0, False),  # 3 x mean
        (FLAT, 6.001, True),
        ([NAN, *FLAT], 6.001, True),  # the loss at the reset is not remembered
        ([INF, *FLAT], 6.001, True),
        ([0.1, 0.1], 2 * GUESSING, False),
        ([0.1, 0.1], 2 * GUESSING + 0.001, True),
    ],
)
def test_divergence_exceeds_all_three_limits(history, loss, divergent):
    expected = (Reason.DIVERGENCE, 1, False) if divergent else (Reason.HEALTHY, 0, False)
    assert judged(make(history), loss) == expected


def test_threshold_is_reported_and_unaffected_by_spikes():
    governor = make(SPREAD)
    thresholds = [governor.judge(ONE, np.array([loss])).threshold[0] for loss in (50.0, 500.0, NAN, 2.5)]
    np.testing.assert_array_equal(thresholds, [8.0, 8.0, NAN, NAN])
    assert make([0.5] * 10).judge(ONE, np.array([GUESSING])).threshold[0] == GUESSING


def test_restored_network_starts_a_new_history_and_counts_as_guessing_at_most():
    """Without its seeds it may be close to guessing for a while."""
    governor = make([0.5] * 20)
    governor.rolled_back(ONE, np.array([1000.0]))
    assert [judged(governor, GUESSING)[0] for _ in range(12)] == [Reason.HEALTHY] * 12
    assert [judged(governor, 20.0)[2] for _ in range(3)] == [False, False, True]


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


def test_healthy_networks_are_snapshotted_every_five_epochs_and_after_a_fossilization():
    governor, taken = make([0.5]), []
    for epoch in range(1, 20):
        fossilized = np.array([[False, epoch >= 7, epoch >= 13]])
        judged(governor, 9.0 if epoch in (13, 14) else 0.5)
        if governor.snapshots_due(np.array([epoch]), fossilized).item():
            governor.snapshots_taken(ONE, np.array([epoch]), fossilized)
            taken.append(epoch)
    assert taken == [5, 7, 12, 15]
    assert governor.saved.tolist() == [[False, True, True]]
