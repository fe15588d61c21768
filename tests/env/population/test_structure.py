"""The structure that the population reads from the slot table."""

import pytest
from esper_env.population.structure import Structure
from esper_env.rules.heads import NO_BLUEPRINT, Blueprint
from esper_env.rules.slot_table import DOWN, UP, SlotTable
from esper_env.rules.stages import Stage

BLENDED = {Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED}


def table_of(stages):
    table = SlotTable.empty(1, len(stages))
    table.stage[0] = stages
    return table


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage != Stage.UNKNOWN], ids=lambda stage: stage.name)
def test_stage_determines_role_of_seed(stage):
    structure = Structure.of(table_of([stage]))
    assert structure.blended[0, 0] == (stage in BLENDED)
    assert structure.training[0, 0] == (stage == Stage.TRAINING)
    assert structure.fossilized[0, 0] == (stage == Stage.FOSSILIZED)
    assert not structure.frozen[0, 0]


def test_blended_seeds_are_frozen_only_while_alpha_falls():
    table = table_of([Stage.BLENDING, Stage.BLENDING, Stage.BLENDING, Stage.TRAINING])
    table.alpha_mode[0] = [DOWN, UP, 0, DOWN]
    assert Structure.of(table).frozen.tolist() == [[True, False, False, False]]


def test_structure_is_a_copy_of_the_table():
    table = table_of([Stage.BLENDING])
    table.alpha[0, 0], table.blueprint[0, 0] = 0.5, Blueprint.NORM
    structure = Structure.of(table)
    table.alpha[0, 0], table.stage[0, 0], table.blueprint[0, 0] = 1.0, Stage.PRUNED, NO_BLUEPRINT
    assert structure.alpha[0, 0] == 0.5
    assert structure.blended[0, 0]
    assert structure.blueprint[0, 0] == Blueprint.NORM
