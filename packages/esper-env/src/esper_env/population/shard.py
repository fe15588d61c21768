"""A shard: n hosts with their seeds and gates that run together, and the way features pass a slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from esper_env.hosts.protocol import HostProtocol
from esper_env.population.config import PopulationConfig
from esper_env.population.engine.layouts import LAYOUTS, Layout, is_known
from esper_env.population.engine.vmapped import Tensors
from esper_env.population.evaluation.inference import InferenceForm
from esper_env.population.slot_plan import SeedGroup, SlotPlan, join_rows, split_rows
from esper_env.population.stack import Stack
from esper_env.population.structure import IntArray, Structure
from esper_env.population.transfer import on_device
from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.seeding import derive_seed
from esper_env.seeds.blend import GATES, blend
from esper_env.seeds.registry import BlueprintEntry, blueprint_entry, offered_blueprints
from esper_env.tasks.choices import FULL_PRECISION

if TYPE_CHECKING:
    from esper_env.population.fused.shard import FusedShard


class SeedTensors(NamedTuple):
    """The tensors of a group's seeds and, for the gated operator, of their gates."""

    seed: Tensors
    gate: Tensors | None


class Shard:
    """``rows`` networks (n) that run together; n is 1 if ``config.batched`` is False. No row influences another."""

    def __init__(self, build_host: Callable[[], nn.Module], rows: int, config: PopulationConfig) -> None:
        self.rows = rows
        self.device, self.dtype, self._precision = config.device, config.dtype, config.precision
        self.host = Stack(build_host, rows, self.device, self.dtype)
        template = self.host.template
        assert isinstance(template, HostProtocol)
        self.slots, self.execution_order, self.topology = template.slots, template.execution_order, template.topology
        #: Blueprints at the time of construction; later registrations do not change them.
        self.blueprints: tuple[BlueprintEntry, ...] = offered_blueprints(self.topology, batched=config.batched)
        self.segments = template.segments
        self._dims = len(self.slots[0].shape)  # of a sample's features
        self.batched, self.all_known = config.batched, all(map(is_known, self.segments.modules()))
        self.layout: Layout = LAYOUTS[self._dims, config.batched]()
        self._names = _names_by_segment(self.host.template, self.segments)
        self._inference = [InferenceForm(segment) for segment in self.segments]
        self._seeds: dict[tuple[int, int], Stack] = {}
        self._gates: dict[int, Stack] = {}
        #: Runs the networks in compiled programs, if the population uses them.
        self.fused: FusedShard | None = None
        self.births = np.zeros((rows, len(self.slots)), dtype=np.int64)
        self.row_seeds = np.zeros(rows, dtype=np.int64)

    def seed_stack(self, slot: int, blueprint: int) -> Stack:
        """Return the stack of a blueprint at a slot (action index), allocated on first use."""
        key = (slot, blueprint)
        if key not in self._seeds:
            entry = blueprint_entry(blueprint, self.topology, self.blueprints)
            build = partial(entry.build, self.slots[slot].channels)
            self._seeds[key] = Stack(build, self.rows, self.device, self.dtype, plain=entry.built_in)
        return self._seeds[key]

    def gate_stack(self, slot: int) -> Stack:
        """Return the stack of gates at a slot, allocated on first use."""
        if slot not in self._gates:
            build = partial(GATES[self._dims], self.slots[slot].channels)
            self._gates[slot] = Stack(build, self.rows, self.device, self.dtype, plain=True)
        return self._gates[slot]

    def reset_row(self, row: int, seed: int) -> None:
        """Reset a network: ``seed`` determines the weights of its host and, through derived seeds, of its seeds."""
        self.row_seeds[row] = seed
        self.births[row] = 0
        self.host.reset(row, derive_seed(seed, "host weights"))

    def attach(self, row: int, slot: int, blueprint: int) -> None:
        """Attach a newborn seed and a newborn gate to a slot of one network."""
        seed, birth = int(self.row_seeds[row]), int(self.births[row, slot])
        self.births[row, slot] += 1
        self.seed_stack(slot, blueprint).reset(row, derive_seed(seed, f"seed weights {slot}", birth))
        self.gate_stack(slot).reset(row, derive_seed(seed, f"gate weights {slot}", birth))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which passes have the shard's precision."""
        if self._precision == FULL_PRECISION:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def segment_names(self, segment: int) -> list[tuple[str, str]]:
        """Return the full names in the host, and the names in the segment, of the tensors that a segment uses."""
        return self._names[segment]

    def segment_tensors(self, segment: int) -> list[str]:
        """Return the full names of the host's tensors that a segment uses."""
        return [full for full, _ in self._names[segment]]

    def train_segment(self, segment: int, tensors: Tensors, x: Tensor) -> Tensor:
        """Run one host segment in training mode on each row, with the host's tensors under their full names."""
        return self.layout.call(self.segments[segment], self._own(segment, tensors), x, training=True)

    def inference_tensors(self, segment: int, tensors: Tensors) -> Tensors:
        """Return the tensors for :meth:`infer_segment`, from the host's tensors under their full names."""
        return self._inference[segment].tensors(self._own(segment, tensors))

    def infer_segment(self, segment: int, tensors: Tensors, x: Tensor) -> Tensor:
        """Run one host segment in eval mode on each row."""
        return self.layout.call(self._inference[segment].module, tensors, x, training=False)

    def pass_slot(
        self,
        slot: int,
        plan: SlotPlan,
        x: Tensor,
        tensors: Sequence[SeedTensors],
        *,
        straight_through: bool = False,
    ) -> Tensor:
        """Blend the planned seeds of a slot (action index) into the features; ``tensors`` has an entry for each group.

        With ``straight_through``, an isolated seed adds s - stop(s): zero, but with a gradient for the seed.
        """
        if not plan.groups:
            return x
        pieces = list(split_rows(plan, x))
        for index, (group, own) in enumerate(zip(plan.groups, tensors, strict=True), start=1):
            h = pieces[index]
            if straight_through and group.isolated:
                s = self.run_seed(slot, group, h.detach(), own)
                pieces[index] = h + (s - s.detach()).to(h.dtype)
            else:
                pieces[index] = self.blend_group(slot, group, h, own)
        return join_rows(plan, pieces)

    def blend_group(self, slot: int, group: SeedGroup, h: Tensor, tensors: SeedTensors) -> Tensor:
        """Return the host features of a group's rows with their seeds blended in."""
        s = self.run_seed(slot, group, h, tensors)
        gate = None
        if tensors.gate is not None:
            gate = self.layout.call(self.gate_stack(slot).template, tensors.gate, h, training=True)
        return blend(group.operator, h, s, group.alpha.view(-1, *(1,) * (h.dim() - 1)), gate)

    def run_seed(self, slot: int, group: SeedGroup, x: Tensor, tensors: SeedTensors) -> Tensor:
        """Run a group's seeds on their input."""
        return self.layout.call(self.seed_stack(slot, group.blueprint).template, tensors.seed, x, training=True)

    def gather_seeds(self, slot: int, group: SeedGroup) -> SeedTensors:
        """Return a group's tensors from the stacks, for evaluation; rows may repeat a network."""
        stack = self.seed_stack(slot, group.blueprint)
        seeds = self.layout.gather({**stack.parameters, **stack.buffers}, group.network_index)
        if group.operator != Operator.GATE:
            return SeedTensors(seeds, None)
        return SeedTensors(seeds, self.layout.gather(self.gate_stack(slot).parameters, group.network_index))

    def stacks(self, blueprint: IntArray) -> Iterator[tuple[str, Stack, IntArray]]:
        """Yield the stacks of networks with the seeds ``blueprint`` (n, S): name, stack, and the networks (k,) in it.

        A seed and its gate are created together, so a network has the gate with every operator.
        """
        yield "host", self.host, np.arange(self.rows)
        for slot in range(len(self.slots)):
            held = blueprint[:, slot]
            for kind in np.unique(held[held != NO_BLUEPRINT]).tolist():
                yield f"seeds/{slot}/{kind}", self.seed_stack(slot, kind), np.flatnonzero(held == kind)
            if (held != NO_BLUEPRINT).any():
                yield f"gates/{slot}", self.gate_stack(slot), np.flatnonzero(held != NO_BLUEPRINT)

    def finite(self, structure: Structure) -> Tensor:
        """(n,) True if all parameters and buffers of a network are finite, including seeds that do not run yet."""
        finite = torch.ones(self.rows, dtype=torch.bool, device=self.device)
        for _, stack, holders in self.stacks(structure.blueprint):
            others = np.isin(np.arange(self.rows), holders, invert=True)
            finite = finite & (stack.finite() | on_device(others, self.device))
        return finite

    def _own(self, segment: int, tensors: Tensors) -> Tensors:
        """A segment's tensors under its own names, from the host's."""
        return {short: tensors[full] for full, short in self._names[segment]}


def _names_by_segment(host: nn.Module, segments: nn.ModuleList) -> list[list[tuple[str, str]]]:
    """Full name in the host and short name in the segment of each segment's tensors; segments can share a tensor."""
    full = {id(value): name for name, value in [*host.named_parameters(), *host.named_buffers()]}
    return [
        [
            (full[id(value)], short)
            for named in (segment.named_parameters, segment.named_buffers)
            for short, value in named(remove_duplicate=False)
        ]
        for segment in segments
    ]
