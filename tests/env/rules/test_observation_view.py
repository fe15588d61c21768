"""A feature vector read back gives the quantities it was built from."""

from __future__ import annotations

import numpy as np
import pytest
from esper_env.rules.observation import ObservationBuilder, feature_count
from esper_env.rules.observation_view import ObservationView
from esper_env.rules.signals import SignalTracker
from esper_env.rules.slot_table import HOLD, SlotTable
from esper_env.rules.stages import Stage
from hypothesis import given
from hypothesis import strategies as st


def some_table(rng: np.random.Generator, rows: int, slots: int, horizon: int) -> SlotTable:
    table = SlotTable.empty(rows, slots)
    shape = (rows, slots)
    table.stage = rng.choice(np.array(list(Stage)), shape)
    table.operator = rng.integers(0, 3, shape)
    table.alpha = rng.uniform(0, 1, shape)
    table.alpha_target = rng.uniform(0, 1, shape)
    table.alpha_mode = rng.integers(0, 3, shape)
    table.alpha_ticks_total = rng.integers(0, horizon + 1, shape)
    table.epochs_in_stage = rng.integers(0, horizon + 1, shape)
    table.contribution = rng.uniform(-100, 100, shape)
    table.contribution_velocity = rng.uniform(-20, 20, shape)
    table.contribution_age = rng.integers(-1, 30, shape)
    table.gradient_measured[:] = True
    table.gradient_norm = rng.uniform(0, 10, shape)
    table.gradient_health = rng.uniform(0, 1, shape)
    table.gradient_exploding = rng.random(shape) < 0.5
    table.gradient_vanishing = rng.random(shape) < 0.5
    table.interaction_sum = rng.uniform(-10, 10, shape)
    table.boost_received = rng.uniform(0, 5, shape)
    return table


@given(st.integers(1, 6), st.integers(1, 200), st.integers(0, 2**32))
def test_view_returns_slot_quantities(slots: int, horizon: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = 4
    table = some_table(rng, rows, slots, horizon)
    tracker = SignalTracker(rows)
    tracker.reset(np.ones(rows, dtype=bool), np.full(rows, 2.3), np.full(rows, 10.0))
    builder = ObservationBuilder(slots, horizon, 1000, list(range(slots)))
    features = builder.features(table, tracker.peek(), np.zeros(rows), np.ones(rows), np.zeros(rows, dtype=int))
    view = ObservationView(features, slots, horizon)

    np.testing.assert_array_equal(view.stage, table.stage)
    np.testing.assert_array_equal(view.active, table.has_seed)
    occupied = table.stage != Stage.DORMANT
    np.testing.assert_array_equal(view.epochs_in_stage[occupied], table.epochs_in_stage[occupied])

    seed_here = table.has_seed
    measured = seed_here & (table.contribution_age >= 0)
    np.testing.assert_array_equal(view.contribution_measured, measured)
    np.testing.assert_array_equal(view.contribution_age[measured], table.contribution_age[measured])
    np.testing.assert_array_equal(view.contribution_age[~measured], -1)
    np.testing.assert_allclose(view.contribution[measured], table.contribution[measured], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        view.contribution_velocity[measured], table.contribution_velocity[measured], rtol=1e-5, atol=1e-5
    )
    ticks = np.where(table.alpha_mode == HOLD, 0, table.alpha_ticks_total)
    np.testing.assert_array_equal(view.alpha_ticks_left[seed_here], ticks[seed_here])
    exact = ("alpha_mode", "operator", "gradient_exploding", "gradient_vanishing")
    for name in exact:
        np.testing.assert_array_equal(getattr(view, name)[seed_here], getattr(table, name)[seed_here], err_msg=name)
    close = ("alpha", "alpha_target", "gradient_norm", "gradient_health", "interaction_sum", "boost_received")
    for name in close:
        np.testing.assert_allclose(
            getattr(view, name)[seed_here], getattr(table, name)[seed_here], rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_view_returns_network_quantities() -> None:
    tracker = SignalTracker(1)
    tracker.reset(np.array([True]), np.array([2.3]), np.array([10.0]))
    for accuracy, loss in ((30.0, 1.5), (45.0, 1.25), (41.0, 1.27), (41.5, 1.26), (41.0, 1.26), (41.0, 1.26)):
        signals = tracker.update(np.array([loss]), np.array([accuracy]))
    builder = ObservationBuilder(2, 25, 1000, [0, 1])
    features = builder.features(SlotTable.empty(1, 2), signals, np.zeros(1), np.zeros(1), np.array([3]))
    view = ObservationView(features, 2, 25)
    assert view.epoch.tolist() == [6]
    assert view.plateau_epochs.tolist() == signals.plateau_epochs.tolist()
    assert view.plateau_epochs[0] > 0
    assert view.host_stabilised.tolist() == signals.host_stabilised.tolist()
    np.testing.assert_allclose(view.val_accuracy, 41.0, rtol=1e-6)
    np.testing.assert_allclose(view.best_val_accuracy, 45.0, rtol=1e-6)
    np.testing.assert_allclose(view.val_loss, 1.26, rtol=1e-5)
    np.testing.assert_allclose(view.loss_delta, signals.loss_delta, atol=1e-6)
    np.testing.assert_allclose(view.accuracy_delta, signals.accuracy_delta, atol=1e-5)
    assert view.last_op.tolist() == [3]
    assert view.last_action_succeeded.tolist() == [False]


def test_single_observation_equals_a_batch_of_one() -> None:
    rng = np.random.default_rng(3)
    table = some_table(rng, 1, 3, 40)
    tracker = SignalTracker(1)
    tracker.reset(np.array([True]), np.array([2.3]), np.array([10.0]))
    builder = ObservationBuilder(3, 40, 1000, [0, 1, 2])
    features = builder.features(table, tracker.peek(), np.zeros(1), np.ones(1), np.zeros(1, dtype=int))
    batch, single = ObservationView(features, 3, 40), ObservationView(features[0], 3, 40)
    assert single.stage.shape == (3,)
    assert single.epoch.shape == ()
    np.testing.assert_array_equal(single.stage, batch.stage[0])
    np.testing.assert_array_equal(single.slot("alpha_mode") * 2, table.alpha_mode[0] * table.has_seed[0])


def test_view_rejects_features_of_another_environment() -> None:
    with pytest.raises(ValueError, match="121 for 3 slots"):
        ObservationView(np.zeros(feature_count(2)), 3, 40)
    with pytest.raises(ValueError, match="horizon is 0"):
        ObservationView(np.zeros(feature_count(3)), 3, 0)
