"""Stages: values and lookup tables."""

import pytest
from esper_env.rules.stages import (
    HAS_SEED,
    IN_COOLDOWN,
    IS_BLENDED,
    IS_LIVE,
    NUM_STAGES,
    STAGE_INDEX,
    STAGE_VALUES,
    Stage,
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


def test_stage_values_never_change():
    assert {stage.name: stage.value for stage in Stage} == VALUES
    assert NUM_STAGES == 10


def test_stage_index_is_contiguous_without_the_reserved_value():
    assert STAGE_INDEX.tolist() == [0, 1, 2, 3, 4, -1, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("lookup", "names"),
    [
        (HAS_SEED, {"GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"}),
        (IS_LIVE, {"GERMINATED", "TRAINING", "BLENDING", "HOLDING"}),
        (IS_BLENDED, {"BLENDING", "HOLDING", "FOSSILIZED"}),
        (IN_COOLDOWN, {"PRUNED", "EMBARGOED", "RESETTING"}),
    ],
)
def test_lookup_tables_list_the_right_stages(lookup, names):
    assert len(lookup) == STAGE_VALUES
    assert {stage.name for stage in Stage if lookup[stage]} == names
    assert not lookup[5]


@pytest.mark.parametrize("table", [STAGE_INDEX, HAS_SEED, IS_LIVE, IS_BLENDED, IN_COOLDOWN])
def test_lookup_tables_are_read_only(table):
    with pytest.raises(ValueError, match="read-only"):
        table[0] = table[1]
