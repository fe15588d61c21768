"""Seeds learn in every stage, and statistics report their gradients."""

import numpy as np
import pytest
import torch
from esper_env.population.evaluation.configurations import ConfigurationSet
from esper_env.population.evaluation.scoring import score
from esper_env.population.splits import held_out_images
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints

pytestmark = pytest.mark.numeric

BLUEPRINTS = [entry.name for entry in offered_blueprints("cnn")]
#: One network for each: they train side by side.
KINDS = [(name, operator) for name in BLUEPRINTS for operator in Operator]
SLOT = 1


def planted(stage):
    return [(row, SLOT, name, operator, stage, 0.5) for row, (name, operator) in enumerate(KINDS)]


def test_clear_momentum_clears_seed_and_gate(make_population, grow):
    """Otherwise momentum gathered while frozen would move the seed when it trains again."""
    seed = (0, SLOT, "conv_light", Operator.GATE, Stage.BLENDING, 0.5)
    population = make_population()
    frozen = grow(population, 1, (*seed, True))
    population.train(frozen)
    population.clear_momentum(frozen.blended, frozen.blueprint)
    shard = population.shards[0]
    for stack in (shard.seed_stack(SLOT, int(frozen.blueprint[0, SLOT])), shard.gate_stack(SLOT)):
        assert not any(velocity.any() for velocity in stack.momentum.values())


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING], ids=lambda stage: stage.name)
def test_loss_falls_if_only_the_seed_learns(make_population, build_host, grow, stripes, stage):
    settings = {"host_lr": 1e-12, "seed_lr": 0.1, "batches": 8, "dtype": torch.float64}
    population = make_population(len(KINDS), host=build_host(norm_momentum=0.5), **settings)
    population.reset(np.ones(len(KINDS), dtype=np.bool_), np.full(len(KINDS), 5))
    structure = grow(population, len(KINDS), *planted(stage))
    train = held_out_images(stripes, "train", torch.device("cpu"), torch.float64)
    on = ConfigurationSet.of(np.arange(len(KINDS)), np.full(len(KINDS), 1 << SLOT), population.slots)
    everyone = np.arange(len(KINDS))
    losses = []  # (epochs, networks); of a TRAINING seed, with the seed on
    for _ in range(20):
        loss = population.train(structure).loss
        if stage is Stage.TRAINING:
            loss = score(population.shards[0], structure, on, train, everyone).loss
        losses.append(loss)
    gain = np.mean(losses[:4], axis=0) - np.mean(losses[-4:], axis=0)
    assert (gain > 0.005).all(), {kind: round(float(g), 4) for kind, g in zip(KINDS, gain, strict=True)}


def test_statistics_report_exploding_and_vanishing_gradients(make_population, grow):
    population = make_population(2, clip_norm=1e-5)  # any real gradient is more than ten times this
    seeds = [(0, 2, "conv_light", Operator.ADD, Stage.HOLDING), (1, 2, "norm", Operator.ADD, Stage.BLENDING, 0.0)]
    stats = population.train(grow(population, 2, *seeds))
    assert stats.exploding[0, 0] > 0.5
    assert stats.vanishing[0, 3] == 0
    assert stats.vanishing[1, 3] == 1  # at alpha 0 nothing reaches the seed
    assert (stats.vanishing[:, 1] == 0).all()
    assert (stats.sizes[:, 1] == 0).all()
