"""Features: layout by hand-made numbers, and bounds for any table."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
from esper_env.rules.heads import Op, Operator
from esper_env.rules.observation import (
    BASE_FIELDS,
    NUM_BASE,
    NUM_SLOT,
    SLOT_FIELDS,
    ObservationBuilder,
    base_index,
    feature_count,
    slot_index,
)
from esper_env.rules.signals import Signals, SignalTracker
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from esper_env.rules.stages import IN_COOLDOWN, Stage
from hypothesis import given
from hypothesis import strategies as st

LN11, LN51 = math.log(11), math.log(51)


def signals_of(num_envs: int = 1, **values: object) -> Signals:
    """Return constant signals with some values replaced; scalars are repeated for every environment."""
    quiet: dict[str, object] = {
        "epoch": 1,
        "val_loss": 0.0,
        "loss_delta": 0.0,
        "val_accuracy": 0.0,
        "accuracy_delta": 0.0,
        "plateau_epochs": 0,
        "host_stabilised": False,
        "just_stabilised": False,
        "loss_history": [0.0] * 5,
        "accuracy_history": [0.0] * 5,
        "best_val_accuracy": 0.0,
        "window_best_val_loss": 0.0,
    }
    arrays = {name: np.repeat(np.asarray(value)[None], num_envs, axis=0) for name, value in (quiet | values).items()}
    return Signals(**arrays)  # type: ignore[arg-type]


def features_of(
    table: SlotTable,
    signals: Signals | None = None,
    *,
    horizon: int = 40,
    budget: float = 1000,
    order: list[int] | None = None,
    params: float = 0,
    success: bool = True,
    op: Op = Op.WAIT,
) -> np.ndarray:
    rows, slots = table.shape
    builder = ObservationBuilder(slots, horizon, budget, order if order is not None else list(range(slots)))
    return builder.features(
        table,
        signals if signals is not None else signals_of(rows),
        np.full(rows, params),
        np.full(rows, success),
        np.full(rows, op),
    )


def test_feature_count_of_three_slots_is_121() -> None:
    assert (NUM_BASE, NUM_SLOT, len(set(BASE_FIELDS)), len(set(SLOT_FIELDS))) == (31, 30, 31, 30)
    assert feature_count(3) == 121
    assert features_of(SlotTable.empty(2, 3), signals_of(2)).shape == (2, 121)


BASE_CASES = [
    (0, "epoch", {"epoch": 10}, 0.25),
    (1, "val_loss", {"val_loss": 2.3}, math.log(3.3) / LN11),
    (2, "loss_delta", {"loss_delta": -0.5}, -0.25),
    (2, "loss_delta", {"loss_delta": 7.0}, 1.0),
    (3, "val_accuracy", {"val_accuracy": 43.0}, 0.43),
    (4, "accuracy_delta", {"accuracy_delta": 2.5}, 0.25),
    (4, "accuracy_delta", {"accuracy_delta": -30.0}, -1.0),
    (5, "plateau_epochs", {"plateau_epochs": 5}, 0.25),
    (5, "plateau_epochs", {"plateau_epochs": 33}, 1.0),
    (6, "host_stabilised", {"host_stabilised": True}, 1.0),
    *[
        (7 + i, f"loss_history_{i}", {"loss_history": [1.0, 2.0, 3.0, 4.0, 5.0]}, math.log(2.0 + i) / LN11)
        for i in range(5)
    ],
    *[
        (12 + i, f"accuracy_history_{i}", {"accuracy_history": [10.0, 20.0, 30.0, 40.0, 50.0]}, 0.1 + 0.1 * i)
        for i in range(5)
    ],
    (17, "best_val_accuracy", {"best_val_accuracy": 71.0}, 0.71),
    (18, "window_best_val_loss", {"window_best_val_loss": 10.0}, 1.0),
    (18, "window_best_val_loss", {"window_best_val_loss": 1e6}, 2.0),
]


@pytest.mark.parametrize(("index", "name", "values", "expected"), BASE_CASES)
def test_signal_has_its_position_and_scale(index: int, name: str, values: dict[str, object], expected: float) -> None:
    assert base_index(name) == index
    features = features_of(SlotTable.empty(1, 3), signals_of(**values))[0]
    assert features[index] == pytest.approx(expected, abs=1e-6)


def test_parameters_are_scaled_by_the_logarithm_of_the_budget() -> None:
    table = SlotTable.empty(1, 3)
    assert base_index("parameters_added") == 19
    assert features_of(table, params=0)[0, 19] == 0.0
    assert features_of(table, params=99, budget=9999)[0, 19] == pytest.approx(0.5)
    assert features_of(table, params=9999, budget=9999)[0, 19] == 1.0
    assert features_of(table, params=1e30, budget=9999)[0, 19] == 2.0


def test_stage_counts_are_shares_of_the_slots() -> None:
    table = SlotTable.empty(1, 5)
    table.stage[0] = [Stage.TRAINING, Stage.BLENDING, Stage.FOSSILIZED, Stage.HOLDING, Stage.EMBARGOED]
    features = features_of(table)[0]
    names = ("active_slots", "slots_training", "slots_blending", "slots_holding")
    assert [base_index(name) for name in names] == [20, 21, 22, 23]
    np.testing.assert_allclose(features[20:24], [0.8, 0.2, 0.2, 0.2], atol=1e-6)


def test_last_action_is_a_flag_and_a_one_hot() -> None:
    table = SlotTable.empty(1, 2)
    assert base_index("last_action_succeeded") == 24
    assert features_of(table, success=True)[0, 24] == 1.0
    assert features_of(table, success=False)[0, 24] == 0.0
    for op in Op:
        one_hot = features_of(table, op=op)[0, 25:31]
        assert one_hot.tolist() == [float(i == op) for i in range(6)]
        assert base_index(f"last_op_{op.name.lower()}") == 25 + op


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


@pytest.mark.parametrize("slot", [0, 2])
@pytest.mark.parametrize(("index", "name", "columns", "expected"), SLOT_CASES)
def test_slot_column_has_its_position_and_scale(
    slot: int, index: int, name: str, columns: dict[str, float], expected: float
) -> None:
    table = SlotTable.empty(1, 3)
    table.stage[0, slot] = Stage.BLENDING
    for column, value in columns.items():
        getattr(table, column)[0, slot] = value
    position = 31 + 30 * slot + index
    assert slot_index(name, slot) == position
    features = features_of(table)[0]
    assert features[position] == pytest.approx(expected, abs=1e-6)
    others = [31 + 30 * other + k for other in range(3) if other != slot for k in range(30) if k not in (27, 28)]
    assert not features[others].any()


def test_stage_is_a_one_hot_over_contiguous_indices() -> None:
    order = ["unknown", "dormant", "germinated", "training", "blending", "holding", "fossilized"]
    order += ["pruned", "embargoed", "resetting"]
    assert [slot_index(f"stage_{name}", 0) - 31 for name in order] == list(range(1, 11))
    for position, name in enumerate(order):
        if name == "dormant":
            continue
        table = SlotTable.empty(1, 1)
        table.stage[:] = Stage[name.upper()]
        assert features_of(table)[0, 32:42].tolist() == [float(k == position) for k in range(10)]


def test_empty_slot_is_all_zeros() -> None:
    table = SlotTable.empty(1, 2)
    for field in dataclasses.fields(table):
        if field.name != "stage":
            getattr(table, field.name)[...] = 1
    assert not features_of(table)[0, 31:].any()


@pytest.mark.parametrize("stage", [Stage.PRUNED, Stage.EMBARGOED, Stage.RESETTING])
def test_cooldown_shows_only_stage_and_ticks(stage: Stage) -> None:
    table = SlotTable.empty(1, 2)
    for field in dataclasses.fields(table):
        getattr(table, field.name)[...] = 1
    table.stage[0] = [stage, Stage.BLENDING]
    table.epochs_in_stage[:] = 4
    slot = features_of(table)[0, 31:61]
    assert np.flatnonzero(slot).tolist() == [slot_index(f"stage_{stage.name.lower()}", 0) - 31, 19]
    assert slot[19] == pytest.approx(0.1)


def test_alpha_upstream_and_downstream_follow_the_forward_pass() -> None:
    table = SlotTable.empty(1, 4)
    table.stage[0] = [Stage.FOSSILIZED, Stage.BLENDING, Stage.HOLDING, Stage.TRAINING]
    table.alpha[0] = [1.0, 0.4, 0.8, 0.0]
    features = features_of(table, order=[2, 0, 3, 1])[0]
    upstream = [features[slot_index("alpha_upstream", slot)] for slot in range(4)]
    downstream = [features[slot_index("alpha_downstream", slot)] for slot in range(4)]
    assert [slot_index(name, 0) - 31 for name in ("alpha_upstream", "alpha_downstream")] == [27, 28]
    np.testing.assert_allclose(upstream, [0.8 / 4, 1.8 / 4, 0.0, 1.8 / 4], atol=1e-6)
    np.testing.assert_allclose(downstream, [0.4 / 4, 0.0, 1.4 / 4, 0.4 / 4], atol=1e-6)


def test_slot_without_a_seed_adds_no_alpha_to_others() -> None:
    table = SlotTable.empty(1, 2)
    table.stage[0] = [Stage.PRUNED, Stage.BLENDING]
    table.alpha[0] = 1.0
    assert features_of(table)[0, slot_index("alpha_upstream", 1)] == 0.0


@given(st.integers(1, 6), st.integers(1, 200))
def test_normalised_counts_reach_exactly_one(slots: int, horizon: int) -> None:
    table = SlotTable.empty(1, slots)
    table.stage[:] = Stage.BLENDING
    table.epochs_in_stage[:] = horizon
    table.alpha_mode[:] = UP
    table.alpha_ticks_total[:] = horizon
    signals = signals_of(epoch=horizon, plateau_epochs=20)
    features = features_of(table, signals, horizon=horizon, params=777, budget=777)[0]
    for name in ("epoch", "plateau_epochs", "parameters_added", "active_slots", "slots_blending"):
        assert features[base_index(name)] == 1.0, name
    for name in ("epochs_in_stage", "alpha_ticks_left"):
        assert all(features[slot_index(name, slot)] == 1.0 for slot in range(slots)), name
    half = features_of(table, signals_of(epoch=horizon / 2), horizon=horizon)[0]
    assert half[0] == 0.5


ANY_FLOAT = st.floats(width=64)  # NaN and infinities included
ANY_INT = st.integers(-(2**62), 2**62)


def fill(data: st.DataObject, array: np.ndarray) -> np.ndarray:
    """Return an array of the same shape and kind with arbitrary values."""
    kinds = {"f": ANY_FLOAT, "i": ANY_INT, "b": st.booleans()}
    values = data.draw(st.lists(kinds[array.dtype.kind], min_size=array.size, max_size=array.size))
    return np.array(values, dtype=array.dtype).reshape(array.shape)


@given(st.integers(1, 6), st.integers(1, 200), st.data())
def test_features_are_finite_and_bounded_for_any_table(slots: int, horizon: int, data: st.DataObject) -> None:
    table = SlotTable.empty(2, slots)
    for field in dataclasses.fields(table):
        setattr(table, field.name, fill(data, getattr(table, field.name)))
    stages = data.draw(st.lists(st.sampled_from(list(Stage)), min_size=2 * slots, max_size=2 * slots))
    table.stage = np.array(stages, dtype=np.int64).reshape(2, slots)
    quiet = signals_of(2)
    kinds = {"epoch": np.int64, "plateau_epochs": np.int64, "host_stabilised": bool, "just_stabilised": bool}
    signals = Signals(
        **{
            field.name: fill(data, getattr(quiet, field.name).astype(kinds.get(field.name, np.float64)))
            for field in dataclasses.fields(Signals)
        }
    )
    builder = ObservationBuilder(
        slots, horizon, data.draw(st.floats(1.0, 1e9)), data.draw(st.permutations(range(slots)))
    )
    features = builder.features(
        table,
        signals,
        fill(data, np.zeros(2)),
        fill(data, np.zeros(2, dtype=bool)),
        np.array(data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=2))),
    )
    assert features.dtype == np.float32
    assert features.shape == (2, 31 + 30 * slots)
    assert np.isfinite(features).all()
    assert (np.abs(features) <= 2.0).all()
    by_slot = features[:, 31:].reshape(2, slots, 30)
    assert not by_slot[table.stage == Stage.DORMANT].any()
    assert not by_slot[IN_COOLDOWN[table.stage]][:, [0, *range(11, 19), *range(20, 30)]].any()


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e300])
def test_diverged_loss_becomes_the_worst_loss(loss: float) -> None:
    signals = signals_of(val_loss=loss, loss_delta=math.nan, loss_history=[0.0, 0.0, 1.0, 1.0, loss])
    features = features_of(SlotTable.empty(1, 1), signals)[0]
    assert features[base_index("val_loss")] == features[base_index("loss_history_4")] == 2.0
    assert features[base_index("loss_delta")] == 0.0


def test_features_of_environments_are_independent_and_new() -> None:
    table = SlotTable.empty(2, 2)
    table.stage[1] = Stage.HOLDING
    table.alpha[1] = 1.0
    builder = ObservationBuilder(2, 40, 1000, [0, 1])
    arguments = (table, signals_of(2), np.zeros(2), np.ones(2, dtype=bool), np.zeros(2, dtype=np.int64))
    first = builder.features(*arguments)
    single = SlotTable.empty(1, 2)
    np.testing.assert_array_equal(first[:1], features_of(single))
    second = builder.features(*arguments)
    first[...] = 9.0
    assert second.max() <= 2.0
    assert not np.shares_memory(first, builder.features(*arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 40, 1000, []), "num_slots is 0"),
        ((2, 0, 1000, [0, 1]), "horizon 0"),
        ((2, 40, 0, [0, 1]), "param_budget is 0"),
        ((2, 40, math.nan, [0, 1]), "param_budget is nan"),
        ((2, 40, 1000, [0, 0]), "execution_order"),
        ((2, 40, 1000, [0]), "execution_order"),
    ],
)
def test_builder_rejects_invalid_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObservationBuilder(*arguments)


def test_wrong_slots_and_unknown_fields_are_rejected() -> None:
    builder = ObservationBuilder(3, 40, 1000, [0, 1, 2])
    with pytest.raises(ValueError, match="expected 3 slots"):
        builder.features(SlotTable.empty(1, 2), signals_of(), np.zeros(1), np.ones(1), np.zeros(1, dtype=int))
    with pytest.raises(KeyError, match="not a base field"):
        base_index("alpha")
    with pytest.raises(KeyError, match="not a slot field"):
        slot_index("epoch", 0)
    with pytest.raises(IndexError, match="slot is -1"):
        slot_index("alpha", -1)


def test_features_of_64_environments_take_less_than_a_millisecond() -> None:
    table = SlotTable.empty(64, 6)
    table.stage[:] = Stage.BLENDING
    tracker = SignalTracker(64)
    tracker.reset(np.ones(64, dtype=bool), np.full(64, 2.3), np.full(64, 10.0))
    builder = ObservationBuilder(6, 40, 1000, list(range(6)))
    arguments = (table, tracker.peek(), np.zeros(64), np.ones(64, dtype=bool), np.zeros(64, dtype=np.int64))
    builder.features(*arguments)
    best = math.inf
    for _ in range(200):  # best of many, because the machine may be busy
        start = time.perf_counter()
        builder.features(*arguments)
        best = min(best, time.perf_counter() - start)
    assert best < 1e-3
