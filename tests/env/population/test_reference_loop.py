"""A population trains each network exactly as an ordinary PyTorch loop does."""

import pytest
import torch
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from small_networks import WAYS

pytestmark = pytest.mark.numeric

SEED = 100
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of float32 after one epoch of four minibatches
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@pytest.fixture
def agree(make_population, build_host, grow, twin, batches_of):
    """Train a network both ways and compare every tensor and the loss."""

    def check(*seeds, dtype, epochs, kernel=1, surfaces="post", **settings):
        host = build_host(kernel, surfaces=surfaces)
        population = make_population(dtype=dtype, host=host, **settings)
        structure = grow(population, 1, *[(0, *seed) for seed in seeds])
        plain, batches = twin(population, 0, structure), batches_of(SEED, dtype)
        before = {name: own.clone() for name, own, _ in plain.pairs()}
        for _ in range(epochs):
            stats = population.train(structure)
            loss = plain.train_epoch(batches())
            assert stats.loss[0] == pytest.approx(loss, abs=TOLERANCE[dtype])
        assert plain.distance() < TOLERANCE[dtype], plain.distances()
        moved = {name: not torch.equal(own, before[name]) for name, own, _ in plain.pairs()}
        frozen = {f"seed {seed[0]} " for seed in seeds if len(seed) > 5 and seed[5]}
        for name, has_moved in moved.items():
            if any(name.startswith(prefix) for prefix in frozen):
                assert not has_moved, name
            elif not (name.startswith("seed") and name.endswith("bias")):
                assert has_moved, name  # BatchNorm behind a seed's bias leaves it no gradient but rounding

    return check


@WAYS
@BOTH_DTYPES
@pytest.mark.parametrize("kernel", [1, 3])
def test_host_without_seeds_trains_like_plain_module(agree, way, dtype, kernel):
    agree(**way, dtype=dtype, kernel=kernel, epochs=3 if dtype is torch.float64 else 1)


@WAYS
@BOTH_DTYPES
@pytest.mark.parametrize("operator", Operator)
def test_blended_seeds_train_like_plain_modules(agree, way, dtype, operator):
    agree(
        (0, "conv_light", operator, Stage.BLENDING, 0.4),
        (2, "norm", operator, Stage.FOSSILIZED),
        **way,
        dtype=dtype,
        epochs=3 if dtype is torch.float64 else 1,
    )


@WAYS
@BOTH_DTYPES
@pytest.mark.parametrize("operator", Operator)
def test_isolated_seed_trains_like_plain_module(agree, way, dtype, operator):
    agree(
        (1, "bottleneck", operator, Stage.TRAINING),
        **way,
        dtype=dtype,
        epochs=3 if dtype is torch.float64 else 1,
    )


@WAYS
@pytest.mark.parametrize("entry", offered_blueprints("cnn"), ids=lambda entry: entry.name)
def test_blueprint_trains_like_plain_module(agree, way, entry):
    agree((0, entry.name, Operator.ADD, Stage.HOLDING), **way, dtype=torch.float64, epochs=1)


SITUATIONS = {
    "isolated seeds around a blended one": [
        (0, "depthwise", Operator.MULTIPLY, Stage.TRAINING),
        (1, "conv_light", Operator.GATE, Stage.BLENDING, 0.6),
        (2, "attention", Operator.GATE, Stage.TRAINING),
    ],
    "slots run as 0, 3, 1, 4, 2, 5": [
        (0, "conv_small", Operator.ADD, Stage.HOLDING),
        (1, "depthwise", Operator.ADD, Stage.TRAINING),
        (3, "conv_light", Operator.GATE, Stage.TRAINING),
        (4, "norm", Operator.MULTIPLY, Stage.BLENDING, 0.6),
    ],
    "frozen seed": [
        (1, "conv_heavy", Operator.ADD, Stage.BLENDING, 0.7, True),
        (2, "conv_small", Operator.ADD, Stage.TRAINING),
    ],
    "every gradient is clipped": [
        (0, "conv_light", Operator.GATE, Stage.BLENDING, 0.5),
        (2, "norm", Operator.ADD, Stage.TRAINING),
    ],
}
OPTIONS = {"slots run as 0, 3, 1, 4, 2, 5": {"surfaces": "both"}, "every gradient is clipped": {"clip_norm": 1e-3}}


@WAYS
@pytest.mark.parametrize("name", SITUATIONS)
def test_network_in_any_situation_trains_like_plain_module(agree, way, name):
    agree(*SITUATIONS[name], **way, dtype=torch.float64, epochs=2, **OPTIONS.get(name, {}))


def test_networks_with_different_seeds_in_one_shard(make_population, grow, twin, batches_of):
    population = make_population(4, dtype=torch.float64)
    structure = grow(
        population,
        4,
        (0, 0, "conv_light", Operator.ADD, Stage.BLENDING, 0.3),
        (0, 2, "norm", Operator.ADD, Stage.TRAINING),
        (1, 1, "norm", Operator.GATE, Stage.TRAINING),
        (2, 0, "conv_light", Operator.ADD, Stage.TRAINING),
        (2, 1, "norm", Operator.GATE, Stage.BLENDING, 0.9),
        (2, 2, "norm", Operator.ADD, Stage.HOLDING),
    )
    plain = [twin(population, row, structure) for row in range(4)]
    batches = [batches_of(SEED + row, torch.float64) for row in range(4)]
    for _ in range(3):
        stats = population.train(structure)
        losses = [network.train_epoch(draw()) for network, draw in zip(plain, batches, strict=True)]
        torch.testing.assert_close(torch.from_numpy(stats.loss), torch.tensor(losses, dtype=torch.float64))
    for network in plain:
        assert network.distance() < 1e-9, network.distances()


def test_gradient_statistics_equal_those_of_plain_gradients(make_population, grow, twin, batches_of):
    population = make_population(dtype=torch.float64, clip_norm=1e9)
    structure = grow(population, 1, (0, 1, "conv_light", Operator.GATE, Stage.HOLDING))
    plain, batches = twin(population, 0, structure), batches_of(SEED, torch.float64)
    stats = population.train(structure)
    units = {0: plain.host_parameters(), 2: plain.seed_parameters(1)}
    norms = {unit: [] for unit in units}
    for batch in batches():
        plain.train_epoch([batch])
        for unit, parameters in units.items():
            norms[unit].append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
    for unit, parameters in units.items():
        assert stats.gradient_norm[0, unit] == pytest.approx(sum(norms[unit]) / len(norms[unit]), rel=1e-9)
        assert stats.sizes[0, unit] == sum(p.numel() for p in parameters)
    assert stats.sizes[0, 1] == stats.sizes[0, 3] == 0
    assert (stats.gradient_norm[0, [1, 3]] == 0).all()
