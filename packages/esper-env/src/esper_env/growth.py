"""N networks growing under the rules: applies the rules to the population, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.data.catalog import DataFamily, check_length
from esper_env.devices import memory_gauge
from esper_env.episodes import SeedSites
from esper_env.infos import Mask, Values
from esper_env.persistence.state import Accessors, ArrayState, Stateful
from esper_env.persistence.tree import Tree
from esper_env.population import Measurement, Structure, updated
from esper_env.population.build import build_population
from esper_env.recording import Recorder, StepRecord, TrainedEpoch
from esper_env.rules import lifecycle
from esper_env.rules.gates import gate_config
from esper_env.rules.governor import Governor
from esper_env.rules.heads import Op
from esper_env.rules.lifecycle import Changes, CommandBatch
from esper_env.rules.masks import ActionRules
from esper_env.rules.measurements import record_contributions, record_gradients
from esper_env.rules.observation import ObservationBuilder
from esper_env.rules.rejection import Rejection
from esper_env.rules.reward import RewardInputs, RewardModel
from esper_env.rules.reward_config import reward_config
from esper_env.rules.signals import Signals, SignalTracker
from esper_env.rules.slot_table import DOWN, SlotTable
from esper_env.rules.stages import Stage
from esper_env.tasks import TaskConfig, TransformerSpec
from esper_env.telemetry import Telemetry

Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StepOutcome:
    """Result of one step of N networks."""

    rewards: NDArray[np.float64]  # (N,)
    terminated: Mask  # (N,) the horizon is reached, or the governor has given up
    values: Values  # of the infos


class Growth(ArrayState):
    """N networks of a task with their slot table, signals and rewards, in this process or in ``workers``.

    ``begin`` starts episodes, ``advance`` runs one step of every network, ``observe`` returns observations.

    Raises:
        ValueError: a setting of the task is invalid.
    """

    STATE = ("epoch", "_last_op", "_last_success")

    def __init__(
        self, task: TaskConfig, count: int, workers: int | str = 1, worker_timeout: float | None = None
    ) -> None:
        self.task, self.count = task, count
        if task.data is None and isinstance(task.host, TransformerSpec):
            check_length(task.dataset, DataFamily(task.family), task.host.context)
        self._gates = gate_config(task.gates)
        self.reward_config = reward_config(task.reward_mode, task.reward_weights)
        self._population = build_population(task, count, workers, worker_timeout)
        self.dataset_name, self.data_digest = self._population.dataset_name, self._population.data_digest
        shard = self._population.shards[0]
        self.slot_ids: tuple[str, ...] = tuple(spec.slot_id for spec in shard.slots)
        self.topology = shard.topology
        self.blueprint_names = {entry.value: entry.name for entry in shard.blueprints}
        self.offered_blueprints = tuple(self.blueprint_names)
        self.host_parameters, self.device = shard.host.size, shard.device
        slots = len(self.slot_ids)
        max_seeds = slots if task.max_seeds is None else task.max_seeds
        self.sites = SeedSites(self.slot_ids, self.topology, max_seeds, shard.blueprints)
        self.rules = ActionRules(slots, self.offered_blueprints, max_seeds, self._gates if task.mask_gates else None)
        self._builder = ObservationBuilder(task.horizon, task.param_budget, shard.execution_order)
        self._signals = SignalTracker(count, task.plateau_points)
        self._reward = RewardModel(count, slots, task.horizon, self.host_parameters, self.reward_config)
        self._governor = Governor(count, slots, self._population.classes)
        self.telemetry = Telemetry()
        gauge, processes = memory_gauge(shard.device), self._population.processes
        self.recorder = Recorder(self.telemetry, count, self.slot_ids, self.blueprint_names, gauge, processes)
        self.table = SlotTable.empty(count, slots)
        self.epoch = np.zeros(count, dtype=np.int64)
        self._last_op = np.zeros(count, dtype=np.int64)
        self._last_success = np.ones(count, dtype=np.bool_)

    def close(self) -> None:
        """Flush and close the telemetry sinks, and end the workers."""
        self.telemetry.close()
        self._population.close()

    @property
    def workers(self) -> int:
        """Number of worker processes; 1 if the networks are in this process."""
        return max(1, len(self._population.processes))

    @property
    def signals(self) -> Signals:
        """The latest reading of the validation curves."""
        return self._signals.peek()

    def begin(self, rows: Mask, seeds: NDArray[np.int64], planted: Mapping[int, int]) -> Values:
        """Start an episode in ``rows`` (N,) from ``seeds`` (N,), with the seeds ``planted`` {slot: blueprint}.

        Returns the infos' values, valid in those rows.
        """
        self.table.clear(np.repeat(rows[:, None], len(self.slot_ids), axis=1))
        for slot, blueprint in planted.items():
            mask = rows[:, None] & (np.arange(len(self.slot_ids)) == slot)
            lifecycle.place_committed(self.table, mask, blueprint)
        self._population.reset(rows, seeds)
        self._population.attach(rows[:, None] & self.table.has_seed, self.table.blueprint)
        structure = Structure.of(self.table)
        measured = self._population.measure(structure, rows)
        self._record(measured, rows)
        self._signals.reset(rows, measured.loss, measured.accuracy)
        self._reward.reset(rows, measured.accuracy, self.table)
        self.epoch[rows] = 0
        self._governor.reset(rows, measured.loss)
        self._take_snapshots(structure, rows)
        self._last_op[rows] = Op.WAIT
        self._last_success[rows] = True
        signals = self.signals
        self.recorder.record_starts(rows, signals, structure.fossilized)
        nothing = np.zeros(self.count)
        return {
            **self._state_values(signals, self._population.parameters_added(structure, self.table.has_seed)),
            **self._step_values(
                train_loss=np.full(self.count, np.nan),
                op=self._last_op,
                slot=np.zeros(self.count, dtype=np.int64),
                valid=self._last_success,
                rejection=np.full(self.count, Rejection.NONE),
                rollback=np.zeros(self.count, dtype=np.bool_),
                components=dict.fromkeys(self._reward.components, nothing),
            ),
            **self._final_values(),
        }

    def set_state(self, state: Tree) -> None:
        """Load the epochs and the outcome of the last step; :meth:`parts` lists everything else that has a state."""
        super().set_state(state)
        if not np.isin(self._last_op, list(Op)).all() or (self.epoch < 0).any():
            raise ValueError("last_op or epoch has impossible values; expected ops, and epochs of at least 0")

    def parts(self) -> dict[str, Stateful]:
        """Everything with a state. The networks come last: the table and the governor describe their layout."""
        population, table, governor = self._population, self.table, self._governor
        return {
            "steps": self,
            "table": table,
            "signals": self._signals,
            "reward": self._reward,
            "governor": governor,
            "recorder": self.recorder,
            "population": Accessors(
                lambda: population.get_state(table.blueprint, governor.saved),
                lambda state: population.set_state(state, table.blueprint, governor.saved),
            ),
        }

    def advance(self, command: CommandBatch, idle: Mask) -> StepOutcome:
        """Run one step of every network: command, clock, training, measurement, governor, reward.

        Networks of ``idle`` (N,) environments, whose episode is over, wait; their results are ignored.
        """
        asked = command.waiting(idle)
        before = self.table.copy()
        changes = self._act(asked)
        epoch = self._train(before)
        rescued, structure, measured = epoch.judgement.roll_back, epoch.structure, epoch.measured
        command = asked.waiting(rescued) if rescued.any() else asked
        self._population.withdraw(changes.attached & rescued[:, None])
        stopped = rescued & (changes.rejection == Rejection.NONE)
        rejection = np.where(stopped, Rejection.ROLLED_BACK, changes.rejection)
        # A restored network equals its snapshot and has not been judged yet.
        snapshots = self._governor.snapshots_due(self.epoch, structure.fossilized) & ~rescued
        self._take_snapshots(structure, snapshots)
        signals = self._signals.update(measured.loss, measured.accuracy)
        terminated = ((self.epoch >= self.task.horizon) | self._governor.exhausted) & ~idle
        final_values = self._final_values()
        if terminated.any():
            self._appraise(structure, terminated, final_values)
        added = self._population.parameters_added(structure, self.table.has_seed)
        components = self._reward.compute(
            RewardInputs(
                val_accuracy=measured.accuracy,
                committed_accuracy=final_values["committed_val_accuracy"],
                terminated=terminated,
                parameters_added=added,
                op=command.op,
                table=self.table,
                rolled_back=rescued,
                interactions=measured.interaction,
                interactions_measured=measured.interaction_measured,
            )
        )
        rewards = np.sum(list(components.values()), axis=0)
        self._last_op, self._last_success = command.op, rejection == Rejection.NONE
        self.recorder.count(idle, self.epoch, rewards, asked.requested_op != Op.WAIT, rejection != Rejection.NONE)
        if self.telemetry.active:
            self.recorder.record_step(
                StepRecord(
                    idle=idle,
                    before=before,
                    table=self.table,
                    command=asked,
                    changes=changes,
                    rejection=rejection,
                    epoch=epoch,
                    rollbacks=self._governor.rollbacks,
                    snapshots=snapshots,
                    signals=signals,
                    parameters_added=added,
                    rewards=rewards,
                )
            )
        values = {
            **self._state_values(signals, added),
            **self._step_values(
                train_loss=epoch.stats.loss,
                op=command.op,
                slot=command.slot,
                valid=command.valid,
                rejection=rejection,
                rollback=rescued,
                components=components,
            ),
            **final_values,
        }
        return StepOutcome(rewards, terminated, values)

    def _act(self, command: CommandBatch) -> Changes:
        """Carry out a command, advance the clock and update the networks' seeds."""
        changes = lifecycle.apply(self.table, command, self._gates)
        was_falling = self.table.alpha_mode == DOWN
        lifecycle.tick(self.table, changes)
        self._population.attach(changes.attached, self.table.blueprint)
        falling = (self.table.alpha_mode == DOWN) | was_falling
        stale = (falling | changes.operator_changed) & self.table.is_blended
        self._population.clear_momentum(stale, self.table.blueprint)
        return changes

    def _train(self, before: SlotTable) -> TrainedEpoch:
        """Train and measure every network for an epoch, and record it in the table.

        Broken networks are restored from their snapshots, and their slots from the table ``before`` the command. They
        are measured again and count as not trained.
        """
        structure, everyone = Structure.of(self.table), np.ones(self.count, dtype=np.bool_)
        stats = self._population.train(structure, self.recorder.inspection_due(self.table))
        measured = self._population.measure(structure, everyone)
        judgement = self._governor.judge(stats.finite, measured.loss)
        epoch = TrainedEpoch(
            structure=structure,
            isolated=structure.training,
            stats=stats,
            measured=measured,
            judgement=judgement,
            judged_loss=measured.loss,
            snapshot_epoch=self._governor.snapshot_epoch.copy(),
        )
        broken = judgement.roll_back
        if broken.any():
            lifecycle.roll_back(self.table, before, broken, self._governor.saved)
            structure = Structure.of(self.table)
            for row in np.flatnonzero(broken).tolist():
                self._population.restore_snapshot(structure, row)
            measured = updated(measured, self._population.measure(structure, broken), broken)
            self._governor.rolled_back(broken, measured.loss)
            epoch = epoch._replace(structure=structure, measured=measured)
        trained = np.where(broken[:, None], 0.0, stats.sizes)
        record_gradients(self.table, stats.gradient_norm, stats.vanishing, stats.exploding, trained)
        self._record(measured, everyone)
        lifecycle.finish_epoch(self.table)
        self.epoch += 1
        return epoch

    def _take_snapshots(self, structure: Structure, rows: Mask) -> None:
        if not rows.any():
            return
        self._population.take_snapshots(structure, rows)
        self._governor.snapshots_taken(rows, self.epoch, structure.fossilized)

    def observe(self) -> Observation:
        """Return fresh observations of every network, each with a leading N."""
        legal = self.rules.legal(self.table)
        added = self._population.parameters_added(Structure.of(self.table), self.table.has_seed)
        return {
            "features": self._builder.features(self.table, self.signals, added, self._last_success, self._last_op),
            "blueprints": self.table.blueprint.copy(),
            "action_mask": self.rules.marginal(legal),
            "op_slot_mask": self.rules.op_slot(legal),
        }

    def _record(self, measured: Measurement, rows: Mask) -> None:
        """Record the measurements of ``rows`` (N,) in the table."""
        record_contributions(
            self.table,
            rows,
            measured.contribution,
            measured.measured,
            measured.interaction,
            measured.interaction_measured,
        )

    def _appraise(self, structure: Structure, terminated: Mask, values: Values) -> None:
        """Write the results of the committed networks into ``values``, where an episode has ``terminated`` (N,)."""
        result = self._population.appraise(structure, np.flatnonzero(terminated))
        added = self._population.parameters_added(structure, self.table.stage == Stage.FOSSILIZED)
        values["committed_measured"][terminated] = True
        values["committed_val_accuracy"][terminated] = result.val_accuracy
        values["test_accuracy"][terminated] = result.test_accuracy
        values["committed_parameters_added"][terminated] = added[terminated]
        values["shapley"][terminated] = result.shapley

    def _final_values(self) -> Values:
        """Return the infos' values that the end of an episode fills in.

        They are always there, because some clients expect the same keys at every step.
        """
        return {
            "committed_measured": np.zeros(self.count, dtype=np.bool_),
            "committed_val_accuracy": np.zeros(self.count),
            "test_accuracy": np.zeros(self.count),
            "committed_parameters_added": np.zeros(self.count, dtype=np.int64),
            "shapley": np.zeros(self.table.shape),
        }

    def _step_values(
        self,
        *,
        train_loss: NDArray[np.float64],
        op: NDArray[np.int64],
        slot: NDArray[np.int64],
        valid: Mask,
        rejection: NDArray[np.int64],
        rollback: Mask,
        components: Mapping[str, NDArray[np.float64]],
    ) -> Values:
        """Return the infos' values that describe a step; after a reset, those of a step that did nothing."""
        return {
            "train_loss": train_loss,
            "op": op,
            "slot": slot,
            "action_valid": valid,
            "action_succeeded": rejection == Rejection.NONE,
            "rejection": rejection,
            "rollback": rollback,
            **{f"reward_{name}": value for name, value in components.items()},
        }

    def _state_values(self, signals: Signals, added: NDArray[np.int64]) -> Values:
        """Return the infos' values that describe the networks, with the parameters ``added`` (N,) to them."""
        return {
            "action_mask": self.rules.marginal(self.rules.legal(self.table)),
            "val_accuracy": signals.val_accuracy,
            "val_loss": signals.val_loss,
            **({"val_bits_per_byte": signals.val_loss / np.log(2.0)} if self._population.reads_text else {}),
            "parameters_added": added,
            "rollbacks": self._governor.rollbacks,
            "slot_stage": self.table.stage.copy(),
            "slot_blueprint": self.table.blueprint.copy(),
            "contribution": np.where(self.table.contribution_age >= 0, self.table.contribution, 0.0),
            "contribution_measured": self.table.contribution_age >= 0,
        }
