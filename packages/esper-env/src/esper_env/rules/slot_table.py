"""Slot table: the state of every slot of every environment, as columns of shape (N, S)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.persistence.state import ArrayState
from esper_env.persistence.tree import Tree
from esper_env.rules.heads import NO_BLUEPRINT, Curve, Operator
from esper_env.rules.stages import HAS_SEED, IS_BLENDED, Stage

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

#: Modes of the alpha schedule.
HOLD, UP, DOWN = 0, 1, 2


@dataclass
class SlotTable(ArrayState):
    """Struct of arrays over N environments and S slots. Every column has shape (N, S).

    A flag or an age distinguishes "not measured" from a measured zero.
    """

    stage: IntArray
    blueprint: IntArray  # NO_BLUEPRINT when the slot holds no seed
    operator: IntArray  # heads.Operator of the seed

    # The alpha schedule
    alpha: FloatArray
    alpha_start: FloatArray
    alpha_target: FloatArray  # where the running or last ramp ends
    alpha_mode: IntArray  # HOLD, UP or DOWN
    alpha_curve: IntArray  # heads.Curve
    alpha_ticks_total: IntArray
    alpha_ticks_done: IntArray
    alpha_velocity: FloatArray  # change of alpha in the last clock tick or jump
    first_target: FloatArray  # alpha target chosen at germination, used by the first ramp
    first_curve: IntArray  # curve of the first ramp
    first_ticks: IntArray  # length of the first ramp
    pruning: BoolArray  # the running ramp ends in a prune

    epochs_in_stage: IntArray  # completed epochs (or cooldown ticks) in the stage
    age: IntArray  # completed epochs since germination

    # Measured on the validation set, in accuracy points
    contribution: FloatArray  # prospective while TRAINING
    contribution_velocity: FloatArray  # EMA .7/.3 of its change
    contribution_age: IntArray  # epochs since it was measured; -1 = never
    contribution_alpha: FloatArray  # alpha at which it was measured (1.0 for prospective ones)
    interaction_sum: FloatArray  # sum over partners of I_ij, in points
    boost_received: FloatArray  # sum over partners of max(I_ij, 0), in points

    # Measured gradient statistics of the seed over the last epoch
    gradient_measured: BoolArray
    gradient_norm: FloatArray  # mean norm before clipping
    gradient_health: FloatArray
    previous_gradient_health: FloatArray  # 1.0 at birth
    gradient_vanishing: BoolArray
    gradient_exploding: BoolArray
    gradient_ratio: FloatArray  # EMA of the normalised seed/host gradient ratio

    @classmethod
    def empty(cls, num_envs: int, num_slots: int) -> SlotTable:
        """Return a table in which every slot is DORMANT."""
        shape = (num_envs, num_slots)
        columns: dict[str, Any] = {}
        for column in fields(cls):
            kind = {"IntArray": np.int64, "FloatArray": np.float64, "BoolArray": np.bool_}[str(column.type)]
            columns[column.name] = np.full(shape, EMPTY_VALUES.get(column.name, 0), dtype=kind)
        return cls(**columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of environments, number of slots."""
        rows, slots = self.stage.shape
        return rows, slots

    @property
    def has_seed(self) -> BoolArray:
        """Slots (N, S) that hold a seed, committed or not."""
        return HAS_SEED[self.stage]

    @property
    def is_blended(self) -> BoolArray:
        """Slots (N, S) where the host's features pass through the blend operator."""
        return IS_BLENDED[self.stage]

    def copy(self) -> SlotTable:
        """Return an independent copy."""
        return SlotTable(**{column.name: getattr(self, column.name).copy() for column in fields(self)})

    def take(self, other: SlotTable, rows: BoolArray) -> None:
        """Copy the environments of ``rows`` (N,) from another table of the same shape."""
        for column in fields(self):
            getattr(self, column.name)[rows] = getattr(other, column.name)[rows]

    def clear(self, mask: BoolArray) -> None:
        """Reset every column of the slots of ``mask`` (N, S), which become DORMANT."""
        for column in fields(self):
            getattr(self, column.name)[mask] = EMPTY_VALUES.get(column.name, 0)

    def clear_seed(self, mask: BoolArray) -> None:
        """Reset every column but the stage of the slots of ``mask`` (N, S)."""
        stage = self.stage[mask]
        self.clear(mask)
        self.stage[mask] = stage

    def set_state(self, state: Tree) -> None:
        """Load columns; raise ``ValueError`` if they do not fit or break a rule of :meth:`validate`."""
        super().set_state(state)
        self.validate()

    def validate(self) -> None:
        """Raise ``ValueError`` naming the first slot whose values no episode can lead to."""
        stages = [stage for stage in Stage if stage != Stage.UNKNOWN]
        names = ", ".join(f"{stage.name}={stage.value}" for stage in stages)
        self._require("stage", np.isin(self.stage, stages), f"one of {names}")
        ramping = self.alpha_mode != HOLD
        for column, sound, expected in (
            ("alpha", (self.alpha >= 0) & (self.alpha <= 1), "inside [0, 1]"),
            ("alpha_target", (self.alpha_target >= 0) & (self.alpha_target <= 1), "inside [0, 1]"),
            ("alpha_mode", np.isin(self.alpha_mode, [HOLD, UP, DOWN]), "HOLD 0, UP 1 or DOWN 2"),
            ("alpha_mode", ~ramping | (self.stage == Stage.BLENDING), "HOLD outside BLENDING"),
            ("pruning", ~self.pruning | ramping, "False unless a ramp runs"),
            ("blueprint", (self.blueprint != NO_BLUEPRINT) == self.has_seed, "present exactly where a seed is"),
            ("operator", np.isin(self.operator, list(Operator)), "an operator"),
            ("alpha_curve", np.isin(self.alpha_curve, list(Curve)), "a curve"),
            ("first_curve", np.isin(self.first_curve, list(Curve)), "a curve"),
            ("contribution_age", self.contribution_age >= -1, "-1 (never) or more"),
            ("age", self.age >= 0, "0 or more"),
            ("epochs_in_stage", self.epochs_in_stage >= 0, "0 or more"),
        ):
            self._require(column, sound, expected)

    def _require(self, column: str, sound: BoolArray, expected: str) -> None:
        if not sound.all():
            env, slot = np.argwhere(~sound)[0]
            value = getattr(self, column)[env, slot]
            raise ValueError(f"{column} of slot {slot} of environment {env} is {value}; expected {expected}")


SlotTable.STATE = tuple(column.name for column in fields(SlotTable))

#: Value of each column in an empty slot, unless it is zero.
EMPTY_VALUES: dict[str, float | int | bool] = {
    "stage": int(Stage.DORMANT),
    "blueprint": NO_BLUEPRINT,
    "operator": int(Operator.ADD),
    "alpha_curve": int(Curve.LINEAR),
    "contribution_age": -1,
    "previous_gradient_health": 1.0,
}
