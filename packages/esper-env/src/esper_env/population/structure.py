"""What the population needs to know of the slot table, and how rows are sorted into parts that run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper_env.rules.slot_table import DOWN, SlotTable
from esper_env.rules.stages import Stage

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


#: Operator values are below this; it packs (blueprint, operator) into one integer.
OPERATOR_RADIX = 64


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor of an array, without waiting for the device."""
    return torch.from_numpy(array).to(device, non_blocking=True)


class Structure(NamedTuple):
    """The seeds of n networks, each field (n, S) in action order."""

    blueprint: IntArray
    operator: IntArray
    alpha: FloatArray
    blended: BoolArray  # the host's features pass through it
    training: BoolArray  # trains in isolation
    frozen: BoolArray  # blended, but neither seed nor gate is updated
    fossilized: BoolArray

    @classmethod
    def of(cls, table: SlotTable) -> Structure:
        """The structure that a slot table describes; copies, so that the table may move on."""
        blended = table.is_blended
        return cls(
            table.blueprint.copy(),
            table.operator.copy(),
            table.alpha.copy(),
            blended,
            table.stage == Stage.TRAINING,
            blended & (table.alpha_mode == DOWN),
            table.stage == Stage.FOSSILIZED,
        )

    def rows(self, rows: slice | IntArray) -> Structure:
        """The structure of some networks."""
        return Structure._make(column[rows] for column in self)

    @property
    def runs(self) -> BoolArray:
        """(n, S) seeds that take part in training."""
        return self.blended | self.training

    def signature(self) -> bytes:
        """Equal where training is made of the same operations on the same rows; alphas and freezing are values."""
        runs = self.runs
        kinds = (np.where(runs, self.blueprint, -1), np.where(runs, self.operator, -1), self.training)
        return b"".join(np.ascontiguousarray(kind).tobytes() for kind in kinds)

    def alpha_on(self, networks: IntArray, slot: int) -> FloatArray:
        """(k,) alphas with which seeds of some networks are passed: 1 for those that train in isolation."""
        return np.where(self.training[networks, slot], 1.0, self.alpha[networks, slot])


class Part(NamedTuple):
    """Rows at one slot that hold the same blueprint under the same operator, all isolated or all not."""

    blueprint: int
    operator: int
    isolated: bool  # the seeds are in TRAINING
    rows: IntArray  # (k,) positions among the rows that pass the slot
    networks: IntArray  # (k,) their networks
    network_index: Tensor  # (k,) the same, on the device
    alpha: Tensor  # (k,)


@dataclass(frozen=True)
class SlotPlan:
    """How the rows that reach a slot pass it.

    ``order`` sorts them into [untouched, part 0, part 1, ...], ``inverse`` puts them back; both are None when a single
    part holds every row in place.
    """

    parts: tuple[Part, ...]
    untouched: int
    sorted_rows: IntArray  # the order as an array
    order: Tensor | None
    inverse: Tensor | None

    @property
    def sizes(self) -> list[int]:
        """Lengths of the sorted groups."""
        return [self.untouched, *(len(part.rows) for part in self.parts)]


def plan_slot(
    structure: Structure,
    slot: int,
    networks: IntArray,
    active: BoolArray,
    device: torch.device,
    dtype: torch.dtype,
) -> SlotPlan | None:
    """Sort M rows, each of a network (M,), by the seed they pass at a slot; None where no row is active (M,).

    A TRAINING seed that is passed counts with alpha 1.
    """
    if not active.any():
        return None
    isolated = structure.training[networks, slot]
    alpha = structure.alpha_on(networks, slot)
    code = structure.blueprint[networks, slot] * OPERATOR_RADIX + structure.operator[networks, slot]
    key = np.where(active, code * 2 + isolated, -1)
    parts = []
    for value in np.unique(key[active]):
        rows = np.flatnonzero(key == value)
        parts.append(
            Part(
                int(value) // 2 // OPERATOR_RADIX,
                int(value) // 2 % OPERATOR_RADIX,
                bool(value % 2),
                rows,
                networks[rows],
                on_device(networks[rows], device),
                on_device(alpha[rows], device).to(dtype),
            )
        )
    untouched = int((~active).sum())
    order = np.concatenate([np.flatnonzero(~active), *(part.rows for part in parts)])
    if len(parts) == 1 and untouched == 0:
        return SlotPlan(tuple(parts), 0, order, None, None)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return SlotPlan(tuple(parts), untouched, order, on_device(order, device), on_device(inverse, device))


def in_blocks(plan: SlotPlan, size: int) -> SlotPlan:
    """The same plan with no part of more than ``size`` rows."""
    blocks = []
    for part in plan.parts:
        for start in range(0, len(part.rows), size):
            some = slice(start, start + size)
            blocks.append(
                part._replace(
                    rows=part.rows[some],
                    networks=part.networks[some],
                    network_index=part.network_index[some],
                    alpha=part.alpha[some],
                )
            )
    return replace(plan, parts=tuple(blocks))


def split_rows(plan: SlotPlan, x: Tensor) -> Sequence[Tensor]:
    """The rows of x sorted into the plan's groups."""
    if plan.order is None:
        return [x[:0], x]
    return torch.split(x.index_select(0, plan.order), plan.sizes)


def join_rows(plan: SlotPlan, groups: Sequence[Tensor]) -> Tensor:
    """The inverse of :func:`split_rows`."""
    if plan.inverse is None:
        return groups[1]
    return torch.cat(list(groups)).index_select(0, plan.inverse)
