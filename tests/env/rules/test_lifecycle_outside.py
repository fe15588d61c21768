"""Tables from elsewhere: planted seeds, commands that were never decoded, stored columns."""

from dataclasses import fields

import numpy as np
import pytest
from esper_env.rules import lifecycle
from esper_env.rules.gates import GateConfig
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_NAMES, NO_BLUEPRINT, Blueprint, Op, Operator
from esper_env.rules.slot_table import HOLD, UP, SlotTable
from esper_env.rules.stages import Stage


def columns(table):
    return {f.name: getattr(table, f.name) for f in fields(table)}


def test_planted_seeds_are_committed_at_full_strength():
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


def test_planting_into_a_taken_slot_is_an_error():
    table = SlotTable.empty(1, 1)
    table.stage[:] = Stage.TRAINING
    with pytest.raises(RuntimeError, match="TRAINING"):
        lifecycle.plant(table, np.array([[True]]), Blueprint.NORM)


@pytest.mark.parametrize("op", [op for op in Op if op != Op.WAIT])
def test_an_op_that_its_stage_does_not_allow_is_a_programming_error(op):
    table = SlotTable.empty(1, 1)
    lifecycle.plant(table, np.array([[True]]), Blueprint.NORM)
    before = {name: column.copy() for name, column in columns(table).items()}
    heads = {name: np.array([value]) for name, value in zip(HEAD_NAMES, (*HEAD_DEFAULTS[:-1], op), strict=True)}
    command = lifecycle.Command(**heads, valid=np.array([True]), requested_op=np.array([op]))
    with pytest.raises(RuntimeError, match=rf"{op.name} is not possible for slot 0 of environment 0.*FOSSILIZED"):
        lifecycle.apply(table, command, GateConfig())
    for name, column in columns(table).items():
        np.testing.assert_array_equal(column, before[name])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("stage", 5, r"stage of slot 1 of environment 0 is 5; it must be one of DORMANT=1"),
        ("stage", 0, r"stage of slot 1 of environment 0 is 0"),
        ("stage", 11, r"stage .* is 11"),
        ("alpha", 1.5, r"alpha .* inside \[0, 1\]"),
        ("alpha", float("nan"), r"alpha .* is nan"),
        ("alpha_target", -0.1, r"alpha_target"),
        ("alpha_mode", 3, r"alpha_mode .* is 3"),
        ("alpha_mode", UP, r"alpha_mode .* HOLD outside BLENDING"),
        ("pruning", True, r"pruning .* unless a ramp runs"),
        ("blueprint", NO_BLUEPRINT, r"blueprint .* is 13; it must be present exactly where a seed is"),
        ("age", -1, r"age"),
        ("epochs_in_stage", -1, r"epochs_in_stage"),
    ],
)
def test_a_stored_table_that_no_life_leads_to_is_rejected(column, value, message):
    table = SlotTable.empty(1, 2)
    lifecycle.plant(table, np.array([[False, True]]), Blueprint.NORM)
    table.validate()
    getattr(table, column)[0, 1] = value
    with pytest.raises(ValueError, match=message):
        table.validate()
