"""Which rows of a shard pass which seeds while it trains, and where their tensors are found."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.population.shard import SeedTensors, Shard, Tensors
from esper_env.population.stack import Stack
from esper_env.population.structure import Part, SlotPlan, Structure, on_device, plan_slot
from esper_env.population.training.optimisation import Optimisation
from esper_env.population.training.working_set import Member
from esper_env.rules.heads import Operator
from esper_env.tasks.choices import STRAIGHT_THROUGH

#: Rows of a shard; a slice, which copies nothing, where it is all of them in order.
Rows = Tensor | slice


class _Binding(NamedTuple):
    """Where a part finds its tensors: members of the working set, and rows of them when it does not use all."""

    seed: int
    gate: int | None
    rows: Tensor | None  # set: the tensors are read, detached, at these rows


class TrainingPlan:
    """What a structure's signature decides of a training step.

    Attributes:
        members: what trains; the first is the host.
        fixed: each member's buffers; those of the host are updated in place and are not here.
        main: by slot, how the rows of the main pass pass it.
        shadow: by slot, how the rows of the shadow pass pass it.
        entering: by position, networks whose first TRAINING seed is there: they enter the shadow pass.
        shadow_rows: by position, networks in the shadow pass so far, in the order in which they entered.
    """

    def __init__(self, shard: Shard, structure: Structure, config: Optimisation) -> None:
        self._shard, self._structure, self._config = shard, structure, config
        self._straight = config.isolation == STRAIGHT_THROUGH
        self.members: list[Member] = []
        self.fixed: list[dict[str, Tensor]] = []
        self._slots: list[int | None] = []  # of each member's seeds; None: the host
        self._bindings: dict[int, _Binding] = {}  # by id of the part, which the plans keep alive
        self._home: dict[tuple[int, int, int], tuple[_Binding, NDArray[np.int64]]] = {}
        self._add_member(shard.host, np.arange(shard.rows), None, config.host_lr)
        self.main = {slot: self._plan_main(slot) for slot in range(len(shard.slots))}
        self.entering, self.shadow_rows = self._plan_entry()
        self.shadow = {slot: self._plan_shadow(slot, k) for k, slot in enumerate(shard.execution_order)}

    def refresh(self, structure: Structure) -> None:
        """Write a structure's values, and the members' buffers, into the memory that the steps read."""
        device = self._shard.device
        for plans in (self.main, self.shadow):
            for slot, plan in plans.items():
                for part in plan.parts if plan is not None else ():
                    part.alpha.copy_(on_device(structure.alpha_on(part.networks, slot), device))
        for member, fixed, home in zip(self.members, self.fixed, self._slots, strict=True):
            for name, value in fixed.items():
                torch.index_select(member.stack.buffers[name], 0, member.rows, out=value)
            if home is not None:
                frozen = structure.frozen[member.networks, home]
                member.trainable.copy_(on_device(~frozen, device))

    def tensors(self, plan: SlotPlan | None, views: list[dict[str, Tensor]]) -> list[SeedTensors]:
        """The tensors of each part of a plan, from each member's."""
        return [self._part_tensors(part, views) for part in plan.parts] if plan is not None else []

    def _part_tensors(self, part: Part, views: list[dict[str, Tensor]]) -> SeedTensors:
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

    def _plan_entry(self) -> tuple[list[Rows | None], list[Rows]]:
        """Networks that enter the shadow pass at each position, and those in it so far, in the order they entered."""
        training = self._structure.training[:, list(self._shard.execution_order)]
        if self._straight:
            training = np.zeros_like(training)
        first = np.where(training.any(axis=1), training.argmax(axis=1), training.shape[1])
        self._in_shadow: list[NDArray[np.int64]] = []
        entering: list[Rows | None] = []
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
        seed = self._add_member(shard.seed_stack(slot, part.blueprint), networks, slot, rate)
        gate = None
        if part.operator == Operator.GATE:
            gate = self._add_member(shard.gate_stack(slot), networks, slot, rate)
        self._bindings[id(part)] = _Binding(seed, gate, None)
        return self._bindings[id(part)]

    def _add_member(self, stack: Stack, networks: NDArray[np.int64], slot: int | None, rate: float) -> int:
        device, unit = self._shard.device, 0 if slot is None else 1 + slot
        rows = on_device(networks, device)
        trainable = torch.ones(len(networks), dtype=torch.bool, device=device)
        units = on_device(networks * (1 + len(self._shard.slots)) + unit, device)
        self.members.append(Member(stack, networks, rows, units, rate, trainable))
        buffers = stack.buffers if slot is not None else {}
        self.fixed.append({name: value.index_select(0, rows) for name, value in buffers.items()})
        self._slots.append(slot)
        return len(self.members) - 1

    def _index(self, rows: NDArray[np.int64]) -> Rows:
        """An index for rows of the shard; a slice, which copies nothing, when it is all of them in order."""
        if len(rows) == self._shard.rows and (np.diff(rows) == 1).all():
            return slice(None)
        return on_device(rows, self._shard.device)


def take(x: Tensor, rows: Rows) -> Tensor:
    """The rows of x."""
    return x if isinstance(rows, slice) else x.index_select(0, rows)


def _frozen(tensors: Tensors, rows: Tensor) -> dict[str, Tensor]:
    return {name: value.detach().index_select(0, rows) for name, value in tensors.items()}
