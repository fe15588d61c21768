"""A shard: n hosts with their seeds and gates, and how features pass a slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from esper_env.extension_checks.hosts import check_host
from esper_env.hosts.protocol import HostProtocol
from esper_env.population.engine.layouts import LAYOUTS, Layout, all_known
from esper_env.population.evaluation.inference import InferenceForm
from esper_env.population.stack import Stack
from esper_env.population.structure import Part, SlotPlan, Structure, join_rows, on_device, split_rows
from esper_env.rules.heads import NO_BLUEPRINT, Operator
from esper_env.seeding import derive_seed
from esper_env.seeds.blend import GATES, blend
from esper_env.seeds.registry import blueprint_entry
from esper_env.tasks.choices import FULL_PRECISION, PRECISIONS

Tensors = Mapping[str, Tensor]


class SeedTensors(NamedTuple):
    """The tensors of a part's seeds and, where its operator needs one, of their gates."""

    seed: Tensors
    gate: Tensors | None


class Shard:
    """n networks that are run together. Rows are independent: nothing of one ever reaches another.

    Args:
        build_host: makes one host.
        rows: number of networks.
        together: lay the features out for many networks at once (else for a single one).
        precision: of the passes; "bfloat16" is mixed precision, with parameters and their updates as they are.
    """

    def __init__(
        self,
        build_host: Callable[[], nn.Module],
        rows: int,
        *,
        together: bool,
        device: torch.device,
        dtype: torch.dtype,
        precision: str = FULL_PRECISION,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}; expected one of {PRECISIONS}")
        if not together and rows != 1:
            raise ValueError(f"a shard laid out for one network was asked to hold {rows}")
        self.rows = rows
        self.device, self.dtype, self._precision = device, dtype, precision
        self.host = Stack(build_host, rows, device, dtype)
        template = self.host.template
        check_host(template)
        assert isinstance(template, HostProtocol)
        self.slots, self.execution_order, self.topology = template.slots, template.execution_order, template.topology
        self.segments = template.segments
        self._dims = len(self.slots[0].shape)  # of a sample's features
        self.together, self.all_known = together, all(all_known(segment) for segment in self.segments)
        self.layout: Layout = LAYOUTS[self._dims, together]()
        self._names = _names_by_segment(self.host.template, self.segments)
        self._inference = [InferenceForm(segment) for segment in self.segments]
        self._seeds: dict[tuple[int, int], Stack] = {}
        self._gates: dict[int, Stack] = {}
        self.births = np.zeros((rows, len(self.slots)), dtype=np.int64)
        self.row_seeds = np.zeros(rows, dtype=np.int64)

    def seed_stack(self, slot: int, blueprint: int) -> Stack:
        """The stack of a blueprint at a slot (action index), allocated when it is first used.

        Raises:
            ValueError: the topology has no such blueprint.
        """
        key = (slot, blueprint)
        if key not in self._seeds:
            entry, spec = blueprint_entry(blueprint, self.topology), self.slots[slot]
            stack = Stack(lambda: entry.build(spec.channels), self.rows, self.device, self.dtype)
            self._seeds[key] = stack
        return self._seeds[key]

    def gate_stack(self, slot: int) -> Stack:
        """The stack of gates at a slot, allocated when it is first used."""
        if slot not in self._gates:
            channels = self.slots[slot].channels
            self._gates[slot] = Stack(lambda: GATES[self._dims](channels), self.rows, self.device, self.dtype)
        return self._gates[slot]

    def reset_row(self, row: int, seed: int) -> None:
        """Start a network anew: its host's weights come from ``seed``, its seeds' from generators derived from it."""
        self.row_seeds[row] = seed
        self.births[row] = 0
        self.host.reset(row, derive_seed(seed, "host weights"))

    def attach(self, row: int, slot: int, blueprint: int) -> None:
        """Put a newborn seed and a newborn gate into a slot of one network."""
        seed, birth = int(self.row_seeds[row]), int(self.births[row, slot])
        self.births[row, slot] += 1
        self.seed_stack(slot, blueprint).reset(row, derive_seed(seed, f"seed weights {slot}", birth))
        self.gate_stack(slot).reset(row, derive_seed(seed, f"gate weights {slot}", birth))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the passes; with "bfloat16", PyTorch's automatic mixed precision."""
        if self._precision == FULL_PRECISION:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def segment_tensors(self, segment: int) -> list[str]:
        """Full names of the host's tensors that a segment runs with."""
        return [full for full, _ in self._names[segment]]

    def train_segment(self, segment: int, tensors: Tensors, x: Tensor) -> Tensor:
        """Run one host segment in training mode on each row, with the host's tensors under their full names."""
        return self.layout.call(self.segments[segment], self._own(segment, tensors), x, training=True)

    def inference_tensors(self, segment: int, tensors: Tensors) -> Tensors:
        """What :meth:`infer_segment` runs with, from the host's tensors under their full names."""
        return self._inference[segment].tensors(self._own(segment, tensors))

    def infer_segment(self, segment: int, tensors: Tensors, x: Tensor) -> Tensor:
        """Run one host segment in eval mode on each row."""
        return self.layout.call(self._inference[segment].module, tensors, x, training=False)

    def pass_slot(
        self,
        slot: int,
        plan: SlotPlan | None,
        x: Tensor,
        tensors: Sequence[SeedTensors],
        *,
        straight_through: bool = False,
    ) -> Tensor:
        """Blend the planned seeds of a slot (action index) into the features; ``tensors`` has one entry a part.

        With ``straight_through`` an isolated seed adds s - stop(s): nothing to the features, a gradient to itself.
        """
        if plan is None:
            return x
        groups = list(split_rows(plan, x))
        for index, (part, own) in enumerate(zip(plan.parts, tensors, strict=True), start=1):
            h = groups[index]
            if straight_through and part.isolated:
                s = self.run_seed(slot, part, h.detach(), own)
                groups[index] = h + (s - s.detach()).to(h.dtype)
            else:
                groups[index] = self.blend_part(slot, part, h, own)
        return join_rows(plan, groups)

    def blend_part(self, slot: int, part: Part, h: Tensor, tensors: SeedTensors) -> Tensor:
        """Host features of a part's rows with their seed blended in."""
        s = self.run_seed(slot, part, h, tensors)
        gate = None
        if tensors.gate is not None:
            gate = self.layout.call(self.gate_stack(slot).template, tensors.gate, h, training=True)
        return blend(part.operator, h, s, part.alpha.view(-1, *(1,) * (h.dim() - 1)), gate)

    def run_seed(self, slot: int, part: Part, x: Tensor, tensors: SeedTensors) -> Tensor:
        """A part's seeds on their input."""
        return self.layout.call(self.seed_stack(slot, part.blueprint).template, tensors.seed, x, training=True)

    def stored(self, slot: int, part: Part) -> SeedTensors:
        """A part's tensors as the stacks hold them: for evaluation, where rows may repeat networks."""
        stack = self.seed_stack(slot, part.blueprint)
        seeds = self.layout.gather({**stack.parameters, **stack.buffers}, part.network_index)
        if part.operator != Operator.GATE:
            return SeedTensors(seeds, None)
        return SeedTensors(seeds, self.layout.gather(self.gate_stack(slot).parameters, part.network_index))

    def finite(self, structure: Structure) -> Tensor:
        """(n,) whether every parameter and buffer of a network is finite, of seeds that do not run yet as well."""
        finite = self.host.finite()
        for slot in range(len(self.slots)):
            held = structure.blueprint[:, slot]
            stacks = [(self.seed_stack(slot, kind), held == kind) for kind in np.unique(held[held != NO_BLUEPRINT])]
            if stacks:
                stacks.append((self.gate_stack(slot), held != NO_BLUEPRINT))
            for stack, rows in stacks:
                finite = finite & (stack.finite() | on_device(~rows, self.device))
        return finite

    def _own(self, segment: int, tensors: Tensors) -> Tensors:
        """A segment's tensors under its own names, from the host's."""
        return {short: tensors[full] for full, short in self._names[segment]}


def _names_by_segment(host: nn.Module, segments: nn.ModuleList) -> list[list[tuple[str, str]]]:
    """Of each segment's tensors, the full name in the host and the short one in the segment; one may be in several."""
    full = {id(value): name for name, value in [*host.named_parameters(), *host.named_buffers()]}
    return [
        [
            (full[id(value)], short)
            for named in (segment.named_parameters, segment.named_buffers)
            for short, value in named(remove_duplicate=False)
        ]
        for segment in segments
    ]
