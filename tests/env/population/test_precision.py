"""Mixed precision: passes in bfloat16, parameters and statistics in float32."""

import numpy as np
import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from small_networks import LAYOUTS, assert_same, everyone, host_tensors
from torch import nn

pytestmark = pytest.mark.numeric

BLUEPRINTS = [entry.name for entry in offered_blueprints("cnn")]
STAGES = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)
BATCHES = 4


@LAYOUTS
@pytest.mark.parametrize("kernel", [1, 3])
def test_bfloat16_differs_from_float32_by_rounding_only(make_population, grow, batched, kernel):
    """The losses differ by less than a few rounding errors of bfloat16 (2^-8)."""
    full, mixed = (make_population(batched=batched, kernel=kernel, precision=p) for p in ("float32", "bfloat16"))
    structures = [
        grow(population, 1, (0, 0, "conv_light", Operator.ADD, Stage.HOLDING)) for population in (full, mixed)
    ]
    measured = [p.measure(s, everyone(1)).loss[0] for p, s in zip((full, mixed), structures, strict=True)]
    assert measured[0] != measured[1]
    assert measured[1] == pytest.approx(measured[0], rel=0.02)
    for _ in range(3):
        losses = [float(p.train(s).loss[0]) for p, s in zip((full, mixed), structures, strict=True)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert {value.dtype for value in host_tensors(mixed).values()} == {torch.float32, torch.int64}


@LAYOUTS
@pytest.mark.parametrize("operator", list(Operator))
@pytest.mark.parametrize("name", BLUEPRINTS)
def test_every_seed_trains_in_bfloat16(make_population, grow, batched, operator, name):
    population = make_population(batched=batched, kernel=3, precision="bfloat16")
    seeds = [(0, slot, name, operator, stage) for slot, stage in enumerate(STAGES)]
    structure = grow(population, 1, *seeds)
    stacks = [population.shards[0].seed_stack(slot, int(structure.blueprint[0, slot])) for slot in range(3)]
    before = [{name: value.clone() for name, value in stack.parameters.items()} for stack in stacks]
    stats = population.train(structure)
    assert np.isfinite(stats.loss).all()
    assert np.isfinite(stats.gradient_norm).all()
    assert (stats.gradient_norm > 0).all()
    for stack, old in zip(stacks, before, strict=True):
        for name, value in stack.parameters.items():
            assert torch.isfinite(value).all()
            assert not torch.equal(value, old[name]), name
    assert np.isfinite(population.measure(structure, everyone(1)).contribution).all()


@LAYOUTS
def test_host_equals_host_without_isolated_seed_in_bfloat16(make_population, grow, batched):
    bare, grown = (make_population(batched=batched, precision="bfloat16") for _ in range(2))
    seed = (0, 0, "conv_heavy", Operator.GATE, Stage.TRAINING)
    for _ in range(2):
        bare.train(grow(bare, 1))
        grown.train(grow(grown, 1, seed))
    assert_same(host_tensors(bare), host_tensors(grown))


@LAYOUTS
def test_losses_and_hits_are_computed_in_float32(make_population, grow, batched, monkeypatch):
    population, seen = make_population(batched=batched, precision="bfloat16", batches=BATCHES), []
    structure = grow(population, 1, (0, 1, "conv_light", Operator.ADD, Stage.TRAINING))
    layout = population.shards[0].layout
    for name in ("losses", "correct"):
        method = getattr(layout, name)
        monkeypatch.setattr(
            layout, name, lambda x, labels, name=name, of=method: (seen.append((name, x.dtype)), of(x, labels))[1]
        )
    population.train(structure)
    assert seen == [("losses", torch.float32)] * 2 * BATCHES  # the main pass and the shadow pass
    seen.clear()
    population.measure(structure, everyone(1))
    assert set(seen) == {("losses", torch.float32), ("correct", torch.float32)}


@pytest.mark.parametrize("isolation", ["shadow", "straight_through"])
@pytest.mark.parametrize("name", ["norm", "conv_light", "attention"])
def test_network_trains_equally_beside_neighbour_in_bfloat16(make_population, grow, isolation, name):
    """The neighbour changes no dtype, wherever its rows enter the shadow pass."""
    own, neighbours = (0, 2, name, Operator.ADD, Stage.TRAINING), (1, 0, name, Operator.GATE, Stage.TRAINING)
    types, networks = [], []
    for others in ([], [neighbours]):
        population = make_population(2, precision="bfloat16", isolation=isolation)
        structure = grow(population, 2, own, *others)
        shard, seen = population.shards[0], set()

        def recorded(slot, plan, x, *rest, _seen=seen, _pass=shard.pass_slot, **options):
            out = _pass(slot, plan, x, *rest, **options)
            _seen.add((slot, x.dtype, out.dtype))
            return out

        shard.pass_slot = recorded
        population.train(structure)
        seed = shard.seed_stack(2, int(structure.blueprint[0, 2]))
        types.append({passed for passed in seen if passed[0] == 2})
        networks.append([v[0].clone() for stack in (shard.host, seed) for v in stack.parameters.values()])
    assert types[0] == types[1]
    for alone, beside in zip(*networks, strict=True):
        torch.testing.assert_close(alone, beside, rtol=0, atol=1e-3)


@LAYOUTS
def test_module_without_batching_rule_trains_in_bfloat16(make_population, grow, batched, own_blueprints):
    own_blueprints("dilated", lambda c: nn.Sequential(nn.Conv2d(c, c, 3, padding=2, dilation=2), nn.ReLU()))
    population = make_population(batched=batched, precision="bfloat16")
    for stage in (Stage.TRAINING, Stage.HOLDING):
        structure = grow(population, 1, (0, 0, "dilated", Operator.ADD, stage))
        assert np.isfinite(population.train(structure).loss).all()
        assert np.isfinite(population.measure(structure, everyone(1)).contribution).all()


def test_population_rejects_unknown_precision(make_population):
    with pytest.raises(ValueError, match="precision is 'half'; expected one of"):
        make_population(precision="half")
