"""Alpha schedule: shapes of ramps, jumps and exact ends."""

import numpy as np
import pytest
from esper_env.rules import alpha
from esper_env.rules.heads import Curve
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from hypothesis import example, given
from hypothesis import strategies as st
from plain_rules import naive_ramp

ALL = np.ones((1, 1), dtype=bool)
ALPHAS = st.floats(0.0, 1.0, allow_subnormal=False)
CURVES = st.sampled_from(list(Curve))


def slot_at(value):
    table = SlotTable.empty(1, 1)
    table.alpha[:] = value
    return table


@given(st.floats(0, 1), CURVES)
def test_ramp_equals_the_textbook_formula(t, curve):
    assert alpha.ramp(t, curve) == pytest.approx(naive_ramp(t, curve), abs=1e-12)
    assert alpha.ramp([0.0, 1.0], curve).tolist() == [0.0, 1.0]


@given(ALPHAS, ALPHAS, st.integers(1, 12), CURVES)
@example(0.55, 0.01, 3, Curve.LINEAR)  # start + (target - start) != target
@example(0.7, 0.7, 8, Curve.SIGMOID)
def test_ramp_is_monotone_and_reaches_its_target_exactly(start, target, ticks, curve):
    table, values = slot_at(start), [start]
    alpha.retarget(table, ALL, target, ticks, curve)
    direction = HOLD if start == target else (UP if target > start else DOWN)
    for tick in range(ticks):
        assert table.alpha_mode.item() == direction
        remaining = table.alpha_ticks_total.item() - table.alpha_ticks_done.item()
        assert remaining == (0 if direction == HOLD else ticks - tick)
        alpha.tick(table, ALL)
        values.append(table.alpha.item())
        assert table.alpha_velocity.item() == values[-1] - values[-2]
    assert values[-1] == target
    assert table.alpha_mode.item() == HOLD
    assert all(min(start, target) <= value <= max(start, target) for value in values)
    assert (np.diff(values) * (target - start) >= 0).all()
    expected = [start + (target - start) * naive_ramp(i / ticks, curve) for i in range(ticks + 1)]
    np.testing.assert_allclose(values, expected, atol=1e-12)


@given(ALPHAS, ALPHAS, CURVES)
def test_retarget_with_zero_ticks_jumps(start, target, curve):
    table = slot_at(start)
    alpha.retarget(table, ALL, target, 0, curve)
    for _ in range(2):  # a tick changes nothing
        assert table.alpha.item() == table.alpha_target.item() == target
        assert table.alpha_mode.item() == HOLD
        assert table.alpha_velocity.item() == target - start
        alpha.tick(table, ALL)


def test_tick_advances_masked_slots_independently():
    table = SlotTable.empty(2, 2)
    alpha.retarget(table, np.ones((2, 2), dtype=bool), [[1.0, 0.5], [0.7, 0.0]], [[2], [4]], Curve.LINEAR)
    alpha.tick(table, np.array([[True, False], [True, True]]))
    np.testing.assert_allclose(table.alpha, [[0.5, 0.0], [0.175, 0.0]])
    assert table.alpha_mode.tolist() == [[UP, UP], [UP, HOLD]]
