"""Features: layout by hand-made numbers, bounds for any table, and the view that undoes the scaling."""

import dataclasses
import math
import time

import numpy as np
import pytest
from esper_env.rules.heads import Op, Operator
from esper_env.rules.observation import (
    BASE_FIELDS,
    SLOT_FIELDS,
    ObservationBuilder,
    ObservationView,
    feature_count,
)
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from esper_env.rules.stages import IN_COOLDOWN, Stage
from hypothesis import given
from hypothesis import strategies as st
from plain_rules import base_index, slot_index

LN11, LN51 = math.log(11), math.log(51)
QUIET = {name.name: 0.0 for name in dataclasses.fields(Signals)} | {
    "host_stabilised": False,
    "loss_history": [0.0] * 5,
    "accuracy_history": [0.0] * 5,
}


def signals_of(num_envs=1, **values):
    """Return constant signals with some values replaced; scalars are repeated for every environment."""
    return Signals(**{name: np.repeat(np.asarray(v)[None], num_envs, axis=0) for name, v in (QUIET | values).items()})


def features_of(table, signals=None, *, horizon=40, budget=1000, order=None, params=0, success=True, op=Op.WAIT):
    rows, slots = table.shape
    builder = ObservationBuilder(horizon, budget, order if order is not None else range(slots))
    signals = signals if signals is not None else signals_of(rows)
    return builder.features(table, signals, np.full(rows, params), np.full(rows, success), np.full(rows, op))


BASE_CASES = [
    (0, "epoch", {"epoch": 10}, 0.25),
    (0, "epoch", {"epoch": 40}, 1.0),
    (1, "val_loss", {"val_loss": 2.3}, math.log(3.3) / LN11),
    (1, "val_loss", {"val_loss": math.nan}, 2.0),
    (1, "val_loss", {"val_loss": math.inf}, 2.0),
    (2, "loss_delta", {"loss_delta": -0.5}, -0.25),
    (2, "loss_delta", {"loss_delta": 7.0}, 1.0),
    (2, "loss_delta", {"loss_delta": math.nan}, 0.0),
    (3, "val_accuracy", {"val_accuracy": 43.0}, 0.43),
    (4, "accuracy_delta", {"accuracy_delta": 2.5}, 0.25),
    (4, "accuracy_delta", {"accuracy_delta": -30.0}, -1.0),
    (5, "plateau_epochs", {"plateau_epochs": 5}, 0.25),
    (5, "plateau_epochs", {"plateau_epochs": 33}, 1.0),
    (6, "host_stabilised", {"host_stabilised": True}, 1.0),
    *[(7 + i, f"loss_history_{i}", {"loss_history": [1, 2, 3, 4, 5]}, math.log(2.0 + i) / LN11) for i in range(5)],
    *[(12 + i, f"accuracy_history_{i}", {"accuracy_history": [10, 20, 30, 40, 50]}, 0.1 + 0.1 * i) for i in range(5)],
    (17, "best_val_accuracy", {"best_val_accuracy": 71.0}, 0.71),
    (18, "window_best_val_loss", {"window_best_val_loss": 10.0}, 1.0),
    (18, "window_best_val_loss", {"window_best_val_loss": 1e6}, 2.0),
]


@pytest.mark.parametrize(("index", "name", "values", "expected"), BASE_CASES)
def test_signal_has_its_position_and_scale(index, name, values, expected):
    assert base_index(name) == index
    assert features_of(SlotTable.empty(1, 3), signals_of(**values))[0, index] == pytest.approx(expected, abs=1e-6)


def test_parameters_are_scaled_by_the_logarithm_of_the_budget():
    assert base_index("parameters_added") == 19
    shown = [features_of(SlotTable.empty(1, 3), params=n, budget=9999)[0, 19] for n in (0, 99, 9999, 1e30)]
    assert shown == pytest.approx([0.0, 0.5, 1.0, 2.0])


def test_stage_counts_are_shares_of_the_slots():
    table = SlotTable.empty(1, 5)
    table.stage[0] = [Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED, Stage.HOLDING, Stage.EMBARGOED]
    assert BASE_FIELDS[20:24] == ("active_slots", "slots_training", "slots_blending", "slots_holding")
    np.testing.assert_allclose(features_of(table)[0, 20:24], [0.8, 0.2, 0.2, 0.2], atol=1e-6)


def test_last_action_is_a_flag_and_a_one_hot():
    assert BASE_FIELDS[24:] == ("last_action_succeeded", *(f"last_op_{op.name.lower()}" for op in Op))
    for op in Op:
        shown = features_of(SlotTable.empty(1, 2), success=op > 2, op=op)[0, 24:31]
        assert shown.tolist() == [float(op > 2), *(float(i == op) for i in range(6))]


SLOT_CASES = [
    (0, "active", {}, 1.0),
    (11, "alpha", {"alpha": 0.7}, 0.7),
    (12, "alpha_target", {"alpha_target": 0.5}, 0.5),
    (13, "alpha_mode", {"alpha_mode": HOLD}, 0.0),
    (13, "alpha_mode", {"alpha_mode": UP}, 0.5),
    (13, "alpha_mode", {"alpha_mode": DOWN}, 1.0),
    (14, "alpha_velocity", {"alpha_velocity": -0.25}, -0.25),
    (14, "alpha_velocity", {"alpha_velocity": 3.0}, 1.0),
    (15, "alpha_ticks_left", {"alpha_mode": UP, "alpha_ticks_total": 8, "alpha_ticks_done": 3}, 5 / 40),
    (15, "alpha_ticks_left", {"alpha_mode": HOLD, "alpha_ticks_total": 8, "alpha_ticks_done": 3}, 0.0),
    (16, "operator", {"operator": Operator.MULTIPLY}, 0.5),
    (16, "operator", {"operator": Operator.GATE}, 1.0),
    (17, "contribution", {"contribution": 50.0, "contribution_age": 0}, 1.0),
    (17, "contribution", {"contribution": -4.0, "contribution_age": 2}, -math.log(5) / LN51),
    (17, "contribution", {"contribution": 9.0, "contribution_age": -1}, 0.0),
    (18, "contribution_velocity", {"contribution_velocity": -1.5, "contribution_age": 0}, -math.log(2.5) / LN51),
    (19, "epochs_in_stage", {"epochs_in_stage": 10}, 0.25),
    (19, "epochs_in_stage", {"epochs_in_stage": 40}, 1.0),
    (20, "gradient_norm", {"gradient_norm": 2.5, "gradient_measured": True}, 0.25),
    (20, "gradient_norm", {"gradient_norm": 250.0, "gradient_measured": True}, 1.0),
    (20, "gradient_norm", {"gradient_norm": math.nan, "gradient_measured": True}, 1.0),
    (20, "gradient_norm", {"gradient_norm": 2.5, "gradient_measured": False}, 0.0),
    (21, "gradient_health", {"gradient_health": 0.8, "gradient_measured": True}, 0.8),
    (21, "gradient_health", {"gradient_health": 0.8, "gradient_measured": False}, 0.0),
    (22, "previous_gradient_health", {}, 1.0),
    (22, "previous_gradient_health", {"previous_gradient_health": 0.6}, 0.6),
    (23, "gradient_vanishing", {"gradient_vanishing": True}, 1.0),
    (24, "gradient_exploding", {"gradient_exploding": True}, 1.0),
    (25, "interaction_sum", {"interaction_sum": -2.5}, -0.25),
    (25, "interaction_sum", {"interaction_sum": 25.0}, 1.0),
    (26, "boost_received", {"boost_received": 2.0}, 0.4),
    (26, "boost_received", {"boost_received": -2.0}, 0.0),
    (29, "counterfactual_freshness", {"contribution_age": 0}, 1.0),
    (29, "counterfactual_freshness", {"contribution_age": 10}, 0.995**10),
    (29, "counterfactual_freshness", {"contribution_age": -1}, 0.0),
]


@pytest.mark.parametrize(("index", "name", "columns", "expected"), SLOT_CASES)
def test_slot_column_has_its_position_and_scale(index, name, columns, expected):
    table = SlotTable.empty(1, 3)
    table.stage[0, 1] = Stage.BLENDING
    for column, value in columns.items():
        getattr(table, column)[0, 1] = value
    position = 31 + 30 + index
    assert slot_index(name, 1) == position
    features = features_of(table)[0]
    assert features[position] == pytest.approx(expected, abs=1e-6)
    others = [31 + 30 * other + k for other in (0, 2) for k in range(30) if k not in (27, 28)]
    assert not features[others].any()


def test_stage_is_a_one_hot_over_contiguous_indices():
    assert SLOT_FIELDS[1:11] == tuple(f"stage_{stage.name.lower()}" for stage in Stage)
    for position, stage in enumerate(Stage):
        table = SlotTable.empty(1, 1)
        table.stage[:] = stage
        shown = stage != Stage.DORMANT
        assert features_of(table)[0, 32:42].tolist() == [float(k == position and shown) for k in range(10)]


@pytest.mark.parametrize("stage", [Stage.DORMANT, Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING])
def test_slot_without_a_seed_shows_only_the_cooldown_and_adds_no_alpha(stage):
    table = SlotTable.empty(1, 2)
    for field in dataclasses.fields(table):
        getattr(table, field.name)[...] = 1
    table.stage[0] = [stage, Stage.BLENDING]
    table.epochs_in_stage[:] = 4
    features = features_of(table)[0]
    cooldown = {f"stage_{stage.name.lower()}": 1.0, "epochs_in_stage": np.float32(0.1)}
    shown = {name: value for name, value in zip(SLOT_FIELDS, features[31:61], strict=True) if value}
    assert shown == ({} if stage == Stage.DORMANT else cooldown)
    assert features[slot_index("alpha_upstream", 1)] == 0.0


def test_alpha_upstream_and_downstream_follow_the_forward_pass():
    table = SlotTable.empty(1, 4)
    table.stage[0] = [Stage.FOSSILIZED, Stage.BLENDING, Stage.HOLDING, Stage.TRAINING]
    table.alpha[0] = [1.0, 0.4, 0.8, 0.0]
    by_slot = features_of(table, order=[2, 0, 3, 1])[0, 31:].reshape(4, 30)
    assert SLOT_FIELDS[27:29] == ("alpha_upstream", "alpha_downstream")
    np.testing.assert_allclose(by_slot[:, 27], [0.8 / 4, 1.8 / 4, 0.0, 1.8 / 4], atol=1e-6)
    np.testing.assert_allclose(by_slot[:, 28], [0.4 / 4, 0.0, 1.4 / 4, 0.4 / 4], atol=1e-6)


ANY_FLOAT = st.floats(width=64)  # NaN and infinities included
ANY_INT = st.integers(-(2**62), 2**62)


def fill(data, array):
    """Return an array of the same shape and kind with arbitrary values."""
    kinds = {"f": ANY_FLOAT, "i": ANY_INT, "b": st.booleans()}
    values = data.draw(st.lists(kinds[array.dtype.kind], min_size=array.size, max_size=array.size))
    return np.array(values, dtype=array.dtype).reshape(array.shape)


@given(st.integers(1, 4), st.integers(1, 200), st.data())
def test_features_are_finite_bounded_and_independent_for_any_table(slots, horizon, data):
    table = SlotTable.empty(2, slots)
    for field in dataclasses.fields(table):
        setattr(table, field.name, fill(data, getattr(table, field.name)))
    stages = data.draw(st.lists(st.sampled_from(list(Stage)), min_size=2 * slots, max_size=2 * slots))
    table.stage = np.array(stages, dtype=np.int64).reshape(2, slots)
    signals = Signals(**{name: fill(data, np.array(value)) for name, value in vars(signals_of(2)).items()})
    builder = ObservationBuilder(horizon, data.draw(st.floats(1.0, 1e9)), data.draw(st.permutations(range(slots))))
    last = fill(data, np.zeros(2)), fill(data, np.zeros(2, dtype=bool)), np.array([0, 5])
    features = builder.features(table, signals, *last)
    assert features.dtype == np.float32
    assert features.shape == (2, feature_count(slots)) == (2, 31 + 30 * slots)
    assert np.isfinite(features).all()
    assert (np.abs(features) <= 2.0).all()
    by_slot = features[:, 31:].reshape(2, slots, 30)
    assert not by_slot[table.stage == Stage.DORMANT].any()
    assert not by_slot[IN_COOLDOWN[table.stage]][:, [0, *range(11, 19), *range(20, 30)]].any()
    table.take(SlotTable.empty(2, slots), np.array([False, True]))
    np.testing.assert_array_equal(builder.features(table, signals, *last)[0], features[0])


def test_features_of_64_environments_take_less_than_a_millisecond():
    table = SlotTable.empty(64, 6)
    table.stage[:] = Stage.BLENDING
    builder = ObservationBuilder(40, 1000, range(6))
    arguments = (table, signals_of(64), np.zeros(64), np.ones(64, dtype=bool), np.zeros(64, dtype=np.int64))
    best = math.inf
    for _ in range(200):  # best of many, because the machine may be busy
        start = time.perf_counter()
        builder.features(*arguments)
        best = min(best, time.perf_counter() - start)
    assert best < 1e-3


# The view

#: Ends of the ranges that are not clamped.
WITHIN = {
    "alpha": (0, 1),
    "alpha_target": (0, 1),
    "contribution": (-100, 100),
    "contribution_velocity": (-20, 20),
    "gradient_norm": (0, 10),
    "gradient_health": (0, 1),
    "interaction_sum": (-10, 10),
    "boost_received": (0, 5),
}


@given(st.integers(1, 6), st.integers(1, 200), st.integers(0, 2**32))
def test_view_returns_slot_quantities(slots, horizon, seed):
    rng, shape = np.random.default_rng(seed), (4, slots)
    table = SlotTable.empty(*shape)
    table.stage = rng.choice(np.array(list(Stage)), shape)
    for name, (low, high) in WITHIN.items():
        setattr(table, name, rng.uniform(low, high, shape))
    for name, low, high in (
        ("operator", 0, 2),
        ("alpha_mode", 0, 2),
        ("alpha_ticks_total", 0, horizon),
        ("epochs_in_stage", 0, horizon),
        ("contribution_age", -1, 29),
    ):
        setattr(table, name, rng.integers(low, high + 1, shape))
    table.gradient_measured[:] = True
    table.gradient_exploding, table.gradient_vanishing = rng.random((2, *shape)) < 0.5
    features = features_of(table, horizon=horizon)
    view = ObservationView(features, slots, horizon)

    np.testing.assert_array_equal(view.stage, table.stage)
    np.testing.assert_array_equal(view.active, table.has_seed)
    occupied, seed_here = table.stage != Stage.DORMANT, table.has_seed
    np.testing.assert_array_equal(view.epochs_in_stage[occupied], table.epochs_in_stage[occupied])
    measured = seed_here & (table.contribution_age >= 0)
    np.testing.assert_array_equal(view.contribution_measured, measured)
    np.testing.assert_array_equal(view.contribution_age, np.where(measured, table.contribution_age, -1))
    ticks = np.where(table.alpha_mode == HOLD, 0, table.alpha_ticks_total)
    np.testing.assert_array_equal(view.alpha_ticks_left[seed_here], ticks[seed_here])
    for name in ("alpha_mode", "operator", "gradient_exploding", "gradient_vanishing"):
        np.testing.assert_array_equal(getattr(view, name)[seed_here], getattr(table, name)[seed_here], err_msg=name)
    for name in WITHIN:
        known = measured if name.startswith("contribution") else seed_here
        left, right = getattr(view, name)[known], getattr(table, name)[known]
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5, err_msg=name)
    single = ObservationView(features[0], slots, horizon)
    np.testing.assert_array_equal(single.stage, view.stage[0])
    np.testing.assert_array_equal(single.alpha, view.alpha[0])


def test_view_returns_network_quantities():
    values = {
        "epoch": 6,
        "plateau_epochs": 3,
        "host_stabilised": True,
        "val_accuracy": 41.0,
        "best_val_accuracy": 45.0,
        "val_loss": 1.26,
        "loss_delta": -0.01,
        "accuracy_delta": -0.5,
    }
    view = ObservationView(features_of(SlotTable.empty(1, 2), signals_of(**values), success=False, op=3), 2, 40)
    for name, value in values.items():
        assert getattr(view, name).tolist() == pytest.approx([value], rel=1e-5), name
    assert (view.last_op.tolist(), view.last_action_succeeded.tolist()) == ([3], [False])


def test_view_rejects_features_of_another_environment():
    with pytest.raises(ValueError, match=r"\(\.\.\., 121\) for 3 slots"):
        ObservationView(np.zeros(feature_count(2)), 3, 40)
