"""Training of a shard for an epoch: the main pass, and the shadow pass of seeds that train in isolation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from esper_env.population.config import PopulationConfig
from esper_env.population.shard import Shard
from esper_env.population.structure import BoolArray, FloatArray, Structure
from esper_env.population.training.capture import CapturedStep, Step, captures_of
from esper_env.population.training.minibatches import Draw, MinibatchStream, TrainingSamples, draw_epoch
from esper_env.population.training.plan import TrainingPlan, take
from esper_env.population.training.working_set import WorkingSet
from esper_env.population.transfer import Readback, on_device, read_back
from esper_env.tasks.choices import STRAIGHT_THROUGH

#: Number of trainers that a shard keeps; each holds a copy of the tensors that train.
TRAINERS_KEPT = 4


class TrainStats:
    """Statistics of an epoch; the second axis holds the host, then the S slots in action order.

    Reading a column waits until the device has finished the epoch.
    """

    def __init__(self, tables: Sequence[Readback]) -> None:
        self._tables = tables

    @cached_property
    def rows(self) -> FloatArray:
        """(n, 4 + 4 (1 + S)) all statistics, from which the other columns are taken."""
        return np.concatenate([read() for read in self._tables])

    @cached_property
    def _columns(self) -> tuple[FloatArray, BoolArray, list[FloatArray]]:
        columns = self.rows
        return columns[:, 0], columns[:, 1:4] > 0, np.split(columns[:, 4:], 4, axis=1)

    @property
    def loss(self) -> FloatArray:
        """(n,) mean training loss, nats."""
        return self._columns[0]

    @property
    def finite(self) -> BoolArray:
        """(n,) True if the loss, and every parameter and buffer after the epoch, is finite."""
        finite: BoolArray = np.isfinite(self.loss) & self._columns[1][:, 0]
        return finite

    @property
    def breached(self) -> BoolArray:
        """(n, 2) True if outputs, and statistics, of the host depend on seeds in TRAINING; False if not checked."""
        return self._columns[1][:, 1:]

    @property
    def gradient_norm(self) -> FloatArray:
        """(n, 1 + S) mean norm before clipping."""
        return self._columns[2][0]

    @property
    def vanishing(self) -> FloatArray:
        """(n, 1 + S) share of tensors whose gradient vanishes."""
        return self._columns[2][1]

    @property
    def exploding(self) -> FloatArray:
        """(n, 1 + S) share of tensors whose gradient explodes."""
        return self._columns[2][2]

    @property
    def sizes(self) -> FloatArray:
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
        config: PopulationConfig,
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
        """Run a minibatch without training; return its losses (n,) and the hosts' buffers (n, ...) after it."""
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
            breached = torch.zeros((self._shard.rows, 2), dtype=torch.bool, device=self._shard.device)
        loss, finite = self._loss_sum / len(draws), self._shard.finite(structure)
        first = torch.stack([loss, finite.to(loss.dtype)], dim=1)
        columns = [column.view(self._shard.rows, -1) for column in self._set.statistics(len(draws))]
        return read_back(torch.cat([first, breached.to(loss.dtype), *columns], dim=1))

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
        views = [{**own, **m.buffers} for own, m in zip(self._set.views, self._plan.members, strict=True)]
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


class TrainerCache:
    """The latest trainers of a shard, so an epoch under a known signature needs no new plan."""

    def __init__(self, shard: Shard, config: PopulationConfig, data: TrainingSamples) -> None:
        capture = captures_of(config.device, config.capture)
        self._shard = shard
        self._make = partial(Trainer, shard, config=config, data=data, capture=capture)
        self._kept: OrderedDict[bytes, Trainer] = OrderedDict()
        self._captures_dropped = 0

    @property
    def captures(self) -> int:
        """Number of steps captured so far."""
        return self._captures_dropped + sum(getattr(trainer.step, "captures", 0) for trainer in self._kept.values())

    def run(self, structure: Structure, streams: Sequence[MinibatchStream], check_isolation: bool = False) -> Readback:
        """Train the shard for an epoch; ``check_isolation`` first checks TRAINING seeds on the first minibatch."""
        fused = self._shard.fused
        if fused is not None and fused.can_run(structure):
            return fused.train(structure, streams, check_isolation=check_isolation)
        draws = draw_epoch(streams)
        signature = structure.signature()
        trainer = self._kept.pop(signature, None) or self._make(structure=structure)
        self._kept[signature] = trainer
        if len(self._kept) > TRAINERS_KEPT:
            self._captures_dropped += getattr(self._kept.popitem(last=False)[1].step, "captures", 0)
        breached = self._breached(trainer, structure, draws[0]) if check_isolation else None
        return trainer.run(structure, draws, breached)

    def _breached(self, trainer: Trainer, structure: Structure, draw: Draw) -> Tensor | None:
        """Return (n, 2): True if a network's outputs, or its running statistics, depend on its seeds in TRAINING.

        The comparison is bit for bit. By construction, a dependence arises only if a custom module writes into its
        input or a straight-through seed is not finite.
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
