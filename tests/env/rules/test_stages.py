"""Stages: values and lookup tables."""

import pytest
from esper_env.rules.stages import HAS_SEED, IN_COOLDOWN, IS_BLENDED, IS_LIVE, STAGE_INDEX, Stage
from plain_rules import LIVE, WITH_SEED


def test_stage_values_never_change():
    names = ["UNKNOWN", "DORMANT", *LIVE, "FOSSILIZED", "PRUNED", "EMBARGOED", "RESETTING"]
    assert {stage.name: stage.value for stage in Stage} == dict(
        zip(names, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10], strict=True)
    )
    assert STAGE_INDEX.tolist() == [0, 1, 2, 3, 4, -1, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("lookup", "names"),
    [
        (HAS_SEED, set(WITH_SEED)),
        (IS_LIVE, set(LIVE)),
        (IS_BLENDED, {"BLENDING", "HOLDING", "FOSSILIZED"}),
        (IN_COOLDOWN, {"PRUNED", "EMBARGOED", "RESETTING"}),
    ],
)
def test_lookup_tables_list_the_right_stages(lookup, names):
    assert {stage.name for stage in Stage if lookup[stage]} == names
    assert not lookup[5]
    with pytest.raises(ValueError, match="read-only"):
        lookup[0] = True
