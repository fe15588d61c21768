"""Snapshots restore one network bit for bit with zero momentum; checks find values that are not finite."""

import numpy as np
import pytest
import torch
from esper_env.population.snapshots import Snapshots
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import blueprint_entry
from small_networks import assert_same, network_tensors, stacks_of

pytestmark = pytest.mark.numeric

COUNT = 4
ADD, MULTIPLY, GATE = Operator.ADD, Operator.MULTIPLY, Operator.GATE
#: Fossils of equal and of different blueprints in the same slot, and live seeds in every stage beside them.
SEEDS = [
    (0, 0, "conv_light", ADD, Stage.FOSSILIZED),
    (0, 1, "norm", ADD, Stage.TRAINING),
    (1, 0, "conv_light", GATE, Stage.FOSSILIZED),
    (1, 2, "depthwise", MULTIPLY, Stage.FOSSILIZED),
    (2, 0, "attention", GATE, Stage.FOSSILIZED),
    (2, 1, "conv_small", GATE, Stage.FOSSILIZED),
    (2, 2, "conv_light", ADD, Stage.BLENDING, 0.5),
    (3, 1, "conv_small", ADD, Stage.HOLDING),
    (3, 2, "bottleneck", ADD, Stage.GERMINATED),
]
#: Places in a snapshot that training moves; ADD trains no gate.
MOVING = {0: {"host", "seeds"}, 2: {"host", "seeds", "gates"}, 3: {"host"}}
SHARDS = {"single": {"batched": False}, "three": {"shard_size": 3}, "bfloat16": {"precision": "bfloat16"}}


def mask(*rows):
    return np.isin(np.arange(COUNT), rows)


def snapshot(population, structure, row):
    """The tensors that a snapshot of the network holds."""
    return network_tensors(population, structure, row, kinds=("parameters", "buffers"), fossils_only=True)


def fossils(population, structure, row):
    return stacks_of(population, structure, row, fossils_only=True).values()


@pytest.mark.parametrize("layout", SHARDS)
def test_restored_network_equals_snapshot_with_zero_momentum_and_others_stay(make_population, grow, layout):
    population = make_population(COUNT, **SHARDS[layout])
    structure = grow(population, COUNT, *SEEDS)
    population.train(structure)
    kept = {row: snapshot(population, structure, row) for row in (0, 2, 3)}
    population.take_snapshots(structure, mask(0, 2, 3))
    for _ in range(2):
        population.train(structure)
    for row, expected in kept.items():
        now = snapshot(population, structure, row)
        moved = {name.split()[0].split("/")[0] for name in expected if not torch.equal(now[name], expected[name])}
        assert moved == MOVING[row]
        others = [other for other in range(COUNT) if other != row]
        before = [network_tensors(population, structure, other) for other in others]
        population.restore_snapshot(structure, row)
        assert_same(snapshot(population, structure, row), expected)
        local = population._locate(row)[1]
        assert not any(v[local].any() for stack in fossils(population, structure, row) for v in stack.momentum.values())
        for other, old in zip(others, before, strict=True):
            assert_same(network_tensors(population, structure, other), old)


def test_snapshot_leaves_out_live_seeds(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    population.take_snapshots(structure, mask(3))
    assert set(population._snapshots[0]._shelves) == {"host"}
    population.train(structure)
    shard, _ = population._locate(3)
    seed = shard.seed_stack(1, blueprint_entry("conv_small", "cnn").value)
    before = {name: value.clone() for name, value in seed.values().items()}
    population.restore_snapshot(structure, 3)
    assert_same(before, seed.values())


def test_latest_snapshot_replaces_only_its_networks_own(make_population, grow):
    population = make_population(COUNT, shard_size=3)
    structure = grow(population, COUNT, *SEEDS)
    population.take_snapshots(structure, mask(*range(COUNT)))
    first = [snapshot(population, structure, row) for row in range(COUNT)]
    population.train(structure)
    population.take_snapshots(structure, mask(1, 3))
    second = [snapshot(population, structure, row) for row in range(COUNT)]
    population.train(structure)
    for row in range(COUNT):
        population.restore_snapshot(structure, row)
        assert_same(snapshot(population, structure, row), (second if row in (1, 3) else first)[row])


def test_restore_of_a_seed_without_a_snapshot_raises(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    snapshots = Snapshots(population.shards[0])
    snapshots.take(structure._replace(fossilized=np.zeros_like(structure.fossilized)), np.arange(COUNT))
    with pytest.raises(KeyError, match="seeds/0/"):
        snapshots.restore(structure, 0)


# Checks of finite values


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_finite_finds_one_bad_value_in_its_network_only(make_population, grow, value):
    population = make_population(COUNT, shard_size=3)
    structure = grow(population, COUNT, *SEEDS)

    def finite():
        shards = zip(population.shards, population._slices, strict=True)
        return torch.cat([shard.finite(structure.rows(own)) for shard, own in shards]).tolist()

    assert finite() == [True] * COUNT
    for row in range(COUNT):
        local = population._locate(row)[1]
        for name, stack in stacks_of(population, structure, row).items():
            for key, tensor in stack.values().items():
                if tensor.is_floating_point():
                    last = tensor[local].view(-1)[-1]
                    before = last.clone()
                    last.fill_(value)
                    assert finite() == [other != row for other in range(COUNT)], (row, name, key)
                    last.copy_(before)


def test_finite_ignores_seeds_of_other_networks(make_population, grow):
    population = make_population(COUNT)
    structure = grow(population, COUNT, *SEEDS)
    shard = population.shards[0]
    value = blueprint_entry("conv_light", "cnn").value
    for tensor in shard.seed_stack(0, value).parameters.values():
        tensor[2] = torch.nan  # network 2 has attention there, network 3 nothing
        tensor[3] = torch.nan
    for tensor in shard.gate_stack(0).parameters.values():
        tensor[3] = torch.nan
    assert shard.finite(structure).tolist() == [True] * COUNT


def test_train_reports_non_finite_networks(make_population, grow):
    population = make_population(2, shard_size=1)
    structure = grow(population, 2, (1, 0, "conv_light", ADD, Stage.GERMINATED))
    assert population.train(structure).finite.tolist() == [True, True]
    next(iter(population.shards[1].gate_stack(0).parameters.values()))[0] = torch.nan
    stats = population.train(structure)
    assert stats.finite.tolist() == [True, False]
    assert np.isfinite(stats.loss).all()  # no ADD reads a gate
