"""One forked pass equals a separate pass for every configuration."""

from itertools import permutations

import numpy as np
import pytest
import torch
from esper_env.population import splits
from esper_env.population.evaluation.configurations import ConfigurationSet
from esper_env.population.evaluation.scoring import score
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from small_networks import WAYS, assert_same, everyone, host_tensors
from torch.nn import functional as F

pytestmark = pytest.mark.numeric

SEEDS = [
    (0, 0, "conv_light", Operator.ADD, Stage.BLENDING, 0.4),
    (0, 1, "norm", Operator.MULTIPLY, Stage.HOLDING),
    (0, 2, "conv_heavy", Operator.GATE, Stage.FOSSILIZED),
    (1, 0, "conv_light", Operator.ADD, Stage.TRAINING),
    (1, 1, "attention", Operator.GATE, Stage.BLENDING, 0.7),
    (1, 2, "bottleneck", Operator.ADD, Stage.TRAINING),
    (2, 1, "conv_small", Operator.ADD, Stage.FOSSILIZED),
]
NETWORKS = 4  # the last one has no seed


@pytest.fixture
def grown(make_population, grow):
    """Networks after some training, with seeds that make a difference."""

    def make(*, dtype=torch.float64, **way):
        population = make_population(NETWORKS, **way, dtype=dtype, seed_lr=0.3, host_lr=0.1)
        structure = grow(population, NETWORKS, *SEEDS)
        for _ in range(4):
            population.train(structure)
        return population, structure

    return make


@pytest.fixture
def naive(twin, stripes):
    """``naive(population, structure, row, {slot: alpha}, split)``: loss and accuracy from a separate pass."""

    def evaluate_one(population, structure, row, on, split="val"):
        network = twin(population, row, structure).eval()
        pixels = getattr(stripes, f"{split}_images").astype(np.float64)
        mean, std = (np.asarray(values)[:, None, None] for values in (stripes.mean, stripes.std))
        x = torch.from_numpy((pixels / 255 - mean) / std).to(next(network.parameters()).dtype)
        labels = torch.from_numpy(getattr(stripes, f"{split}_labels").copy())
        with torch.no_grad():
            logits = network.logits(x, on)
        per_sample = F.cross_entropy(logits, labels, reduction="none").double()
        return float(per_sample.sum()) / len(labels), 100 * float((logits.argmax(1) == labels).double().mean())

    return evaluate_one


def alphas(structure, row, mask):
    """{slot: alpha} of the slots in a mask; the slots of this host execute in action order."""
    on = [slot for slot in range(3) if mask >> slot & 1]
    return {slot: 1.0 if structure.training[row, slot] else float(structure.alpha[row, slot]) for slot in on}


def possible_masks(structure, row):
    held = sum(1 << slot for slot in range(3) if (structure.blended | structure.training)[row, slot])
    return [mask for mask in range(8) if mask & ~held == 0]


@WAYS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_every_configuration_equals_separate_pass(grown, naive, way, dtype):
    """In float32, an image whose two largest logits nearly tie may change class."""
    population, structure = grown(dtype=dtype, **way)
    together = len(population.shards) == 1
    exact, one_image = dtype is torch.float64, 100 / population._splits.validation.predictions
    for index, shard in enumerate(population.shards):
        rows = range(NETWORKS) if together else [index]
        pairs = [(row, mask) for row in rows for mask in possible_masks(structure, row)]
        local = [row if together else 0 for row, _ in pairs]
        own = structure if together else structure.rows(slice(index, index + 1))
        configurations = ConfigurationSet.of(np.array(local), np.array([mask for _, mask in pairs]), 3)
        result = score(shard, own, configurations, population._splits.validation, np.arange(len(pairs)))
        for at, (row, mask) in enumerate(pairs):
            loss, accuracy = naive(population, structure, row, alphas(structure, row, mask))
            assert result.loss[at] == pytest.approx(loss, abs=1e-9 if exact else 1e-5)
            assert result.accuracy[at] == pytest.approx(accuracy, abs=1e-9 if exact else 1.5 * one_image)


@pytest.mark.parametrize("choice", range(4))
def test_any_subset_of_configurations_equals_separate_passes(grown, naive, choice):
    """Including {only the first seed, only the second}, where no configuration extends another."""
    population, structure = grown(batched=True)
    rng = np.random.default_rng(choice)
    everything = [(row, mask) for row in range(NETWORKS) for mask in possible_masks(structure, row)]
    chosen = [(0, 0b01), (0, 0b10)]
    if choice:
        chosen = [everything[k] for k in rng.choice(len(everything), size=rng.integers(1, 9), replace=False)]
    configurations = ConfigurationSet.of(*(np.array(column) for column in zip(*chosen, strict=True)), 3)
    result = score(
        population.shards[0], structure, configurations, population._splits.validation, np.arange(len(chosen))
    )
    for row, mask in chosen:
        at = int(configurations.find(np.array([row]), np.array([mask]))[0])
        loss, accuracy = naive(population, structure, row, alphas(structure, row, mask))
        assert result.loss[at] == pytest.approx(loss, abs=1e-9)
        assert result.accuracy[at] == pytest.approx(accuracy, abs=1e-9)


@WAYS
def test_measurements_equal_naive_differences(grown, naive, way):
    population, structure = grown(**way)
    before = host_tensors(population)
    measured = population.measure(structure, everyone(NETWORKS))
    assert_same(host_tensors(population), before)
    for row in range(NETWORKS):
        blended = {slot for slot in range(3) if structure.blended[row, slot]}
        training = {slot for slot in range(3) if structure.training[row, slot]}

        def value(slots, row=row):
            return naive(population, structure, row, alphas(structure, row, sum(1 << slot for slot in slots)))

        main_loss, main = value(blended)
        assert measured.loss[row] == pytest.approx(main_loss, abs=1e-9)
        assert measured.accuracy[row] == pytest.approx(main, abs=1e-9)
        for slot in range(3):
            expected = 0.0
            if slot in blended:
                expected = main - value(blended - {slot})[1]
            if slot in training:
                expected = value(blended | {slot})[1] - main
            assert measured.measured[row, slot] == (slot in blended | training)
            assert measured.contribution[row, slot] == pytest.approx(expected, abs=1e-9)
        for i in range(3):
            for j in range(3):
                both = i != j and {i, j} <= blended
                expected = value({i, j})[1] - value({i})[1] - value({j})[1] + value(set())[1] if both else 0.0
                assert measured.interaction_measured[row, i, j] == both
                assert measured.interaction[row, i, j] == pytest.approx(expected, abs=1e-9)
    assert np.abs(measured.contribution[measured.measured]).max() > 1  # the numbers above are not all zero
    assert np.abs(measured.interaction).max() > 1


@WAYS
def test_committed_networks_have_fossilized_seeds_only(grown, naive, way):
    population, structure = grown(**way)
    rows = np.array([0, 2, 3])
    result = population.appraise(structure, rows)
    for at, row in enumerate(rows):
        players = [slot for slot in range(3) if structure.fossilized[row, slot]]
        on = dict.fromkeys(players, 1.0)
        assert result.val_accuracy[at] == pytest.approx(naive(population, structure, row, on)[1], abs=1e-9)
        assert result.test_accuracy[at] == pytest.approx(naive(population, structure, row, on, "test")[1], abs=1e-9)
        shapley = np.zeros(3)
        for order in permutations(players):
            for end, player in enumerate(order, start=1):
                after, before = (dict.fromkeys(order[:k], 1.0) for k in (end, end - 1))
                gain = naive(population, structure, row, after)[1] - naive(population, structure, row, before)[1]
                shapley[player] += gain / len(list(permutations(players)))
        np.testing.assert_allclose(result.shapley[at], shapley, atol=1e-9)


@pytest.mark.parametrize("surfaces", ["post", "both"])
def test_measurements_and_statistics_are_in_action_order(make_population, build_host, grow, surfaces):
    """With both surfaces a seed in the fourth action slot is the second to run."""
    population = make_population(host=build_host(surfaces=surfaces), seed_lr=0.3)
    slot = 3 if surfaces == "both" else 1
    structure = grow(population, 1, (0, slot, "conv_light", Operator.ADD, Stage.HOLDING))
    for _ in range(3):
        stats = population.train(structure)
    measured = population.measure(structure, everyone(1))
    assert np.flatnonzero(measured.measured[0]).tolist() == [slot]
    assert np.flatnonzero(stats.sizes[0, 1:]).tolist() == [slot]


def test_measure_leaves_out_other_networks(grown):
    population, structure = grown(batched=True)
    every = population.measure(structure, everyone(NETWORKS))
    one = population.measure(structure, np.array([False, True, False, False]))
    assert not one.measured[[0, 2, 3]].any()
    assert not one.interaction_measured[[0, 2, 3]].any()
    np.testing.assert_allclose(one.contribution[1], every.contribution[1])
    np.testing.assert_allclose(one.loss[1], every.loss[1])
    apart, structure = grown(batched=False)
    nobody = apart.measure(structure, np.zeros(NETWORKS, dtype=np.bool_))
    assert not nobody.measured.any()


def test_measure_leaves_out_waiting_seeds_and_alpha_zero(make_population, grow):
    population = make_population()
    waiting = (0, 0, "norm", Operator.ADD, Stage.GERMINATED)
    silent = (0, 1, "conv_light", Operator.ADD, Stage.BLENDING, 0.0)
    structure = grow(population, 1, waiting, silent, (0, 2, "norm", Operator.ADD, Stage.HOLDING))
    measured = population.measure(structure, everyone(1))
    assert measured.measured.tolist() == [[False, False, True]]
    assert not measured.interaction_measured.any()


def test_scores_and_requested_losses_do_not_depend_on_chunk_and_block_size(grown, monkeypatch):
    population, structure = grown(batched=True)
    images, shard = population._splits.validation, population.shards[0]
    configurations = ConfigurationSet.of(np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 7, 3, 7, 0, 2, 0]), 3)
    whole = score(shard, structure, configurations, images, np.arange(7))
    # 60 images in chunks of 7, and a row at a time
    monkeypatch.setattr(splits, "CPU_GRAIN", splits.Grain(chunk=7 * 64 * NETWORKS, block=1))
    assert [len(labels) for _, labels in images.chunks(shard)] == [7] * 8 + [4]
    parts = score(shard, structure, configurations, images, np.array([5, 1]))
    requested = np.isin(np.arange(7), (1, 5))
    assert (np.isnan(parts.loss) == ~requested).all()
    np.testing.assert_allclose(parts.loss[requested], whole.loss[requested], atol=1e-12)
    np.testing.assert_allclose(parts.accuracy, whole.accuracy, atol=1e-12)
