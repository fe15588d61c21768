"""Plans of how rows pass a slot: sorted into groups that run one blueprint together, then sorted back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper_env.population.structure import BoolArray, IntArray, Structure
from esper_env.population.transfer import on_device
from esper_env.rules.heads import Operator

#: Operator values are below this; it packs (blueprint, operator) into one integer.
OPERATOR_RADIX = len(Operator)


class SeedGroup(NamedTuple):
    """Rows at one slot with the same blueprint and operator, all of them in isolation or none."""

    blueprint: int
    operator: int
    isolated: bool  # the seeds are in TRAINING
    rows: IntArray  # (k,) positions among the rows that pass the slot
    networks: IntArray  # (k,) their networks
    network_index: Tensor  # (k,) the same, on the device
    alpha: Tensor  # (k,)


@dataclass(frozen=True)
class SlotPlan:
    """The groups in which rows pass a slot.

    ``order`` sorts the rows into [untouched, group 0, group 1, ...]; ``inverse`` restores their order. Both are None
    if there is no group, or if one group holds all rows in their original order.
    """

    groups: tuple[SeedGroup, ...]
    untouched: int
    sorted_rows: IntArray  # the order as an array
    order: Tensor | None
    inverse: Tensor | None

    @property
    def sizes(self) -> list[int]:
        """Number of untouched rows, then of the rows of each group."""
        return [self.untouched, *(len(group.rows) for group in self.groups)]


def plan_slot(
    structure: Structure,
    slot: int,
    networks: IntArray,
    active: BoolArray,
    device: torch.device,
    dtype: torch.dtype,
    block: int | None = None,
) -> SlotPlan:
    """Sort M rows, each of a network (M,), by the seed that they pass at a slot.

    Rows that are not ``active`` (M,) pass the slot untouched. A TRAINING seed counts with alpha 1. Groups have at
    most ``block`` rows.
    """
    isolated = structure.training[networks, slot]
    alpha = structure.alpha_on(networks, slot)
    code = structure.blueprint[networks, slot] * OPERATOR_RADIX + structure.operator[networks, slot]
    key = np.where(active, code * 2 + isolated, -1)
    groups = []
    for value in np.unique(key[active]):
        same = np.flatnonzero(key == value)
        for rows in np.split(same, range(block, len(same), block)) if block else [same]:
            groups.append(
                SeedGroup(
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
    order = np.concatenate([np.flatnonzero(~active), *(group.rows for group in groups)])
    if not groups or (len(groups) == 1 and untouched == 0):
        return SlotPlan(tuple(groups), untouched, order, None, None)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return SlotPlan(tuple(groups), untouched, order, on_device(order, device), on_device(inverse, device))


def split_rows(plan: SlotPlan, x: Tensor) -> Sequence[Tensor]:
    """Return the untouched rows of x, then the rows of each group."""
    if plan.order is None:
        return [x[:0], x] if plan.groups else [x]
    return torch.split(x.index_select(0, plan.order), plan.sizes)


def join_rows(plan: SlotPlan, pieces: Sequence[Tensor]) -> Tensor:
    """Invert :func:`split_rows`."""
    if plan.inverse is None:
        return pieces[-1]
    return torch.cat(list(pieces)).index_select(0, plan.inverse)
