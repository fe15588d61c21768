"""Signals of a validation curve against hand-made numbers and naive loops."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from esper_env.rules.signals import SignalConfig, Signals, SignalTracker
from hypothesis import given
from hypothesis import strategies as st


def run(losses: list[float], accuracies: list[float], config: SignalConfig | None = None) -> list[Signals]:
    """Return the readings of one environment whose epoch 0 is the first value."""
    tracker = SignalTracker(1, config)
    tracker.reset(np.array([True]), np.array([losses[0]]), np.array([accuracies[0]]))
    records = [tracker.peek()]
    for loss, accuracy in zip(losses[1:], accuracies[1:], strict=True):
        records.append(tracker.update(np.array([loss]), np.array([accuracy])))
    return records


def assert_same(left: Signals, right: Signals) -> None:
    for field in dataclasses.fields(Signals):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


def test_epoch_zero_is_the_untrained_network() -> None:
    (signals,) = run([2.3], [11.0])
    assert signals.epoch[0] == 0
    assert signals.val_loss[0] == 2.3
    assert signals.loss_delta[0] == 0.0
    assert signals.accuracy_delta[0] == 0.0
    assert signals.best_val_accuracy[0] == 11.0
    assert signals.window_best_val_loss[0] == 2.3
    assert signals.loss_history.tolist() == [[0.0, 0.0, 0.0, 0.0, 2.3]]
    assert not signals.host_stabilised[0]
    improved = run([3.0, 2.5], [20.0, 26.0])[-1]
    assert (improved.loss_delta[0], improved.accuracy_delta[0]) == (0.5, 6.0)
    assert improved.window_best_val_loss[0] == 2.5, "padding is never the best loss"


def test_history_has_the_last_five_epochs_left_padded() -> None:
    losses = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4]
    accuracies = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0]
    records = run(losses, accuracies)
    assert records[2].accuracy_history.tolist() == [[0.0, 0.0, 10.0, 20.0, 30.0]]
    assert records[6].loss_history.tolist() == [[1.8, 1.7, 1.6, 1.5, 1.4]]
    assert records[6].accuracy_history.tolist() == [[30.0, 40.0, 50.0, 60.0, 70.0]]


def test_best_accuracy_is_global_and_best_loss_of_the_window() -> None:
    losses = [0.5, *[2.0 - 0.01 * i for i in range(12)]]
    accuracies = [90.0, *[20.0 + i for i in range(12)]]
    records = run(losses, accuracies)
    # The window holds ten epochs: at epoch 9 the first value is still in it, at epoch 10 it is not.
    assert records[9].window_best_val_loss[0] == 0.5
    assert records[10].window_best_val_loss[0] == pytest.approx(min(losses[1:11]))
    assert records[12].best_val_accuracy[0] == 90.0


def naive_plateau(accuracies: list[float], config: SignalConfig) -> int:
    def smooth(end: int) -> float:
        recent = accuracies[max(0, end - config.smoothing + 1) : end + 1]
        return sum(recent) / len(recent)

    count = 0
    for epoch in range(1, len(accuracies)):
        count = count + 1 if smooth(epoch) - smooth(epoch - 1) < config.plateau_points else 0
    return count


# Sixteenths of a point: sums are exact, so that the naive loop and the arrays agree at the threshold too.
sixteenths = st.integers(16, 1600).map(lambda k: k / 16)


@given(st.lists(sixteenths, min_size=2, max_size=25), st.sampled_from([1, 2, 4]))
def test_plateau_counts_epochs_without_a_smoothed_gain(accuracies: list[float], smoothing: int) -> None:
    config = SignalConfig(smoothing=smoothing)
    losses = [2.0] * len(accuracies)
    assert run(losses, accuracies, config)[-1].plateau_epochs[0] == naive_plateau(accuracies, config)


def test_gain_of_exactly_the_threshold_is_progress() -> None:
    config = SignalConfig(smoothing=1)
    assert run([2.0, 2.0], [30.0, 30.5], config)[-1].plateau_epochs[0] == 0
    assert run([2.0, 2.0], [30.0, 30.4375], config)[-1].plateau_epochs[0] == 1


def test_smoothed_noise_does_not_end_a_plateau() -> None:
    """A swing of four points around a constant mean is a plateau only if smoothed."""
    accuracies = [40.0 + (0.0, 2.0, -2.0)[i % 3] for i in range(16)]
    losses = [2.0] * 16
    assert run(losses, accuracies)[-1].plateau_epochs[0] >= 13
    assert run(losses, accuracies, SignalConfig(smoothing=1))[-1].plateau_epochs[0] < 3


def test_stabilisation_latches_and_is_announced_once() -> None:
    falling = [2.0 * 0.9**epoch for epoch in range(6)]
    flat = [falling[-1]] * 6
    again = [falling[-1] * 0.5] * 3  # a fresh fall does not undo it
    records = run([*falling, *flat, *again], [30.0] * 15)
    # Epoch 5 is the last to fall. Smoothed over three, epoch 7 still improves by 3.6%; epochs 8, 9 and 10 stand still.
    assert [epoch for epoch, record in enumerate(records) if record.just_stabilised[0]] == [10]
    assert [bool(record.host_stabilised[0]) for record in records] == [False] * 10 + [True] * 5


def naive_stabilised(losses: list[float], config: SignalConfig) -> int | None:
    """Return the epoch that latches, by the definition."""
    smooth = []
    for epoch in range(len(losses)):
        recent = losses[max(0, epoch - config.smoothing + 1) : epoch + 1]
        smooth.append(sum(recent) / len(recent))
    run_length = 0
    for epoch in range(1, len(losses)):
        ratio = (smooth[epoch - 1] - smooth[epoch]) / smooth[epoch - 1]
        run_length = run_length + 1 if config.stable_low < ratio < config.stable_high else 0
        if run_length == config.stable_epochs:
            return epoch
    return None


@given(st.lists(st.floats(0.5, 3.0), min_size=2, max_size=20))
def test_stabilisation_equals_its_definition(losses: list[float]) -> None:
    records = run(losses, [30.0] * len(losses))
    announced = [i for i, record in enumerate(records) if record.just_stabilised[0]]
    expected = naive_stabilised(losses, SignalConfig())
    assert announced == ([] if expected is None else [expected])


@pytest.mark.parametrize(("factor", "stable"), [(0.98, True), (0.96, False), (1.04, True), (1.06, False)])
def test_stable_band_is_minus_five_to_plus_three_percent(factor: float, stable: bool) -> None:
    records = run([2.0 * factor**i for i in range(4)], [30.0] * 4, SignalConfig(smoothing=1))
    assert bool(records[-1].host_stabilised[0]) is stable
    assert not records[-2].host_stabilised[0]


def test_peek_equals_update_and_changes_nothing() -> None:
    tracker = SignalTracker(2)
    tracker.reset(np.array([True, True]), np.array([2.0, 2.0]), np.array([20.0, 30.0]))
    for step in range(12):
        updated = tracker.update(np.array([2.0, 2.0 - 0.1 * step]), np.array([20.0, 30.0 + step]))
        before = tracker.get_state()
        assert_same(updated, tracker.peek())
        assert_same(updated, tracker.peek())
        for name, array in tracker.get_state().items():
            np.testing.assert_array_equal(array, before[name])


def test_readings_are_copies() -> None:
    tracker = SignalTracker(1)
    tracker.reset(np.array([True]), np.array([2.0]), np.array([20.0]))
    first = tracker.update(np.array([1.9]), np.array([21.0]))
    kept = dataclasses.replace(first, **{f.name: getattr(first, f.name).copy() for f in dataclasses.fields(first)})
    tracker.update(np.array([1.0]), np.array([50.0]))
    assert_same(first, kept)
    for field in dataclasses.fields(Signals):
        getattr(first, field.name)[...] = 0
    assert tracker.peek().val_accuracy[0] == 50.0
    assert tracker.peek().accuracy_history[0, -2] == 21.0


def test_reset_changes_its_rows_only() -> None:
    tracker = SignalTracker(2)
    tracker.reset(np.array([True, True]), np.array([2.0, 1.0]), np.array([20.0, 70.0]))
    for _ in range(6):
        tracker.update(np.array([2.0, 1.0]), np.array([20.0, 70.0]))
    before = tracker.peek()
    assert before.host_stabilised.all()
    tracker.reset(np.array([True, False]), np.array([2.2, np.nan]), np.array([10.0, np.nan]))
    after = tracker.peek()
    assert (after.epoch[0], after.plateau_epochs[0], after.host_stabilised[0]) == (0, 0, False)
    assert after.best_val_accuracy[0] == 10.0
    assert after.loss_history[0].tolist() == [0.0, 0.0, 0.0, 0.0, 2.2]
    for field in dataclasses.fields(Signals):
        np.testing.assert_array_equal(getattr(after, field.name)[1], getattr(before, field.name)[1])


def test_stable_epochs_of_an_earlier_episode_do_not_count() -> None:
    tracker = SignalTracker(1)
    tracker.reset(np.array([True]), np.array([2.0]), np.array([20.0]))
    tracker.update(np.array([2.0]), np.array([20.0]))
    tracker.update(np.array([2.0]), np.array([20.0]))
    tracker.reset(np.array([True]), np.array([2.0]), np.array([20.0]))
    latched = [bool(tracker.update(np.array([2.0]), np.array([20.0])).host_stabilised[0]) for _ in range(3)]
    assert latched == [False, False, True]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_diverged_loss_is_raw_and_not_the_best(loss: float) -> None:
    records = run([2.0, 1.8, loss, loss, 1.7], [20.0] * 5)
    np.testing.assert_array_equal(records[2].val_loss, [loss])
    assert records[3].window_best_val_loss[0] == 1.8
    assert records[4].window_best_val_loss[0] == 1.7
    assert not any(record.host_stabilised[0] for record in records)


@pytest.mark.parametrize(
    "bad",
    [{"history": 0}, {"window": 4}, {"window": 3, "history": 2}, {"smoothing": 0}, {"stable_low": 0.1}],
)
def test_signal_config_rejects_invalid_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected|need|below"):
        SignalConfig(**bad)  # type: ignore[arg-type]


def test_restored_tracker_continues_exactly() -> None:
    rng = np.random.default_rng(7)
    losses, accuracies = rng.uniform(1, 2, (20, 3)), rng.uniform(20, 60, (20, 3))
    original = SignalTracker(3)
    original.reset(np.ones(3, dtype=bool), losses[0], accuracies[0])
    for epoch in range(1, 9):
        original.update(losses[epoch], accuracies[epoch])
    restored = SignalTracker(3)
    restored.set_state(original.get_state())
    for epoch in range(9, 20):
        assert_same(
            original.update(losses[epoch], accuracies[epoch]), restored.update(losses[epoch], accuracies[epoch])
        )
    with pytest.raises(ValueError, match="expected"):
        SignalTracker(2).set_state(original.get_state())
    state = original.get_state()
    del state["epoch"]
    with pytest.raises(ValueError, match="epoch"):
        restored.set_state(state)
