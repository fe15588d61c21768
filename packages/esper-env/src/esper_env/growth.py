"""N networks growing under the rules: the one place where rules and networks meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.networks.build import build_population
from esper_env.networks.population import Measurement, Structure
from esper_env.networks.seeds import offered_blueprints
from esper_env.rules import lifecycle
from esper_env.rules.gates import gate_config
from esper_env.rules.heads import HEAD_DEFAULTS, Head, Op
from esper_env.rules.lifecycle import Changes, Command
from esper_env.rules.masks import ActionRules
from esper_env.rules.measurements import record_contributions, record_gradients
from esper_env.rules.observation import ObservationBuilder
from esper_env.rules.reward import RewardInputs, RewardModel, RewardOutput
from esper_env.rules.reward_config import reward_config
from esper_env.rules.signals import SignalConfig, SignalTracker
from esper_env.rules.slot_table import DOWN, SlotTable
from esper_env.rules.stages import Stage
from esper_env.tasks import TaskConfig

Mask = NDArray[np.bool_]
Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StepOutcome:
    """What one step of N networks led to. ``values`` and ``final_values`` hold (N, ...) arrays by info key."""

    rewards: NDArray[np.float64]  # (N,)
    terminated: Mask  # (N,) the horizon is reached
    values: dict[str, Any]
    final_values: dict[str, Any]  # of the committed networks; hold where ``terminated``


class Growth:
    """N networks of a task with their slot table, signals and rewards.

    ``begin`` starts episodes, ``advance`` runs one step of every network, ``observe`` shows where they are.

    Raises:
        ValueError: settings of the task that make no sense.
    """

    def __init__(self, task: TaskConfig, count: int) -> None:
        self.task, self.count = task, count
        self._gates = gate_config(task.gates)
        self.reward_config = reward_config(task.reward_mode, task.reward_weights)
        self._population, self.dataset_name, samples = build_population(task, count)
        shard = self._population.shards[0]
        self.slot_ids: tuple[str, ...] = tuple(spec.slot_id for spec in shard.slots)
        self.topology = shard.topology
        self.offered_blueprints = tuple(entry.value for entry in offered_blueprints(shard.topology))
        self.host_parameters = shard.host.size
        slots = len(self.slot_ids)
        self.max_seeds = slots if task.max_seeds is None else task.max_seeds
        self.rules = ActionRules(slots, self.offered_blueprints, self.max_seeds)
        self._builder = ObservationBuilder(slots, task.horizon, task.param_budget, shard.execution_order)
        self._signals = SignalTracker(count, SignalConfig(plateau_points=task.plateau_points), samples=samples)
        self._reward = RewardModel(count, slots, task.horizon, self.host_parameters, self.reward_config)
        self.table = SlotTable.empty(count, slots)
        self.epoch = np.zeros(count, dtype=np.int64)
        self._train_loss = np.zeros(count)
        self._last_op = np.zeros(count, dtype=np.int64)
        self._last_success = np.ones(count, dtype=np.bool_)

    def close(self) -> None:
        """Stop the worker threads."""
        self._population.close()

    @property
    def signals(self) -> Any:
        """The present reading of the validation curves."""
        return self._signals.peek()

    def begin(self, rows: Mask, seeds: NDArray[np.int64], topology: Mapping[int, int]) -> dict[str, Any]:
        """Start an episode in ``rows`` (N,) from ``seeds`` (N,), with ``topology`` {slot: blueprint} planted.

        Returns the infos' values, which hold in those rows.
        """
        self.table.clear(np.repeat(rows[:, None], len(self.slot_ids), axis=1))
        planted = np.zeros(self.table.shape, dtype=np.bool_)
        for slot, blueprint in topology.items():
            mask = np.zeros_like(planted)
            mask[rows, slot] = True
            lifecycle.plant(self.table, mask, blueprint)
            planted |= mask
        for row in np.flatnonzero(rows):
            self._population.reset_row(int(row), int(seeds[row]))
        self._attach(planted)
        structure = Structure.of(self.table)
        measured = self._population.measure(structure, rows)
        self._record(measured, rows)
        self._signals.reset(rows, measured.loss, measured.accuracy)
        self._reward.reset(rows, measured.accuracy, self.table)
        self.epoch[rows] = 0
        self._last_op[rows] = Op.WAIT
        self._last_success[rows] = True
        return self._state_values(structure)

    def decode(self, actions: ArrayLike) -> Command:
        """What integer actions (N, 8) really mean now; malformed ones are a ``ValueError``."""
        return self.rules.decode(actions, self.table)

    def advance(self, command: Command) -> StepOutcome:
        """One step of every network: command, clock, training, measurement, reward."""
        changes = lifecycle.apply(self.table, command, self._gates)
        was_falling = self.table.alpha_mode == DOWN
        lifecycle.tick(self.table, changes)
        self._carry_out(changes, was_falling)
        structure = Structure.of(self.table)
        stats = self._population.train(structure)
        everyone = np.ones(self.count, dtype=np.bool_)
        measured = self._population.measure(structure, everyone)
        record_gradients(self.table, stats.gradient_norm, stats.vanishing, stats.exploding, stats.sizes)
        self._record(measured, everyone)
        lifecycle.finish_epoch(self.table)
        self.epoch += 1
        self._signals.update(measured.loss, measured.accuracy)
        terminated = self.epoch >= self.task.horizon
        committed, final_values = self._appraise(structure, terminated)
        added = self._population.parameters_added(structure, self.table.has_seed)
        reward = self._rewarded(command, terminated, measured, committed, added)
        self._last_op, self._last_success = command.op, changes.succeeded
        values = {
            **self._state_values(structure),
            "train_loss": stats.loss,
            "op": command.op,
            "action_valid": command.valid,
            "action_succeeded": changes.succeeded,
            "reward_components": reward.components,
        }
        return StepOutcome(reward.total, terminated, values, final_values)

    def observe(self) -> Observation:
        """Freshly allocated observations of every network, each with a leading N."""
        legal = self.rules.legal(self.table)
        added = self._population.parameters_added(Structure.of(self.table), self.table.has_seed)
        signals = self._signals.peek()
        return {
            "features": self._builder.features(self.table, signals, added, self._last_success, self._last_op),
            "blueprints": self.table.blueprint.copy(),
            "action_mask": self.rules.marginal(legal),
            "op_slot_mask": self.rules.op_slot(legal),
        }

    def _carry_out(self, changes: Changes, was_falling: Mask) -> None:
        """Bring the networks in line with the table."""
        self._attach(changes.attached)
        falling = (self.table.alpha_mode == DOWN) | was_falling
        stale = (falling | changes.operator_changed) & self.table.is_blended
        for row, slot in np.argwhere(stale):
            self._population.forget_momentum(int(row), int(slot), int(self.table.blueprint[row, slot]))

    def _attach(self, mask: Mask) -> None:
        for row, slot in np.argwhere(mask):
            self._population.attach(int(row), int(slot), int(self.table.blueprint[row, slot]))

    def _record(self, measured: Measurement, rows: Mask) -> None:
        """Write what was measured of ``rows`` (N,) into the table. An epoch passes there, and nowhere else."""
        part = SlotTable(**{column.name: getattr(self.table, column.name)[rows] for column in fields(SlotTable)})
        record_contributions(
            part,
            measured.contribution[rows],
            measured.measured[rows],
            measured.interaction[rows],
            measured.interaction_measured[rows],
        )
        for column in fields(SlotTable):
            getattr(self.table, column.name)[rows] = getattr(part, column.name)

    def _appraise(self, structure: Structure, terminated: Mask) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Committed accuracies (N,), read where an episode terminates, and the final infos' values."""
        committed = np.zeros(self.count)
        if not terminated.any():
            return committed, {}
        rows = np.flatnonzero(terminated)
        result = self._population.appraise(structure, rows)
        committed[rows] = result.val_accuracy
        test, shapley = np.zeros(self.count), np.zeros(self.table.shape)
        test[rows], shapley[rows] = result.test_accuracy, result.shapley
        fossilized = self.table.stage == Stage.FOSSILIZED
        return committed, {
            "committed_val_accuracy": committed,
            "test_accuracy": test,
            "committed_parameters_added": self._population.parameters_added(structure, fossilized),
            "shapley": shapley,
        }

    def _rewarded(
        self,
        command: Command,
        terminated: Mask,
        measured: Measurement,
        committed: NDArray[np.float64],
        added: NDArray[np.int64],
    ) -> RewardOutput:
        return self._reward.compute(
            RewardInputs(
                val_accuracy=measured.accuracy,
                committed_accuracy=committed,
                terminated=terminated,
                parameters_added=added,
                op=command.op,
                table=self.table,
                interactions=measured.interaction,
                interactions_measured=measured.interaction_measured,
            )
        )

    def _state_values(self, structure: Structure) -> dict[str, Any]:
        """What every info holds, after a reset and after a step."""
        signals = self._signals.peek()
        return {
            "action_mask": self.rules.marginal(self.rules.legal(self.table)),
            "val_accuracy": signals.val_accuracy,
            "val_loss": signals.val_loss,
            "parameters_added": self._population.parameters_added(structure, self.table.has_seed),
            "dataset_name": np.full(self.count, self.dataset_name, dtype=object),
        }


def waiting(command: Command, rows: Mask) -> Command:
    """The command with WAIT in place of whatever ``rows`` (N,) asked for."""
    columns = {head.name.lower(): HEAD_DEFAULTS[head] for head in Head}
    replaced = {name: np.where(rows, default, getattr(command, name)) for name, default in columns.items()}
    return replace(command, **replaced)
