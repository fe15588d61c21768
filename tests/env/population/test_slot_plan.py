"""Plans that group rows by the seed that they pass at a slot."""

import numpy as np
import pytest
import torch
from esper_env.population.slot_plan import join_rows, plan_slot, split_rows
from esper_env.population.structure import Structure
from esper_env.rules.heads import Blueprint, Operator

CPU = torch.device("cpu")


def random_structure(rng, rows, slots=2):
    shape = (rows, slots)
    training = rng.random(shape) < 0.3
    blended = ~training & (rng.random(shape) < 0.6)
    no = np.zeros(shape, dtype=np.bool_)
    return Structure(rng.integers(1, 4, shape), rng.integers(0, 3, shape), rng.random(shape), blended, training, no, no)


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_grouped_by_seed_and_joined_in_place(seed):
    rng = np.random.default_rng(seed)
    structure, count = random_structure(rng, 5), int(rng.integers(1, 12))
    networks = np.sort(rng.integers(0, 5, count))
    active = (structure.blended | structure.training)[networks, 1] & (rng.random(count) < 0.8)
    plan = plan_slot(structure, 1, networks, active, CPU, torch.float64)
    x = torch.arange(count, dtype=torch.float64).view(-1, 1, 1, 1, 1)
    pieces = list(split_rows(plan, x))
    assert torch.equal(join_rows(plan, pieces), x)
    assert sorted(pieces[0].flatten().int().tolist()) == np.flatnonzero(~active).tolist()
    seen = []
    for group, piece in zip(plan.groups, pieces[1:], strict=True):
        rows = piece.flatten().long().tolist()
        assert rows == group.rows.tolist()
        seen += rows
        for row, network, alpha in zip(rows, group.networks.tolist(), group.alpha.flatten().tolist(), strict=True):
            assert network == networks[row]
            assert group.blueprint == structure.blueprint[network, 1]
            assert group.operator == structure.operator[network, 1]
            assert group.isolated == structure.training[network, 1]
            assert alpha == (1.0 if group.isolated else structure.alpha[network, 1])
    assert sorted(seen) == np.flatnonzero(active).tolist()
    assert len({(group.blueprint, group.operator, group.isolated) for group in plan.groups}) == len(plan.groups)


def test_single_group_moves_no_rows():
    shape = (3, 1)
    yes, no = np.ones(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    structure = Structure(
        np.full(shape, Blueprint.NORM), np.full(shape, Operator.GATE), np.full(shape, 0.5), yes, no, no, no
    )
    plan = plan_slot(structure, 0, np.arange(3), yes[:, 0], CPU, torch.float32)
    assert plan.order is None
    x = torch.rand(3, 2)
    untouched, piece = split_rows(plan, x)
    assert len(untouched) == 0
    assert piece.data_ptr() == x.data_ptr()
    assert join_rows(plan, [untouched, piece]) is piece


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_blocks_split_groups_in_order(size):
    rng = np.random.default_rng(3)
    structure = random_structure(rng, 12)
    active = (structure.blended | structure.training)[:, 0]
    plan = plan_slot(structure, 0, np.arange(12), active, CPU, torch.float64)
    blocks = plan_slot(structure, 0, np.arange(12), active, CPU, torch.float64, size)
    assert max(len(block.rows) for block in blocks.groups) <= size
    assert sum(blocks.sizes) == 12
    for name in ("rows", "networks", "alpha", "network_index"):
        columns = [[torch.as_tensor(getattr(group, name)) for group in each.groups] for each in (plan, blocks)]
        assert torch.equal(torch.cat(columns[0]), torch.cat(columns[1]))
    labels = [[(p.blueprint, p.operator, p.isolated) for p in each.groups for _ in p.rows] for each in (plan, blocks)]
    assert labels[0] == labels[1]
