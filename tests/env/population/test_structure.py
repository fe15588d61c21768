"""What the population reads from the slot table, and how rows are sorted by the seed they pass."""

import numpy as np
import pytest
import torch
from esper_env.population.structure import Structure, in_blocks, join_rows, plan_slot, split_rows
from esper_env.rules.heads import NO_BLUEPRINT, Blueprint, Operator
from esper_env.rules.slot_table import DOWN, UP, SlotTable
from esper_env.rules.stages import Stage

CPU = torch.device("cpu")
BLENDED = {Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED}


def table_of(stages):
    table = SlotTable.empty(1, len(stages))
    table.stage[0] = stages
    return table


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage != Stage.UNKNOWN], ids=lambda stage: stage.name)
def test_stages_decide_what_a_seed_does(stage):
    structure = Structure.of(table_of([stage]))
    assert structure.blended[0, 0] == (stage in BLENDED)
    assert structure.training[0, 0] == (stage == Stage.TRAINING)
    assert structure.fossilized[0, 0] == (stage == Stage.FOSSILIZED)
    assert not structure.frozen[0, 0]


def test_blended_seeds_are_frozen_while_alpha_falls_and_only_then():
    table = table_of([Stage.BLENDING, Stage.BLENDING, Stage.BLENDING, Stage.TRAINING])
    table.alpha_mode[0] = [DOWN, UP, 0, DOWN]
    assert Structure.of(table).frozen.tolist() == [[True, False, False, False]]


def test_a_structure_stays_while_the_table_moves_on():
    table = table_of([Stage.BLENDING])
    table.alpha[0, 0], table.blueprint[0, 0] = 0.5, Blueprint.NORM
    structure = Structure.of(table)
    table.alpha[0, 0], table.stage[0, 0], table.blueprint[0, 0] = 1.0, Stage.PRUNED, NO_BLUEPRINT
    assert structure.alpha[0, 0] == 0.5
    assert structure.blended[0, 0]
    assert structure.blueprint[0, 0] == Blueprint.NORM


def random_structure(rng, rows, slots=2):
    shape = (rows, slots)
    training = rng.random(shape) < 0.3
    blended = ~training & (rng.random(shape) < 0.6)
    no = np.zeros(shape, dtype=np.bool_)
    return Structure(rng.integers(1, 4, shape), rng.integers(0, 3, shape), rng.random(shape), blended, training, no, no)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_finds_its_own_seed_and_comes_back_to_its_place(seed):
    rng = np.random.default_rng(seed)
    structure, count = random_structure(rng, 5), int(rng.integers(1, 12))
    networks = np.sort(rng.integers(0, 5, count))
    active = (structure.blended | structure.training)[networks, 1] & (rng.random(count) < 0.8)
    plan = plan_slot(structure, 1, networks, active, CPU, torch.float64)
    if not active.any():
        assert plan is None
        return
    x = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    groups = list(split_rows(plan, x))
    assert torch.equal(join_rows(plan, groups), x)
    assert sorted(groups[0].flatten().int().tolist()) == np.flatnonzero(~active).tolist()
    seen = []
    for part, group in zip(plan.parts, groups[1:], strict=True):
        rows = group.flatten().long().tolist()
        assert rows == part.rows.tolist()
        seen += rows
        for row, network, alpha in zip(rows, part.networks.tolist(), part.alpha.flatten().tolist(), strict=True):
            assert network == networks[row]
            assert part.blueprint == structure.blueprint[network, 1]
            assert part.operator == structure.operator[network, 1]
            assert part.isolated == structure.training[network, 1]
            assert alpha == (1.0 if part.isolated else structure.alpha[network, 1])
    assert sorted(seen) == np.flatnonzero(active).tolist()
    assert len({(part.blueprint, part.operator, part.isolated) for part in plan.parts}) == len(plan.parts)


def test_nothing_is_moved_when_all_rows_hold_the_same_seed():
    shape = (3, 1)
    yes, no = np.ones(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    structure = Structure(
        np.full(shape, Blueprint.NORM), np.full(shape, Operator.GATE), np.full(shape, 0.5), yes, no, no, no
    )
    plan = plan_slot(structure, 0, np.arange(3), yes[:, 0], CPU, torch.float32)
    assert plan.order is None
    x = torch.rand(3, 2)
    untouched, group = split_rows(plan, x)
    assert len(untouched) == 0
    assert group.data_ptr() == x.data_ptr()
    assert join_rows(plan, [untouched, group]) is group


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_blocks_are_the_parts_in_smaller_pieces(size):
    rng = np.random.default_rng(3)
    structure = random_structure(rng, 12)
    active = (structure.blended | structure.training)[:, 0]
    plan = plan_slot(structure, 0, np.arange(12), active, CPU, torch.float64)
    blocks = in_blocks(plan, size)
    assert max(len(block.rows) for block in blocks.parts) <= size
    assert sum(blocks.sizes) == 12
    for name in ("rows", "networks", "alpha", "network_index"):
        columns = [[torch.as_tensor(getattr(part, name)) for part in each.parts] for each in (plan, blocks)]
        assert torch.equal(torch.cat(columns[0]), torch.cat(columns[1]))
    labels = [[(p.blueprint, p.operator, p.isolated) for p in each.parts for _ in p.rows] for each in (plan, blocks)]
    assert labels[0] == labels[1]
