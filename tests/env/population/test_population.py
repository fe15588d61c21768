"""Networks of a population are independent of each other, of the layout, and of global state."""

import gc
import time

import numpy as np
import pytest
import torch
from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from small_networks import LAYOUTS, assert_same, attach_seed, everyone, network_tensors, reset_row

pytestmark = pytest.mark.numeric

BLUEPRINTS = [entry.name for entry in offered_blueprints("cnn")]
STAGES = [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]


def random_seeds(rng, rows):
    """Seeds of any kind in about two thirds of the slots; some are frozen."""
    seeds = []
    for row in rows:
        for slot in range(3):
            if rng.random() < 0.65:
                stage = STAGES[rng.integers(len(STAGES))]
                alpha = float(rng.random()) if stage == Stage.BLENDING else 1.0
                frozen = bool(stage == Stage.BLENDING and rng.random() < 0.3)
                name = BLUEPRINTS[rng.integers(len(BLUEPRINTS))]
                seeds.append((row, slot, name, Operator(rng.integers(3)), stage, alpha, frozen))
    return seeds


@pytest.mark.parametrize("choice", range(3))
def test_networks_are_equal_for_every_shard_size_and_layout(make_population, grow, choice):
    count, rng = 7, np.random.default_rng(choice)
    seeds = random_seeds(rng, range(count))
    layouts = [(7, True), (3, True), (1, True), (1, False)]
    results = []
    for shard_size, batched in layouts:
        population = make_population(count, shard_size=shard_size, batched=batched, dtype=torch.float64, kernel=3)
        structure = grow(population, count, *seeds)
        losses = [population.train(structure).loss for _ in range(4)]
        measured = population.measure(structure, everyone(count))
        committed = population.appraise(structure, np.arange(count))
        added = population.parameters_added(structure, structure.blueprint != NO_BLUEPRINT)
        networks = [network_tensors(population, structure, row) for row in range(count)]
        results.append((losses, measured, committed, added, networks))
    for losses, measured, committed, added, networks in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], atol=1e-6)
        for mine, first in zip((*measured, *committed), (*results[0][1], *results[0][2]), strict=True):
            np.testing.assert_allclose(mine, first, atol=1e-6)
        assert (added == results[0][3]).all()
        for mine, first in zip(networks, results[0][4], strict=True):
            assert_same(mine, first, tolerance=1e-6)


@pytest.mark.slow
def test_mean_accuracy_is_equal_for_every_shard_size(make_population, grow, make_data):
    """After 72 minibatches in float32, rounding changes the class of single images, in either direction.

    The bound allows one of the 400 images to change in every network, all in the same direction.
    """
    count, images = 48, 400
    data = make_data(train=200, val=images)
    seeds, measured = random_seeds(np.random.default_rng(0), range(count)), []
    for shard_size in (1, count):
        population = make_population(count, shard_size=shard_size, data=data, batches=6)
        structure = grow(population, count, *seeds)
        for _ in range(12):
            population.train(structure)
        measured.append(population.measure(structure, everyone(count)))
    assert measured[0].accuracy.mean() > 70  # of 25 by chance: there is something to compare
    assert abs(np.mean(measured[0].accuracy - measured[1].accuracy)) < 100 / images
    assert abs(np.mean(measured[0].loss - measured[1].loss)) < 1e-3
    assert np.abs(measured[0].contribution - measured[1].contribution).mean() < 100 / images


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("choice", range(3))
def test_network_trains_equally_beside_any_neighbours(make_population, grow, place, choice):
    """Up to rounding, because the tail of a vectorised loop may round differently."""
    count = 4
    own = random_seeds(np.random.default_rng(50 + choice), [place])
    others = [row for row in range(count) if row != place]
    seen = []
    for neighbours in ([], random_seeds(np.random.default_rng(60 + choice), others)):
        population = make_population(count, dtype=torch.float64)
        structure = grow(population, count, *own, *neighbours)
        losses = [population.train(structure).loss[place] for _ in range(3)]
        numbers = [*losses, *(field[place].sum() for field in population.measure(structure, everyone(count)))]
        seen.append((network_tensors(population, structure, place), numbers))
    assert_same(seen[0][0], seen[1][0], tolerance=1e-9)
    assert seen[0][1] == pytest.approx(seen[1][1], abs=1e-9)


@pytest.mark.parametrize("choice", range(3))
def test_network_trains_equally_beside_neighbour_that_changes_every_epoch(make_population, grow, choice):
    steady = (0, 1, "conv_light", Operator.GATE, Stage.BLENDING, 0.5)
    seen = []
    for restless in (False, True):
        rng = np.random.default_rng(choice)
        population = make_population(2, kernel=3, dtype=torch.float64)
        first = grow(population, 2, steady)
        for _ in range(4):
            if restless:
                seeds = random_seeds(rng, [1])
                grow(population, 2, *seeds)  # newborn each time
                structure = grow(population, 2, steady, *seeds, attach=False)
            population.train(structure if restless else first)
        seen.append(network_tensors(population, first, 0))
    assert_same(*seen, tolerance=1e-9)


def test_statistics_show_broken_network(make_population, grow):
    population = make_population(2)
    for value in population.shards[0].host.parameters.values():
        value[1] = torch.nan
    structure = grow(population, 2, (1, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.5))
    stats = population.train(structure)
    loss = population.measure(structure, everyone(2)).loss
    assert np.isnan([stats.loss, loss]).tolist() == [[False, True]] * 2
    assert stats.exploding[:, 0].tolist() == [0, 1]


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


def test_newborn_seeds_differ_and_have_zero_momentum(make_population, grow):
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
    structure = grow(population, 2, (0, 1, "conv_light", Operator.ADD, Stage.HOLDING), attach=False)
    population.train(structure)
    attach_seed(population, 0, 1, value)
    assert (shard.seed_stack(1, value).momentum["branch.0.weight"][0] == 0).all()


def test_results_are_reproducible_with_any_number_of_worker_threads(make_population, grow, use_threads):
    count = 5
    seeds = random_seeds(np.random.default_rng(4), range(count))
    seen = []
    for threads in (1, 3):
        use_threads(threads)
        population = make_population(count, shard_size=2)
        assert (population._pool is None) == (threads == 1)
        structure = grow(population, count, *seeds)
        losses = [population.train(structure).loss.tolist() for _ in range(3)]
        measured = population.measure(structure, everyone(count))
        committed = population.appraise(structure, np.array([0, 3, 4]))
        tensors = [network_tensors(population, structure, row) for row in range(count)]
        seen.append((losses, [field.tolist() for field in (*measured, *committed)], tensors))
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] == seen[1][1]
    for left, right in zip(seen[0][2], seen[1][2], strict=True):
        assert_same(left, right)


def test_train_raises_error_of_worker(make_population, grow, use_threads):
    use_threads(2)
    population = make_population(2, shard_size=1)
    structure = grow(population, 2)
    structure.blended[1, 0] = True  # no seed is attached there
    with pytest.raises(ValueError, match="blueprint 13 does not fit"):
        population.train(structure)


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


def test_closed_population_trains_without_threads(make_population, grow, use_threads):
    use_threads(2)
    population = make_population(2, shard_size=1)
    population.close()
    population.close()
    assert np.isfinite(population.train(grow(population, 2)).loss).all()


@LAYOUTS
def test_global_generators_stay_unchanged(make_population, grow, batched):
    torch_state, numpy_state = torch.default_generator.get_state(), np.random.get_state()  # noqa: NPY002
    population = make_population(2, batched=batched)
    structure = grow(population, 2, (0, 0, "conv_heavy", Operator.GATE, Stage.TRAINING))
    population.train(structure)
    population.measure(structure, everyone(2))
    population.appraise(structure, np.arange(2))
    reset_row(population, 1, 5)
    assert torch.equal(torch.default_generator.get_state(), torch_state)
    after = np.random.get_state()  # noqa: NPY002
    assert after[0] == numpy_state[0]
    assert (after[1] == numpy_state[1]).all()
    assert after[2:] == numpy_state[2:]


def test_networks_do_not_depend_on_global_generator(make_population, grow):
    seen = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            population = make_population(1)
            structure = grow(population, 1, (0, 1, "conv_light", Operator.GATE, Stage.TRAINING))
            population.train(structure)
            seen.append(network_tensors(population, structure, 0))
    assert_same(*seen)


CALLERS_MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", CALLERS_MODES.values(), ids=CALLERS_MODES)
@LAYOUTS
def test_networks_train_equally_inside_callers_mode(make_population, grow, mode, batched):
    seed = (0, 1, "conv_light", Operator.GATE, Stage.HOLDING)
    outside = make_population(batched=batched)
    structure = grow(outside, 1, seed)
    outside.train(structure)
    with mode():
        inside = make_population(batched=batched)
        grow(inside, 1, seed)
        inside.train(structure)
    for population in (outside, inside):
        population.measure(structure, everyone(1))
        population.train(structure)
    assert_same(network_tensors(outside, structure, 0), network_tensors(inside, structure, 0))


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


@LAYOUTS
def test_epochs_leak_no_tensors(make_population, grow, batched):
    population = make_population(batched=batched, batches=1, batch_size=4)

    def epochs(count):
        for index in range(count):
            reset_row(population, 0, index)
            stage = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)[index % 3]
            structure = grow(population, 1, (0, index % 3, "conv_light", Operator(index % 3), stage))
            population.train(structure)
            if index % 10 == 0:
                population.measure(structure, everyone(1))
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    after_some = epochs(30)
    assert epochs(120) <= after_some


def test_population_rejects_shard_size_below_one(make_population):
    with pytest.raises(ValueError, match="shard_size is -1; expected 1 or more, or 'auto'"):
        make_population(2, shard_size=-1)


def test_population_rejects_single_layout_for_two_networks(make_population):
    with pytest.raises(ValueError, match="shard size is 2; the layout of a single network expects 1"):
        make_population(2, shard_size=2, batched=False)
