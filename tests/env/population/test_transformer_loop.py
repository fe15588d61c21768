"""A population trains and measures each Transformer exactly as ordinary PyTorch does."""

import numpy as np
import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from plain_transformer import BATCH, BATCHES, CONTEXT, PlainTransformer, made_text, small_transformer, text_batches
from small_networks import LAYOUTS, everyone

pytestmark = pytest.mark.numeric

FIRST_SEED = 100
ENTRIES = offered_blueprints("transformer")
TEXT = made_text()


@pytest.fixture
def networks(make_population):
    def make(count=1, **options):
        wanted = {"host": small_transformer(), "data": TEXT, "batch_size": BATCH, "batches": BATCHES} | options
        return make_population(count, **wanted)

    return make


@pytest.fixture
def agree(networks, grow):
    """Train networks both ways and compare every tensor and the loss."""

    def check(*seeds, count=1, batched=True, dtype=torch.float64):
        population = networks(count, batched=batched, dtype=dtype)
        structure = grow(population, count, *seeds)
        plain = [PlainTransformer(population, row, structure) for row in range(count)]
        batches = [text_batches(TEXT, FIRST_SEED + row) for row in range(count)]
        before = [{name: own.detach().clone() for name, own, _ in network.pairs()} for network in plain]
        tolerance = 1e-9 if dtype is torch.float64 else 1e-4  # after one epoch
        stats = population.train(structure)
        for row, (network, draw) in enumerate(zip(plain, batches, strict=True)):
            assert stats.loss[row] == pytest.approx(network.train_epoch(draw()), abs=tolerance)
            assert network.distance() < tolerance
            still = [name for name, own, _ in network.pairs() if torch.equal(own, before[row][name])]
            assert still == []

    return check


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_host_without_seeds_trains_like_plain_module(agree, batched, dtype):
    agree(batched=batched, dtype=dtype)


@LAYOUTS
@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.TRAINING], ids=lambda stage: stage.name)
@pytest.mark.parametrize("operator", Operator, ids=lambda operator: operator.name)
def test_blueprints_train_like_plain_modules(agree, batched, stage, operator):
    seeds = [(row, 0, entry.name, operator, stage, 0.4) for row, entry in enumerate(ENTRIES)]
    agree(*seeds, count=len(ENTRIES), batched=batched)


@LAYOUTS
def test_measurements_equal_those_of_plain_network(networks, grow, batched):
    """Loss in nats per byte and the share of bytes predicted correctly, with and without each seed."""
    count = 3 if batched else 1
    population = networks(count, batched=batched, dtype=torch.float64)
    seeds = [
        (row, slot, name, operator, Stage.BLENDING, 0.6)
        for row, (first, second) in enumerate([("mlp", "norm"), ("lora_large", "attention"), ("norm", "mlp")][:count])
        for slot, name, operator in ((0, first, Operator.ADD), (1, second, Operator.GATE))
    ]
    structure = grow(population, count, *seeds)
    for _ in range(3):
        population.train(structure)
    measured = population.measure(structure, everyone(count))
    windows = (len(TEXT.val) - 1) // CONTEXT
    tokens = torch.from_numpy(TEXT.val[: windows * CONTEXT].astype(np.int64)).view(windows, CONTEXT)
    following = torch.from_numpy(TEXT.val[1 : windows * CONTEXT + 1].astype(np.int64)).view(windows, CONTEXT)
    for row in range(count):
        plain = PlainTransformer(population, row, structure)
        with torch.no_grad():
            found = {}
            for on in ({0: 0.6, 1: 0.6}, {0: 0.6}, {1: 0.6}, {}):
                logits = plain.logits(tokens, on)
                found[tuple(on)] = 100.0 * float((logits.argmax(2) == following).double().mean())
            whole = plain.logits(tokens, {0: 0.6, 1: 0.6})
        loss = float(plain.loss(whole, following))
        assert measured.loss[row] == pytest.approx(loss, abs=1e-9)
        assert measured.accuracy[row] == pytest.approx(found[0, 1], abs=1e-9)
        assert measured.contribution[row] == pytest.approx([found[0, 1] - found[1,], found[0, 1] - found[0,]], abs=1e-9)
        both = found[0, 1] - found[0,] - found[1,] + found[()]
        assert measured.interaction[row, 0, 1] == pytest.approx(both, abs=1e-9)
