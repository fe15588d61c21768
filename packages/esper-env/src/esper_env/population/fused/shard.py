"""A shard whose networks run one by one, in compiled programs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from esper_env.population.config import PopulationConfig
from esper_env.population.evaluation.configurations import ConfigurationSet
from esper_env.population.fused.arena import Arena, Held, load, store
from esper_env.population.fused.compiler import NotCompilableError
from esper_env.population.fused.epoch import (
    LENGTH,
    UNIT,
    Draws,
    Images,
    Networks,
    Pieces,
    Programs,
    Sums,
    prepare,
    score_samples,
    train_images,
)
from esper_env.population.fused.programs import Code, Compiler, Seed, Seeds
from esper_env.population.shard import Shard
from esper_env.population.splits import HeldOut
from esper_env.population.structure import BoolArray, FloatArray, IntArray, Structure
from esper_env.population.training.minibatches import Draw, TrainingImages
from esper_env.population.training.working_set import EXPLODING_CLIP_MULTIPLE, VANISHING_NORM
from esper_env.population.transfer import Readback
from esper_env.rules.heads import Operator
from esper_env.tasks.choices import STRAIGHT_THROUGH
from esper_env.threads import side_by_side

#: Samples that are evaluated at a time, whose features fit into the caches of a core.
CHUNK = 64
#: Programs of each kind that are kept, for each network of the shard.
PROGRAMS_KEPT = 4


class Epoch(NamedTuple):
    """Result of an epoch."""

    held: list[Held]
    networks: Networks
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
        self._shard, self._config, self._data, self._lanes = shard, config, data, lanes
        self._straight = config.isolation == STRAIGHT_THROUGH
        self._arena = Arena(shard)
        _, _, _, height, width, channels = data.crops.shape
        self._shape = (channels, height, width)
        compiler = Compiler(shard, self._arena, self._shape)
        self._dtype = np.float64 if shard.dtype is torch.float64 else np.float32
        straight = self._straight
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

    def train(self, structure: Structure, draws: Sequence[Draw], *, check_isolation: bool = False) -> Readback:
        """Train for an epoch; return the rows of :class:`~esper_env.population.training.trainer.TrainStats`.

        With ``check_isolation``, first checks on the first minibatch that seeds in TRAINING are isolated.
        """
        breached = np.zeros((self._shard.rows, 2))
        if check_isolation and structure.training.any():
            without = structure._replace(training=np.zeros_like(structure.training))
            bare, seeded = (self._epoch(one, draws[:1]) for one in (without, structure))
            isolated = structure.training.any(axis=1)
            breached[:, 0] = isolated & _differ(bare.losses[:, None], seeded.losses[:, None])
            breached[:, 1] = isolated & _differ(bare.networks.stats, seeded.networks.stats)
        epoch = self._epoch(structure, draws)
        for one in epoch.held:
            store(one.stack.parameters, one, epoch.networks.theta)
            store(one.stack.momentum, one, epoch.networks.velocity)
        self._arena.store_stats(epoch.networks.stats, len(draws))
        finite = self._shard.finite(structure).numpy()
        table = np.concatenate([epoch.losses[:, None], finite[:, None], breached, *epoch.columns], axis=1)
        return lambda: table

    def _epoch(self, structure: Structure, draws: Sequence[Draw]) -> Epoch:
        """Train copies of the networks."""
        rows, config, data, slots = self._shard.rows, self._config, self._data, len(self._shard.slots)
        programs, held = self._joined(self._codes(structure)), self._held(structure)
        networks = self._networks(structure, held)
        pieces = self._pieces(held, structure)
        table = np.zeros((rows, 1 + slots), self._dtype)
        sums = Sums(np.zeros(rows), np.zeros(len(pieces.table), self._dtype), table)
        images = Images(
            data.padded.numpy(),
            data.labels.numpy(),
            data.scale.flatten().numpy(),
            data.shift.flatten().numpy(),
            self._shape,
        )
        drawn, clip, momentum = _stacked(draws), self._dtype(config.clip_norm), self._dtype(config.momentum)

        def work(lane: int) -> None:
            mine = np.arange(lane, rows, self._lanes)
            train_images(mine, programs, networks, pieces, images, drawn, sums, clip, momentum)

        side_by_side(work, min(self._lanes, rows), self._lanes)
        columns = _statistics(pieces, sums, len(draws), config.clip_norm)
        return Epoch(held, networks, sums.losses / len(draws), columns)

    def score(
        self, structure: Structure, configurations: ConfigurationSet, held_out: HeldOut, losses_of: IntArray
    ) -> FloatArray:
        """Return (2, M): the summed losses, NaN where not requested, and the counts of correct predictions."""
        shard = self._shard
        wanted = np.zeros(len(configurations.masks), dtype=np.bool_)
        wanted[losses_of] = True
        networks, starts = np.unique(configurations.networks, return_index=True)
        ends = np.append(starts[1:], len(wanted))
        codes: list[Code] = []
        for row, start, end in zip(networks.tolist(), starts, ends, strict=True):
            masks = tuple(configurations.masks[start:end].tolist())
            seeds = self._seeds(structure, row, shown=int(np.bitwise_or.reduce(masks)))
            codes.append(self._scoring_code(seeds, masks, tuple(wanted[start:end].tolist())))
        lines = np.zeros((shard.rows, 2), np.int64)
        programs = self._joined(codes)
        lines[networks] = programs.lines
        programs = programs._replace(lines=lines)
        tensors = self._networks(structure, self._held(structure), momentum=False)
        results = np.zeros((shard.rows, 2, int((ends - starts).max())))
        inputs, labels = held_out.in_chunks(CHUNK)

        def work(lane: int) -> None:
            mine = networks[lane :: self._lanes].copy()  # contiguous, or it would compile once more
            score_samples(mine, programs, tensors, inputs, labels, held_out.count, results)

        side_by_side(work, min(self._lanes, len(networks)), self._lanes)
        totals = np.concatenate(
            [results[row, :, : end - start] for row, start, end in zip(networks, starts, ends, strict=True)], axis=1
        )
        totals[0, ~wanted] = np.nan
        return totals

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

    def _joined(self, codes: Sequence[Code]) -> Programs:
        """Concatenate the networks' programs; each distinct program appears once."""
        places: dict[int, int] = {}
        parts: list[Code] = []
        end = 0
        for code in codes:
            if id(code) not in places:
                places[id(code)] = end
                parts.append(code)
                end += len(code.program)
        lines = np.array([(places[id(code)], places[id(code)] + len(code.program)) for code in codes], np.int64)
        return Programs(
            np.concatenate([code.program for code in parts]),
            np.concatenate([code.constants for code in parts]).astype(self._dtype),
            lines,
            max(code.memory for code in parts),
            max(code.scratch for code in parts),
        )

    def _networks(self, structure: Structure, held: Sequence[Held], *, momentum: bool = True) -> Networks:
        """Return copies of the networks' tensors; without ``momentum``, the velocity is empty."""
        rows, width = self._shard.rows, self._arena.width
        theta, velocity = np.zeros((rows, width), self._dtype), np.zeros((rows, width if momentum else 0), self._dtype)
        for one in held:
            load(one.stack.parameters, one, theta)
            if momentum:
                load(one.stack.momentum, one, velocity)
        stats = np.zeros((rows, self._arena.stats_width), self._dtype)
        self._arena.load_stats(stats)
        everyone = np.arange(rows)
        alpha = np.stack([structure.alpha_on(everyone, slot) for slot in range(len(self._shard.slots))], axis=1)
        return Networks(theta, velocity, stats, alpha.clip(0.0, 1.0).astype(self._dtype))

    def _held(self, structure: Structure) -> list[Held]:
        """Return the hosts, and the seeds and gates that run."""
        held = [self._arena.held_host()]
        runs = structure.blended | structure.training
        for slot in range(len(self._shard.slots)):
            for blueprint in np.unique(structure.blueprint[runs[:, slot], slot]).tolist():
                networks = np.flatnonzero(runs[:, slot] & (structure.blueprint[:, slot] == blueprint))
                held.append(self._arena.held_seeds(slot, blueprint, networks))
            gated = np.flatnonzero(runs[:, slot] & (structure.operator[:, slot] == Operator.GATE))
            if len(gated):
                held.append(self._arena.held_gates(slot, gated))
        return held

    def _pieces(self, held: Sequence[Held], structure: Structure) -> Pieces:
        """Return the tensors that train."""
        tables, rates, owners = [], [], []
        for one in held:
            rate = np.full(len(one.networks), self._config.host_lr)
            if one.unit:
                rate = np.where(structure.frozen[one.networks, one.unit - 1], 0.0, self._config.seed_lr)
            for name, place in one.places.items():
                length = one.stack.parameters[name][0].numel()
                tables.append(np.tile([place, length, one.unit], (len(one.networks), 1)))
                rates.append(rate)
                owners.append(one.networks)
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(self._shard.rows + 1))
        own = np.stack([bounds[:-1], bounds[1:]], axis=1)
        return Pieces(np.concatenate(tables)[order], np.concatenate(rates)[order].astype(self._dtype), own)


def _differ(one: NDArray[Any], other: NDArray[Any]) -> BoolArray:
    """Return (n,) bools, True for rows that differ; NaN equals NaN."""
    differ: BoolArray = ~np.all((one == other) | (np.isnan(one) & np.isnan(other)), axis=1)
    return differ


def _stacked(draws: Sequence[Draw]) -> Draws:
    """Return the draws of an epoch."""
    index = np.stack([draw.samples.numpy() for draw in draws])
    nowhere = np.zeros((*index.shape[:2], 0), np.int64)
    top, left, mirrored = nowhere, nowhere, nowhere.astype(np.bool_)
    cuts = [draw.offsets.numpy() for draw in draws if draw.offsets is not None]
    flips = [draw.flips.numpy() for draw in draws if draw.flips is not None]
    if cuts:
        top, left = np.ascontiguousarray(np.stack(cuts, axis=1))
    if flips:
        mirrored = np.stack(flips)
    return Draws(index, top, left, mirrored)


def _statistics(pieces: Pieces, sums: Sums, batches: int, clip: float) -> list[FloatArray]:
    """Return, as (n, U) each, the units' mean norms, shares of vanishing and exploding tensors, and scalar counts."""
    norms, unit_norms = sums.norms / batches, sums.unit_norms / batches
    rows, units = unit_norms.shape
    owner = np.repeat(np.arange(rows), pieces.own[:, 1] - pieces.own[:, 0])
    place = owner * units + pieces.table[:, UNIT]

    def by_unit(values: NDArray[Any]) -> FloatArray:
        total = np.bincount(place, weights=values, minlength=rows * units).astype(np.float64)
        return total.reshape(rows, units)

    count = np.maximum(by_unit(np.ones(len(norms))), 1.0)
    vanishing = by_unit(norms < VANISHING_NORM) / count
    exploding = by_unit(~(norms <= EXPLODING_CLIP_MULTIPLE * clip)) / count
    return [unit_norms.astype(np.float64), vanishing, exploding, by_unit(pieces.table[:, LENGTH])]
