"""Compiled programs compute what PyTorch computes, and each network is independent of the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from custom_hosts import Images, blobs
from esper_env.hosts import SlotSpec
from esper_env.population.engines import fused_shard
from esper_env.population.fused.compiler import Mode, NotCompilableError, Program, Tensors
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from esper_env.seeds import offered_blueprints
from esper_env.seeds.cnn import LayerScaleResidual
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_networks import all_tensors, assert_same, everyone, host_tensors, network_tensors
from torch import nn

pytest.importorskip("numba")
running = pytest.importorskip("esper_env.population.fused.running")
FusedShard = pytest.importorskip("esper_env.population.fused.shard").FusedShard

pytestmark = pytest.mark.numeric

BLUEPRINTS = [entry.name for entry in offered_blueprints("cnn")]
STAGES = (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)
SEED = st.tuples(st.sampled_from(BLUEPRINTS), st.sampled_from(list(Operator)), st.sampled_from(STAGES), st.floats(0, 1))
NETWORK = st.fixed_dictionaries({}, optional=dict.fromkeys(range(3), SEED))


def both(make_population, count, **options):
    """The same networks, run by PyTorch and by compiled programs."""
    return [make_population(count, engine=engine, **options) for engine in ("torch", "fused")]


def seeds_of(networks):
    """Arguments of ``grow``."""
    return [
        (row, slot, name, operator, stage, alpha if stage == Stage.BLENDING else 1.0)
        for row, seeds in enumerate(networks)
        for slot, (name, operator, stage, alpha) in seeds.items()
    ]


def assert_equal_statistics(left, right, tolerance):
    for name in ("loss", "gradient_norm", "vanishing", "exploding", "sizes"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(left.finite, right.finite)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks=st.lists(NETWORK, min_size=1, max_size=3), isolation=st.sampled_from(["shadow", "straight_through"]))
def test_networks_train_and_measure_as_with_pytorch(make_population, grow, networks, isolation):
    """In float64, after an epoch of four minibatches."""
    torch_engine, fused = both(make_population, len(networks), dtype=torch.float64, isolation=isolation)
    structure = grow(torch_engine, len(networks), *seeds_of(networks))
    grow(fused, len(networks), *seeds_of(networks))
    assert_equal_statistics(torch_engine.train(structure), fused.train(structure), 1e-9)
    assert_same(all_tensors(torch_engine), all_tensors(fused), 1e-9)
    left, right = (one.measure(structure, everyone(len(networks))) for one in (torch_engine, fused))
    np.testing.assert_allclose(left.loss, right.loss, atol=1e-9)
    for name in ("accuracy", "contribution", "measured", "interaction", "interaction_measured"):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), atol=1e-9)


@pytest.mark.parametrize("isolation", ["shadow", "straight_through"])
def test_minibatch_in_float32(make_population, grow, isolation):
    seeds = [
        (row, slot, name, operator, STAGES[(row + slot) % 3], 0.4)
        for row, operator in enumerate(Operator)
        for slot, name in enumerate(BLUEPRINTS[row : row + 3])
    ]
    torch_engine, fused = both(make_population, 3, batches=1, isolation=isolation)
    structure = grow(torch_engine, 3, *seeds)
    grow(fused, 3, *seeds)
    assert_equal_statistics(torch_engine.train(structure), fused.train(structure), 1e-5)
    assert_same(all_tensors(torch_engine), all_tensors(fused), 1e-5)


class Varied(Images):
    """Layers that the package's own hosts do not have."""

    def __init__(self, data):
        super().__init__(data)
        channels, height, width = data.image_shape
        self.segments = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(channels, 6, 5, padding=2),
                    nn.BatchNorm2d(6),
                    nn.SiLU(),
                    nn.MaxPool2d(2),
                    nn.Conv2d(6, 6, 5, padding=2, groups=6),
                    nn.GroupNorm(1, 6),
                    nn.Conv2d(6, 12, 3, padding=1, groups=2),
                    nn.Conv2d(12, 6, 1, groups=3),
                    nn.Sigmoid(),
                    nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
                ),
                nn.Sequential(
                    nn.Identity(),
                    nn.Flatten(),
                    nn.Linear(6 * (height // 2) * (width // 2), 8, bias=False),
                    nn.Unflatten(1, (2, 2, 2)),
                    nn.Conv2d(2, 3, 1),
                    nn.ReLU(),
                    nn.Flatten(),
                    nn.Linear(12, data.classes),
                ),
            ]
        )
        self.slots = (SlotSpec("r0c0", 6, "hidden", 0, 0, 0, (6, height // 2, width // 2)),)


@pytest.mark.parametrize(("size", "batch"), [(8, 32), (7, 13), (2, 21)])
def test_layers_of_custom_hosts(make_population, grow, size, batch):
    """With an odd size, pooling ignores a row and a column; 13 and 21 samples don't fill the last vector."""
    data = blobs(size=size)
    engines = both(make_population, 2, dtype=torch.float64, data=data, host=lambda: Varied(data), batch_size=batch)
    for population in engines:
        structure = grow(population, 2, (0, 0, "conv_light", Operator.GATE, Stage.BLENDING, 0.5))
        population.train(structure)
    assert_same(*(all_tensors(population) for population in engines), 1e-9)
    left, right = (population.measure(structure, everyone(2)) for population in engines)
    np.testing.assert_allclose(left.loss, right.loss, atol=1e-9)
    np.testing.assert_array_equal(left.accuracy, right.accuracy)


@pytest.mark.parametrize(("pad", "flip"), [(1, False), (0, True), (2, True)])
def test_images_are_cut_and_mirrored_as_with_pytorch(make_population, grow, make_data, pad, flip):
    engines = both(make_population, 2, dtype=torch.float64, data=make_data(pad=pad, flip=flip))
    for population in engines:
        population.train(grow(population, 2))
    assert_same(*(host_tensors(population) for population in engines), 1e-9)


SEEDS = [
    (0, 0, "conv_heavy", Operator.GATE, Stage.BLENDING, 0.3),
    (1, 1, "norm", Operator.MULTIPLY, Stage.TRAINING),
    (2, 2, "depthwise", Operator.ADD, Stage.HOLDING),
]


def test_network_depends_neither_on_its_neighbours_nor_on_threads(make_population, grow):
    """Bit for bit."""
    population = make_population(3, engine="fused")
    structure = grow(population, 3, *SEEDS)
    spread = make_population(3, engine="fused")
    spread.shards[0].fused._lanes = 2
    grow(spread, 3, *SEEDS)
    for one in (population, spread):
        one.train(structure)
        one.train(structure)
    assert_same(all_tensors(population), all_tensors(spread))
    measured = population.measure(structure, everyone(3))
    assert spread.measure(structure, everyone(3)).loss.tolist() == measured.loss.tolist()
    for row, (_, *seed) in enumerate(SEEDS):
        alone = make_population(1, engine="fused", first_seed=100 + row)
        own = grow(alone, 1, (0, *seed))
        alone.train(own)
        alone.train(own)
        assert_same(network_tensors(alone, own, 0), network_tensors(population, structure, row))
        assert alone.measure(own, everyone(1)).loss[0] == measured.loss[row]


def test_every_call_runs_what_was_compiled_first(make_population, grow):
    """Another signature would take long to compile, and could round differently."""
    for dtype, lanes in ((torch.float32, 2), (torch.float64, 1), (torch.float32, 1)):
        population = make_population(3, engine="fused", dtype=dtype)
        population.shards[0].fused._lanes = lanes
        population.train(grow(population, 3, *SEEDS))
        population.measure(grow(population, 3, *SEEDS, attach=False), everyone(3))
    constants = [signature[1].dtype for signature in running.run.signatures]
    assert sorted(map(str, constants)) == ["float32", "float64"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_networks_that_are_not_finite_are_found(make_population, grow, value):
    for population in both(make_population, 2):
        structure = grow(population, 2)
        population.shards[0].host.parameters["segments.1.0.weight"][1] = value
        stats = population.train(structure)
        assert stats.finite.tolist() == [True, False]
        assert not np.isfinite(stats.loss[1])


def test_shard_with_a_custom_module_runs_with_pytorch_until_it_is_gone(make_population, grow, own_blueprints):
    """The module has no kernel."""
    own_blueprints("soft", lambda channels: nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Softplus()))
    custom = (1, 0, "soft", Operator.ADD, Stage.BLENDING, 0.5)
    torch_engine, fused = both(make_population, 2)
    structure = grow(torch_engine, 2, SEEDS[0], custom)
    grow(fused, 2, SEEDS[0], custom)
    assert not fused.shards[0].fused.can_run(structure)
    torch_engine.train(structure)
    fused.train(structure)
    assert_same(all_tensors(torch_engine), all_tensors(fused))
    left, right = (one.measure(structure, everyone(2)) for one in (torch_engine, fused))
    assert left.loss.tolist() == right.loss.tolist()
    assert fused.shards[0].fused.can_run(grow(fused, 2, SEEDS[0], attach=False))


def test_nan_is_the_largest_logit(make_population, grow):
    """As in PyTorch's argmax."""
    results = []
    for population in both(make_population, 1):
        structure = grow(population, 1)
        parameters = population.shards[0].host.parameters
        name = [key for key, value in parameters.items() if value.shape[1:] == (population.classes,)][-1]
        parameters[name][0, 2] = np.nan
        results.append(population.measure(structure, everyone(1)).accuracy[0])
    assert results[0] == results[1] > 0


# Choice of the engine


def choose(population, **settings):
    config = replace(population._config, **settings)
    return fused_shard(population.shards[0], config, population._splits.train, 1)


def test_auto_is_fused_where_several_networks_run_together(make_population):
    together, single = make_population(2), make_population(batched=False)
    assert isinstance(choose(together, engine="auto"), FusedShard)
    assert choose(together, engine="torch") is None
    assert choose(single, engine="auto") is None
    assert isinstance(choose(single, engine="fused"), FusedShard)


class Softened(Images):
    def __init__(self, data):
        super().__init__(data, first=lambda inputs: nn.Sequential(nn.Conv2d(inputs, 5, 1), nn.Softplus()))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (LayerScaleResidual(6, nn.Conv2d(6, 1, 1)), (6, 8, 8)),  # PyTorch repeats the branch's channel
        (nn.Linear(1, 1), (6, 1, 1)),  # over columns, not channels
        (nn.BatchNorm2d(6), (6, 1, 1)),  # over one value
    ],
    ids=["branch of one channel", "linear layer over columns", "single value"],
)
def test_layers_of_other_shapes_have_no_kernel(module, shape):
    program = Program(1)
    places = Tensors({name: 0 for name, _ in module.named_parameters()}, {"": 0})
    with pytest.raises(NotCompilableError):
        program.run(module, places, program.buffer(*shape), Mode(training=True, parameters=True))


def test_fused_says_why_it_cannot_run(make_population, monkeypatch):
    population = make_population(2)
    with pytest.raises(
        ValueError, match="`engine` is 'fused', and it does not support precision 'bfloat16'; use 'torch'"
    ):
        choose(population, engine="fused", precision="bfloat16")
    with pytest.raises(ValueError, match="and it runs on a CPU, not on 'cuda'; use 'torch' or 'auto'"):
        choose(population, engine="fused", device=torch.device("cuda"))
    data = blobs()
    softened = make_population(2, data=data, host=lambda: Softened(data), engine="auto")
    assert softened.shards[0].fused is None
    with pytest.raises(ValueError, match="and the host cannot be compiled: Softplus has no kernel; use 'torch' or"):
        choose(softened, engine="fused")
    monkeypatch.setattr("esper_env.population.engines.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"and numba is not installed \(pip install 'esper-env\[fused\]'\)"):
        choose(population, engine="fused")
    assert choose(population, engine="auto") is None
