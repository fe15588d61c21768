"""Rewards of N environments, as named components that sum to the reward.

In these formulas, gamma is the learner's discount, host the host's parameters, and ``scale`` the value of 100 points:

=============  ======================================================================================================
accuracy       ``accuracy``  scale (acc' - acc) / 100
               ``commitment``  at the end scale (committed - acc') / 100, so that only fossilized seeds count
               ``rent``  -rent_weight ln(1 + added / host) / horizon, for all seeds present
               ``op_cost``  -op_cost for an op other than WAIT
               ``stages``  gamma Phi' - Phi, Phi = potential_weight x the sum of the stage potentials
sparse         ``commitment``  at the end scale x committed / 100;  ``rent``  at the end, the rent of all its steps
contribution   ``contribution``  gamma V' - V, V = scale max(sum of the measured contributions, 0) / 100
               ``commitment``  at the end scale x min(sum of the fossilized contributions, gain) / 100
               ``scaffold``  gamma C' - C, at the end C_backed - C, C = scale x scaffold_weight x credits / 100
               ``shock``  -shock_weight x the sum of (alpha' - alpha)^2 over the slots
               ``rent``, ``stages``  as above
all            ``governor``  -scale in a step in which the governor rolled the network back
=============  ======================================================================================================

Every potential (Phi, V, C) is 0 after termination. After truncation it keeps its value, because the learner bootstraps.

**accuracy.** The undiscounted return is scale (committed - initial) / 100 less rent and op costs. With a
``potential_weight`` above 0 this holds for gamma 1 only.

**contribution.** Paying contributions at every step would reward waiting in HOLDING, lucky peaks and repeated
germination. Instead the change of a potential V is paid, which returns to 0 at the end. The discounted return is
therefore gamma^(T-1) x commitment plus credits, less rent and shock. ``gain`` is max(committed - initial accuracy, 0).
It bounds the commitment, because a leave-one-out contribution measures dependence and not benefit. Below that bound
dependence still counts as benefit; ``accuracy`` has no such weakness.

**scaffold.** A fossilized seed is credited with the boosts that other seeds, even pruned ones, gave it
(``scaffolding.py``). The credit in points is at most ``scaffold_cap`` and its own contribution. At the end it counts up
to the seed's contribution at that time, and up to the gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esper_env.persistence.state import Accessors, ArrayState, Stateful, get_states, set_states
from esper_env.persistence.tree import Tree
from esper_env.rules.heads import Op
from esper_env.rules.reward_config import RewardConfig, RewardMode
from esper_env.rules.scaffolding import ScaffoldLedger
from esper_env.rules.slot_table import BoolArray, FloatArray, IntArray, SlotTable
from esper_env.rules.stages import Stage, lookup

Components = dict[str, FloatArray]

#: Components of each mode's reward, in the order in which its formula returns them.
COMPONENTS: dict[RewardMode, tuple[str, ...]] = {
    RewardMode.ACCURACY: ("accuracy", "commitment", "rent", "op_cost", "stages"),
    RewardMode.SPARSE: ("commitment", "rent"),
    RewardMode.CONTRIBUTION: ("contribution", "commitment", "scaffold", "shock", "rent", "stages"),
}
#: Cost of a rollback in units of the scale, that of 100 points of accuracy.
ROLLBACK_PENALTY = 1.0
#: Potential of each stage.
_POTENTIAL = lookup(
    {
        Stage.GERMINATED: 1.0,
        Stage.TRAINING: 2.0,
        Stage.BLENDING: 3.5,
        Stage.HOLDING: 5.5,
        Stage.FOSSILIZED: 6.0,
    },
    0.0,
)


@dataclass(frozen=True)
class RewardInputs:
    """Inputs of the reward of one step of N environments with S slots."""

    val_accuracy: FloatArray  # (N,) of the network after the step, 0..100
    committed_accuracy: FloatArray  # (N,) of host and fossilized seeds; read only where ``terminated``
    terminated: BoolArray  # (N,) horizon reached or governor exhausted; False for truncation
    parameters_added: NDArray[np.number]  # (N,) trainable scalars of all seeds present
    op: IntArray  # (N,) executed op; WAIT where the action was illegal or skipped
    table: SlotTable  # after the step and its measurements, before anything is discarded at the end
    rolled_back: BoolArray  # (N,) the governor restored the network
    interactions: FloatArray  # (N, S, S) I_ij in points
    interactions_measured: BoolArray  # (N, S, S) True where I_ij was measured in this step


class RewardModel(ArrayState):
    """Reward of ``num_envs`` environments, with the quantities of the previous step that the formulas need."""

    STATE = (
        "_accuracy",
        "_initial_accuracy",
        "_accrued_rent",
        "_alpha",
        "_fossilized",
        "_credit",
        "_stage_value",
        "_contribution_value",
        "_scaffold_value",
    )

    def __init__(self, num_envs: int, num_slots: int, horizon: int, host_parameters: int, config: RewardConfig) -> None:
        self.config = config
        self.horizon = horizon
        self.host_parameters = host_parameters
        self._accuracy = np.zeros(num_envs)
        self._initial_accuracy = np.zeros(num_envs)
        self._accrued_rent = np.zeros(num_envs)
        self._alpha = np.zeros((num_envs, num_slots))
        self._fossilized = np.zeros((num_envs, num_slots), dtype=np.bool_)
        self._credit = np.zeros((num_envs, num_slots))  # points credited to fossilized seeds
        self._stage_value = np.zeros(num_envs)  # the potentials after the previous step
        self._contribution_value = np.zeros(num_envs)
        self._scaffold_value = np.zeros(num_envs)
        self._ledger = ScaffoldLedger(num_envs, num_slots, config.gamma)
        self._formula: Callable[[RewardInputs], tuple[FloatArray, ...]] = {
            RewardMode.ACCURACY: self._accuracy_mode,
            RewardMode.SPARSE: self._sparse_mode,
            RewardMode.CONTRIBUTION: self._contribution_mode,
        }[config.mode]

    def reset(self, rows: BoolArray, val_accuracy: FloatArray, table: SlotTable) -> None:
        """Start episodes in ``rows`` (N,), with accuracies (N,) and slots of the untrained networks.

        Planted seeds earn nothing for being present.
        """
        self._accuracy[rows] = self._initial_accuracy[rows] = val_accuracy[rows]
        self._accrued_rent[rows] = self._scaffold_value[rows] = 0.0
        self._credit[rows] = 0.0
        self._alpha[rows] = table.alpha[rows]
        self._fossilized[rows] = table.stage[rows] == Stage.FOSSILIZED
        self._stage_value[rows] = self._stage_potential(table)[rows]
        self._contribution_value[rows] = self._held_contribution(table)[rows]
        self._ledger.reset(rows)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components of the mode."""
        return (*COMPONENTS[self.config.mode], "governor")

    def compute(self, step: RewardInputs) -> Components:
        """Return the components (N,) of one step's reward, which is their sum."""
        penalty = np.where(step.rolled_back, -self.config.scale * ROLLBACK_PENALTY, 0.0)
        values = (*self._formula(step), penalty)
        self._accuracy = np.array(step.val_accuracy, dtype=np.float64)
        return dict(zip(self.components, values, strict=True))

    def get_state(self) -> Tree:
        """Return copies of the arrays, and the state of the ledger."""
        return get_states(self._parts())

    def set_state(self, state: Tree) -> None:
        """Load a state; raise ``ValueError`` if it does not fit."""
        set_states(self._parts(), state)

    def _parts(self) -> dict[str, Stateful]:
        arrays = Accessors(super().get_state, super().set_state)
        return {"episode": arrays, "ledger": self._ledger}

    # Modes

    def _accuracy_mode(self, step: RewardInputs) -> tuple[FloatArray, ...]:
        unit = self.config.scale / 100.0
        return (
            unit * (step.val_accuracy - self._accuracy),
            np.where(step.terminated, unit * (step.committed_accuracy - step.val_accuracy), 0.0),
            -self._rent(step),
            np.where(step.op != Op.WAIT, -self.config.op_cost, 0.0),
            self._stage_change(step),
        )

    def _sparse_mode(self, step: RewardInputs) -> tuple[FloatArray, ...]:
        self._accrued_rent = self._accrued_rent + self._rent(step)
        return (
            np.where(step.terminated, self.config.scale * step.committed_accuracy / 100.0, 0.0),
            np.where(step.terminated, -self._accrued_rent, 0.0),
        )

    def _contribution_mode(self, step: RewardInputs) -> tuple[FloatArray, ...]:
        unit, gamma = self.config.scale / 100.0, self.config.gamma
        fossilized = step.table.stage == Stage.FOSSILIZED
        contributions = _measured_contributions(step.table)
        gain = np.maximum(np.where(step.terminated, step.committed_accuracy - self._initial_accuracy, 0.0), 0.0)
        committed = np.minimum(np.where(fossilized, contributions, 0.0).sum(axis=1), gain)

        value = np.where(step.terminated, 0.0, self._held_contribution(step.table))
        held = gamma * value - self._contribution_value
        self._contribution_value = value
        return (
            held,
            np.where(step.terminated, unit * committed, 0.0),
            self._scaffold_change(step, fossilized, contributions, gain),
            -self.config.shock_weight * self._alpha_jumps(step.table),
            -self._rent(step),
            self._stage_change(step),
        )

    # Components

    def _rent(self, step: RewardInputs) -> FloatArray:
        added = np.asarray(step.parameters_added, dtype=np.float64)
        rent: FloatArray = self.config.rent_weight * np.log1p(added / self.host_parameters) / self.horizon
        return rent

    def _stage_potential(self, table: SlotTable) -> FloatArray:
        potential: FloatArray = self.config.potential_weight * _POTENTIAL[table.stage].sum(axis=1)
        return potential

    def _stage_change(self, step: RewardInputs) -> FloatArray:
        value = np.where(step.terminated, 0.0, self._stage_potential(step.table))
        change = self.config.gamma * value - self._stage_value
        self._stage_value = value
        return change

    def _held_contribution(self, table: SlotTable) -> FloatArray:
        points = np.maximum(_measured_contributions(table).sum(axis=1), 0.0)
        held: FloatArray = self.config.scale / 100.0 * points
        return held

    def _scaffold_change(
        self, step: RewardInputs, fossilized: BoolArray, contributions: FloatArray, gain: FloatArray
    ) -> FloatArray:
        self._ledger.record(step.table.has_seed, step.interactions, step.interactions_measured)
        newly = fossilized & ~self._fossilized
        self._fossilized = fossilized
        credit = np.minimum(self._ledger.boosts(), self.config.scaffold_cap)
        self._credit = np.where(newly, np.clip(contributions, 0.0, credit), np.where(fossilized, self._credit, 0.0))

        worth = self.config.scale / 100.0 * self.config.scaffold_weight
        backing = np.clip(contributions, 0.0, gain[:, None])
        backed = worth * np.minimum(self._credit, backing).sum(axis=1)
        value = worth * self._credit.sum(axis=1)
        change: FloatArray = np.where(step.terminated, backed, self.config.gamma * value) - self._scaffold_value
        self._scaffold_value = value
        return change

    def _alpha_jumps(self, table: SlotTable) -> FloatArray:
        jumps: FloatArray = np.square(table.alpha - self._alpha).sum(axis=1)
        self._alpha = table.alpha.copy()
        return jumps


def _measured_contributions(table: SlotTable) -> FloatArray:
    """Return points (N, S) of measured seeds with alpha above 0; 0 elsewhere."""
    counted = table.has_seed & (table.alpha > 0.0) & (table.contribution_age >= 0) & np.isfinite(table.contribution)
    contributions: FloatArray = np.where(counted, table.contribution, 0.0)
    return contributions
