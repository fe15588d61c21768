"""A shard whose networks run one by one, in compiled programs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
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
from esper_env.tasks.choices import STRAIGHT_THROUGH
from esper_env.threads import side_by_side

#: Samples that are evaluated at a time, whose features fit into the caches of a core.
CHUNK = 64
#: Programs of each kind that are kept, for each network of the shard.
PROGRAMS_KEPT = 4
#: Runs the program of a network in a workspace.
Job = Callable[[Workspace], None]


class Epoch(NamedTuple):
    """Results of an epoch."""

    losses: FloatArray  # (n,) means, nats
    columns: list[FloatArray]  # (n, 1 + S) each, the last four of the training statistics


class FusedShard:
    """Runs a shard's networks one by one, each in compiled programs.

    Args:
        shard: the networks, float32 or float64 on a CPU.
        config: settings of training.
        data: the training images.
        lanes: threads that may share the networks.

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
        prepare(self._dtype)

    def can_run(self, structure: Structure) -> bool:
        """Return True if every module of these networks has a kernel."""
        try:
            self._codes(structure)
        except NotCompilableError:
            return False
        return True

    def train(
        self, structure: Structure, streams: Sequence[MinibatchStream], *, check_isolation: bool = False
    ) -> Readback:
        """Train for an epoch; return the rows of :class:`~esper_env.population.training.trainer.TrainStats`.

        With ``check_isolation``, first checks on the first minibatch that seeds in TRAINING are isolated.
        """
        values = self._arena.values()
        batches = [_minibatches(*stream.draw(), self._not_prepared) for stream in streams]
        breached = np.zeros((self._shard.rows, 2))
        if check_isolation and structure.training.any():
            first = [each.first() for each in batches]
            without = structure._replace(training=np.zeros_like(structure.training))
            copies = values.copy(), values.copy()
            bare, seeded = (self._epoch(*each, first) for each in zip((without, structure), copies, strict=True))
            isolated = structure.training.any(axis=1)
            breached[:, 0] = isolated & _differ(bare.losses[:, None], seeded.losses[:, None])
            breached[:, 1] = isolated & _differ(copies[0].stats, copies[1].stats)
        epoch = self._epoch(structure, values, batches)
        self._arena.store(values.stats, len(batches[0].samples))
        finite = self._arena.finite(values.stats, structure.blueprint)
        table = np.concatenate([epoch.losses[:, None], finite[:, None], breached, *epoch.columns], axis=1)
        return lambda: table

    def _epoch(self, structure: Structure, values: Values, batches: Sequence[Minibatches]) -> Epoch:
        """Train the networks with these values, in place."""
        config, codes, alpha = self._config, self._codes(structure), self._alpha(structure)
        rows, units = len(codes), 1 + len(self._shard.slots)
        ends = np.cumsum([len(code.pieces) for code in codes])
        starts = ends - [len(code.pieces) for code in codes]
        owner, table = np.repeat(np.arange(rows), ends - starts), np.concatenate([code.pieces for code in codes])
        frozen = np.concatenate([np.zeros((rows, 1), np.bool_), structure.frozen], axis=1)[owner, table[:, UNIT]]
        rates = np.where(table[:, UNIT] == 0, config.host_lr, config.seed_lr)
        rates = np.where(frozen, 0.0, rates).astype(self._dtype)
        norms, unit_norms = np.zeros(len(table), self._dtype), np.zeros((rows, units), self._dtype)
        results = np.zeros((rows, 2, 2))

        def job(row: int) -> Job:
            tensors, own = Tensors(*(each[row] for each in values), alpha[row]), slice(starts[row], ends[row])
            pieces = Pieces(codes[row].pieces, rates[own])
            sums = Sums(results[row], norms[own], unit_norms[row])
            return lambda workspace: self._run(
                codes[row], tensors, self._images, batches[row], pieces, sums, workspace, training=True
            )

        self._run_jobs([job(row) for row in range(rows)], codes, config.batch_size)
        count = len(batches[0].samples)
        columns = _statistics(owner, table, norms / count, unit_norms / count, config.clip_norm)
        return Epoch(results[:, 0, 0] / count, columns)

    def score(
        self, structure: Structure, configurations: ConfigurationSet, held_out: HeldOut, losses_of: IntArray
    ) -> FloatArray:
        """Return (2, M): the summed losses, NaN where not requested, and the counts of correct predictions."""
        wanted = np.zeros(len(configurations.masks), dtype=np.bool_)
        wanted[losses_of] = True
        networks, starts = np.unique(configurations.networks, return_index=True)
        ends = np.append(starts[1:], len(wanted))
        totals = np.zeros((2, len(wanted)))
        images, batches = self._images._replace(labels=held_out.labels.numpy()), _chunks(held_out)
        alpha, values, none = self._alpha(structure), self._arena.values(), np.zeros(0, self._dtype)
        codes: list[Code] = []
        jobs: list[Job] = []
        results: list[FloatArray] = []

        def job(code: Code, tensors: Tensors, sums: Sums) -> Job:
            return lambda workspace: self._run(
                code, tensors, images, batches, Pieces(code.pieces, none), sums, workspace, training=False
            )

        for row, start, end in zip(networks.tolist(), starts, ends, strict=True):
            masks = tuple(configurations.masks[start:end].tolist())
            seeds = self._seeds(structure, row, shown=int(np.bitwise_or.reduce(masks)))
            codes.append(self._scoring_code(seeds, masks, tuple(wanted[start:end].tolist())))
            results.append(np.zeros((2, end - start)))
            tensors = Tensors(*(each[row] for each in values), alpha[row])
            jobs.append(job(codes[-1], tensors, Sums(results[-1], none, none)))
        self._run_jobs(jobs, codes, CHUNK)
        totals = np.concatenate(results, axis=1)
        totals[0, ~wanted] = np.nan
        return totals

    def _run_jobs(self, jobs: Sequence[Job], codes: Sequence[Code], samples: int) -> None:
        """Run jobs, longest first, on the lanes; ``codes`` are their programs."""
        waiting = deque(sorted(range(len(jobs)), key=lambda index: -len(codes[index].program)))
        memory, scratch = max(code.memory for code in codes), max(code.scratch for code in codes)
        width = self._arena.width

        def work(_: int) -> None:
            values = (np.empty(size, self._dtype) for size in (memory, memory, scratch))
            workspace = Workspace(*values, np.zeros(width, self._dtype), np.empty(samples, np.int64))
            while waiting:
                try:
                    index = waiting.popleft()
                except IndexError:  # another lane was faster
                    return
                jobs[index](workspace)

        side_by_side(work, min(self._lanes, len(jobs)), self._lanes)

    def _run(
        self,
        code: Code,
        tensors: Tensors,
        images: Images,
        batches: Minibatches,
        pieces: Pieces,
        sums: Sums,
        workspace: Workspace,
        *,
        training: bool,
    ) -> None:
        clip, momentum = self._dtype(self._config.clip_norm), self._dtype(self._config.momentum)
        run(
            code.program,
            code.constants,
            tensors,
            images,
            batches,
            pieces,
            sums,
            workspace,
            clip,
            momentum,
            training,
        )

    def _alpha(self, structure: Structure) -> NDArray[Any]:
        """Return (n, S) alphas of the seeds when they are on; 1 for seeds that train in isolation."""
        alpha: NDArray[Any] = np.where(structure.training, 1.0, structure.alpha).clip(0.0, 1.0).astype(self._dtype)
        return alpha

    def _codes(self, structure: Structure) -> list[Code]:
        return [self._training_code(self._seeds(structure, row)) for row in range(self._shard.rows)]

    def _seeds(self, structure: Structure, row: int, shown: int | None = None) -> Seeds:
        """Return the seeds that run in training or, if ``shown`` is a mask, the seeds in the mask, all switched on."""
        seeds: list[Seed | None] = [None] * len(self._shard.slots)
        for position, slot in enumerate(self._shard.execution_order):
            isolated = bool(structure.training[row, slot])
            runs = isolated or structure.blended[row, slot] if shown is None else shown >> position & 1
            if runs:
                kind = int(structure.blueprint[row, slot]), int(structure.operator[row, slot])
                seeds[slot] = Seed(*kind, isolated and shown is None)
        return tuple(seeds)


def _minibatches(samples: Tensor, offsets: Tensor | None, flips: Tensor | None, inputs: NDArray[Any]) -> Minibatches:
    """Return the minibatches of a stream's draw."""
    index = samples.numpy()
    nowhere = np.zeros((len(index), 0), np.int64)
    top, left = (nowhere, nowhere) if offsets is None else offsets.numpy()
    mirrored = nowhere.astype(np.bool_) if flips is None else flips.numpy()
    return Minibatches(index, top, left, mirrored, inputs, index.size)


def _chunks(held_out: HeldOut) -> Minibatches:
    """Return held-out samples in order, in minibatches of ``CHUNK``; the last one is padded with samples 0."""
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
    """Return, as (n, U) each, the units' mean norms, shares of vanishing and exploding tensors, and scalar counts.

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
