"""N networks as a list of shards: structural changes, training and measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from esper_env.data import ImageData, TextData
from esper_env.extension_checks.hosts import check_forward
from esper_env.extension_checks.trial import some_of, try_blueprints, try_host
from esper_env.persistence.tree import Tree
from esper_env.population.evaluation.measurement import Commitment, Measurement, appraise, measure, nothing_measured
from esper_env.population.shard import Shard
from esper_env.population.snapshots import Mismatch, Snapshots
from esper_env.population.splits import splits_for
from esper_env.population.state import Networks, get_networks, set_networks
from esper_env.population.structure import Structure
from esper_env.population.training.minibatches import MinibatchStream, draw_epoch
from esper_env.population.training.optimisation import Optimisation
from esper_env.population.training.readback import Readback
from esper_env.population.training.trainers import Trainers, TrainStats
from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.seeding import derive_rng, derive_seed
from esper_env.tasks.choices import FULL_PRECISION

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
T = TypeVar("T", bound=tuple[NDArray[Any], ...])
R = TypeVar("R")


@dataclass(frozen=True)
class PopulationConfig:
    """How a population is trained and laid out.

    ``shard_size`` networks run together on one thread; with ``together`` False each shard holds one network in the
    layout of a single one. ``precision`` is that of the passes, ``capture`` whether an accelerator captures the step of
    a minibatch. ``try_host`` is off for hosts that are known to do what they say, as those of the package's specs are.
    """

    batch_size: int
    batches_per_step: int
    optimisation: Optimisation
    shard_size: int
    together: bool
    device: torch.device
    dtype: torch.dtype = torch.float32
    precision: str = FULL_PRECISION
    capture: str = "auto"
    try_host: bool = True


@contextmanager
def _no_autocast() -> Iterator[None]:
    """The caller's mixed precision is not the networks' own."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _own_settings() -> Iterator[None]:
    """PyTorch's switches as a population needs them, whatever the caller has set; put back on leaving.

    Gradients are on, also when the caller steps the environment under ``no_grad``. The caller's thread works with one
    intra-op thread: shards are the parallelism, results do not depend on the number of cores, and a process that has
    never run a parallel region can be forked, as Gymnasium's AsyncVectorEnv does.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), _no_autocast():
            yield
    finally:
        torch.set_num_threads(threads)


class Population:
    """N growing networks over one data set. Networks never influence each other."""

    def __init__(
        self, build_host: Callable[[], nn.Module], count: int, data: ImageData | TextData, config: PopulationConfig
    ) -> None:
        if config.shard_size < 1:
            raise ValueError(f"shard_size is {config.shard_size}; expected 1 or more, or 'auto'")
        device, dtype = config.device, config.dtype
        self._config = config
        self.dataset_name, self.data_digest, self.classes = data.name, data.digest, data.classes
        self.reads_text = isinstance(data, TextData)
        starts = range(0, count, config.shard_size)
        self._slices = [slice(start, min(start + config.shard_size, count)) for start in starts]
        workers = min(len(self._slices), torch.get_num_threads()) if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(workers, initializer=_one_thread) if workers > 1 else None
        with _own_settings():
            self.shards = [
                Shard(
                    build_host,
                    rows.stop - rows.start,
                    together=config.together,
                    device=device,
                    dtype=dtype,
                    precision=config.precision,
                )
                for rows in self._slices
            ]
            self._splits = splits_for(self.shards[0].slots[0], data, device, dtype)
            if config.try_host:
                self._try_host()
            try_blueprints(self.shards[0])
            self._trainers = [
                Trainers(shard, config.optimisation, self._splits.train, config.capture) for shard in self.shards
            ]
            self._snapshots = [Snapshots(shard) for shard in self.shards]
            stream = (self._splits.train, config.batch_size, config.batches_per_step)
            self._streams = [MinibatchStream(*stream) for _ in range(count)]
        # Trainable scalars of what has been attached so far, by slot and blueprint: the same in every shard.
        self._seed_sizes = np.zeros((self.slots, NO_BLUEPRINT), dtype=np.int64)
        self._gate_sizes = np.zeros(self.slots, dtype=np.int64)

    def _try_host(self) -> None:
        """On the first samples of the validation data."""
        samples, _ = next(self._splits.validation.chunks(self.shards[0]))
        some = some_of(samples)
        check_forward(self.shards[0].host.template, some, self.classes)
        try_host(self.shards[0], some)

    @property
    def slots(self) -> int:
        """Number of slots of a network."""
        return len(self.shards[0].slots)

    @property
    def predictions(self) -> int:
        """Predictions on the validation split, of which an accuracy is a share."""
        return self._splits.validation.predictions

    def close(self) -> None:
        """Stop the worker threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    @_own_settings()
    def reset(self, rows: BoolArray, seeds: IntArray) -> None:
        """Reset the networks of ``rows`` (N,) from ``seeds`` (N,): weights, data order and later seeds."""
        for row in np.flatnonzero(rows).tolist():
            shard, local = self._locate(row)
            shard.reset_row(local, int(seeds[row]))
            self._streams[row].seed(derive_seed(int(seeds[row]), "minibatches"))

    @_own_settings()
    def attach(self, mask: BoolArray, blueprint: IntArray) -> None:
        """Attach newborn seeds of ``blueprint`` (N, S) to the slots of ``mask`` (N, S)."""
        for row, slot in np.argwhere(mask).tolist():
            shard, local = self._locate(row)
            shard.attach(local, slot, int(blueprint[row, slot]))
            self._note_sizes(row, slot, int(blueprint[row, slot]))

    def withdraw(self, mask: BoolArray) -> None:
        """Undo the latest births in the slots of ``mask`` (N, S): the next seeds start as these did."""
        for shard, own in zip(self.shards, self._slices, strict=True):
            shard.births -= mask[own]

    def _note_sizes(self, row: int, slot: int, blueprint: int) -> None:
        shard, _ = self._locate(row)
        self._seed_sizes[slot, blueprint] = shard.seed_stack(slot, blueprint).size
        self._gate_sizes[slot] = shard.gate_stack(slot).size

    @_own_settings()
    def clear_momentum(self, mask: BoolArray, blueprint: IntArray) -> None:
        """Clear the optimizer's momentum of the seeds in ``mask`` (N, S), made from ``blueprint`` (N, S), and gates."""
        for row, slot in np.argwhere(mask).tolist():
            shard, local = self._locate(row)
            shard.seed_stack(slot, int(blueprint[row, slot])).clear_momentum([local])
            shard.gate_stack(slot).clear_momentum([local])

    @_own_settings()
    def train(self, structure: Structure, check_isolation: bool = False) -> TrainStats:
        """Train every network for one epoch; on request, check first that seeds in TRAINING are isolated."""

        def one(index: int) -> Readback:
            rows = self._slices[index]
            return self._trainers[index].run(structure.rows(rows), draw_epoch(self._streams[rows]), check_isolation)

        return TrainStats(self._each_shard(one))

    @_own_settings()
    def take_snapshots(self, structure: Structure, rows: BoolArray) -> None:
        """Copy the hosts and fossilized seeds of the networks of ``rows`` (N,) to main memory."""
        for snapshots, own in zip(self._snapshots, self._slices, strict=True):
            if rows[own].any():
                snapshots.take(structure.rows(own), np.flatnonzero(rows[own]))

    @_own_settings()
    def restore_snapshot(self, structure: Structure, row: int) -> Mismatch:
        """Restore one network from its snapshot; ``structure`` has the fossilized seeds of the snapshot."""
        own = self._slices[row // self._config.shard_size]
        return self._snapshots[row // self._config.shard_size].restore(structure.rows(own), row - own.start)

    @property
    def captures(self) -> int:
        """How often the step of a minibatch has been captured for replay; 0 where steps are not captured."""
        return sum(trainers.captures for trainers in self._trainers)

    @_own_settings()
    def measure(self, structure: Structure, rows: NDArray[np.bool_]) -> Measurement:
        """Measure the networks of ``rows`` (N,) on the validation set."""

        def one(index: int) -> Measurement:
            shard, own = self.shards[index], self._slices[index]
            if not rows[own].any():
                return nothing_measured(shard.rows, len(shard.slots))
            return measure(shard, structure.rows(own), self._splits.validation, rows[own])

        return _joined(Measurement, self._each_shard(one))

    @_own_settings()
    def appraise(self, structure: Structure, rows: NDArray[np.int64]) -> Commitment:
        """Value the committed networks of some rows (k,), in the order given by sorted row numbers."""

        def one(index: int) -> Commitment | None:
            own = self._slices[index]
            local = rows[(rows >= own.start) & (rows < own.stop)] - own.start
            if not len(local):
                return None
            shard = self.shards[index]
            rngs = [derive_rng(int(shard.row_seeds[row]), "shapley") for row in local]
            return appraise(shard, structure.rows(own), local, self._splits.validation, self._splits.test, rngs)

        return _joined(Commitment, [part for part in self._each_shard(one) if part is not None])

    @_own_settings()
    def get_state(self, blueprint: NDArray[np.int64], saved: NDArray[np.bool_]) -> Tree:
        """Return copies of everything that the future of the networks depends on.

        Args:
            blueprint: (N, S) the seeds in the slots.
            saved: (N, S) True for seeds that are in the snapshots too.
        """
        return get_networks(self._networks(), blueprint, saved)

    @_own_settings()
    def set_state(self, state: Tree, blueprint: NDArray[np.int64], saved: NDArray[np.bool_]) -> None:
        """Load a state of networks with these seeds; ``ValueError`` if it does not fit."""
        set_networks(self._networks(), state, blueprint, saved)
        for row, slot in np.argwhere(blueprint != NO_BLUEPRINT):
            self._note_sizes(int(row), int(slot), int(blueprint[row, slot]))

    def _networks(self) -> Networks:
        return Networks(self.shards, self._slices, self._streams, self._snapshots)

    def parameters_added(self, structure: Structure, counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(N,) trainable scalars of the counted seeds (N, S), gates in use included."""
        seeds = self._seed_sizes[np.arange(self.slots), np.where(counted, structure.blueprint, 0)]
        gates = np.where(structure.operator == Operator.GATE, self._gate_sizes, 0)
        added: NDArray[np.int64] = ((seeds + gates) * counted).sum(axis=1)
        return added

    def _locate(self, row: int) -> tuple[Shard, int]:
        size = self._config.shard_size
        return self.shards[row // size], row % size

    def _each_shard(self, work: Callable[[int], R]) -> list[R]:
        indices = range(len(self.shards))
        if self._pool is None:
            return [work(index) for index in indices]
        running = [self._pool.submit(work, index) for index in indices]
        try:
            wait(running)
        finally:  # interrupted: no shard may write behind the back of what comes next
            wait(running)
        return [each.result() for each in running]


def _joined(kind: type[T], parts: Sequence[T]) -> T:
    return kind(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _one_thread() -> None:
    """One intra-op thread per worker: the shards are the parallelism."""
    torch.set_num_threads(1)
