"""Planted seeds and restored tables."""

import numpy as np
import pytest
from esper_env.rules import lifecycle
from esper_env.rules.heads import NO_BLUEPRINT, Blueprint, Operator
from esper_env.rules.slot_table import HOLD, UP, SlotTable


def test_plant_commits_seeds_at_full_alpha():
    table = SlotTable.empty(2, 3)
    mask = np.array([[True, False, True], [False, False, False]])
    lifecycle.plant(table, mask, [[Blueprint.NORM, NO_BLUEPRINT, Blueprint.CONV_HEAVY]])
    assert table.stage.tolist() == [[7, 1, 7], [1, 1, 1]]
    assert table.blueprint.tolist() == [[Blueprint.NORM, 13, Blueprint.CONV_HEAVY], [13, 13, 13]]
    assert (table.alpha == mask).all()
    assert (table.alpha_target == mask).all()
    assert (table.operator == Operator.ADD).all()
    assert (table.alpha_mode == HOLD).all()
    assert (table.contribution_age == -1).all()
    table.validate()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("stage", 5, r"stage of slot 1 of environment 0 is 5; expected one of DORMANT=1"),
        ("stage", 0, r"stage of slot 1 of environment 0 is 0"),
        ("stage", 11, r"stage .* is 11"),
        ("alpha", 1.5, r"alpha .* inside \[0, 1\]"),
        ("alpha", float("nan"), r"alpha .* is nan"),
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
    table = SlotTable.empty(1, 2)
    lifecycle.plant(table, np.array([[False, True]]), Blueprint.NORM)
    table.validate()
    getattr(table, column)[0, 1] = value
    with pytest.raises(ValueError, match=message):
        table.validate()
