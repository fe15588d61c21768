"""A seed in TRAINING learns, and its network equals one without the seed, bit for bit."""

import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from small_networks import WAYS, assert_same, host_tensors

pytestmark = pytest.mark.numeric

BLUEPRINTS = [entry.name for entry in offered_blueprints("cnn")]
EPOCHS = 3


def seed_tensors(shard, slot, structure, row=0, local=0):
    stack = shard.seed_stack(slot, int(structure.blueprint[row, slot]))
    return {name: value[local].clone() for name, value in stack.parameters.items()}


@WAYS
@pytest.mark.parametrize("isolation", ["shadow", "straight_through"])
def test_host_equals_host_without_isolated_seed(make_population, grow, way, isolation):
    """Each network has one or two seeds of one blueprint."""
    count = len(BLUEPRINTS)
    bare, grown = (make_population(count, **way, isolation=isolation) for _ in range(2))
    kinds = list(zip(range(count), BLUEPRINTS, 3 * list(Operator), strict=False))
    seeds = [(row, row % 3, name, operator, Stage.TRAINING) for row, name, operator in kinds]
    seeds += [(row, (row + 1) % 3, name, operator, Stage.TRAINING) for row, name, operator in kinds[1:5]]
    without, structure = grow(bare, count), grow(grown, count, *seeds)
    shard, own = grown._locate(1)
    before = seed_tensors(shard, 1, structure, 1, own)
    for _ in range(EPOCHS):
        assert (bare.train(without).loss == grown.train(structure).loss).all()
    assert_same(host_tensors(bare), host_tensors(grown))
    after = seed_tensors(shard, 1, structure, 1, own)
    assert all(not torch.equal(value, before[name]) for name, value in after.items())


def test_blended_seed_equals_one_without_isolated_neighbour(make_population, grow):
    blended = (0, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.5)
    first, second = make_population(), make_population()
    alone = grow(first, 1, blended)
    both = grow(second, 1, blended, (0, 1, "conv_heavy", Operator.ADD, Stage.TRAINING))
    for _ in range(EPOCHS):
        first.train(alone)
        second.train(both)
    assert_same(host_tensors(first), host_tensors(second))
    assert_same(seed_tensors(first.shards[0], 0, alone), seed_tensors(second.shards[0], 0, both))


@WAYS
def test_measurements_equal_those_without_isolated_seed(make_population, grow, way):
    bare, grown = (make_population(**way, dtype=torch.float64) for _ in range(2))
    without = grow(bare, 1)
    structure = grow(grown, 1, (0, 1, "conv_heavy", Operator.ADD, Stage.TRAINING))
    bare.train(without)
    grown.train(structure)
    everyone = (structure.alpha >= 0).any(axis=1)
    left, right = bare.measure(without, everyone), grown.measure(structure, everyone)
    assert left.accuracy == right.accuracy
    assert left.loss == pytest.approx(right.loss, abs=1e-9)  # the configurations share a pass of other sizes


@WAYS
def test_germinated_seed_changes_neither_minibatches_nor_host(make_population, grow, way):
    bare, grown = make_population(**way), make_population(**way)
    without = grow(bare, 1)
    bare.train(without)
    grown.train(without)
    structure = grow(grown, 1, (0, 2, "conv_heavy", Operator.GATE, Stage.GERMINATED))
    before = seed_tensors(grown.shards[0], 2, structure)
    bare.train(without)
    grown.train(structure)
    assert_same(host_tensors(bare), host_tensors(grown))
    assert_same(seed_tensors(grown.shards[0], 2, structure), before)


def test_isolated_seeds_stay_bounded_over_many_epochs(make_population, grow):
    kinds = [(name, operator) for name in BLUEPRINTS for operator in Operator]
    population = make_population(len(kinds), seed_lr=0.02, host_lr=0.02)
    structure = grow(population, len(kinds), *[(row, 1, *kind, Stage.TRAINING) for row, kind in enumerate(kinds)])
    for _ in range(20):
        stats = population.train(structure)
    assert (stats.exploding == 0).all()
    x, shard = torch.rand(len(kinds), 8, 2, 2, 16), population.shards[0]  # (n, C, H, W, B)
    for row, kind in enumerate(kinds):
        stack = shard.seed_stack(1, int(structure.blueprint[row, 1]))
        out = shard.layout.call(stack.template, stack.parameters, x, training=True)[row]
        assert (out - x[row]).abs().max() < 10, kind


@WAYS
@pytest.mark.parametrize("isolation", ["shadow", "straight_through"])
def test_isolation_check_finds_no_breach_and_changes_nothing(make_population, grow, way, isolation):
    """Each network has its blueprint blended behind a TRAINING seed, so the shadow pass reads some of its rows."""
    count = 2 * len(BLUEPRINTS)
    checked, unchecked = (make_population(count, **way, isolation=isolation) for _ in range(2))
    seeds = [
        (row, slot, name, Operator.GATE, Stage.BLENDING, 0.5)
        for row, name in enumerate(2 * BLUEPRINTS)
        for slot in (1, 2)
    ]
    seeds += [(row, 0, "norm", Operator.ADD, Stage.TRAINING) for row in range(len(BLUEPRINTS))]
    first, second = (grow(population, count, *seeds) for population in (checked, unchecked))
    for _ in range(EPOCHS):
        seen = checked.train(first, True)
        assert not seen.breached.any()
        assert (seen.loss == unchecked.train(second).loss).all()
    assert_same(host_tensors(checked), host_tensors(unchecked))
