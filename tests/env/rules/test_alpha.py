"""Alpha schedule: shapes of ramps, jumps and exact ends."""

import math

import numpy as np
import pytest
from esper_env.rules import alpha
from esper_env.rules.heads import Curve
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from hypothesis import given
from hypothesis import strategies as st

ALL = np.ones((1, 1), dtype=bool)
ALPHAS = st.floats(0.0, 1.0, allow_subnormal=False)
CURVES = st.sampled_from(list(Curve))


def naive_ramp(t, curve):
    """Textbook formulas, with a logistic that is rescaled to run from 0 to 1."""
    if curve == Curve.LINEAR:
        return t
    if curve == Curve.COSINE:
        return (1 - math.cos(math.pi * t)) / 2
    k = {Curve.SIGMOID_GENTLE: 6, Curve.SIGMOID: 12, Curve.SIGMOID_SHARP: 24}[curve]

    def logistic(x):
        return 1 / (1 + math.exp(-k * (x - 0.5)))

    return (logistic(t) - logistic(0)) / (logistic(1) - logistic(0))


def slot_at(value):
    table = SlotTable.empty(1, 1)
    table.alpha[:] = value
    return table


def run(table, ticks):
    """Return alpha after each tick."""
    values = []
    for _ in range(ticks):
        alpha.tick(table, ALL)
        values.append(table.alpha.item())
    return values


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        (Curve.LINEAR, [0.2, 0.4, 0.6, 0.8, 1]),
        (Curve.COSINE, [0.095, 0.345, 0.655, 0.905, 1]),
        (Curve.SIGMOID_GENTLE, [0.104, 0.339, 0.661, 0.896, 1]),
        (Curve.SIGMOID, [0.024, 0.230, 0.770, 0.976, 1]),
        (Curve.SIGMOID_SHARP, [0.001, 0.083, 0.917, 0.999, 1]),
    ],
)
def test_ramp_values_of_five_ticks_by_curve(curve, values):
    table = slot_at(0.0)
    alpha.retarget(table, ALL, 1.0, 5, curve)
    np.testing.assert_allclose(run(table, 5), values, atol=5e-4)


@given(st.floats(0, 1), CURVES)
def test_ramp_equals_the_textbook_formula(t, curve):
    assert alpha.ramp(t, curve) == pytest.approx(naive_ramp(t, curve), abs=1e-12)


@pytest.mark.parametrize("curve", list(Curve))
def test_ramp_starts_at_exactly_0_and_ends_at_exactly_1(curve):
    assert alpha.ramp([0.0, 1.0], curve).tolist() == [0.0, 1.0]


@given(ALPHAS, ALPHAS, st.integers(1, 12), CURVES)
def test_ramp_is_monotone_and_reaches_its_target_exactly(start, target, ticks, curve):
    table, values = slot_at(start), []
    alpha.retarget(table, ALL, target, ticks, curve)
    assert table.alpha.item() == start
    direction = HOLD if start == target else (UP if target > start else DOWN)
    for tick in range(ticks):
        assert table.alpha_mode.item() == direction
        remaining = table.alpha_ticks_total.item() - table.alpha_ticks_done.item()
        assert remaining == (0 if direction == HOLD else ticks - tick)
        values += run(table, 1)
    assert table.alpha_ticks_total.item() == table.alpha_ticks_done.item()
    steps = np.diff([start, *values])
    assert values[-1] == target
    assert all(min(start, target) <= value <= max(start, target) for value in values)
    assert (steps * (target - start) >= 0).all()
    assert table.alpha_mode.item() == HOLD
    if start != target:
        expected = [start + (target - start) * naive_ramp((i + 1) / ticks, curve) for i in range(ticks)]
        np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize(("start", "target"), [(0.55, 0.01), (0.68, 0.03), (0.56, 0.01)])
def test_ramp_reaches_its_target_exactly_despite_rounding(start, target):
    assert start + (target - start) != target
    table = slot_at(start)
    alpha.retarget(table, ALL, target, 3, Curve.LINEAR)
    assert run(table, 3)[-1] == target


def test_velocity_equals_the_change_of_alpha():
    table = slot_at(0.5)
    alpha.retarget(table, ALL, 1.0, 5, Curve.COSINE)
    before = 0.5
    for _ in range(5):
        alpha.begin_step(table)
        alpha.tick(table, ALL)
        assert table.alpha_velocity.item() == table.alpha.item() - before > 0
        before = table.alpha.item()
    alpha.begin_step(table)
    alpha.tick(table, ALL)
    assert table.alpha_velocity.item() == 0.0


@given(ALPHAS, ALPHAS, CURVES)
def test_retarget_with_zero_ticks_jumps(start, target, curve):
    table = slot_at(start)
    alpha.retarget(table, ALL, target, 0, curve)
    assert table.alpha.item() == table.alpha_target.item() == target
    assert table.alpha_mode.item() == HOLD
    assert table.alpha_velocity.item() == target - start
    alpha.tick(table, ALL)
    assert table.alpha_velocity.item() == target - start
    assert table.alpha.item() == target


def test_retarget_to_the_current_alpha_stays_on_hold():
    table = slot_at(0.7)
    alpha.retarget(table, ALL, 0.7, 8, Curve.SIGMOID)
    assert table.alpha_mode.item() == HOLD
    assert run(table, 3) == [0.7, 0.7, 0.7]


def test_tick_advances_masked_slots_independently():
    table = SlotTable.empty(2, 2)
    alpha.retarget(
        table,
        np.ones((2, 2), dtype=bool),
        [[1.0, 0.5], [0.7, 0.0]],
        [[2], [4]],
        [[Curve.LINEAR, Curve.LINEAR]],
    )
    alpha.tick(table, np.array([[True, False], [True, True]]))
    np.testing.assert_allclose(table.alpha, [[0.5, 0.0], [0.175, 0.0]])
    assert table.alpha_mode.tolist() == [[UP, UP], [UP, HOLD]]


def test_finished_ramp_can_be_followed_by_another():
    table = slot_at(0.0)
    alpha.retarget(table, ALL, 1.0, 3, Curve.SIGMOID_SHARP)
    run(table, 3)
    alpha.retarget(table, ALL, 0.5, 4, Curve.LINEAR)
    np.testing.assert_allclose(run(table, 5), [0.875, 0.75, 0.625, 0.5, 0.5])
