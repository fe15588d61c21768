"""N growing networks in shards: structural changes, training, snapshots and measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from esper_env.data import ImageData, TextData
from esper_env.extension_checks.checks import check_attributes
from esper_env.extension_checks.construction import build_reproducibly
from esper_env.extension_checks.trial import try_blueprint, try_host
from esper_env.persistence.tree import Tree
from esper_env.population.config import PopulationConfig
from esper_env.population.engines import fused_shard
from esper_env.population.evaluation.measurement import Commitment, Measurement, appraise, measure
from esper_env.population.seed_sizes import SeedSizes
from esper_env.population.shard import Shard
from esper_env.population.snapshots import Snapshots
from esper_env.population.splits import Splits, splits_for
from esper_env.population.state import Networks, get_networks, set_networks
from esper_env.population.structure import BoolArray, IntArray, Structure
from esper_env.population.training.minibatches import MinibatchStream
from esper_env.population.training.trainer import TrainerCache, TrainStats
from esper_env.population.transfer import Readback
from esper_env.rules.heads import NO_BLUEPRINT
from esper_env.seeding import derive_rng, derive_seed
from esper_env.threads import callers_cores, side_by_side, undisturbed

T = TypeVar("T", bound=tuple[NDArray[Any], ...])
R = TypeVar("R")


class Population:
    """N growing networks over one dataset. Networks never influence each other.

    Args:
        build_host: builds one host, see :class:`~esper_env.hosts.HostProtocol`.
        count: number of networks.
        data: dataset that all networks share.
        config: settings of training and of the layout.
        splits: splits of the data, from a population that has tried this host and these blueprints; None to try them.

    Raises:
        TypeError: ``build_host`` returns no :class:`~esper_env.hosts.HostProtocol`.
        ValueError: the host or a blueprint does not work.
    """

    #: Ids of worker processes.
    processes: tuple[int, ...] = ()

    @undisturbed
    def __init__(
        self,
        build_host: Callable[[], nn.Module],
        count: int,
        data: ImageData | TextData,
        config: PopulationConfig,
        splits: Splits | None = None,
    ) -> None:
        self._config = config
        self.dataset_name, self.data_digest, self.classes = data.name, data.digest, data.classes
        self.reads_text = isinstance(data, TextData)
        starts = range(0, count, config.shard_size)
        self._slices = [slice(start, min(start + config.shard_size, count)) for start in starts]
        self._lanes = callers_cores() if config.device.type == "cpu" else 1  # threads, each with a shard at a time
        host = build_reproducibly(build_host)
        check_attributes(host)
        self.shards = [Shard(build_host, rows.stop - rows.start, config) for rows in self._slices]
        self._splits = splits or splits_for(self.shards[0].slots[0], data, config.device, config.dtype)
        if splits is None:
            self._try(host)
        for shard in self.shards:
            shard.fused = fused_shard(shard, config, self._splits.train, max(1, self._lanes // len(self.shards)))
        self._trainers = [TrainerCache(shard, config, self._splits.train) for shard in self.shards]
        self._snapshots = [Snapshots(shard) for shard in self.shards]
        stream = (self._splits.train, config.batch_size, config.batches_per_step)
        self._streams = [MinibatchStream(*stream) for _ in range(count)]
        self._networks = Networks(self.shards, self._slices, self._streams, self._snapshots)
        self._sizes = SeedSizes(self.slots)

    def _try(self, host: nn.Module) -> None:
        """Try a custom host on the first samples of the validation data, and every blueprint in every slot."""
        shard = self.shards[0]
        if self._config.try_host:
            samples, _ = next(self._splits.validation.chunks(shard))
            try_host(shard, host, samples, self.classes)
        for slot in shard.slots:
            for entry in shard.blueprints:
                try:
                    try_blueprint(entry, slot.shape, shard.dtype, shard.batched)
                except ValueError as error:
                    raise ValueError(
                        f"slot {slot.slot_id} has features of shape {slot.shape}, and {error}; or remove the blueprint "
                        f"with esper_env.unregister_blueprint({entry.name!r}, {shard.topology!r})"
                    ) from error

    @property
    def splits(self) -> Splits:
        """The splits of the data, for populations with the same host."""
        return self._splits

    @property
    def slots(self) -> int:
        """Number of slots of a network."""
        return len(self.shards[0].slots)

    @undisturbed
    def reset(self, rows: BoolArray, seeds: IntArray) -> None:
        """Reset the networks of ``rows`` (N,) from ``seeds`` (N,): weights, data order and later seeds."""
        for row in np.flatnonzero(rows).tolist():
            shard, local = self._locate(row)
            shard.reset_row(local, int(seeds[row]))
            self._streams[row].seed(derive_seed(int(seeds[row]), "minibatches"))

    @undisturbed
    def attach(self, mask: BoolArray, blueprint: IntArray) -> None:
        """Attach newborn seeds of ``blueprint`` (N, S) to the slots of ``mask`` (N, S)."""
        for row, slot in np.argwhere(mask).tolist():
            shard, local = self._locate(row)
            shard.attach(local, slot, int(blueprint[row, slot]))
            self._sizes.note(shard, slot, int(blueprint[row, slot]))

    def withdraw(self, mask: BoolArray) -> None:
        """Undo the latest births in the slots of ``mask`` (N, S): the next seed there starts from the same values."""
        for shard, own in zip(self.shards, self._slices, strict=True):
            shard.births -= mask[own]

    @undisturbed
    def clear_momentum(self, mask: BoolArray, blueprint: IntArray) -> None:
        """Clear the optimizer's momentum of the seeds in ``mask`` (N, S), made from ``blueprint`` (N, S), and gates."""
        for row, slot in np.argwhere(mask).tolist():
            shard, local = self._locate(row)
            shard.seed_stack(slot, int(blueprint[row, slot])).clear_momentum([local])
            shard.gate_stack(slot).clear_momentum([local])

    @undisturbed
    def train(self, structure: Structure, check_isolation: bool = False) -> TrainStats:
        """Train every network for one epoch; ``check_isolation`` first checks that seeds in TRAINING are isolated."""

        def train_shard(index: int) -> Readback:
            rows = self._slices[index]
            return self._trainers[index].run(structure.rows(rows), self._streams[rows], check_isolation)

        return TrainStats(self._each_shard(train_shard))

    @undisturbed
    def take_snapshots(self, structure: Structure, rows: BoolArray) -> None:
        """Copy the hosts and fossilized seeds of the networks of ``rows`` (N,) to main memory."""
        for snapshots, own in zip(self._snapshots, self._slices, strict=True):
            snapshots.take(structure.rows(own), np.flatnonzero(rows[own]))

    @undisturbed
    def restore_snapshot(self, structure: Structure, row: int) -> None:
        """Restore one network from its snapshot; ``structure`` has the fossilized seeds of the snapshot."""
        own = self._slices[row // self._config.shard_size]
        self._snapshots[row // self._config.shard_size].restore(structure.rows(own), row - own.start)

    @property
    def captures(self) -> int:
        """Number of times that the step of a minibatch has been captured for replay."""
        return sum(trainers.captures for trainers in self._trainers)

    @undisturbed
    def measure(self, structure: Structure, rows: BoolArray) -> Measurement:
        """Measure the networks of ``rows`` (N,) on the validation set."""

        def measure_shard(index: int) -> Measurement:
            own = self._slices[index]
            return measure(self.shards[index], structure.rows(own), self._splits.validation, rows[own])

        return joined(Measurement, self._each_shard(measure_shard))

    @undisturbed
    def appraise(self, structure: Structure, rows: IntArray) -> Commitment:
        """Evaluate the committed networks of ``rows`` (k,), which are sorted."""

        def appraise_shard(index: int) -> Commitment | None:
            own = self._slices[index]
            local = rows[(rows >= own.start) & (rows < own.stop)] - own.start
            if not len(local):
                return None
            shard = self.shards[index]
            rngs = [derive_rng(int(shard.row_seeds[row]), "shapley") for row in local]
            return appraise(shard, structure.rows(own), local, self._splits.validation, self._splits.test, rngs)

        return joined(Commitment, [result for result in self._each_shard(appraise_shard) if result is not None])

    @undisturbed
    def get_state(self, blueprint: IntArray, saved: BoolArray) -> Tree:
        """Return copies of everything that the future of the networks depends on.

        Args:
            blueprint: (N, S) the seeds in the slots.
            saved: (N, S) True for seeds that are in the snapshots too.
        """
        return get_networks(self._networks, blueprint, saved)

    @undisturbed
    def set_state(self, state: Tree, blueprint: IntArray, saved: BoolArray) -> None:
        """Load a state of networks with these seeds; raise ``ValueError`` if it does not fit."""
        set_networks(self._networks, state, blueprint, saved)
        for row, slot in np.argwhere(blueprint != NO_BLUEPRINT).tolist():
            self._sizes.note(self._locate(row)[0], slot, int(blueprint[row, slot]))

    def parameters_added(self, structure: Structure, counted: BoolArray) -> IntArray:
        """(N,) trainable scalars of the counted seeds (N, S), including the gates in use."""
        return self._sizes.added(structure, counted)

    def close(self) -> None:
        """Do nothing: these networks are in the caller's process."""

    def _locate(self, row: int) -> tuple[Shard, int]:
        size = self._config.shard_size
        return self.shards[row // size], row % size

    def _each_shard(self, work: Callable[[int], R]) -> list[R]:
        return side_by_side(work, len(self.shards), self._lanes)


def joined(kind: type[T], results: Sequence[T]) -> T:
    """Return the concatenated columns of results, in their order."""
    return kind(*(np.concatenate(columns) for columns in zip(*results, strict=True)))
