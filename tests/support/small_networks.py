"""Small networks under test, and the same networks and training in ordinary PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from esper_env.data import ImageData, TextData
from esper_env.hosts import CNNHost
from esper_env.population import Population, PopulationConfig, Structure
from esper_env.population.training.minibatches import TrainingImages
from esper_env.rules.heads import NO_BLUEPRINT
from esper_env.rules.stages import IS_BLENDED, Stage
from esper_env.seeds import blueprint_entry, register_blueprint
from plain_network import PlainNetwork, epochs_of
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, BLOCKS, BASE, POOLS = 4, 3, 4, 2
BATCH, BATCHES = 12, 4
SETTINGS = {
    "host_lr": 0.05,
    "seed_lr": 0.05,
    "isolation": "shadow",
    "precision": "float32",
    "engine": "torch",
    "capture": "auto",
}
KINDS = ("parameters", "momentum", "buffers")
NEEDS_NUMBA = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
#: Parametrizes a test over the layouts of many networks and of a single one.
LAYOUTS = pytest.mark.parametrize("batched", [True, False], ids=["batched", "single"])
#: Parametrizes a test over everything that can run networks for images: both layouts, and compiled programs.
WAYS = pytest.mark.parametrize(
    "way",
    [
        pytest.param({"batched": True}, id="batched"),
        pytest.param({"batched": False}, id="single"),
        pytest.param({"engine": "fused"}, id="fused", marks=NEEDS_NUMBA),
    ],
)

# Data and populations


def images(count: int, rng: np.random.Generator, size: int, channels: int) -> tuple[Any, Any]:
    """Noisy stripes whose direction and phase are the class: learnable, but not at once."""
    labels = rng.integers(CLASSES, size=count)
    row, col = np.mgrid[:size, :size]
    patterns = np.stack([(row // 2) % 2, (col // 2) % 2, (row + col) // 2 % 2, (row // 4 + col // 4) % 2])
    pixels = 60 + 90 * patterns[labels][:, None] + rng.integers(0, 100, (count, channels, size, size))
    return pixels.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="session")
def make_data() -> Callable[..., ImageData]:
    def make(
        *, train: int = 100, val: int = 60, size: int = 8, channels: int = 1, pad: int = 0, flip: bool = False
    ) -> ImageData:
        rng = np.random.default_rng(7)
        splits = [images(count, rng, size, channels) for count in (train, val, 40)]
        arrays = [array for split in splits for array in split]
        mean, std = (0.5, 0.4, 0.6)[:channels], (0.25, 0.2, 0.3)[:channels]
        return ImageData("stripes", CLASSES, *arrays, mean=mean, std=std, crop_padding=pad, flip=flip)

    return make


@pytest.fixture(scope="session")
def stripes(make_data: Callable[..., ImageData]) -> ImageData:
    return make_data()


def small_host(kernel: int = 1, **options: Any) -> Callable[[], nn.Module]:
    return lambda: CNNHost(CLASSES, BLOCKS, BASE, POOLS, kernel, in_channels=1, image_size=8, **options)


@pytest.fixture
def build_host() -> Callable[..., Callable[[], nn.Module]]:
    """``build_host(kernel, **options)`` returns the function with which a population builds its hosts."""
    return small_host


@pytest.fixture
def make_population(stripes: ImageData) -> Callable[..., Population]:
    """Make populations whose networks are reset from seeds 100, 101, ..."""

    def make(
        count: int = 1,
        *,
        host: Callable[[], nn.Module] | None = None,
        data: ImageData | TextData = stripes,
        shard_size: int | None = None,
        batched: bool = True,
        dtype: torch.dtype = torch.float32,
        batch_size: int = BATCH,
        batches: int = BATCHES,
        first_seed: int = 100,
        kernel: int = 1,
        device: str = "cpu",
        **settings: Any,
    ) -> Population:
        config = PopulationConfig(
            batch_size=batch_size,
            batches_per_step=batches,
            shard_size=shard_size or (count if batched else 1),
            batched=batched,
            device=torch.device(device),
            dtype=dtype,
            try_host=host is not None,
            **{**SETTINGS, **settings},
        )
        population = Population(host or small_host(kernel), count, data, config)
        population.reset(everyone(count), np.arange(first_seed, first_seed + count))
        return population

    return make


def everyone(count: int) -> Any:
    return np.ones(count, dtype=np.bool_)


def reset_row(population: Population, row: int, seed: int) -> None:
    rows = np.arange(len(population._streams))
    population.reset(rows == row, np.full(len(rows), seed))


def attach_seed(population: Population, row: int, slot: int, blueprint: int) -> None:
    mask = np.zeros((len(population._streams), population.slots), dtype=np.bool_)
    mask[row, slot] = True
    population.attach(mask, np.full(mask.shape, blueprint))


@pytest.fixture
def grow() -> Callable[..., Structure]:
    """``grow(population, count, (row, slot, blueprint, operator, stage, alpha, frozen), ...)`` attaches seeds.

    Returns the structure. The defaults are alpha 1 and not frozen; ``attach=False`` only describes existing seeds.
    """

    def build(population: Population, count: int, *seeds: tuple[Any, ...], attach: bool = True) -> Structure:
        shape = (count, population.slots)
        blueprint = np.full(shape, NO_BLUEPRINT, dtype=np.int64)
        operator = np.zeros(shape, dtype=np.int64)
        alpha = np.zeros(shape)
        is_blended, training, frozen, fossilized = (np.zeros(shape, dtype=np.bool_) for _ in range(4))
        for row, slot, name, op, stage, *rest in seeds:
            at = row, slot
            blueprint[at] = blueprint_entry(name, population.shards[0].topology).value
            operator[at], is_blended[at] = op, IS_BLENDED[stage]
            training[at], fossilized[at] = stage == Stage.TRAINING, stage == Stage.FOSSILIZED
            alpha[at] = (rest[0] if rest else 1.0) if is_blended[at] else 0.0
            frozen[at] = len(rest) > 1 and rest[1]
        if attach:
            population.attach(blueprint != NO_BLUEPRINT, blueprint)
        return Structure(blueprint, operator, alpha, is_blended, training, frozen, fossilized)

    return build


@pytest.fixture
def own_blueprints(own_tables: None) -> Callable[..., Any]:  # noqa: ARG001
    """``own_blueprints(name, factory)`` registers a custom blueprint, by default for CNN hosts, for this test."""
    return lambda name, factory, topology="cnn", **options: register_blueprint(name, topology, factory, **options)


# Tensors of networks


def stacks_of(population: Population, structure: Structure, row: int, *, fossils_only: bool = False) -> dict[str, Any]:
    """{"host" | "seeds/SLOT/BLUEPRINT" | "gates/SLOT": stack} of one network."""
    shard, local = population._locate(row)
    own = structure.rows(population._slices[row // population._config.shard_size])
    held = np.where(own.fossilized, own.blueprint, NO_BLUEPRINT) if fossils_only else own.blueprint
    return {name: stack for name, stack, holders in shard.stacks(held) if local in holders}


def network_tensors(
    population: Population, structure: Structure, row: int, *, kinds: Iterable[str] = KINDS, fossils_only: bool = False
) -> dict[str, Tensor]:
    """Copies of one network's tensors, by "PLACE KIND NAME"."""
    _, local = population._locate(row)
    return {
        f"{place} {kind} {name}": value[local].clone()
        for place, stack in stacks_of(population, structure, row, fossils_only=fossils_only).items()
        for kind in kinds
        for name, value in stack.tensors()[kind].items()
    }


def host_tensors(population: Population) -> dict[str, Tensor]:
    """Copies of all tensors of all hosts."""
    return {name: value.clone() for name, value in all_tensors(population).items() if "host" in name}


def all_tensors(population: Population) -> dict[str, Tensor]:
    """Every tensor of every stack that is in use, not copied."""
    stacks = {
        f"shard {number} {name}": stack
        for number, shard in enumerate(population.shards)
        for name, stack in [("host", shard.host), *shard._seeds.items(), *shard._gates.items()]
        if any(value.any() for value in stack.values().values())
    }
    return {
        f"{place} {kind} {name}": value
        for place, stack in stacks.items()
        for kind, named in stack.tensors().items()
        for name, value in named.items()
    }


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if tolerance:
            torch.testing.assert_close(value, right[name], atol=tolerance, rtol=0, msg=name)
        else:
            assert torch.equal(value, right[name]), name


# The same network in ordinary PyTorch


class PlainCNN(PlainNetwork):
    """A network with a host of :func:`small_host`."""

    topology, dims = "cnn", 3

    def __init__(self, population: Population, row: int, structure: Structure) -> None:
        super().__init__(population, row, structure)
        self.both = len(self.order) == 2 * BLOCKS  # surfaces: a slot in front of the pool and one behind it
        weights = [self.shard.host.parameters[f"segments.{self.segment(block)}.0.weight"] for block in range(BLOCKS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(w.shape[2], w.shape[1], w.shape[3], padding=w.shape[3] // 2, bias=False) for w in weights
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(w.shape[1]) for w in weights)
        self.head = nn.Linear(weights[-1].shape[1], CLASSES)
        self.copy_from_population()

    def host_pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for block, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            yield from self.rows(f"conv {block} ", conv, self.shard.host, f"segments.{self.segment(block)}.0.")
            yield from self.rows(f"norm {block} ", norm, self.shard.host, f"segments.{self.segment(block)}.1.")
        yield from self.rows("head ", self.head, self.shard.host, f"segments.{len(self.order)}.1.")

    def segment(self, block: int) -> int:
        """The host's segment that a block begins."""
        return 2 * block if self.both else block

    def pool(self, block: int, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if block < POOLS else x

    def block(self, index: int, x: Tensor) -> Tensor:
        """A block up to its first slot."""
        x = F.relu(self.norms[index](self.convs[index](x)))
        return x if self.both else self.pool(index, x)

    def start(self, x: Tensor) -> Tensor:
        return self.block(0, x)

    def from_slot(self, slot: int, h: Tensor, on: dict[int, float], seen: dict[int, Tensor] | None = None) -> Tensor:
        for passed in self.order[self.order.index(slot) :]:
            spec = self.shard.slots[passed]
            if seen is not None:
                seen[passed] = h
            if passed in on:
                h = self.blend(passed, h, on[passed])
            if self.both and spec.row == 0:
                h = self.pool(spec.col, h)
            elif spec.col + 1 < BLOCKS:
                h = self.block(spec.col + 1, h)
        return self.head(h.mean(dim=(2, 3)))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)


@pytest.fixture
def twin() -> Callable[[Population, int, Structure], PlainCNN]:
    return PlainCNN


@pytest.fixture
def batches_of(stripes: ImageData) -> Callable[..., Callable[[], list[tuple[Tensor, Tensor]]]]:
    """``batches_of(seed, dtype)()`` is the next epoch of the network with that seed: images (B, C, H, W) and labels."""

    def build(
        seed: int, dtype: torch.dtype = torch.float32, *, data: ImageData = stripes
    ) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        return epochs_of(TrainingImages(data, torch.device("cpu"), dtype), seed, BATCH, BATCHES)

    return build
