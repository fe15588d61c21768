"""Scores of many configurations of a shard's networks, from one pass that forks where they first differ."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper_env.population.engine.vmapped import Tensors
from esper_env.population.evaluation.configurations import ConfigurationSet
from esper_env.population.shard import SeedTensors, Shard
from esper_env.population.slot_plan import SlotPlan, plan_slot
from esper_env.population.splits import HeldOut, grain
from esper_env.population.structure import FloatArray, IntArray, Structure
from esper_env.population.transfer import Readback, on_device, read_back


class Scores(NamedTuple):
    """Scores of a set of configurations, in its order. Reading a column waits for the device."""

    totals: Readback  # (2, M) sums of the losses, and of the correct predictions
    held_out: HeldOut
    order: IntArray  # (M,) place of each configuration in the totals

    @property
    def loss(self) -> FloatArray:
        """(M,) mean loss, nats; NaN if it was not requested."""
        sums: FloatArray = self.totals()[0, self.order]
        return sums / self.held_out.count

    @property
    def accuracy(self) -> FloatArray:
        """(M,) accuracy in percent."""
        hits: FloatArray = self.totals()[1, self.order]
        return 100.0 * (hits / self.held_out.predictions)


class _Fork(NamedTuple):
    """The step between two segments: rows are copied from their parents, then pass the slot.

    Untouched rows come first, then the rows of each group of the plan.
    """

    parents: Tensor | None  # None: every row continues once, in place
    plan: SlotPlan
    tensors: list[SeedTensors]
    host: Tensors  # of the segment behind the slot, one row each


@torch.no_grad()
def score(
    shard: Shard,
    structure: Structure,
    configurations: ConfigurationSet,
    held_out: HeldOut,
    losses_of: IntArray,
) -> Scores:
    """Evaluate every configuration in eval mode; a seed that is on has its alpha, a TRAINING seed 1.

    ``losses_of`` are the indices of configurations that need a loss, which is expensive.
    """
    if shard.fused is not None and shard.fused.can_run(structure):
        sums = shard.fused.score(structure, configurations, held_out, losses_of)
        return Scores(lambda: sums, held_out, np.arange(len(configurations.masks)))
    networks = np.unique(configurations.networks)
    first = _host_rows(shard, 0, networks)
    forks, last = _plan_forks(shard, structure, configurations, networks, held_out)
    order = np.argsort(last)
    need = on_device(order[losses_of], shard.device)
    totals = torch.zeros(2, len(order), dtype=torch.float64, device=shard.device)
    totals[0].fill_(torch.nan).index_fill_(0, need, 0.0)
    for samples, labels in held_out.chunks(shard):
        with shard.autocast():
            inputs = shard.layout.from_samples(samples[None])
            x = shard.infer_segment(0, first, inputs.expand(len(networks), *inputs.shape[1:]))
            if x.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr():
                x = x.contiguous().clone()  # the segment returned its input, and seeds are blended in place
            for position, (slot, fork) in enumerate(zip(shard.execution_order, forks, strict=True)):
                x = _pass_fork(shard, slot, fork, x)
                x = shard.infer_segment(position + 1, fork.host, x)
        x, target = x.to(shard.dtype), labels.expand(len(x), *labels.shape)
        losses = shard.layout.losses(x.index_select(0, need), target.index_select(0, need)).sum(1)
        totals[0].index_add_(0, need, losses.to(totals.dtype))
        totals[1] += shard.layout.correct(x, target).sum(1)
    return Scores(read_back(totals), held_out, order)


def _pass_fork(shard: Shard, slot: int, fork: _Fork, x: Tensor) -> Tensor:
    if fork.parents is not None:
        x = x.index_select(0, fork.parents)
    if not fork.plan.groups:
        return x
    if not shard.all_known:  # features of a custom module may be a view of anything
        x = x.clone(memory_format=torch.contiguous_format)
    pieces = torch.split(x, fork.plan.sizes)
    for group, own, h in zip(fork.plan.groups, fork.tensors, pieces[1:], strict=True):
        h.copy_(shard.blend_group(slot, group, h, own))
    return x


def _plan_forks(
    shard: Shard,
    structure: Structure,
    configurations: ConfigurationSet,
    networks: IntArray,
    held_out: HeldOut,
) -> tuple[list[_Fork], IntArray]:
    """The forks, and the configurations as (network, mask) keys in the order of the last rows."""
    forks = []
    slots = len(shard.slots)
    before = (networks << slots).astype(np.int64)  # rows so far, as (network, mask so far)
    for position, slot in enumerate(shard.execution_order):
        seen = configurations.masks & ((2 << position) - 1)
        rows = np.unique((configurations.networks << slots) | seen)
        bit = 1 << position
        scalars = prod(shard.slots[slot].shape) * held_out.chunk_size(shard)
        block = max(1, grain(shard.device).block // scalars)
        plan = plan_slot(structure, slot, rows >> slots, (rows & bit) != 0, shard.device, shard.dtype, block)
        rows = rows[plan.sorted_rows]
        by_key = np.argsort(before)
        parents = by_key[np.searchsorted(before, rows & ~bit, sorter=by_key)]
        tensors = [shard.gather_seeds(slot, group) for group in plan.groups]
        in_place = np.array_equal(parents, np.arange(len(before)))
        parent_index = None if in_place else on_device(parents, shard.device)
        forks.append(_Fork(parent_index, plan, tensors, _host_rows(shard, position + 1, rows >> slots)))
        before = rows
    return forks, before


def _host_rows(shard: Shard, segment: int, networks: IntArray) -> Tensors:
    """Tensors with which a host segment runs on rows of the given networks."""
    tensors = {**shard.host.parameters, **shard.host.buffers}
    folded = shard.inference_tensors(segment, tensors)
    if len(networks) == shard.rows and (np.diff(networks) == 1).all():
        return folded
    return shard.layout.gather(folded, on_device(networks, shard.device))
