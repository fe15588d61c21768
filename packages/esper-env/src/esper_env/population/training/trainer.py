"""Training of a shard for an epoch: the main pass, and the shadow pass of seeds that train in isolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.population.shard import Shard
from esper_env.population.structure import Structure
from esper_env.population.training.capture import CapturedStep, Step
from esper_env.population.training.minibatches import Draw, TrainingSamples
from esper_env.population.training.optimisation import Optimisation
from esper_env.population.training.plan import TrainingPlan, take
from esper_env.population.training.working_set import WorkingSet
from esper_env.population.transfer import Readback
from esper_env.tasks.choices import STRAIGHT_THROUGH


class TrainStats:
    """Statistics of an epoch; the second axis holds the host, then the S slots in action order.

    Reading a column waits until the device has finished the epoch.
    """

    def __init__(self, tables: Sequence[Readback]) -> None:
        self._tables = tables

    @cached_property
    def _columns(self) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[NDArray[np.float64]]]:
        columns = np.concatenate([table.numpy() for table in self._tables])
        return columns[:, 0], columns[:, 1:4] > 0, np.split(columns[:, 4:], 4, axis=1)

    @property
    def loss(self) -> NDArray[np.float64]:
        """(n,) mean training loss, nats."""
        return self._columns[0]

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(n,) True if the loss, and every parameter and buffer after the epoch, is finite."""
        finite: NDArray[np.bool_] = np.isfinite(self.loss) & self._columns[1][:, 0]
        return finite

    @property
    def breached(self) -> NDArray[np.bool_]:
        """(n, 2) True if outputs, and statistics, of the host depend on seeds in TRAINING; False if not checked."""
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


class Trainer:
    """Trains a shard, epoch after epoch, while its structure has the same signature.

    Every tensor that a step reads or writes keeps its memory, so steps can be captured and replayed.
    """

    def __init__(
        self,
        shard: Shard,
        structure: Structure,
        config: Optimisation,
        data: TrainingSamples,
        capture: Callable[[Step], CapturedStep] | None,
    ) -> None:
        self._shard, self._data = shard, data
        self._straight = config.isolation == STRAIGHT_THROUGH
        self._plan = TrainingPlan(shard, structure, config)
        units = shard.rows * (1 + len(shard.slots))
        self._set = WorkingSet(self._plan.members, units, config.clip_norm, config.momentum)
        self._loss_sum = torch.zeros(shard.rows, dtype=shard.dtype, device=shard.device)
        self.step: Step = self._step if capture is None else capture(self._step)

    def rehearse(self, structure: Structure, draw: Draw) -> list[Tensor]:
        """Run a minibatch without training; return its losses (n,) and the hosts' buffers (n, ...) behind it."""
        self._plan.refresh(structure)
        self._set.load()
        buffers = list(self._shard.host.buffers.values())
        before = [value.clone() for value in buffers]
        with self._shard.autocast():
            losses, _ = self._losses(*self._data.assemble(draw))
        after = [value.clone() for value in buffers]
        for value, old in zip(buffers, before, strict=True):
            value.copy_(old)
        return [losses.detach(), *after]

    def run(self, structure: Structure, draws: Sequence[Draw], breached: Tensor | None = None) -> Readback:
        """Train on an epoch of draws, write the result to the stacks, and return the rows of :class:`TrainStats`.

        ``breached`` (n, 2) has the result of the isolation check, if there was one.
        """
        self._plan.refresh(structure)
        self._set.load()
        self._loss_sum.zero_()
        for draw in draws:
            self.step(draw)
        self._set.write_back()
        if breached is None:
            breached = torch.zeros((self._shard.rows, 2), device=self._shard.device)
        return self._collect(len(draws), self._shard.finite(structure), breached)

    def _step(self, draw: Draw) -> None:
        """Train on one minibatch."""
        with self._shard.autocast():
            main, shadow = self._losses(*self._data.assemble(draw))
        total = main.sum() if shadow is None else main.sum() + shadow.sum()
        total.backward()  # type: ignore[no-untyped-call]
        self._set.step()
        self._loss_sum += main.detach()

    def _losses(self, samples: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean loss of each network (n,), and of each network in the shadow pass (Z,), or None."""
        shard, layout = self._shard, self._shard.layout
        views = [{**own, **fixed} for own, fixed in zip(self._set.views(), self._plan.fixed, strict=True)]
        host = {**views[0], **shard.host.buffers}
        x = shard.train_segment(0, host, layout.from_samples(samples))
        z: Tensor | None = None
        for position, slot in enumerate(shard.execution_order):
            rows = self._plan.entering[position]
            if rows is not None:  # networks whose first TRAINING seed is here
                entering = take(x.detach(), rows)
                z = entering if z is None else torch.cat([z, entering])
            plan = self._plan.main[slot]
            x = shard.pass_slot(slot, plan, x, self._plan.tensors(plan, views), straight_through=self._straight)
            x = shard.train_segment(position + 1, host, x)
            if z is not None:
                z = self._pass_shadow(position, slot, z, views)
        main = layout.losses(x.to(shard.dtype), labels).mean(1)
        if z is None:
            return main, None
        return main, layout.losses(z.to(shard.dtype), take(labels, self._plan.shadow_rows[-1])).mean(1)

    def _pass_shadow(self, position: int, slot: int, z: Tensor, views: list[dict[str, Tensor]]) -> Tensor:
        """Pass the slot with every seed on, then the frozen host, whose running statistics stay unchanged."""
        shard, plan = self._shard, self._plan.shadow[slot]
        z = shard.pass_slot(slot, plan, z, self._plan.tensors(plan, views))
        frozen = {name: value.detach() for name, value in views[0].items()} | shard.host.buffers
        rows = self._plan.shadow_rows[position]
        own = {name: take(frozen[name], rows) for name in shard.segment_tensors(position + 1)}
        return shard.infer_segment(position + 1, shard.inference_tensors(position + 1, own), z)

    def _collect(self, steps: int, finite: Tensor, breached: Tensor) -> Readback:
        loss, norms, shape = self._loss_sum / steps, self._set.gradient_norms(steps), (self._shard.rows, -1)
        columns = (norms.unit, norms.vanishing, norms.exploding, self._set.unit_sizes())
        first = torch.stack([loss, finite.to(loss.dtype)], dim=1)
        return Readback(torch.cat([first, breached.to(loss.dtype), *(column.view(shape) for column in columns)], dim=1))
