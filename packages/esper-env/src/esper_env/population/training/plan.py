"""Training plans: the rows of a shard that pass each seed, and the places of their tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper_env.population.config import PopulationConfig
from esper_env.population.engine.vmapped import Tensors
from esper_env.population.shard import SeedTensors, Shard
from esper_env.population.slot_plan import SeedGroup, SlotPlan, plan_slot
from esper_env.population.stack import Stack
from esper_env.population.structure import IntArray, Structure
from esper_env.population.training.working_set import Member
from esper_env.population.transfer import on_device
from esper_env.rules.heads import Operator
from esper_env.tasks.choices import STRAIGHT_THROUGH

#: Rows of a shard; a slice, which copies nothing, if it is all of them in order.
Rows = Tensor | slice


class _Binding(NamedTuple):
    """The place of a group's tensors: members of the working set, and rows of them if it does not use all."""

    seed: int
    gate: int | None
    rows: Tensor | None  # read the tensors, detached, at these rows; None: use all rows


class TrainingPlan:
    """The part of a training step that depends on a structure's signature only.

    Attributes:
        members: stacks whose rows train; the first is the host.
        main: by slot, the plan of the main pass.
        shadow: by slot, the plan of the shadow pass.
        entering: by position, networks that enter the shadow pass because their first TRAINING seed is there.
        shadow_rows: by position, networks in the shadow pass so far, in order of entry.
    """

    def __init__(self, shard: Shard, structure: Structure, config: PopulationConfig) -> None:
        self._shard, self._structure, self._config = shard, structure, config
        self._straight = config.isolation == STRAIGHT_THROUGH
        self.members: list[Member] = []
        self._bindings: dict[int, _Binding] = {}  # by id of the group, which the plans keep alive
        self._home: dict[tuple[int, int, int], tuple[_Binding, IntArray]] = {}
        self._add_member(shard.host, np.arange(shard.rows), None, config.host_lr)
        self.main = {slot: self._plan_main(slot) for slot in range(len(shard.slots))}
        self.entering, self.shadow_rows = self._plan_entry()
        self.shadow = {slot: self._plan_shadow(slot, k) for k, slot in enumerate(shard.execution_order)}

    def refresh(self, structure: Structure) -> None:
        """Write a structure's values, and the members' buffers, into the memory that the steps read."""
        device = self._shard.device
        for plans in (self.main, self.shadow):
            for slot, plan in plans.items():
                for group in plan.groups:
                    group.alpha.copy_(on_device(structure.alpha_on(group.networks, slot), device))
        for member in self.members[1:]:
            for name, value in member.buffers.items():
                torch.index_select(member.stack.buffers[name], 0, member.rows, out=value)
            frozen = structure.frozen[member.networks, member.slot]
            member.trainable.copy_(on_device(~frozen, device))

    def tensors(self, plan: SlotPlan, views: list[dict[str, Tensor]]) -> list[SeedTensors]:
        """Return the tensors of each group of a plan, from the tensors of each member."""
        tensors = []
        for group in plan.groups:
            seed, gate, rows = self._bindings[id(group)]
            seed_view, gate_view = views[seed], views[gate] if gate is not None else None
            if rows is not None:
                seed_view = _frozen(seed_view, rows)
                gate_view = _frozen(gate_view, rows) if gate_view is not None else None
            tensors.append(SeedTensors(seed_view, gate_view))
        return tensors

    def _plan_main(self, slot: int) -> SlotPlan:
        shard, structure = self._shard, self._structure
        active = structure.blended[:, slot]
        if self._straight:
            active = active | structure.training[:, slot]
        plan = plan_slot(structure, slot, np.arange(shard.rows), active, shard.device, shard.dtype)
        for group in plan.groups:
            self._home[slot, group.blueprint, group.operator] = (self._bind(slot, group), group.networks)
        return plan

    def _plan_entry(self) -> tuple[list[Rows | None], list[Rows]]:
        """Networks that enter the shadow pass at each position, and all networks in it so far."""
        training = self._structure.training[:, list(self._shard.execution_order)]
        if self._straight:
            training = np.zeros_like(training)
        first = np.where(training.any(axis=1), training.argmax(axis=1), training.shape[1])
        self._in_shadow: list[IntArray] = []
        entering: list[Rows | None] = []
        so_far = np.zeros(0, dtype=np.int64)
        for position in range(training.shape[1]):
            new = np.flatnonzero(first == position)
            so_far = np.concatenate([so_far, new])
            entering.append(self._index(new) if len(new) else None)
            self._in_shadow.append(so_far)
        return entering, [self._index(rows) for rows in self._in_shadow]

    def _plan_shadow(self, slot: int, position: int) -> SlotPlan:
        shard, structure, rows = self._shard, self._structure, self._in_shadow[position]
        active = structure.blended[rows, slot] | structure.training[rows, slot]
        plan = plan_slot(structure, slot, rows, active, shard.device, shard.dtype)
        for group in plan.groups:
            if group.isolated:
                self._bind(slot, group)
                continue
            binding, home = self._home[slot, group.blueprint, group.operator]
            where = np.searchsorted(home, group.networks)
            self._bindings[id(group)] = binding._replace(rows=on_device(where, shard.device))
        return plan

    def _bind(self, slot: int, group: SeedGroup) -> _Binding:
        """Add a group's seeds and gates to the members."""
        shard, rate, networks = self._shard, self._config.seed_lr, group.networks
        seed = self._add_member(shard.seed_stack(slot, group.blueprint), networks, slot, rate)
        gate = None
        if group.operator == Operator.GATE:
            gate = self._add_member(shard.gate_stack(slot), networks, slot, rate)
        self._bindings[id(group)] = _Binding(seed, gate, None)
        return self._bindings[id(group)]

    def _add_member(self, stack: Stack, networks: IntArray, slot: int | None, rate: float) -> int:
        """Add rows of a stack to the members; ``slot`` is None for the host, whose buffers are updated in place."""
        device, unit = self._shard.device, 0 if slot is None else 1 + slot
        rows = on_device(networks, device)
        trainable = torch.ones(len(networks), dtype=torch.bool, device=device)
        units = on_device(networks * (1 + len(self._shard.slots)) + unit, device)
        own = stack.buffers if slot is not None else {}
        buffers = {name: value.index_select(0, rows) for name, value in own.items()}
        self.members.append(Member(stack, slot, networks, rows, units, rate, trainable, buffers))
        return len(self.members) - 1

    def _index(self, rows: IntArray) -> Rows:
        """Index for rows of the shard."""
        if len(rows) == self._shard.rows and (np.diff(rows) == 1).all():
            return slice(None)
        return on_device(rows, self._shard.device)


def take(x: Tensor, rows: Rows) -> Tensor:
    """Return the rows of x."""
    return x if isinstance(rows, slice) else x.index_select(0, rows)


def _frozen(tensors: Tensors, rows: Tensor) -> dict[str, Tensor]:
    return {name: value.detach().index_select(0, rows) for name, value in tensors.items()}
