"""Stages: fixed values, the legal transitions, and what each stage means."""

import numpy as np
import pytest
from esper_env.rules.stages import (
    CAN_MOVE,
    HAS_SEED,
    IN_COOLDOWN,
    IS_BLENDED,
    IS_LIVE,
    NUM_STAGES,
    STAGE_INDEX,
    STAGE_VALUES,
    Stage,
    validate_stage,
)

VALUES = {
    "UNKNOWN": 0,
    "DORMANT": 1,
    "GERMINATED": 2,
    "TRAINING": 3,
    "BLENDING": 4,
    "HOLDING": 6,
    "FOSSILIZED": 7,
    "PRUNED": 8,
    "EMBARGOED": 9,
    "RESETTING": 10,
}

LEGAL_MOVES = {
    (1, 2),
    (2, 3),
    (2, 8),
    (3, 4),
    (3, 8),
    (4, 6),
    (4, 8),
    (6, 7),
    (6, 4),
    (6, 8),
    (8, 9),
    (9, 10),
    (10, 1),
}


def test_stage_values_never_change():
    assert {stage.name: stage.value for stage in Stage} == VALUES
    assert NUM_STAGES == 10


def test_exactly_the_listed_transitions_are_legal():
    assert set(map(tuple, np.argwhere(CAN_MOVE).tolist())) == LEGAL_MOVES
    assert CAN_MOVE.shape == (11, 11)


def test_nothing_leaves_fossilized():
    assert not CAN_MOVE[Stage.FOSSILIZED].any()


def test_the_one_hot_index_is_contiguous_and_has_no_place_for_the_reserved_value():
    assert STAGE_INDEX.tolist() == [0, 1, 2, 3, 4, -1, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("value", [5, -1, 11, 100])
def test_the_reserved_stage_and_unknown_values_are_rejected(value):
    with pytest.raises(ValueError, match=rf"{value}.*expected one of"):
        validate_stage(value)


def test_known_stage_values_are_accepted():
    assert [validate_stage(value).name for value in VALUES.values()] == list(VALUES)


@pytest.mark.parametrize(
    ("lookup", "names"),
    [
        (HAS_SEED, {"GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"}),
        (IS_LIVE, {"GERMINATED", "TRAINING", "BLENDING", "HOLDING"}),
        (IS_BLENDED, {"BLENDING", "HOLDING", "FOSSILIZED"}),
        (IN_COOLDOWN, {"PRUNED", "EMBARGOED", "RESETTING"}),
    ],
)
def test_what_a_stage_means(lookup, names):
    assert len(lookup) == STAGE_VALUES
    assert {stage.name for stage in Stage if lookup[stage]} == names
    assert not lookup[5]


@pytest.mark.parametrize("table", [CAN_MOVE, STAGE_INDEX, HAS_SEED, IS_LIVE, IS_BLENDED, IN_COOLDOWN])
def test_the_tables_cannot_be_written(table):
    with pytest.raises(ValueError, match="read-only"):
        table[0] = table[1]
