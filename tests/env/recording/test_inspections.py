"""Isolation is looked at when there is something new to see, and now and then."""

import numpy as np
from esper_env.recording.inspections import INSPECTION_STEPS, Inspections
from esper_env.rules.heads import Blueprint
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from hypothesis import example, given
from hypothesis import strategies as st


def table_of(*seeds):
    """Two networks of three slots, with seeds (environment, slot, blueprint, stage)."""
    table = SlotTable.empty(2, 3)
    for env, slot, blueprint, stage in seeds:
        table.blueprint[env, slot], table.stage[env, slot] = blueprint, stage
    return table


TRAINS = (0, 1, Blueprint.NORM, Stage.TRAINING)


def test_nothing_is_looked_at_where_nothing_trains():
    inspections = Inspections()
    blended = table_of((0, 1, Blueprint.NORM, Stage.BLENDING), (1, 1, Blueprint.NORM, Stage.GERMINATED))
    assert not any(inspections.due(blended) for _ in range(3 * INSPECTION_STEPS))
    assert inspections.due(table_of(TRAINS))


def test_a_blueprint_is_new_once_in_each_slot():
    inspections = Inspections()
    assert inspections.due(table_of(TRAINS))
    assert not inspections.due(table_of(TRAINS))
    assert not inspections.due(table_of((1, 1, Blueprint.NORM, Stage.TRAINING)))  # the same module elsewhere
    assert inspections.due(table_of(TRAINS, (0, 2, Blueprint.NORM, Stage.TRAINING)))
    assert inspections.due(table_of((0, 1, Blueprint.ATTENTION, Stage.TRAINING)))
    assert not inspections.due(table_of((0, 2, Blueprint.NORM, Stage.TRAINING)))


@given(st.lists(st.booleans(), min_size=1, max_size=200))
@example([True] * (2 * INSPECTION_STEPS + 1))
@example([False] * INSPECTION_STEPS + [True, True])
def test_what_is_known_is_looked_at_again_after_a_while(training):
    """Never within the interval; at once where something trains after it."""
    inspections = Inspections()
    assert inspections.due(table_of(TRAINS))
    looks, since = [], 0
    for trains in training:
        since += 1
        looks.append(inspections.due(table_of(TRAINS) if trains else table_of()))
        assert looks[-1] == (trains and since >= INSPECTION_STEPS)
        since = 0 if looks[-1] else since
    assert np.sum(looks) <= len(training) / INSPECTION_STEPS
