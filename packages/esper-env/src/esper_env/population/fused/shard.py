"""A shard whose networks run one by one, in compiled programs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esper_env.population.config import PopulationConfig
from esper_env.population.evaluation.configurations import ConfigurationSet
from esper_env.population.fused.arena import Arena, Values
from esper_env.population.fused.compiler import NotCompilableError
from esper_env.population.fused.programs import Code, Compiler, Seed, Seeds
from esper_env.population.fused.running import (
    LENGTH,
    UNIT,
    Images,
    Minibatches,
    Pieces,
    Sums,
    Tensors,
    Workspace,
    prepare,
    run,
)
from esper_env.population.shard import Shard
from esper_env.population.splits import HeldOut
from esper_env.population.structure import BoolArray, FloatArray, IntArray, Structure
from esper_env.population.training.minibatches import MinibatchStream, TrainingImages
from esper_env.population.training.working_set import EXPLODING_CLIP_MULTIPLE, VANISHING_NORM
from esper_env.population.transfer import Readback
from esper_env.rules.heads import Operator
from esper_env.tasks.choices import STRAIGHT_THROUGH
from esper_env.threads import side_by_side

#: Samples that are evaluated at a time. Their features fit into the caches of a core.
CHUNK = 64
#: Number of programs of each kind that are cached, for each network of the shard.
PROGRAMS_KEPT = 4


class Run(NamedTuple):
    """Arguments of one network's run."""

    code: Code
    tensors: Tensors
    images: Images
    batches: Minibatches
    pieces: Pieces
    sums: Sums


class Epoch(NamedTuple):
    """Results of an epoch."""

    losses: FloatArray  # (n,) means, nats
    columns: list[FloatArray]  # (n, 1 + S) each, the last four of ``TrainStats``


class FusedShard:
    """Runs a shard's networks one by one, each in compiled programs.

    Args:
        shard: the networks, float32 or float64 on a CPU.
        config: settings of training.
        data: the training images.
        lanes: largest number of threads that run the networks.

    Raises:
        NotCompilableError: a module of the host has no kernel.
    """

    def __init__(self, shard: Shard, config: PopulationConfig, data: TrainingImages, lanes: int) -> None:
        self._shard, self._config, self._lanes = shard, config, lanes
        self._arena = Arena(shard)
        self._dtype = self._arena.dtype
        _, _, _, height, width, channels = data.crops.shape
        self._shape = (channels, height, width)
        pixels, normaliser = data.padded.numpy(), (data.scale.flatten().numpy(), data.shift.flatten().numpy())
        sizes = pixels[0].size, pixels[0, 0].size
        self._images = Images(pixels.reshape(-1), *sizes, data.labels.numpy(), *normaliser, self._shape)
        self._not_prepared = np.zeros((config.batches_per_step, 0), self._dtype)
        compiler, straight = Compiler(shard, self._arena, self._shape), config.isolation == STRAIGHT_THROUGH
        # Most networks have the same seeds as in the step before.
        self._training_code = lru_cache(PROGRAMS_KEPT * shard.rows)(
            lambda seeds: compiler.training_code(seeds, config.batch_size, straight_through=straight)
        )
        self._scoring_code = lru_cache(PROGRAMS_KEPT * shard.rows)(
            lambda seeds, masks, wanted: compiler.scoring_code(seeds, masks, wanted, CHUNK)
        )
        self._training_code((None,) * len(shard.slots))
        self._arena.move_in()
        self._has_kernels = cache(self._try_seed)
        prepare(self._dtype)

    def can_run(self, structure: Structure) -> bool:
        """Return True if every module of these networks has a kernel."""
        runs = structure.blended | structure.training
        return all(
            self._has_kernels(slot, blueprint)
            for slot in range(len(self._shard.slots))
            for blueprint in set(structure.blueprint[runs[:, slot], slot].tolist())
        )

    def _try_seed(self, slot: int, blueprint: int) -> bool:
        seeds: list[Seed | None] = [None] * len(self._shard.slots)
        seeds[slot] = Seed(blueprint, Operator.GATE)
        try:
            self._training_code(tuple(seeds))
        except NotCompilableError:
            return False
        return True

    def train(
        self, structure: Structure, streams: Sequence[MinibatchStream], *, check_isolation: bool = False
    ) -> Readback:
        """Train for an epoch; return the rows of :class:`~esper_env.population.training.trainer.TrainStats`.

        With ``check_isolation``, first check on the first minibatch that seeds in TRAINING are isolated.
        """
        values = self._arena.values()
        batches = cache(lambda row: _minibatches(*streams[row].draw(), self._not_prepared))
        breached = np.zeros((self._shard.rows, 2))
        if check_isolation and structure.training.any():
            first = cache(lambda row: batches(row).first())
            without = structure._replace(training=np.zeros_like(structure.training))
            bare, seeded = (values._replace(stats=values.stats.copy()) for _ in range(2))
            one = self._epoch(without, bare, first, training=False).losses
            other = self._epoch(structure, seeded, first, training=False).losses
            isolated = structure.training.any(axis=1)
            breached[:, 0] = isolated & _differ(one[:, None], other[:, None])
            breached[:, 1] = isolated & _differ(bare.stats, seeded.stats)
        epoch = self._epoch(structure, values, batches, training=True)
        self._arena.store(values.stats, self._config.batches_per_step)
        finite = self._arena.finite(values.stats, structure.blueprint)
        table = np.concatenate([epoch.losses[:, None], finite[:, None], breached, *epoch.columns], axis=1)
        return lambda: table

    def _epoch(
        self, structure: Structure, values: Values, batches: Callable[[int], Minibatches], *, training: bool
    ) -> Epoch:
        """Run each network on its minibatches; update ``values`` in place, without ``training`` only ``stats``."""
        config, alpha = self._config, self._alpha(structure)
        rows, units = alpha.shape[0], 1 + alpha.shape[1]
        rates = np.where(structure.frozen, 0.0, config.seed_lr)
        rates = np.concatenate([np.full((rows, 1), config.host_lr), rates], axis=1).astype(self._dtype)
        norms, results = np.zeros((rows, units), self._dtype), np.zeros((rows, 2, 2))
        runs: dict[int, Run] = {}

        def describe(row: int) -> Run:
            code = self._training_code(self._seeds(structure, row))
            tensors = _tensors(values, alpha, row)
            pieces = Pieces(code.pieces, rates[row, code.pieces[:, UNIT]])
            sums = Sums(results[row], np.zeros(len(code.pieces), self._dtype), norms[row])
            runs[row] = Run(code, tensors, self._images, batches(row), pieces, sums)
            return runs[row]

        self._run_all(describe, self._longest_first(structure, np.arange(rows)), training=training)
        count = len(batches(0).samples)
        table = np.concatenate([runs[row].pieces.table for row in range(rows)])
        owner = np.repeat(np.arange(rows), [len(runs[row].pieces.table) for row in range(rows)])
        means = np.concatenate([runs[row].sums.norms for row in range(rows)]) / count
        columns = _statistics(owner, table, means, norms / count, config.clip_norm)
        return Epoch(results[:, 0, 0] / count, columns)

    def score(
        self, structure: Structure, configurations: ConfigurationSet, held_out: HeldOut, losses_of: IntArray
    ) -> FloatArray:
        """Return (2, M) for M configurations: summed losses (NaN if not requested), counts of correct predictions."""
        wanted = np.zeros(len(configurations.masks), dtype=np.bool_)
        wanted[losses_of] = True
        networks, starts = np.unique(configurations.networks, return_index=True)
        places = dict(zip(networks.tolist(), starts.tolist(), strict=True))
        ends = dict(zip(networks.tolist(), [*starts[1:].tolist(), len(wanted)], strict=True))
        images, batches = self._images._replace(labels=held_out.labels.numpy()), _chunks(held_out)
        alpha, values, none = self._alpha(structure), self._arena.values(), np.zeros(0, self._dtype)
        results: dict[int, FloatArray] = {}

        def describe(row: int) -> Run:
            here = slice(places[row], ends[row])
            masks = tuple(configurations.masks[here].tolist())
            seeds = self._seeds(structure, row, shown=int(np.bitwise_or.reduce(masks)))
            code = self._scoring_code(seeds, masks, tuple(wanted[here].tolist()))
            tensors = _tensors(values, alpha, row)
            results[row] = np.zeros((2, len(masks)))
            return Run(code, tensors, images, batches, Pieces(code.pieces, none), Sums(results[row], none, none))

        self._run_all(describe, self._longest_first(structure, networks), training=False)
        totals = np.concatenate([results[row] for row in networks.tolist()], axis=1)
        totals[0, ~wanted] = np.nan
        return totals

    def _longest_first(self, structure: Structure, networks: IntArray) -> list[int]:
        """Return the networks, those with the most seeds first, so that the threads end at about the same time."""
        seeds = (structure.blended | structure.training)[networks].sum(axis=1)
        order: list[int] = networks[np.argsort(-seeds, kind="stable")].tolist()
        return order

    def _run_all(self, describe: Callable[[int], Run], networks: Sequence[int], *, training: bool) -> None:
        """Run the programs of networks on threads; ``describe`` returns the arguments of a network's run."""
        waiting = deque(networks)
        clip, momentum = self._dtype(self._config.clip_norm), self._dtype(self._config.momentum)

        def work(_: int) -> None:
            dtheta = np.zeros(self._arena.width, self._dtype)
            memory = gradient = scratch = np.empty(0, self._dtype)
            while waiting:
                try:
                    row = waiting.popleft()
                except IndexError:  # another lane was faster
                    return
                code, tensors, images, batches, pieces, sums = describe(row)
                if code.memory > len(memory):
                    memory, gradient = (np.empty(code.memory, self._dtype) for _ in range(2))
                if max(code.scratch, len(sums.unit_norms)) > len(scratch):
                    scratch = np.empty(max(code.scratch, len(sums.unit_norms)), self._dtype)
                labels = np.empty(batches.samples.shape[1], np.int64)
                workspace = Workspace(memory, gradient, scratch, dtheta, labels)
                arguments = (tensors, images, batches, pieces, sums, workspace, clip, momentum, training)
                run(code.program, code.constants, *arguments)

        side_by_side(work, min(self._lanes, len(networks)), self._lanes)

    def _alpha(self, structure: Structure) -> NDArray[Any]:
        """Return the alphas (n, S) of seeds that are switched on; 1 for seeds that train in isolation."""
        alpha: NDArray[Any] = np.where(structure.training, 1.0, structure.alpha).clip(0.0, 1.0).astype(self._dtype)
        return alpha

    def _seeds(self, structure: Structure, row: int, shown: int | None = None) -> Seeds:
        """Return the seeds that run in training or, if ``shown`` is a mask, the seeds in the mask, none isolated."""
        seeds: list[Seed | None] = [None] * len(self._shard.slots)
        for position, slot in enumerate(self._shard.execution_order):
            isolated = bool(structure.training[row, slot])
            runs = isolated or structure.blended[row, slot] if shown is None else shown >> position & 1
            if runs:
                kind = int(structure.blueprint[row, slot]), int(structure.operator[row, slot])
                seeds[slot] = Seed(*kind, isolated and shown is None)
        return tuple(seeds)


def _tensors(values: Values, alpha: NDArray[Any], row: int) -> Tensors:
    return Tensors(values.theta[row], values.velocity[row], values.stats[row], alpha[row])


def _minibatches(samples: Tensor, offsets: Tensor | None, flips: Tensor | None, inputs: NDArray[Any]) -> Minibatches:
    """Return the minibatches of a stream's draw."""
    index = samples.numpy()
    nowhere = np.zeros((len(index), 0), np.int64)
    top, left = (nowhere, nowhere) if offsets is None else offsets.numpy()
    mirrored = nowhere.astype(np.bool_) if flips is None else flips.numpy()
    return Minibatches(index, top, left, mirrored, inputs, index.size)


def _chunks(held_out: HeldOut) -> Minibatches:
    """Return held-out samples in order, in minibatches of ``CHUNK``; index 0 pads the last one."""
    inputs = held_out.in_chunks(CHUNK)
    numbers = np.zeros((len(inputs), CHUNK), np.int64)
    numbers.reshape(-1)[: held_out.count] = np.arange(held_out.count)
    nowhere = np.zeros((len(numbers), 0), np.int64)
    return Minibatches(numbers, nowhere, nowhere, nowhere.astype(np.bool_), inputs, held_out.count)


def _differ(one: NDArray[Any], other: NDArray[Any]) -> BoolArray:
    """Return (n,) bools, True for rows that differ; NaN equals NaN."""
    differ: BoolArray = ~np.all((one == other) | (np.isnan(one) & np.isnan(other)), axis=1)
    return differ


def _statistics(
    owner: IntArray, table: IntArray, norms: NDArray[Any], unit_norms: NDArray[Any], clip: float
) -> list[FloatArray]:
    """Return four (n, U) arrays: the units' mean norms, shares of vanishing and exploding tensors, and scalar counts.

    Args:
        owner: (P,) the networks of the tensors that train.
        table: (P, 3) the tensors, see :class:`~esper_env.population.fused.running.Pieces`.
        norms: (P,) means of their gradient norms.
        unit_norms: (n, U) means of the gradient norms of the units.
        clip: largest gradient norm of a unit.
    """
    rows, units = unit_norms.shape
    place = owner * units + table[:, UNIT]

    def by_unit(values: NDArray[Any]) -> FloatArray:
        total = np.bincount(place, weights=values, minlength=rows * units).astype(np.float64)
        return total.reshape(rows, units)

    count = np.maximum(by_unit(np.ones(len(norms))), 1.0)
    vanishing = by_unit(norms < VANISHING_NORM) / count
    exploding = by_unit(~(norms <= EXPLODING_CLIP_MULTIPLE * clip)) / count
    return [unit_norms.astype(np.float64), vanishing, exploding, by_unit(table[:, LENGTH])]
