"""Networks of a population: their resets and births, worker threads, and counts of parameters."""

import time

import numpy as np
import pytest
import torch
from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from small_networks import assert_same, attach_seed, everyone, network_tensors, reset_row

pytestmark = pytest.mark.numeric

SEEDS = [
    (0, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.3),
    (0, 2, "norm", Operator.ADD, Stage.TRAINING),
    (1, 1, "attention", Operator.MULTIPLY, Stage.FOSSILIZED),
    (3, 1, "bottleneck", Operator.ADD, Stage.BLENDING, 0.8, True),
    (4, 0, "depthwise", Operator.GATE, Stage.TRAINING),
]


def test_network_depends_on_its_seed_and_not_on_its_row(make_population, grow):
    """Network 2 of a population from seed 100 is network 0 of one from seed 102."""
    many, single = make_population(4), make_population(1, first_seed=102)
    seed = (0, "conv_light", Operator.GATE, Stage.HOLDING)
    structure, alone = grow(many, 4, (2, *seed)), grow(single, 1, (0, *seed))
    assert_same(network_tensors(single, alone, 0), network_tensors(many, structure, 2))
    weights = many.shards[0].host.parameters["segments.0.0.weight"]
    assert not torch.equal(weights[0], weights[1])


def test_reset_restarts_one_network_and_keeps_the_others(make_population, grow):
    seeds = [(row, 1, "conv_light", Operator.GATE, Stage.HOLDING) for row in range(3)]
    population, fresh = make_population(3), make_population(3)
    structure = grow(population, 3, *seeds)
    for _ in range(2):
        population.train(structure)
    before = [network_tensors(population, structure, row) for row in range(3)]
    reset_row(population, 1, 101)
    attach_seed(population, 1, 1, int(structure.blueprint[1, 1]))
    grow(fresh, 3, *seeds)
    assert_same(network_tensors(population, structure, 1), network_tensors(fresh, structure, 1))
    for row in (0, 2):
        assert_same(network_tensors(population, structure, row), before[row])
    population.train(structure)
    fresh.train(structure)
    assert_same(network_tensors(population, structure, 1), network_tensors(fresh, structure, 1))
    value, births = int(structure.blueprint[0, 1]), []
    for each in (population, fresh):
        attach_seed(each, 0, 1, value)  # the second birth in this slot
        births.append(each.shards[0].seed_stack(1, value).parameters["branch.0.weight"][0])
    assert torch.equal(*births)


def test_newborn_seeds_differ_and_have_zero_momentum(make_population):
    """By birth in the same slot, and by network."""
    population = make_population(2)
    shard = population.shards[0]
    value = {entry.name: entry.value for entry in offered_blueprints("cnn")}["conv_light"]
    births = []
    for row, slot in [(0, 1), (0, 1), (1, 1)]:
        attach_seed(population, row, slot, value)
        stack = shard.seed_stack(slot, value)
        births.append(stack.parameters["branch.0.weight"][row].clone())
        assert all((velocity[row] == 0).all() for velocity in stack.momentum.values())
    assert len({tuple(weights.flatten().tolist()) for weights in births}) == 3


def test_results_are_reproducible_with_any_number_of_worker_threads(make_population, grow, use_threads):
    count, seen = 5, []
    for threads in (1, 3):
        use_threads(threads)
        population = make_population(count, shard_size=2)
        assert population._lanes == threads
        structure = grow(population, count, *SEEDS)
        losses = [population.train(structure).loss.tolist() for _ in range(3)]
        measured = population.measure(structure, everyone(count))
        committed = population.appraise(structure, np.array([0, 3, 4]))
        tensors = [network_tensors(population, structure, row) for row in range(count)]
        seen.append((losses, [field.tolist() for field in (*measured, *committed)], tensors))
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] == seen[1][1]
    for left, right in zip(seen[0][2], seen[1][2], strict=True):
        assert_same(left, right)


def test_train_waits_for_all_shards_before_it_raises(make_population, grow, use_threads, monkeypatch):
    """Otherwise a late result would overwrite what the caller does next, such as a reset."""
    use_threads(2)
    population = make_population(2, shard_size=1)
    structure, done = grow(population, 2), []
    fast, slow = population._trainers

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(fast, "run", fail)
    monkeypatch.setattr(slow, "run", lambda *_: (time.sleep(0.3), done.append(True)))
    with pytest.raises(MemoryError):
        population.train(structure)
    assert done


def test_parameters_added_counts_seeds_and_gates_in_use(make_population, grow):
    population = make_population(3)
    structure = grow(
        population,
        3,
        (0, 0, "conv_light", Operator.ADD, Stage.TRAINING),  # C = 4
        (0, 1, "norm", Operator.MULTIPLY, Stage.FOSSILIZED),  # C = 8
        (1, 0, "conv_light", Operator.GATE, Stage.HOLDING),
        (1, 2, "conv_small", Operator.ADD, Stage.GERMINATED),  # C = 16
    )
    conv_light, norm, conv_small = 9 * 16 + 3 * 4, 3 * 8, 16 * 16 + 3 * 16
    gate = (4 * 1 + 1) + (1 + 1)
    assert population.parameters_added(structure, structure.blueprint != NO_BLUEPRINT).tolist() == [
        conv_light + norm,
        conv_light + gate + conv_small,
        0,
    ]
    assert population.parameters_added(structure, structure.fossilized).tolist() == [norm, 0, 0]
