"""Every parameter of every seed trains, and every stage passes gradients to the host."""

import numpy as np
import pytest
import torch
from esper_env.population import Optimisation
from esper_env.population.build import build_population
from esper_env.population.evaluation.configurations import ConfigurationSet
from esper_env.population.evaluation.held_out import held_out_images
from esper_env.population.evaluation.scoring import score
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from esper_env.tasks import make_task

pytestmark = pytest.mark.numeric

BLUEPRINTS = [entry.name for entry in offered_blueprints("cnn")]
#: One network for each: they train side by side.
KINDS = [(name, operator) for name in BLUEPRINTS for operator in Operator]
SLOT = 1
STAGES = {
    Stage.TRAINING: (),
    Stage.BLENDING: (0.5,),
    Stage.HOLDING: (1.0,),
    Stage.FOSSILIZED: (1.0,),
}
EVERY_STAGE = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def planted(stage, slot=SLOT):
    return [(row, slot, name, operator, stage, *STAGES[stage]) for row, (name, operator) in enumerate(KINDS)]


def own_tensors(shard, structure, row, slot, kind):
    """The tensors of a network's seed, and of its gate where the operator uses one."""
    tensors = {
        f"seed {name}": value[row].clone()
        for name, value in getattr(shard.seed_stack(slot, int(structure.blueprint[row, slot])), kind).items()
    }
    if structure.operator[row, slot] == Operator.GATE:
        gate = getattr(shard.gate_stack(slot), kind)
        tensors |= {f"gate {name}": value[row].clone() for name, value in gate.items()}
    return tensors


def undone_by_batch_norm(name, blueprint, operator, stage, slot, kernel):
    """True for a parameter that only shifts channels by constants, which a 1x1 convolution and BatchNorm remove.

    In TRAINING the shadow pass uses the running statistics, and behind the last slot there is no BatchNorm.
    """
    shifts = {"norm": "norm.bias", "conv_small": "branch.1.bias", "conv_light": "branch.1.bias"}
    shift = f"seed {shifts.get(blueprint, 'branch.4.bias' if blueprint == 'conv_heavy' else 'none')}"
    exposed = kernel == 1 and operator == Operator.ADD and stage != Stage.TRAINING and slot < 2
    return exposed and name == shift


@EVERY_STAGE
@pytest.mark.parametrize("slot", [0, 1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_seed_parameter_has_gradient_within_three_steps_and_moves(make_population, grow, stage, slot, kernel):
    population = make_population(len(KINDS), batches=3, kernel=kernel, dtype=torch.float64)
    structure = grow(population, len(KINDS), *planted(stage, slot))
    shard = population.shards[0]
    before = [own_tensors(shard, structure, row, slot, "parameters") for row in range(len(KINDS))]
    population.train(structure)
    for row, kind in enumerate(KINDS):
        velocities = own_tensors(shard, structure, row, slot, "momentum")
        most = max(float(velocity.abs().max()) for velocity in velocities.values())
        for name, velocity in velocities.items():
            if undone_by_batch_norm(name, *kind, stage, slot, kernel):
                continue
            assert torch.isfinite(velocity).all(), (kind, name)
            assert velocity.abs().max() > 1e-9 * most, (kind, name)  # more than rounding
            assert (velocity != 0).double().mean() > 0.5, (kind, name)  # dead channels of the host are possible
    for _ in range(3):
        population.train(structure)
    for row, kind in enumerate(KINDS):
        for name, value in own_tensors(shard, structure, row, slot, "parameters").items():
            if not undone_by_batch_norm(name, *kind, stage, slot, kernel):
                assert (value != before[row][name]).double().mean() > 0.5, (kind, name)


@EVERY_STAGE
def test_every_host_layer_has_gradient_in_every_stage(make_population, grow, stage):
    population = make_population(len(KINDS), batches=1)
    structure = grow(population, len(KINDS), *planted(stage))
    population.train(structure)
    for name, velocity in population.shards[0].host.momentum.items():
        per_network = velocity.flatten(1).abs().amax(dim=1)
        assert (per_network > 0).all(), (name, [KINDS[row] for row in torch.nonzero(per_network == 0)])


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.HOLDING], ids=lambda stage: stage.name)
def test_frozen_seeds_stay_unchanged_and_pass_gradients(make_population, grow, stage):
    population = make_population(len(KINDS), batches=3)
    seeds = [(*seed[:5], 0.5, True) for seed in planted(stage)]
    structure = grow(population, len(KINDS), *seeds)
    shard = population.shards[0]
    before = [own_tensors(shard, structure, row, SLOT, "parameters") for row in range(len(KINDS))]
    below = shard.host.parameters["segments.0.0.weight"].clone()
    for _ in range(2):
        population.train(structure)
    for row, kind in enumerate(KINDS):
        for name, value in own_tensors(shard, structure, row, SLOT, "parameters").items():
            assert torch.equal(value, before[row][name]), (kind, name)
    assert (shard.host.parameters["segments.0.0.weight"] != below).flatten(1).any(dim=1).all()


def test_clear_momentum_clears_seed_and_gate(make_population, grow):
    """Otherwise momentum gathered while frozen would move the seed when it trains again."""
    seed = (0, SLOT, "conv_light", Operator.GATE, Stage.BLENDING, 0.5)
    population = make_population()
    frozen = grow(population, 1, (*seed, True))
    population.train(frozen)
    population.clear_momentum(frozen.blended, frozen.blueprint)
    for name, velocity in own_tensors(population.shards[0], frozen, 0, SLOT, "momentum").items():
        assert (velocity == 0).all(), name


@EVERY_STAGE
def test_loss_falls_if_only_the_seed_learns(make_population, build_host, grow, stripes, stage):
    settings = {"host_lr": 1e-12, "seed_lr": 0.1, "batches": 8, "dtype": torch.float64}
    population = make_population(len(KINDS), host=build_host(norm_momentum=0.5), **settings)
    population.reset(np.ones(len(KINDS), dtype=np.bool_), np.full(len(KINDS), 5))
    structure = grow(population, len(KINDS), *planted(stage))
    train = held_out_images(stripes.train_images, stripes.train_labels, stripes, torch.device("cpu"), torch.float64)
    on = ConfigurationSet.of(np.arange(len(KINDS)), np.full(len(KINDS), 1 << SLOT), population.slots)
    losses = []  # (epochs, networks); of a TRAINING seed, with the seed on
    for _ in range(20):
        loss = population.train(structure).loss
        losses.append(score(population.shards[0], structure, on, train).loss if stage is Stage.TRAINING else loss)
    gain = np.mean(losses[:4], axis=0) - np.mean(losses[-4:], axis=0)
    assert (gain > 0.005).all(), {kind: round(float(g), 4) for kind, g in zip(KINDS, gain, strict=True)}


def test_newborn_seeds_hardly_change_loss(make_population, grow):
    population = make_population(len(KINDS))
    structure = grow(population, len(KINDS), *planted(Stage.HOLDING))
    bare = grow(population, len(KINDS))
    everyone = np.ones(len(KINDS), dtype=np.bool_)
    with_seeds, without = population.measure(structure, everyone), population.measure(bare, everyone)
    np.testing.assert_allclose(with_seeds.loss, without.loss, atol=5e-3)


@pytest.mark.slow
def test_isolated_seeds_on_digits_do_not_lose_value_over_twenty_epochs(grow):
    """At the task's learning rates, blending a seed after 20 epochs is no worse than blending it at birth.

    Compares means over networks and the last epochs, because single contributions are noisy by some points.
    """
    per_kind = 3
    kinds = [kind for kind in KINDS for _ in range(per_kind)]
    population = build_population(make_task("Esper-Digits-v0", device="cpu"), len(kinds))
    everyone = np.ones(len(kinds), dtype=np.bool_)
    population.reset(everyone, np.arange(len(kinds)))
    seeds = [(row, row % 3, name, operator, Stage.TRAINING) for row, (name, operator) in enumerate(kinds)]
    structure = grow(population, len(kinds), *seeds)
    training = structure.training
    born = population.measure(structure, everyone).contribution[training]
    late = []
    for epoch in range(20):
        assert (population.train(structure).exploding == 0).all()
        if epoch >= 15:
            late.append(population.measure(structure, everyone).contribution[training])
    population.close()
    change = (np.mean(late, axis=0) - born).reshape(len(KINDS), per_kind).mean(axis=1)
    assert (change > -3).all(), dict(zip(KINDS, change.round(2).tolist(), strict=True))
    assert change.mean() > 1


def test_statistics_report_exploding_and_vanishing_gradients(make_population, grow):
    population = make_population(2, clip_norm=1e-5)  # any real gradient is more than ten times this
    seeds = [(0, 2, "conv_light", Operator.ADD, Stage.HOLDING), (1, 2, "norm", Operator.ADD, Stage.BLENDING, 0.0)]
    stats = population.train(grow(population, 2, *seeds))
    assert stats.exploding[0, 0] > 0.5
    assert stats.vanishing[0, 3] == 0
    assert stats.vanishing[1, 3] == 1  # at alpha 0 nothing reaches the seed
    assert (stats.vanishing[:, 1] == 0).all()
    assert (stats.sizes[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"host_lr": 0.0}, "`host_lr` is 0.0; expected a positive number"),
        ({"seed_lr": float("nan")}, "`seed_lr` is nan; expected a positive number"),
        ({"clip_norm": -1.0}, "`clip_norm` is -1.0; expected a positive number"),
        ({"momentum": 1.0}, r"`momentum` is 1.0; expected a number in \[0, 1\)"),
        ({"isolation": "none"}, "`isolation` is 'none'; expected one of"),
    ],
)
def test_optimisation_rejects_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        Optimisation(**{"host_lr": 0.1, "seed_lr": 0.1, **setting})
