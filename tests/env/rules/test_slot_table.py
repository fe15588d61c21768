"""The slot table: columns, empty values, clearing."""

from dataclasses import fields

import numpy as np
from esper_env.rules.heads import NO_BLUEPRINT
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage


def columns(table):
    return {field.name: getattr(table, field.name) for field in fields(table)}


def filled(num_envs, num_slots):
    """A table in which every column differs from its empty value everywhere."""
    table = SlotTable.empty(num_envs, num_slots)
    for column in columns(table).values():
        if column.dtype == np.bool_:
            column[:] = ~column
        else:
            column += 2
    return table


def test_columns_have_one_cell_per_slot():
    table = SlotTable.empty(4, 3)
    assert table.shape == (4, 3)
    assert all(column.shape == (4, 3) for column in columns(table).values())
    assert len({column.ctypes.data for column in columns(table).values()}) == len(columns(table))
    assert {column.dtype for column in columns(table).values()} == {
        np.dtype(np.int64),
        np.dtype(np.float64),
        np.dtype(np.bool_),
    }


def test_empty_slot_is_dormant_and_unmeasured():
    table = SlotTable.empty(2, 3)
    assert (table.stage == Stage.DORMANT).all()
    assert (table.blueprint == NO_BLUEPRINT).all()
    assert (table.contribution_age == -1).all()
    assert not table.gradient_measured.any()
    assert (table.previous_gradient_health == 1.0).all()
    for stage, names in ((Stage.TRAINING, "has_seed is_live"), (Stage.PRUNED, "in_cooldown")):
        table.stage[:] = stage
        properties = ("has_seed", "is_live", "is_blended", "in_cooldown")
        assert [name for name in properties if getattr(table, name).all()] == names.split()


def test_clear_resets_masked_slots_only():
    table, untouched, empty = filled(2, 3), filled(2, 3), SlotTable.empty(2, 3)
    mask = np.array([[True, False, False], [False, False, True]])
    table.clear(mask)
    for name, column in columns(table).items():
        assert (column[mask] == getattr(empty, name)[mask]).all(), name
        assert (column[~mask] == getattr(untouched, name)[~mask]).all(), name


def test_clear_seed_keeps_only_the_stage():
    table, empty = filled(1, 2), SlotTable.empty(1, 2)
    table.stage[:] = Stage.PRUNED
    table.clear_seed(np.array([[True, False]]))
    assert table.stage.tolist() == [[Stage.PRUNED, Stage.PRUNED]]
    for name, column in columns(table).items():
        if name != "stage":
            assert column[0, 0] == getattr(empty, name)[0, 0], name
            assert column[0, 1] != getattr(empty, name)[0, 1], name
