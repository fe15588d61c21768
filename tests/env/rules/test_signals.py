"""Signals of a validation curve against hand-made numbers and naive loops."""

import dataclasses
import math

import numpy as np
import pytest
from esper_env.rules.signals import Signals, SignalTracker
from hypothesis import given
from hypothesis import strategies as st

NAMES = [field.name for field in dataclasses.fields(Signals)]


def run(losses, accuracies, plateau_points=0.5):
    """Return the readings of one environment whose epoch 0 is the first value."""
    tracker = SignalTracker(1, plateau_points)
    tracker.reset(np.array([True]), np.array([losses[0]]), np.array([accuracies[0]]))
    records = [tracker.peek()]
    for loss, accuracy in zip(losses[1:], accuracies[1:], strict=True):
        records.append(tracker.update(np.array([loss]), np.array([accuracy])))
    return records


def assert_same(left, right, row=slice(None)):
    for name in NAMES:
        np.testing.assert_array_equal(getattr(left, name)[row], getattr(right, name)[row], err_msg=name)


def test_epoch_zero_is_the_untrained_network():
    first, improved = run([3.0, 2.5], [20.0, 26.0])
    assert (first.epoch[0], first.val_loss[0], first.loss_delta[0], first.accuracy_delta[0]) == (0, 3.0, 0.0, 0.0)
    assert (first.best_val_accuracy[0], first.window_best_val_loss[0]) == (20.0, 3.0)
    assert first.loss_history.tolist() == [[0.0, 0.0, 0.0, 0.0, 3.0]]
    assert (improved.epoch[0], improved.loss_delta[0], improved.accuracy_delta[0]) == (1, 0.5, 6.0)
    assert improved.window_best_val_loss[0] == 2.5, "padding is never the best loss"


def test_history_has_the_last_five_epochs_left_padded():
    records = run([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4], [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0])
    assert records[2].accuracy_history.tolist() == [[0.0, 0.0, 10.0, 20.0, 30.0]]
    assert records[6].loss_history.tolist() == [[1.8, 1.7, 1.6, 1.5, 1.4]]
    assert records[6].accuracy_history.tolist() == [[30.0, 40.0, 50.0, 60.0, 70.0]]


def test_best_accuracy_is_global_and_best_loss_of_ten_epochs():
    losses = [0.5, *[2.0 - 0.01 * i for i in range(12)]]
    records = run(losses, [90.0, *[20.0 + i for i in range(12)]])
    assert records[9].window_best_val_loss[0] == 0.5
    assert records[10].window_best_val_loss[0] == pytest.approx(min(losses[1:11]))
    assert records[12].best_val_accuracy[0] == 90.0


def smoothed(values, epoch):
    recent = values[max(0, epoch - 2) : epoch + 1]
    return sum(recent) / len(recent)


# Multiples of 3/16 of a point: sums and means are exact, so that the naive loop agrees at the threshold too.
POINTS = st.integers(0, 20).map(lambda k: 3 * k / 16)


@given(st.lists(POINTS, min_size=2, max_size=25), st.sampled_from([0.1875, 0.5, 2.0]))
def test_plateau_counts_epochs_without_a_smoothed_gain(accuracies, plateau_points):
    count = 0
    for epoch, record in enumerate(run([2.0] * len(accuracies), accuracies, plateau_points)):
        if epoch > 0:
            gain = smoothed(accuracies, epoch) - smoothed(accuracies, epoch - 1)
            count = count + 1 if gain < plateau_points else 0
        assert record.plateau_epochs[0] == count


def test_stabilisation_latches_and_is_announced_once():
    falling = [2.0 * 0.9**epoch for epoch in range(6)]
    flat = [falling[-1]] * 6
    again = [falling[-1] * 0.5] * 3  # a fresh fall does not undo it
    records = run([*falling, *flat, *again], [30.0] * 15)
    # Epoch 5 is the last to fall. Smoothed over three, epoch 7 still improves by 3.6%; epochs 8, 9 and 10 stand still.
    assert [epoch for epoch, record in enumerate(records) if record.just_stabilised[0]] == [10]
    assert [bool(record.host_stabilised[0]) for record in records] == [False] * 10 + [True] * 5


@given(st.lists(st.floats(0.5, 3.0), min_size=2, max_size=20))
def test_stabilisation_needs_three_epochs_within_minus_five_and_plus_three_percent(losses):
    stable, expected = 0, []
    for epoch in range(1, len(losses)):
        before = smoothed(losses, epoch - 1)
        stable = stable + 1 if -0.05 < (before - smoothed(losses, epoch)) / before < 0.03 else 0
        expected += [epoch] if stable == 3 and not expected else []
    records = run(losses, [30.0] * len(losses))
    assert [epoch for epoch, record in enumerate(records) if record.just_stabilised[0]] == expected


@pytest.mark.parametrize(("factor", "stable"), [(0.971, True), (0.969, False), (1.049, True), (1.051, False)])
def test_edges_of_the_stable_band(factor, stable):
    """The means over three change by the same factor once the window is full."""
    records = run([2.0 * factor**i for i in range(6)], [30.0] * 6)
    assert bool(records[-1].host_stabilised[0]) is stable


def test_readings_are_copies_and_peek_changes_nothing():
    tracker = SignalTracker(2, 0.5)
    tracker.reset(np.array([True, True]), np.array([2.0, 2.0]), np.array([20.0, 30.0]))
    readings = []
    for step in range(12):
        updated = tracker.update(np.array([2.0, 2.0 - 0.1 * step]), np.array([20.0, 30.0 + step]))
        kept = dataclasses.replace(updated, **{name: getattr(updated, name).copy() for name in NAMES})
        readings.append((updated, kept))
        assert_same(updated, tracker.peek())
        assert_same(updated, tracker.peek())
    for updated, kept in readings:
        assert_same(updated, kept)
        for name in NAMES:
            getattr(updated, name)[...] = 0
    assert_same(tracker.peek(), readings[-1][1])


def test_reset_changes_its_rows_only():
    tracker = SignalTracker(2, 0.5)
    tracker.reset(np.array([True, True]), np.array([2.0, 1.0]), np.array([20.0, 70.0]))
    for _ in range(6):
        before = tracker.update(np.array([2.0, 1.0]), np.array([20.0, 70.0]))
    assert before.host_stabilised.all()
    tracker.reset(np.array([True, False]), np.array([2.2, np.nan]), np.array([10.0, np.nan]))
    assert_same(tracker.peek(), before, row=1)
    assert_same(tracker.peek(), run([2.2], [10.0])[0], row=0)
    latched = [tracker.update(np.array([2.2, 1.0]), np.array([10.0, 70.0])).host_stabilised[0] for _ in range(3)]
    assert latched == [False, False, True]  # earlier stable epochs do not count


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_diverged_loss_is_raw_and_not_the_best(loss):
    records = run([2.0, 1.8, loss, loss, 1.7], [20.0] * 5)
    np.testing.assert_array_equal(records[2].val_loss, [loss])
    assert records[3].window_best_val_loss[0] == 1.8
    assert records[4].window_best_val_loss[0] == 1.7
    assert not any(record.host_stabilised[0] for record in records)
