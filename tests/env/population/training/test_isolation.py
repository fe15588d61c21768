"""A seed in TRAINING learns, and its network does not notice: bit for bit as if the seed were not there."""

import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints

pytestmark = pytest.mark.numeric

BLUEPRINTS = [entry.name for entry in offered_blueprints("cnn")]
BOTH_LAYOUTS = pytest.mark.parametrize("together", [True, False], ids=["together", "alone"])
EPOCHS = 3


def everything(shard):
    """Copies of all tensors of a shard's hosts, optimizer momentum included."""
    host = shard.host
    return {
        f"{kind} {name}": value.clone()
        for kind, tensors in (("parameter", host.parameters), ("momentum", host.momentum), ("buffer", host.buffers))
        for name, value in tensors.items()
    }


def seed_tensors(shard, slot, structure, row=0):
    stack = shard.seed_stack(slot, int(structure.blueprint[row, slot]))
    return {name: value[row].clone() for name, value in stack.parameters.items()}


@BOTH_LAYOUTS
@pytest.mark.parametrize("isolation", ["shadow", "straight_through"])
@pytest.mark.parametrize("blueprint", BLUEPRINTS)
def test_the_host_is_bit_identical_to_one_without_the_seed(make_population, grow, together, isolation, blueprint):
    host = {"shard_size": 3 if together else 1, "together": together, "isolation": isolation}
    bare, grown = make_population(3, **host), make_population(3, **host)
    without = grow(bare, 3)
    operators = list(Operator)
    structure = grow(
        grown, 3, *[(row, slot, blueprint, operators[(row + slot) % 3], Stage.TRAINING) for row, slot in SLOTS]
    )
    before = seed_tensors(grown.shards[0], 1, structure)
    for _ in range(EPOCHS):
        assert (bare.train(without).loss == grown.train(structure).loss).all()
    for left, right in zip(bare.shards, grown.shards, strict=True):
        right_tensors = everything(right)
        for name, value in everything(left).items():
            assert torch.equal(value, right_tensors[name]), name
    after = seed_tensors(grown.shards[0], 1, structure)
    assert all(not torch.equal(value, before[name]) for name, value in after.items())


SLOTS = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]


def test_blended_neighbours_do_not_notice_either(make_population, grow):
    """An isolated seed behind a blended one: the blended seed trains as if it were alone."""
    blended = (0, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.5)
    first, second = make_population(), make_population()
    alone = grow(first, 1, blended)
    both = grow(second, 1, blended, (0, 1, "conv_heavy", Operator.ADD, Stage.TRAINING))
    for _ in range(EPOCHS):
        first.train(alone)
        second.train(both)
    for name, value in everything(first.shards[0]).items():
        assert torch.equal(value, everything(second.shards[0])[name]), name
    for name, value in seed_tensors(first.shards[0], 0, alone).items():
        assert torch.equal(value, seed_tensors(second.shards[0], 0, both)[name]), name


@BOTH_LAYOUTS
def test_accuracy_and_loss_are_those_of_the_bare_host(make_population, grow, together):
    bare, grown = (make_population(together=together, dtype=torch.float64) for _ in range(2))
    without = grow(bare, 1)
    structure = grow(grown, 1, (0, 1, "conv_heavy", Operator.ADD, Stage.TRAINING))
    bare.train(without)
    grown.train(structure)
    everyone = (structure.alpha >= 0).any(axis=1)
    left, right = bare.measure(without, everyone), grown.measure(structure, everyone)
    assert left.accuracy == right.accuracy
    assert left.loss == pytest.approx(right.loss, abs=1e-9)  # the configurations share a pass of other sizes


@BOTH_LAYOUTS
def test_germinating_changes_neither_data_nor_host(make_population, grow, together):
    """A seed that is attached and waits (GERMINATED) draws from a generator of its own."""
    bare, grown = make_population(together=together), make_population(together=together)
    without = grow(bare, 1)
    bare.train(without)
    grown.train(without)
    structure = grow(grown, 1, (0, 2, "conv_heavy", Operator.GATE, Stage.GERMINATED))
    before = seed_tensors(grown.shards[0], 2, structure)
    bare.train(without)
    grown.train(structure)
    for name, value in everything(bare.shards[0]).items():
        assert torch.equal(value, everything(grown.shards[0])[name]), name
    for name, value in seed_tensors(grown.shards[0], 2, structure).items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("operator", Operator)
@pytest.mark.parametrize("blueprint", BLUEPRINTS)
def test_many_epochs_of_isolation_do_not_run_away(make_population, grow, blueprint, operator):
    """A seed that feels the effect it will have stays bounded (the straight-through form does not)."""
    population = make_population(2, seed_lr=0.02, host_lr=0.02)
    structure = grow(population, 2, *[(row, 1, blueprint, operator, Stage.TRAINING) for row in range(2)])
    for _ in range(20):
        stats = population.train(structure)
    x = torch.rand(2, 8, 2, 2, 16)  # (n, C, H, W, B)
    shard = population.shards[0]
    stack = shard.seed_stack(1, int(structure.blueprint[0, 1]))
    out = shard.layout.call(stack.template, stack.parameters, x, training=True)
    assert torch.isfinite(out).all()
    assert (out - x).abs().max() < 10
    assert (stats.exploding == 0).all()


def test_straight_through_runs_away(make_population, grow):
    """Why the shadow pass is the default: a loss that is linear in the seed pushes it for ever."""
    count, sizes = 6, {}
    for isolation in ("shadow", "straight_through"):
        population = make_population(count, seed_lr=0.05, host_lr=0.02, isolation=isolation)
        seeds = [(row, 1, "conv_light", Operator.ADD, Stage.TRAINING) for row in range(count)]
        structure = grow(population, count, *seeds)
        for _ in range(40):
            population.train(structure)
        stack = population.shards[0].seed_stack(1, int(structure.blueprint[0, 1]))
        sizes[isolation] = float(stack.parameters["scale"].abs().mean())
    assert sizes["straight_through"] > 1.5 * sizes["shadow"], sizes


@BOTH_LAYOUTS
@pytest.mark.parametrize("isolation", ["shadow", "straight_through"])
@pytest.mark.parametrize("blueprint", BLUEPRINTS)
def test_a_look_at_isolation_sees_no_breach_and_leaves_no_trace(make_population, grow, together, isolation, blueprint):
    """Some networks have the blueprint blended behind a seed that trains, so that the shadow pass reads it by rows."""
    settings = {"shard_size": 3 if together else 1, "together": together, "isolation": isolation}
    looked, trusted = make_population(3, **settings), make_population(3, **settings)
    seeds = [(row, slot, blueprint, Operator.GATE, Stage.BLENDING, 0.5) for row in range(3) for slot in (1, 2)]
    seeds += [(1, 0, "norm", Operator.ADD, Stage.TRAINING)]
    first, second = (grow(population, 3, *seeds) for population in (looked, trusted))
    for _ in range(EPOCHS):
        seen = looked.train(first, True)
        assert not seen.breached.any()
        assert (seen.loss == trusted.train(second).loss).all()
    for left, right in zip(looked.shards, trusted.shards, strict=True):
        right_tensors = everything(right)
        for name, value in everything(left).items():
            assert torch.equal(value, right_tensors[name]), name
