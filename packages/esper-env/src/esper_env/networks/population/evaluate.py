"""Accuracy of many configurations of a shard's networks in one pass that forks where they first differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.data import ImageData
from esper_env.networks.population.configurations import ConfigurationSet
from esper_env.networks.population.layout import Tensors, normaliser
from esper_env.networks.population.network import SeedTensors, Shard
from esper_env.networks.population.structure import SlotPlan, Structure, plan_slot

#: Scalars of input per network and chunk; bounds the memory of an evaluation, and depends on the task alone.
CHUNK_SCALARS = 1 << 17


class HeldOutImages:
    """A held-out split on a device, normalised once and cut into chunks, shared by every network."""

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
        normalised = torch.addcmul(shift, pixels, scale)
        chunk = max(1, CHUNK_SCALARS // normalised[0].numel())
        self.chunks = list(
            zip(
                torch.split(normalised, chunk),
                torch.split(torch.from_numpy(labels.copy()).to(device), chunk),
                strict=True,
            )
        )
        self.count = len(labels)


class Scores(NamedTuple):
    """Mean loss in nats and accuracy in percent of each configuration, (M,) each."""

    loss: NDArray[np.float64]
    accuracy: NDArray[np.float64]


class _Fork(NamedTuple):
    """What happens between two segments: rows are copied from their parents, then pass the slot."""

    parents: Tensor | None  # None: every row goes on once, in place
    plan: SlotPlan | None
    tensors: list[SeedTensors]
    host: Tensors  # of the segment behind the slot, one row each


@torch.no_grad()
def score(shard: Shard, structure: Structure, configurations: ConfigurationSet, images: HeldOutImages) -> Scores:
    """Evaluate every configuration in eval mode; a seed that is on counts with its alpha, a TRAINING one with 1."""
    networks = np.unique(configurations.networks)
    first = _host_rows(shard, 0, networks)
    forks = _plan_forks(shard, structure, configurations, networks)
    totals = torch.zeros(2, len(configurations.masks), dtype=torch.float64, device=shard.device)
    for pixels, labels in images.chunks:
        x = shard.layout.from_images(pixels.expand(len(networks), *pixels.shape))
        x = shard.run_segment(0, first, x, training=False)
        for position, (slot, fork) in enumerate(zip(shard.execution_order, forks, strict=True)):
            if fork.parents is not None:
                x = x.index_select(0, fork.parents)
            x = shard.pass_slot(slot, fork.plan, x, fork.tensors)
            x = shard.run_segment(position + 1, fork.host, x, training=False)
        target = labels.expand(len(x), -1)
        totals[0] += shard.layout.losses(x, target).sum(1)
        totals[1] += shard.layout.correct(x, target).sum(1)
    loss, correct = (totals / images.count).cpu().numpy()
    return Scores(loss, 100.0 * correct)


def _plan_forks(
    shard: Shard, structure: Structure, configurations: ConfigurationSet, networks: NDArray[np.int64]
) -> list[_Fork]:
    forks = []
    slots = len(shard.slots)
    before = (networks << slots).astype(np.int64)  # rows so far, as (network, mask so far)
    for position, slot in enumerate(shard.execution_order):
        seen = configurations.masks & ((2 << position) - 1)
        rows = np.unique((configurations.networks << slots) | seen)
        bit = 1 << position
        parents = np.searchsorted(before, rows & ~bit)
        owners = rows >> slots
        plan = plan_slot(structure, slot, owners, (rows & bit) != 0, shard.device, shard.dtype)
        tensors = [shard.stored(slot, part) for part in plan.parts] if plan is not None else []
        in_place = np.array_equal(parents, np.arange(len(before)))
        parent_index = None if in_place else torch.from_numpy(parents).to(shard.device)
        forks.append(_Fork(parent_index, plan, tensors, _host_rows(shard, position + 1, owners)))
        before = rows
    return forks


def _host_rows(shard: Shard, segment: int, networks: NDArray[np.int64]) -> Tensors:
    """The tensors of a host segment for rows of the given networks."""
    tensors = {**shard.host.parameters, **shard.host.buffers}
    own = {full: tensors[full] for full, _ in shard.segment_names(segment)}
    if len(networks) == shard.rows and (np.diff(networks) == 1).all():
        return own
    return shard.layout.gather(own, torch.from_numpy(networks).to(shard.device))
