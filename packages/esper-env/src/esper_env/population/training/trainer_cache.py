"""A shard's trainers, kept by the signature of the structure, and the check that seeds in TRAINING are isolated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper_env.population.shard import Shard
from esper_env.population.structure import Structure
from esper_env.population.training.capture import captures_of
from esper_env.population.training.minibatches import Draw, TrainingSamples
from esper_env.population.training.optimisation import Optimisation
from esper_env.population.training.trainer import Trainer
from esper_env.population.transfer import Readback, on_device

#: Number of trainers that a shard keeps; each holds a copy of the tensors that train.
TRAINERS_KEPT = 4


class TrainerCache:
    """The latest trainers of a shard, so an epoch under a known signature needs no new plan."""

    def __init__(self, shard: Shard, config: Optimisation, data: TrainingSamples, capture: str) -> None:
        self._make = partial(Trainer, shard, config=config, data=data, capture=captures_of(shard.device, capture))
        self._kept: OrderedDict[bytes, Trainer] = OrderedDict()
        self._captures_dropped = 0

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles drop the trainers, whose shared memory and captured graphs cannot be copied."""
        return {**self.__dict__, "_kept": OrderedDict()}

    @property
    def captures(self) -> int:
        """Number of steps captured so far."""
        return self._captures_dropped + sum(getattr(trainer.step, "captures", 0) for trainer in self._kept.values())

    def run(self, structure: Structure, draws: Sequence[Draw], check_isolation: bool = False) -> Readback:
        """Train the shard for an epoch; ``check_isolation`` first checks TRAINING seeds on the first minibatch."""
        signature = structure.signature()
        trainer = self._kept.pop(signature, None) or self._make(structure=structure)
        self._kept[signature] = trainer
        if len(self._kept) > TRAINERS_KEPT:
            self._captures_dropped += getattr(self._kept.popitem(last=False)[1].step, "captures", 0)
        breached = self._breached(trainer, structure, draws[0]) if check_isolation else None
        return trainer.run(structure, draws, breached)

    def _breached(self, trainer: Trainer, structure: Structure, draw: Draw) -> Tensor | None:
        """(n, 2) True if outputs, and running statistics, of a network depend on its seeds in TRAINING, bit for bit.

        They never do by construction, unless a custom module writes into its input, or a straight-through seed is not
        finite.
        """
        isolated = np.asarray(structure.training.any(axis=1))
        if not isolated.any():
            return None
        without = structure._replace(training=np.zeros_like(structure.training))
        bare = self._make(structure=without).rehearse(without, draw)
        with_seeds = trainer.rehearse(structure, draw)
        losses, *statistics = [_differ(*values) for values in zip(bare, with_seeds, strict=True)]
        changed = torch.stack([torch.zeros_like(losses), *statistics]).any(0)
        return torch.stack([losses, changed], dim=1) & on_device(isolated, losses.device)[:, None]


def _differ(first: Tensor, second: Tensor) -> Tensor:
    """(n,) True for rows that differ; NaN equals NaN."""
    same = (first == second) | ((first != first) & (second != second))
    return ~same.reshape(len(first), int(np.prod(first.shape[1:]))).all(1)
