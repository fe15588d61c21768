"""The structure that the population reads from the slot table."""

from esper_env.population.structure import Structure
from esper_env.rules.heads import NO_BLUEPRINT, Blueprint
from esper_env.rules.slot_table import DOWN, UP, SlotTable
from esper_env.rules.stages import Stage

BLENDED = {Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED}


def table_of(stages):
    table = SlotTable.empty(1, len(stages))
    table.stage[0] = stages
    return table


def test_stage_determines_role_of_seed_and_frozen_seeds_are_blended_with_falling_alpha():
    stages = [stage for stage in Stage if stage != Stage.UNKNOWN]
    for mode in (DOWN, UP, 0):
        table = table_of(stages)
        table.alpha_mode[0] = mode
        structure = Structure.of(table)
        assert structure.blended[0].tolist() == [stage in BLENDED for stage in stages]
        assert structure.training[0].tolist() == [stage == Stage.TRAINING for stage in stages]
        assert structure.fossilized[0].tolist() == [stage == Stage.FOSSILIZED for stage in stages]
        assert structure.frozen[0].tolist() == [stage in BLENDED and mode == DOWN for stage in stages]


def test_structure_is_a_copy_of_the_table():
    table = table_of([Stage.BLENDING])
    table.alpha[0, 0], table.blueprint[0, 0] = 0.5, Blueprint.NORM
    structure = Structure.of(table)
    table.alpha[0, 0], table.stage[0, 0], table.blueprint[0, 0] = 1.0, Stage.PRUNED, NO_BLUEPRINT
    assert structure.alpha[0, 0] == 0.5
    assert structure.blended[0, 0]
    assert structure.blueprint[0, 0] == Blueprint.NORM
