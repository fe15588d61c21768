"""Construction of populations: devices, layouts and settings."""

import numpy as np
import pytest
import torch
from esper_env.devices import resolve_device
from esper_env.population import Structure
from esper_env.population.build import build_population
from esper_env.population.engine.layouts import BatchedImages, SingleImages
from esper_env.rules.slot_table import SlotTable
from esper_env.tasks import make_task

pytestmark = pytest.mark.numeric


@pytest.fixture
def build():
    made = []

    def make(env_id="Esper-Digits-v0", count=3, **overrides):
        made.append(build_population(make_task(env_id, device="cpu", **overrides), count))
        return made[-1]

    yield make
    for population in made:
        population.close()


def test_auto_device_is_cpu_without_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "", "cpu:x"])
def test_resolve_device_rejects_unusable_device(name):
    with pytest.raises(ValueError, match=rf"`device` is '{name}'; expected 'auto'"):
        resolve_device(name)


def test_build_rejects_missing_device_before_loading_data(monkeypatch):
    def loaded(*_args, **_kwargs):
        raise AssertionError("data was loaded")

    monkeypatch.setattr("esper_env.population.build.load_data", loaded)
    with pytest.raises(ValueError, match="`device` is 'cuda:99'"):
        build_population(make_task("Esper-Digits-v0", device="cuda:99"), 1)


def test_population_describes_its_data():
    population = build_population(make_task("Esper-Digits-v0", device="cpu"), 2)
    population.close()
    assert (population.dataset_name, population.classes, population.reads_text) == ("digits", 10, False)
    assert population.predictions == 800


@pytest.mark.parametrize(
    ("overrides", "count", "threads", "sizes"),
    [
        ({}, 3, 1, [3]),
        ({}, 70, 1, [32, 32, 6]),
        ({}, 8, 4, [8]),
        ({}, 64, 2, [32, 32]),
        ({"shard_size": 2}, 5, 4, [2, 2, 1]),
        ({"shard_size": 100}, 5, 1, [5]),
    ],
)
def test_digits_networks_share_batched_shards(build, use_threads, overrides, count, threads, sizes):
    use_threads(threads)
    population = build(count=count, **overrides)
    assert [shard.rows for shard in population.shards] == sizes
    assert all(isinstance(shard.layout, BatchedImages) for shard in population.shards)


@pytest.mark.parametrize(("shard_size", "layout"), [("auto", SingleImages), (1, SingleImages), (2, BatchedImages)])
def test_cifar_networks_have_single_layout_by_default(build, shard_size, layout):
    population = build("Esper-CIFAR-v0", 2, dataset="procedural", shard_size=shard_size)
    assert all(isinstance(shard.layout, layout) for shard in population.shards)


def test_training_uses_settings_of_task(build):
    """A tiny learning rate hardly moves the weights, a usual one does."""
    nothing = Structure.of(SlotTable.empty(1, 3))
    moved = {}
    for rate in (1e-12, 0.05):
        population = build(count=1, host_lr=rate, batches_per_step=2, batch_size=16)
        population.reset(np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.int64))
        before = population.shards[0].host.parameters["segments.0.0.weight"].clone()
        population.train(nothing)
        moved[rate] = float((population.shards[0].host.parameters["segments.0.0.weight"] - before).abs().max())
        assert population.shards[0].host.buffers["segments.0.1.num_batches_tracked"].tolist() == [2]
    assert moved[1e-12] < 1e-9 < moved[0.05]


def test_networks_use_isolation_and_slots_of_task(build):
    population = build(slots=["r0c1"], isolation="straight_through")
    assert population.slots == 1
    assert population._config.optimisation.isolation == "straight_through"
    with pytest.raises(ValueError, match="`isolation` is 'other'"):
        build(isolation="other")


@pytest.mark.slow
def test_host_without_seeds_learns_digits(build):
    population = build(count=2)
    nothing = Structure.of(SlotTable.empty(2, 3))
    everyone = np.ones(2, dtype=np.bool_)
    population.reset(everyone, np.arange(2))
    untrained = population.measure(nothing, everyone).accuracy
    for _ in range(20):
        population.train(nothing)
    assert (population.measure(nothing, everyone).accuracy > untrained + 10).all()
