"""The slot table: columns, empty values, clearing, and impossible values."""

from dataclasses import fields

import numpy as np
import pytest
from esper_env.rules import lifecycle
from esper_env.rules.heads import NO_BLUEPRINT, Blueprint
from esper_env.rules.slot_table import UP, SlotTable
from esper_env.rules.stages import Stage

NAMES = [column.name for column in fields(SlotTable)]


def test_empty_slot_is_dormant_and_unmeasured():
    table = SlotTable.empty(2, 3)
    assert len({getattr(table, name).ctypes.data for name in NAMES}) == len(NAMES)
    assert {getattr(table, name).shape for name in NAMES} == {table.shape} == {(2, 3)}
    different = {name: getattr(table, name)[0, 0].item() for name in NAMES if getattr(table, name).any()}
    assert different == {
        "stage": Stage.DORMANT,
        "blueprint": NO_BLUEPRINT,
        "contribution_age": -1,
        "previous_gradient_health": 1.0,
    }


def test_clear_resets_masked_slots_and_clear_seed_keeps_their_stage():
    table, empty = SlotTable.empty(2, 3), SlotTable.empty(2, 3)
    for name in NAMES:
        column = getattr(table, name)
        column[:] = ~column if column.dtype == np.bool_ else column + 2
    filled = table.copy()
    cleared, emptied = np.array([[True, False, False]] * 2), np.array([[False, False, True]] * 2)
    table.clear(cleared)
    table.clear_seed(emptied)
    for name in NAMES:
        left = np.where(cleared | (emptied & (name != "stage")), getattr(empty, name), getattr(filled, name))
        np.testing.assert_array_equal(getattr(table, name), left, err_msg=name)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("stage", 5, r"stage of slot 1 of environment 0 is 5; expected one of DORMANT=1"),
        ("stage", 0, r"stage of slot 1 of environment 0 is 0"),
        ("alpha_target", -0.1, r"alpha_target"),
        ("alpha_mode", 3, r"alpha_mode .* is 3"),
        ("alpha_mode", UP, r"alpha_mode .* HOLD outside BLENDING"),
        ("pruning", True, r"pruning .* unless a ramp runs"),
        ("blueprint", NO_BLUEPRINT, r"blueprint .* is 13; expected present exactly where a seed is"),
        ("age", -1, r"age"),
        ("epochs_in_stage", -1, r"epochs_in_stage"),
    ],
)
def test_restored_table_with_impossible_values_is_rejected(column, value, message):
    """``test_state_refusals.py`` tests other columns."""
    table = SlotTable.empty(1, 2)
    lifecycle.place_committed(table, np.array([[False, True]]), Blueprint.NORM)
    table.validate()
    getattr(table, column)[0, 1] = value
    with pytest.raises(ValueError, match=message):
        table.validate()
