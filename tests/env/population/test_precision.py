"""Mixed precision: passes in bfloat16, parameters and statistics in float32."""

import numpy as np
import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from small_networks import LAYOUTS, all_tensors, assert_same, everyone, host_tensors, network_tensors
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
def test_every_seed_trains_in_bfloat16(make_population, grow, batched):
    """Each network has one blueprint in three stages, with different operators."""
    count = len(BLUEPRINTS)
    population = make_population(count, batched=batched, kernel=3, precision="bfloat16")
    structure = grow(
        population,
        count,
        *[
            (row, slot, name, Operator((row + slot) % 3), stage)
            for row, name in enumerate(BLUEPRINTS)
            for slot, stage in enumerate(STAGES)
        ],
    )
    before = {name: value.clone() for name, value in all_tensors(population).items()}
    stats = population.train(structure)
    assert np.isfinite(stats.loss).all()
    assert (stats.gradient_norm > 0).all()
    assert stats.finite.all()
    moved = [not torch.equal(value, before[name]) for name, value in all_tensors(population).items()]
    assert np.mean(moved) > 0.5  # gates that no operator reads do not move
    assert np.isfinite(population.measure(structure, everyone(count)).contribution).all()


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
def test_network_trains_equally_beside_neighbour_in_bfloat16(make_population, grow, isolation):
    """The neighbour changes no dtype, wherever its rows enter the shadow pass."""
    own, neighbour = (0, 2, "norm", Operator.ADD, Stage.TRAINING), (1, 0, "norm", Operator.GATE, Stage.TRAINING)
    networks = []
    for others in ([], [neighbour]):
        population = make_population(2, precision="bfloat16", isolation=isolation)
        structure = grow(population, 2, own, *others)
        population.train(structure)
        networks.append(network_tensors(population, structure, 0))
    assert_same(*networks, tolerance=1e-3)


@LAYOUTS
def test_module_without_batching_rule_trains_in_bfloat16(make_population, grow, batched, own_blueprints):
    own_blueprints("dilated", lambda c: nn.Sequential(nn.Conv2d(c, c, 3, padding=2, dilation=2), nn.ReLU()))
    population = make_population(batched=batched, precision="bfloat16")
    for stage in (Stage.TRAINING, Stage.HOLDING):
        structure = grow(population, 1, (0, 0, "dilated", Operator.ADD, stage))
        assert np.isfinite(population.train(structure).loss).all()
        assert np.isfinite(population.measure(structure, everyone(1)).contribution).all()
