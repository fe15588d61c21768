"""Accuracy of many configurations of a shard's networks in one pass that forks where they first differ."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.data import ImageData
from esper_env.population.engine.layouts import Tensors, normaliser
from esper_env.population.evaluation.configurations import ConfigurationSet
from esper_env.population.shard import SeedTensors, Shard
from esper_env.population.structure import SlotPlan, Structure, in_blocks, on_device, plan_slot
from esper_env.population.training.readback import Readback


class Grain(NamedTuple):
    """Scalars of input that a shard evaluates at a time, and of features that pass a seed at a time."""

    chunk: int
    block: int


#: On a CPU few enough for a core to work in its cache, enough to outweigh the cost of a call; on an accelerator as many
#: as fill it and leave it most of its memory.
CPU_GRAIN, ACCELERATOR_GRAIN = Grain(1 << 18, 1 << 17), Grain(1 << 26, 1 << 30)


def grain(device: torch.device) -> Grain:
    """How finely evaluation is cut on a device."""
    return CPU_GRAIN if device.type == "cpu" else ACCELERATOR_GRAIN


class HeldOut(Protocol):
    """A held-out split on a device, shared by every network."""

    count: int  # samples
    predictions: int  # labels, in which an accuracy is a share

    def chunk_size(self, shard: Shard) -> int:
        """Samples that a shard evaluates at a time; the more networks see them, the fewer."""
        ...

    def chunks(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """(b, ...) samples and labels."""
        ...


class HeldOutImages:
    """Labelled images, normalised once."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        data: ImageData,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        scale, shift = normaliser(data.mean, data.std, dtype, device)
        pixels = torch.from_numpy(images.copy()).to(device, dtype)
        self._images = torch.addcmul(shift, pixels, scale)
        self._labels = torch.from_numpy(labels.copy()).to(device)
        self.count = self.predictions = len(labels)

    def chunk_size(self, shard: Shard) -> int:
        return max(1, grain(shard.device).chunk // (shard.rows * self._images[0].numel()))

    def chunks(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """(b, C, H, W) images and (b,) labels."""
        size = self.chunk_size(shard)
        return zip(torch.split(self._images, size), torch.split(self._labels, size), strict=True)


class HeldOutText:
    """A text cut into windows of ``context`` bytes; what is left at its end is not used."""

    def __init__(self, text: NDArray[np.uint8], context: int, device: torch.device) -> None:
        self.count = (len(text) - 1) // context
        if self.count < 1:
            raise ValueError(
                f"{len(text)} bytes are held out; a context of {context} needs at least {context + 1}: give more text"
            )
        self.predictions = self.count * context
        tokens = torch.from_numpy(text[: self.count * context + 1].astype(np.int64)).to(device)
        self._tokens, self._following = tokens[:-1].view(-1, context), tokens[1:].view(-1, context)

    def chunk_size(self, shard: Shard) -> int:
        scalars = shard.rows * prod(shard.slots[0].shape)
        return max(1, grain(shard.device).chunk // scalars)

    def chunks(self, shard: Shard) -> Iterator[tuple[Tensor, Tensor]]:
        """(b, T) bytes and those that follow."""
        size = self.chunk_size(shard)
        return zip(torch.split(self._tokens, size), torch.split(self._following, size), strict=True)


class Scores:
    """What configurations score, in the order of their set. Reading a column waits until the device has finished."""

    def __init__(self, totals: Readback, held_out: HeldOut, order: NDArray[np.int64]) -> None:
        self._totals, self._held_out, self._order = totals, held_out, order

    @cached_property
    def loss(self) -> NDArray[np.float64]:
        """(M,) mean loss, nats; NaN where none was asked for."""
        return self._share(0, self._held_out.count)

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """(M,) percent."""
        return 100.0 * self._share(1, self._held_out.predictions)

    def _share(self, row: int, count: int) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self._totals.numpy()[row, self._order]
        return values / count


class _Fork(NamedTuple):
    """What happens between two segments: rows are copied from their parents, then pass the slot.

    The rows that pass it untouched come first, then those of each part of the plan, one part after the other.
    """

    parents: Tensor | None  # None: every row goes on once, in place
    plan: SlotPlan | None
    tensors: list[SeedTensors]
    host: Tensors  # of the segment behind the slot, one row each


@torch.no_grad()
def score(
    shard: Shard,
    structure: Structure,
    configurations: ConfigurationSet,
    held_out: HeldOut,
    losses_of: NDArray[np.int64] | None = None,
) -> Scores:
    """Evaluate every configuration in eval mode; a seed that is on counts with its alpha, a TRAINING one with 1.

    Losses take their time: ``losses_of`` names the configurations that need one, None means all of them.
    """
    networks = np.unique(configurations.networks)
    first = _host_rows(shard, 0, networks)
    forks, last = _plan_forks(shard, structure, configurations, networks, held_out)
    order = np.argsort(last)
    need = on_device(order if losses_of is None else order[losses_of], shard.device)
    totals = torch.zeros(2, len(order), dtype=torch.float64, device=shard.device)
    totals[0].fill_(torch.nan).index_fill_(0, need, 0.0)
    for samples, labels in held_out.chunks(shard):
        with shard.autocast():
            inputs = shard.layout.from_samples(samples[None])
            x = shard.infer_segment(0, first, inputs.expand(len(networks), *inputs.shape[1:]))
            if x.untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr():
                x = x.contiguous().clone()  # the segment has returned its input, and seeds are blended in place
            for position, (slot, fork) in enumerate(zip(shard.execution_order, forks, strict=True)):
                x = _pass_fork(shard, slot, fork, x)
                x = shard.infer_segment(position + 1, fork.host, x)
        x, target = x.to(shard.dtype), labels.expand(len(x), *labels.shape)
        losses = shard.layout.losses(x.index_select(0, need), target.index_select(0, need)).sum(1)
        totals[0].index_add_(0, need, losses.to(totals.dtype))
        totals[1] += shard.layout.correct(x, target).sum(1)
    return Scores(Readback(totals), held_out, order)


def _pass_fork(shard: Shard, slot: int, fork: _Fork, x: Tensor) -> Tensor:
    if fork.parents is not None:
        x = x.index_select(0, fork.parents)
    if fork.plan is None:
        return x
    if not shard.all_known:  # features of a module of the user's own may be a view of anything
        x = x.clone(memory_format=torch.contiguous_format)
    groups = torch.split(x, fork.plan.sizes)
    for part, own, h in zip(fork.plan.parts, fork.tensors, groups[1:], strict=True):
        h.copy_(shard.blend_part(slot, part, h, own))
    return x


def _plan_forks(
    shard: Shard,
    structure: Structure,
    configurations: ConfigurationSet,
    networks: NDArray[np.int64],
    held_out: HeldOut,
) -> tuple[list[_Fork], NDArray[np.int64]]:
    """The forks, and the configurations as (network, mask) keys in the order in which their rows arrive at the end."""
    forks = []
    slots = len(shard.slots)
    before = (networks << slots).astype(np.int64)  # rows so far, as (network, mask so far)
    for position, slot in enumerate(shard.execution_order):
        seen = configurations.masks & ((2 << position) - 1)
        rows = np.unique((configurations.networks << slots) | seen)
        bit = 1 << position
        plan = plan_slot(structure, slot, rows >> slots, (rows & bit) != 0, shard.device, shard.dtype)
        if plan is not None:
            rows = rows[plan.sorted_rows]
            scalars = prod(shard.slots[slot].shape) * held_out.chunk_size(shard)
            plan = in_blocks(plan, max(1, grain(shard.device).block // scalars))
        by_key = np.argsort(before)
        parents = by_key[np.searchsorted(before, rows & ~bit, sorter=by_key)]
        tensors = [shard.stored(slot, part) for part in plan.parts] if plan is not None else []
        in_place = np.array_equal(parents, np.arange(len(before)))
        parent_index = None if in_place else on_device(parents, shard.device)
        forks.append(_Fork(parent_index, plan, tensors, _host_rows(shard, position + 1, rows >> slots)))
        before = rows
    return forks, before


def _host_rows(shard: Shard, segment: int, networks: NDArray[np.int64]) -> Tensors:
    """What a host segment runs with for rows of the given networks."""
    tensors = {**shard.host.parameters, **shard.host.buffers}
    folded = shard.inference_tensors(segment, tensors)
    if len(networks) == shard.rows and (np.diff(networks) == 1).all():
        return folded
    return shard.layout.gather(folded, on_device(networks, shard.device))
