"""A shard's trainers, and what they report."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from esper_env.population.shard import Shard
from esper_env.population.structure import Structure, on_device
from esper_env.population.training.capture import runners
from esper_env.population.training.epoch import EpochTrainer
from esper_env.population.training.isolation import breaches
from esper_env.population.training.minibatches import Draw, TrainingSamples
from esper_env.population.training.optimisation import Optimisation
from esper_env.population.training.readback import Readback

#: Trainers that a shard keeps, each with its copy of what trains.
TRAINERS_KEPT = 4


class TrainStats:
    """Measured over an epoch; the second axis is the host, then the S slots in action order.

    Reading a column waits until the device has finished the epoch.
    """

    def __init__(self, tables: Sequence[Readback]) -> None:
        self._tables = tables

    @cached_property
    def _columns(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[NDArray[np.float64]]]:
        table = np.concatenate([part.numpy() for part in self._tables])
        return table[:, 0], table[:, 1:4] > 0, np.split(table[:, 4:], 4, axis=1)

    @property
    def loss(self) -> NDArray[np.float64]:
        """(n,) mean training loss, nats."""
        return self._columns[0]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(n,) whether the loss, and every parameter and buffer after the epoch, is finite."""
        finite: NDArray[np.bool_] = np.isfinite(self.loss) & self._columns[1][:, 0]
        return finite

    @property
    def breached(self) -> NDArray[np.bool_]:
        """(n, 2) whether outputs and statistics of the host depend on seeds in TRAINING; False where not checked."""
        return self._columns[1][:, 1:]

    @property
    def gradient_norm(self) -> NDArray[np.float64]:
        """(n, 1 + S) mean norm before clipping."""
        return self._columns[2][0]

    @property
    def vanishing(self) -> NDArray[np.float64]:
        """(n, 1 + S) share of tensors whose gradient vanishes."""
        return self._columns[2][1]

    @property
    def exploding(self) -> NDArray[np.float64]:
        """(n, 1 + S) share of tensors whose gradient explodes."""
        return self._columns[2][2]

    @property
    def sizes(self) -> NDArray[np.float64]:
        """(n, 1 + S) trainable scalars; 0 where nothing was trained."""
        return self._columns[2][3]


class Trainers:
    """A shard's trainers by the signature of the structure: the latest ones are kept, so waiting costs no planning."""

    def __init__(self, shard: Shard, config: Optimisation, data: TrainingSamples, capture: str) -> None:
        new_runner = runners(shard.device, capture)
        self._make = partial(EpochTrainer, shard, config=config, data=data, new_runner=new_runner)
        self._kept: OrderedDict[bytes, EpochTrainer] = OrderedDict()
        self._captures_gone = 0

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles plan anew: tensors that share memory, and captured graphs, would not survive in them."""
        return {**self.__dict__, "_kept": OrderedDict()}

    @property
    def captures(self) -> int:
        """How many steps have been captured so far."""
        return self._captures_gone + sum(trainer.captures for trainer in self._kept.values())

    def run(self, structure: Structure, draws: Sequence[Draw], check_isolation: bool = False) -> Readback:
        """Train the shard for an epoch, after a look on its first minibatch at the isolation of TRAINING seeds."""
        signature = structure.signature()
        trainer = self._kept.pop(signature, None) or self._make(structure=structure)
        self._kept[signature] = trainer
        if len(self._kept) > TRAINERS_KEPT:
            self._captures_gone += self._kept.popitem(last=False)[1].captures
        breached = self._breached(trainer, structure, draws[0]) if check_isolation else None
        return trainer.run(structure, draws, breached)

    def _breached(self, trainer: EpochTrainer, structure: Structure, draw: Draw) -> Tensor | None:
        isolated = np.asarray(structure.training.any(axis=1))
        if not isolated.any():
            return None
        without = structure._replace(training=np.zeros_like(structure.training))
        alone = self._make(structure=without).rehearse(without, draw)
        with_seeds = trainer.rehearse(structure, draw)
        return breaches(on_device(isolated, with_seeds.losses.device), with_seeds, alone)
