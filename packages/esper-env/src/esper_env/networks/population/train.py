"""One epoch of training for a shard: the main pass and the shadow pass of seeds that train in isolation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.networks.population.network import SeedTensors, Shard, Tensors
from esper_env.networks.population.stack import Stack
from esper_env.networks.population.structure import Part, SlotPlan, Structure, on_device, plan_slot
from esper_env.networks.population.working_set import Member, WorkingSet
from esper_env.rules.heads import Operator

ISOLATIONS = ("shadow", "straight_through")


@dataclass(frozen=True)
class Optimisation:
    """How hosts and seeds are trained: SGD with momentum, clipped per host and per seed.

    ``isolation`` is what a TRAINING seed learns from. "shadow": the detached features of a ``shadow_fraction`` of each
    minibatch go on through the frozen rest of the network with the seed on, so it feels the effect it will have.
    "straight_through": h + (s - stop(s)), whose loss is linear in the seed, so that nothing holds it back.
    """

    host_lr: float
    seed_lr: float
    momentum: float = 0.9
    clip_norm: float = 1.0
    isolation: str = "shadow"
    shadow_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("host_lr", "seed_lr", "clip_norm"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum is {self.momentum}; expected 0 or more and below 1")
        if self.isolation not in ISOLATIONS:
            raise ValueError(f"isolation is {self.isolation!r}; expected one of {ISOLATIONS}")
        if not 0.0 < self.shadow_fraction <= 1.0:
            raise ValueError(f"shadow_fraction is {self.shadow_fraction}; expected above 0, at most 1")


class TrainStats(NamedTuple):
    """Measured over an epoch; the second axis is the host, then the S slots in action order."""

    loss: NDArray[np.float64]  # (n,) mean training loss, nats
    gradient_norm: NDArray[np.float64]  # (n, 1 + S) mean norm before clipping
    vanishing: NDArray[np.float64]  # (n, 1 + S) share of tensors whose gradient vanishes
    exploding: NDArray[np.float64]  # (n, 1 + S) share of tensors whose gradient explodes
    sizes: NDArray[np.float64]  # (n, 1 + S) trainable scalars; 0 where nothing was trained


class _Binding(NamedTuple):
    """Where a part finds its tensors: members of the working set, and rows of them when it does not use all."""

    seed: int
    gate: int | None
    rows: Tensor | None  # set: the tensors are read, detached, at these rows


class EpochTrainer:
    """Trains a shard for one epoch under a fixed structure."""

    def __init__(self, shard: Shard, structure: Structure, config: Optimisation) -> None:
        self._shard, self._structure, self._config = shard, structure, config
        self._straight = config.isolation == "straight_through"
        self._members: list[Member] = []
        self._fixed: list[Tensors] = []  # each member's buffers; the host's are updated in place and are not here
        self._bindings: dict[int, _Binding] = {}  # by id of the part, which the plans keep alive
        self._home: dict[tuple[int, int, int], tuple[_Binding, NDArray[np.int64]]] = {}
        self._add_member(shard.host, np.arange(shard.rows), 0, config.host_lr)
        self._main = {slot: self._plan_main(slot) for slot in range(len(shard.slots))}
        self._entering, self._shadow_rows = self._plan_entry()
        self._shadow = {slot: self._plan_shadow(slot, k) for k, slot in enumerate(shard.execution_order)}
        units = shard.rows * (1 + len(shard.slots))
        self._set = WorkingSet(self._members, units, config.clip_norm, config.momentum)

    def run(self, minibatches: Iterable[tuple[Tensor, Tensor]]) -> TrainStats:
        """Train on (images (n, B, C, H, W), labels (n, B)) and write the result back to the stacks."""
        loss_sum = torch.zeros(self._shard.rows, dtype=self._shard.dtype, device=self._shard.device)
        steps = 0
        for images, labels in minibatches:
            main, shadow = self._losses(images, labels)
            total = main.sum() if shadow is None else main.sum() + shadow.sum()
            total.backward()  # type: ignore[no-untyped-call]
            self._set.step()
            loss_sum += main.detach()
            steps += 1
        self._set.write_back()
        return self._collect(loss_sum / steps)

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean loss of each network (n,), and of each shadow pass (Z,) or None."""
        shard, layout = self._shard, self._shard.layout
        views = [{**own, **fixed} for own, fixed in zip(self._set.views(), self._fixed, strict=True)]
        host = {**views[0], **shard.host.buffers}
        x = shard.train_segment(0, host, layout.from_images(images))
        z: Tensor | None = None
        for position, slot in enumerate(shard.execution_order):
            z = self._enter_shadow(position, x, z, labels.shape[1])
            x = self._pass_main(slot, x, views)
            x = shard.train_segment(position + 1, host, x)
            if z is not None:
                z = self._pass_shadow(position, slot, z, views)
        main = layout.losses(x, labels).mean(1)
        if z is None:
            return main, None
        seen = labels[:, : self._shadow_samples(labels.shape[1])]
        return main, layout.losses(z, _take(seen, self._shadow_rows[-1])).mean(1)

    def _pass_main(self, slot: int, x: Tensor, views: list[dict[str, Tensor]]) -> Tensor:
        plan = self._main[slot]
        tensors = [self._tensors(part, views) for part in plan.parts] if plan is not None else []
        return self._shard.pass_slot(slot, plan, x, tensors, straight_through=self._straight)

    def _enter_shadow(self, position: int, x: Tensor, z: Tensor | None, batch: int) -> Tensor | None:
        """Add the networks whose first TRAINING seed is at this slot to the shadow pass, from detached features."""
        rows = self._entering[position]
        if rows is None:
            return z
        entering = self._shard.layout.head(_take(x.detach(), rows), self._shadow_samples(batch))
        return entering if z is None else torch.cat([z, entering])

    def _pass_shadow(self, position: int, slot: int, z: Tensor, views: list[dict[str, Tensor]]) -> Tensor:
        """Through the slot with every seed on, then through the frozen host, whose running statistics stay put."""
        shard = self._shard
        plan = self._shadow[slot]
        tensors = [self._tensors(part, views) for part in plan.parts] if plan is not None else []
        z = shard.pass_slot(slot, plan, z, tensors)
        frozen = {name: value.detach() for name, value in views[0].items()} | shard.host.buffers
        rows = self._shadow_rows[position]
        own = {
            name: _take(value, rows) for name, value in frozen.items() if name.startswith(f"segments.{position + 1}.")
        }
        return shard.infer_segment(position + 1, shard.inference_tensors(position + 1, own), z)

    def _shadow_samples(self, batch: int) -> int:
        return max(1, round(batch * self._config.shadow_fraction))

    def _tensors(self, part: Part, views: list[dict[str, Tensor]]) -> SeedTensors:
        seed, gate, rows = self._bindings[id(part)]
        gate_view = views[gate] if gate is not None else None
        if rows is None:
            return SeedTensors(views[seed], gate_view)
        return SeedTensors(_frozen(views[seed], rows), _frozen(gate_view, rows) if gate_view is not None else None)

    def _plan_main(self, slot: int) -> SlotPlan | None:
        shard, structure = self._shard, self._structure
        active = structure.blended[:, slot]
        if self._straight:
            active = active | structure.training[:, slot]
        plan = plan_slot(structure, slot, np.arange(shard.rows), active, shard.device, shard.dtype)
        for part in plan.parts if plan is not None else ():
            self._home[slot, part.blueprint, part.operator] = (self._bind(slot, part), part.networks)
        return plan

    def _plan_entry(self) -> tuple[list[Tensor | slice | None], list[Tensor | slice]]:
        """Networks that enter the shadow pass at each position, and those in it so far, in the order they entered."""
        training = self._structure.training[:, list(self._shard.execution_order)]
        if self._straight:
            training = np.zeros_like(training)
        first = np.where(training.any(axis=1), training.argmax(axis=1), training.shape[1])
        self._in_shadow: list[NDArray[np.int64]] = []
        entering: list[Tensor | slice | None] = []
        so_far = np.zeros(0, dtype=np.int64)
        for position in range(training.shape[1]):
            new = np.flatnonzero(first == position)
            so_far = np.concatenate([so_far, new])
            entering.append(self._index(new) if len(new) else None)
            self._in_shadow.append(so_far)
        return entering, [self._index(rows) for rows in self._in_shadow]

    def _plan_shadow(self, slot: int, position: int) -> SlotPlan | None:
        shard, structure, rows = self._shard, self._structure, self._in_shadow[position]
        active = structure.blended[rows, slot] | structure.training[rows, slot]
        plan = plan_slot(structure, slot, rows, active, shard.device, shard.dtype)
        for part in plan.parts if plan is not None else ():
            if part.isolated:
                self._bind(slot, part)
                continue
            binding, home = self._home[slot, part.blueprint, part.operator]
            where = np.searchsorted(home, part.networks)
            self._bindings[id(part)] = binding._replace(rows=on_device(where, shard.device))
        return plan

    def _bind(self, slot: int, part: Part) -> _Binding:
        """Make a part's seeds and gates members of the working set."""
        shard, rate, networks = self._shard, self._config.seed_lr, part.networks
        frozen = self._structure.frozen[networks, slot]
        seed = self._add_member(shard.seed_stack(slot, part.blueprint), networks, 1 + slot, rate, frozen)
        gate = None
        if part.operator == Operator.GATE:
            gate = self._add_member(shard.gate_stack(slot), networks, 1 + slot, rate, frozen)
        self._bindings[id(part)] = _Binding(seed, gate, None)
        return self._bindings[id(part)]

    def _add_member(
        self,
        stack: Stack,
        rows: NDArray[np.int64],
        unit: int,
        rate: float,
        frozen: NDArray[np.bool_] | None = None,
    ) -> int:
        device = self._shard.device
        trainable = np.ones(len(rows), dtype=np.bool_) if frozen is None else ~frozen
        units = on_device(rows * (1 + len(self._shard.slots)) + unit, device)
        member = Member(stack, on_device(rows, device), units, rate, on_device(trainable, device))
        self._members.append(member)
        buffers = stack.buffers if stack is not self._shard.host else {}
        self._fixed.append({name: value.index_select(0, member.rows) for name, value in buffers.items()})
        return len(self._members) - 1

    def _index(self, rows: NDArray[np.int64]) -> Tensor | slice:
        """An index for rows of the shard; a slice, which copies nothing, when it is all of them in order."""
        if len(rows) == self._shard.rows and (np.diff(rows) == 1).all():
            return slice(None)
        return on_device(rows, self._shard.device)

    def _collect(self, loss: Tensor) -> TrainStats:
        norms, shape = self._set.gradient_norms(), (self._shard.rows, -1)
        columns = (norms.unit, norms.vanishing, norms.exploding, self._set.unit_sizes())
        packed = torch.cat([loss.view(shape), *(column.view(shape) for column in columns)], dim=1)
        table = packed.double().cpu().numpy()  # one transfer for everything
        width = 1 + len(self._shard.slots)
        blocks = [table[:, 1 + k * width : 1 + (k + 1) * width] for k in range(len(columns))]
        return TrainStats(table[:, 0], *blocks)


def _take(x: Tensor, rows: Tensor | slice) -> Tensor:
    return x if isinstance(rows, slice) else x.index_select(0, rows)


def _frozen(tensors: Tensors, rows: Tensor) -> dict[str, Tensor]:
    return {name: value.detach().index_select(0, rows) for name, value in tensors.items()}
