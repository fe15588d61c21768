"""Construction of populations: devices, layouts and settings."""

import pytest
import torch
from esper_env.devices import resolve_device
from esper_env.population.build import build_population
from esper_env.population.engine.layouts import BatchedImages, SingleImages
from esper_env.tasks import make_task

pytestmark = pytest.mark.numeric


@pytest.fixture
def build():
    def make(env_id="Esper-Digits-v0", count=3, **overrides):
        return build_population(make_task(env_id, device="cpu", **overrides), count)

    return make


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


def test_population_describes_its_data(build):
    population = build()
    assert (population.dataset_name, population.classes, population.reads_text) == ("digits", 10, False)
    assert population._splits.validation.predictions == 800


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


@pytest.mark.parametrize(("shard_size", "layout"), [("auto", SingleImages), (2, BatchedImages)])
def test_cifar_networks_have_single_layout_by_default(build, shard_size, layout):
    population = build("Esper-CIFAR-v0", 2, dataset="procedural", shard_size=shard_size)
    assert all(isinstance(shard.layout, layout) for shard in population.shards)


def test_networks_use_settings_of_task(build):
    population = build(slots=["r0c1"], isolation="straight_through", host_lr=0.123)
    assert population.slots == 1
    assert (population._config.isolation, population._config.host_lr) == ("straight_through", 0.123)
