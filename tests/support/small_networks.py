"""Small networks under test, and their plain twins: the same network and training written with ordinary PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from esper_env.data import ImageData, TextData
from esper_env.hosts import CNNHost
from esper_env.population import Optimisation, Population, PopulationConfig, Structure
from esper_env.population.training.minibatches import MinibatchStream, TrainingImages, minibatches
from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.rules.stages import IS_BLENDED, Stage
from esper_env.seeding import derive_seed
from esper_env.seeds import blueprint_entry, register_blueprint
from esper_env.seeds.blend import BlendGate
from plain_seeds import blended
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, BLOCKS, BASE, POOLS = 4, 3, 4, 2
BATCH, BATCHES = 12, 4


def images(count: int, rng: np.random.Generator, size: int, channels: int) -> tuple[Any, Any]:
    """Noisy stripes whose direction and phase are the class: learnable, and too noisy to be learnt at once."""
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
    """``build_host(kernel, **options)`` is what a population builds its hosts with."""
    return small_host


@pytest.fixture
def make_population(stripes: ImageData) -> Iterator[Callable[..., Population]]:
    """Populations of networks 0, 1, ... reset from seeds 100, 101, ...; their threads end with the test."""
    made: list[Population] = []

    def make(
        count: int = 1,
        *,
        host: Callable[[], nn.Module] | None = None,
        data: ImageData | TextData = stripes,
        shard_size: int | None = None,
        together: bool = True,
        dtype: torch.dtype = torch.float32,
        batch_size: int = BATCH,
        batches: int = BATCHES,
        first_seed: int = 100,
        kernel: int = 1,
        precision: str = "float32",
        capture: str = "auto",
        device: str = "cpu",
        **optimisation: Any,
    ) -> Population:
        settings = Optimisation(**{"host_lr": 0.05, "seed_lr": 0.05, **optimisation})
        size = shard_size or (count if together else 1)
        config = PopulationConfig(
            batch_size,
            batches,
            settings,
            size,
            together,
            torch.device(device),
            dtype,
            precision,
            capture,
            try_host=host is not None,
        )
        population = Population(host or small_host(kernel), count, data, config)
        population.reset(np.ones(count, dtype=np.bool_), np.arange(first_seed, first_seed + count))
        made.append(population)
        return population

    yield make
    for population in made:
        population.close()


def reset_row(population: Population, row: int, seed: int) -> None:
    rows = np.arange(len(population._streams))
    population.reset(rows == row, np.full(len(rows), seed))


def attach_seed(population: Population, row: int, slot: int, blueprint: int) -> None:
    mask = np.zeros((len(population._streams), population.slots), dtype=np.bool_)
    mask[row, slot] = True
    population.attach(mask, np.full(mask.shape, blueprint))


Planted = tuple[int, int, str, int, Stage, float, bool]


@pytest.fixture
def grow() -> Callable[..., Structure]:
    """``grow(population, count, (row, slot, blueprint, operator, stage, alpha, frozen), ...)`` attaches seeds.

    Returns the structure; alpha is 1 and nothing is frozen unless told. With ``attach=False`` the seeds are there.
    """

    def build(population: Population, count: int, *seeds: tuple[Any, ...], attach: bool = True) -> Structure:
        shape = (count, population.slots)
        blueprint = np.full(shape, NO_BLUEPRINT, dtype=np.int64)
        operator = np.zeros(shape, dtype=np.int64)
        alpha = np.zeros(shape)
        blended, training, frozen, fossilized = (np.zeros(shape, dtype=np.bool_) for _ in range(4))
        for row, slot, name, op, stage, *rest in seeds:
            at = row, slot
            value = blueprint_entry(name, population.shards[0].topology).value
            blueprint[at], operator[at], blended[at] = value, op, IS_BLENDED[stage]
            training[at], fossilized[at] = stage == Stage.TRAINING, stage == Stage.FOSSILIZED
            alpha[at] = (rest[0] if rest else 1.0) if blended[at] else 0.0
            frozen[at] = len(rest) > 1 and rest[1]
        if attach:
            population.attach(blueprint != NO_BLUEPRINT, blueprint)
        return Structure(blueprint, operator, alpha, blended, training, frozen, fossilized)

    return build


@pytest.fixture
def own_blueprints(own_tables: None) -> Callable[..., Any]:  # noqa: ARG001
    """``own_blueprints(name, factory)`` offers a seed of one's own, on CNN hosts unless told, until the test ends."""
    return lambda name, factory, topology="cnn": register_blueprint(name, topology, factory)


class PlainTwin(nn.Module):
    """One network of a population as an ordinary module, trained by an ordinary loop."""

    def __init__(self, population: Population, row: int, structure: Structure) -> None:
        super().__init__()
        size = population.shards[0].rows
        self.shard, self.place, self.row = population.shards[row // size], row, row % size
        self.structure = structure.rows(slice(row, row + 1))
        host, self.order = self.shard.host, self.shard.execution_order
        self.both = len(self.order) == 2 * BLOCKS  # surfaces: a slot in front of the pool and one behind it
        weights = [host.parameters[f"segments.{self.segment(block)}.0.weight"] for block in range(BLOCKS)]
        self.convs = nn.ModuleList(
            nn.Conv2d(w.shape[2], w.shape[1], w.shape[3], padding=w.shape[3] // 2, bias=False) for w in weights
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(w.shape[1]) for w in weights)
        self.head = nn.Linear(weights[-1].shape[1], CLASSES)
        self.seeds, self.gates = nn.ModuleDict(), nn.ModuleDict()
        self._take_in_seeds()
        self.to(host.parameters["segments.0.0.weight"].dtype)
        with torch.no_grad():
            for name, own, there in self._pairs():
                assert own.shape == there.shape, name
                own.copy_(there)
        self.optimizers: dict[str, torch.optim.SGD] = {}

    def follow(self, structure: Structure) -> None:
        """Go on under another structure, of which the population has yet to train the first epoch.

        The optimizer of a seed starts anew where the seed was frozen, or blends in another way now.
        """
        before, self.structure = self.structure, structure.rows(slice(self.place, self.place + 1))
        gone = self.structure.blueprint == NO_BLUEPRINT
        restless = before.frozen | self.structure.frozen | (before.operator != self.structure.operator)
        for slot in map(str, np.flatnonzero((gone | restless)[0])):
            self.optimizers.pop(f"seed {slot}", None)
        for slot in map(str, np.flatnonzero(gone[0])):
            for modules in (self.seeds, self.gates):
                if slot in modules:
                    del modules[slot]
        self._take_in_seeds()

    def _take_in_seeds(self) -> None:
        """Copies of the seeds and gates that the structure has and this network has not."""
        for slot in np.flatnonzero(self.structure.blueprint[0] != NO_BLUEPRINT):
            key, channels = str(slot), self.shard.slots[slot].channels
            entry = blueprint_entry(int(self.structure.blueprint[0, slot]), "cnn")
            if key not in self.seeds:
                self.seeds[key] = self._copied(entry.factory(channels), self.shard.seed_stack(int(slot), entry.value))
            if self._gated(slot) and key not in self.gates:
                self.gates[key] = self._copied(BlendGate(channels), self.shard.gate_stack(int(slot)))

    def _copied(self, module: nn.Module, stack: Any) -> nn.Module:
        rows = {name: value[self.row] for name, value in {**stack.parameters, **stack.buffers}.items()}
        module.to(self.shard.dtype).load_state_dict(rows)
        return module

    def _gated(self, slot: int) -> bool:
        return bool(self.structure.operator[0, slot] == Operator.GATE)

    def _pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, own tensor, the population's tensor) of everything the network consists of."""

        def rows(prefix: str, module: nn.Module, stack: Any, there: str) -> Iterator[tuple[str, Tensor, Tensor]]:
            stored = {**stack.parameters, **stack.buffers}
            for name, own in [*module.named_parameters(), *module.named_buffers()]:
                yield prefix + name, own, stored[there + name][self.row]

        for block, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            yield from rows(f"conv {block} ", conv, self.shard.host, f"segments.{self.segment(block)}.0.")
            yield from rows(f"norm {block} ", norm, self.shard.host, f"segments.{self.segment(block)}.1.")
        yield from rows("head ", self.head, self.shard.host, f"segments.{len(self.order)}.1.")
        for slot, seed in self.seeds.items():
            stack = self.shard.seed_stack(int(slot), int(self.structure.blueprint[0, int(slot)]))
            yield from rows(f"seed {slot} ", seed, stack, "")
        for slot, gate in self.gates.items():
            yield from rows(f"gate {slot} ", gate, self.shard.gate_stack(int(slot)), "")

    def distances(self) -> dict[str, float]:
        """Largest difference to the population's network, by tensor."""
        return {name: float((own.detach() - there).abs().max()) for name, own, there in self._pairs()}

    def distance(self) -> float:
        return max(self.distances().values())

    def segment(self, block: int) -> int:
        """The host's segment that a block begins."""
        return 2 * block if self.both else block

    def pool(self, block: int, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if block < POOLS else x

    def block(self, index: int, x: Tensor) -> Tensor:
        """A block up to its first slot."""
        x = F.relu(self.norms[index](self.convs[index](x)))
        return x if self.both else self.pool(index, x)

    def blend(self, slot: int, h: Tensor, alpha: float) -> Tensor:
        operator = Operator(int(self.structure.operator[0, slot]))
        gate = self.gates[str(slot)] if operator is Operator.GATE else None
        return blended(operator, h, self.seeds[str(slot)](h), alpha, gate)

    def from_slot(self, slot: int, h: Tensor, on: dict[int, float], seen: dict[int, Tensor] | None = None) -> Tensor:
        """Logits from the features in front of a slot; ``seen`` collects the features in front of every slot."""
        for slot_on_the_way in self.order[self.order.index(slot) :]:
            spec = self.shard.slots[slot_on_the_way]
            if seen is not None:
                seen[slot_on_the_way] = h
            if slot_on_the_way in on:
                h = self.blend(slot_on_the_way, h, on[slot_on_the_way])
            if self.both and spec.row == 0:
                h = self.pool(spec.col, h)
            elif spec.col + 1 < BLOCKS:
                h = self.block(spec.col + 1, h)
        return self.head(h.mean(dim=(2, 3)))

    def logits(self, x: Tensor, on: dict[int, float]) -> Tensor:
        return self.from_slot(0, self.block(0, x), on)

    def blended(self) -> dict[int, float]:
        return {int(slot): float(self.structure.alpha[0, slot]) for slot in np.flatnonzero(self.structure.blended[0])}

    def isolated(self) -> list[int]:
        """TRAINING seeds in order of execution."""
        return [slot for slot in self.order if self.structure.training[0, slot]]

    def seed_parameters(self, slot: int) -> list[nn.Parameter]:
        gate = self.gates[str(slot)].parameters() if self._gated(slot) else []
        return [*self.seeds[str(slot)].parameters(), *gate]

    def host_parameters(self) -> list[nn.Parameter]:
        return [p for module in (self.convs, self.norms, self.head) for p in module.parameters()]

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], settings: Optimisation) -> float:
        """Clipped SGD with momentum on host and seeds; returns the mean loss."""
        groups = {"host": (self.host_parameters(), settings.host_lr)}
        frozen = {slot for slot in self.blended() if self.structure.frozen[0, slot]}
        for slot in [*self.blended(), *self.isolated()]:
            if slot not in frozen:
                groups[f"seed {slot}"] = (self.seed_parameters(slot), settings.seed_lr)
        for name, (parameters, rate) in groups.items():
            if name not in self.optimizers:
                self.optimizers[name] = torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum)
        losses = []
        for x, labels in batches:
            self.zero_grad()
            self.train()
            seen: dict[int, Tensor] = {}
            loss = F.cross_entropy(self.from_slot(0, self.block(0, x), self.blended(), seen), labels)
            loss.backward()
            if self.isolated():
                self._shadow(seen, labels, settings.shadow_fraction)
            for name, (parameters, _) in groups.items():
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                self.optimizers[name].step()
            losses.append(float(loss.detach()))
        return float(np.mean(losses))

    def _shadow(self, seen: dict[int, Tensor], labels: Tensor, fraction: float) -> None:
        self.eval()
        slots = self.isolated()
        kept = max(1, round(len(labels) * fraction))
        on = {**self.blended(), **dict.fromkeys(slots, 1.0)}
        loss = F.cross_entropy(self.from_slot(slots[0], seen[slots[0]].detach()[:kept], on), labels[:kept])
        parameters = [p for slot in slots for p in self.seed_parameters(slot)]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient


@pytest.fixture
def twin() -> Callable[[Population, int, Structure], PlainTwin]:
    return PlainTwin


@pytest.fixture
def batches_of(stripes: ImageData) -> Callable[..., Callable[[], list[tuple[Tensor, Tensor]]]]:
    """``batches_of(seed, dtype)()`` is the next epoch of the network with that seed: images (B, C, H, W) and labels."""

    def build(
        seed: int, dtype: torch.dtype = torch.float32, *, data: ImageData = stripes
    ) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        source = TrainingImages(data, torch.device("cpu"), dtype)
        stream = MinibatchStream(source, BATCH, BATCHES)
        stream.seed(derive_seed(seed, "minibatches"))
        return lambda: [(x[0], y[0]) for x, y in minibatches(source, [stream])]

    return build
