"""What happens to N growing networks, told as telemetry events.

Everything is told after it happened: a success is never announced before the action was carried out. Nothing is built
while no sink is attached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env import telemetry as events
from esper_env.networks.population import Mismatch
from esper_env.rules.governor import Judgement, Reason
from esper_env.rules.heads import HEAD_RELEVANCE, HEAD_VALUES, Head, Op, Operator
from esper_env.rules.lifecycle import Changes, Command
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from esper_env.telemetry.memory import MemoryWatch

Mask = NDArray[np.bool_]

REASONS: dict[int, str] = {
    Reason.NON_FINITE: "non-finite",
    Reason.COLLAPSE: "collapse",
    Reason.DIVERGENCE: "divergence",
}
#: Attributes of a recorder that belong to the state of its environments.
COUNTERS = ("episode", "returns", "length", "epoch")
ILLEGAL, ROLLED_BACK = "it was not legal", "the governor rolled the network back"


class StepRecord(NamedTuple):
    """One step of N networks, as it turned out. Arrays are (N, ...)."""

    idle: Mask  # environments whose episode was over before it: nothing is told of them
    before: SlotTable
    table: SlotTable
    asked: Command
    changes: Changes
    succeeded: Mask
    judgement: Judgement
    judged_loss: NDArray[np.float64]  # validation, of the networks as they were judged
    rescues: Mapping[int, Mismatch]  # by environment that was put back
    rollbacks: NDArray[np.int64]
    snapshot_epoch: NDArray[np.int64]  # before the step's own snapshots
    put_aside: Mask
    isolated: Mask  # (N, S) seeds that trained in isolation
    breached: Mask  # (N, 2) outputs, statistics
    interaction: NDArray[np.float64]  # (N, S, S)
    interaction_measured: Mask
    signals: Signals
    train_loss: NDArray[np.float64]
    parameters_added: NDArray[np.int64]
    rewards: NDArray[np.float64]


class Recorder:
    """Emits the events of N environments, and counts their episodes and returns.

    Args:
        hub: where the events go.
        slot_ids: names of the slots, in action order.
        blueprint_name: name of a blueprint value.
    """

    def __init__(
        self, hub: events.Telemetry, num_envs: int, slot_ids: Sequence[str], blueprint_name: Callable[[int], str]
    ) -> None:
        self.hub = hub
        self._slots, self._name = tuple(slot_ids), blueprint_name
        self._memory = MemoryWatch()
        self.episode = np.full(num_envs, -1, dtype=np.int64)  # number of the present one, -1 before the first
        self.returns = np.zeros(num_envs)
        self.length = np.zeros(num_envs, dtype=np.int64)
        self.epoch = np.zeros(num_envs, dtype=np.int64)
        self._idle = np.zeros(num_envs, dtype=np.bool_)

    def began(self, rows: Mask, signals: Signals, fossilized: Mask) -> None:
        """Episodes began in ``rows`` (N,): the networks were measured and put aside."""
        self.episode[rows] += 1
        self._idle[rows] = False
        for column in (self.returns, self.length, self.epoch):
            column[rows] = 0
        if self.hub.wants(events.GovernorSnapshot):
            for env in np.flatnonzero(rows).tolist():
                self._snapshot(env, signals, fossilized)

    def count(self, epoch: NDArray[np.int64], rewards: NDArray[np.float64]) -> None:
        """A step of every environment is over, after which the epochs (N,) are these."""
        self.returns += rewards
        self.length += 1
        self.epoch = epoch.copy()

    def tell(self, step: StepRecord) -> None:
        """Emit the events of the step that was just counted; worth calling only when the hub is active."""
        self._idle = step.idle
        for tell in (self._commands, self._seeds, self._epochs, self._counterfactuals, self._governor, self._outcomes):
            tell(step)
        self._machine(step)
        self.hub.epoch_passed()

    def ended(self, rows: Mask, terminated: Mask, values: Mapping[str, Any], final: Mapping[str, Any]) -> None:
        """Episodes are over in ``rows`` (N,), by a cut where not ``terminated`` (N,), where ``final`` holds."""
        if not self.hub.wants(events.EpisodeCompleted):
            return
        for env in np.flatnonzero(rows).tolist():
            known = bool(terminated[env])
            self._emit(
                events.EpisodeCompleted(
                    episode_return=float(self.returns[env]),
                    length=int(self.length[env]),
                    truncated=not known,
                    val_accuracy=float(values["val_accuracy"][env]),
                    committed_val_accuracy=float(final["committed_val_accuracy"][env]) if known else None,
                    test_accuracy=float(final["test_accuracy"][env]) if known else None,
                    parameters_added=int(final["committed_parameters_added"][env]) if known else None,
                    fossilized=int((values["slot_stage"][env] == Stage.FOSSILIZED).sum()),
                    rollbacks=int(values["rollbacks"][env]),
                ),
                env,
            )

    def _emit(self, payload: events.Payload, env: int, slot: int | None = None) -> None:
        if self._idle[env]:
            return
        self.hub.emit(
            payload,
            env=env,
            episode=int(self.episode[env]),
            epoch=int(self.epoch[env]),
            slot=None if slot is None else self._slots[slot],
        )

    # What a step is told in

    def _commands(self, step: StepRecord) -> None:
        for env, command in self._asked(step.asked):
            self._emit(events.CommandIssued(**command), env)

    def _outcomes(self, step: StepRecord) -> None:
        for env, command in self._asked(step.asked):
            reason = self._rejected(step, env)
            if reason is None:
                self._emit(events.CommandSucceeded(**command), env)
            else:
                self._emit(events.CommandRejected(**command, reason=reason), env)

    def _rejected(self, step: StepRecord, env: int) -> str | None:
        if not step.asked.valid[env]:
            return ILLEGAL
        if step.judgement.roll_back[env]:
            return ROLLED_BACK
        verdict = step.changes.verdict(env)
        return None if verdict is None or verdict.passed else verdict.message

    def _asked(self, asked: Command) -> Iterator[tuple[int, dict[str, Any]]]:
        """Actions other than WAIT, with the heads that their ops read; of an illegal action only the op is known."""
        for env in np.flatnonzero(asked.requested_op != Op.WAIT).tolist():
            op = int(asked.requested_op[env])
            arguments: dict[str, str] = {}
            for head in [head for head in Head if HEAD_RELEVANCE[op, head] and head != Head.OP and asked.valid[env]]:
                value = int(getattr(asked, head.name.lower())[env])
                arguments[head.name.lower()] = self._value_name(head, value)
            yield env, {"op": Op(op).name, "arguments": arguments}

    def _value_name(self, head: Head, value: int) -> str:
        if head == Head.SLOT:
            return self._slots[value]
        return self._name(value) if head == Head.BLUEPRINT else HEAD_VALUES[head](value).name

    def _seeds(self, step: StepRecord) -> None:
        for env in np.flatnonzero(step.changes.gate >= 0).tolist():
            verdict = step.changes.verdict(env)
            if verdict is not None:
                told = {**verdict._asdict(), "gate": verdict.gate.name}
                self._emit(events.SeedGateEvaluated(**told), env, int(step.changes.slot[env]))
        moved = step.before.stage != step.table.stage
        for env, slot in np.argwhere(moved).tolist():
            self._moved(step, env, slot)

    def _moved(self, step: StepRecord, env: int, slot: int) -> None:
        source, target = (Stage(table.stage[env, slot]) for table in (step.before, step.table))
        self._emit(events.SeedStageChanged(from_stage=source.name, to_stage=target.name), env, slot)
        kinds: dict[Stage, Callable[[], events.Payload]] = {
            Stage.GERMINATED: lambda: self._germinated(step.table, env, slot),
            Stage.FOSSILIZED: lambda: events.SeedFossilized(**self._seed(step.before, env, slot)),
            Stage.PRUNED: lambda: events.SeedPruned(
                **self._seed(step.before, env, slot),
                stage=source.name,
                initiator="governor" if step.judgement.roll_back[env] else "agent",
            ),
        }
        if target in kinds:
            self._emit(kinds[target](), env, slot)

    def _germinated(self, table: SlotTable, env: int, slot: int) -> events.SeedGerminated:
        return events.SeedGerminated(
            blueprint=self._name(int(table.blueprint[env, slot])),
            operator=Operator(table.operator[env, slot]).name,
            alpha_target=float(table.first_target[env, slot]),
        )

    def _seed(self, table: SlotTable, env: int, slot: int) -> dict[str, Any]:
        measured = table.contribution_age[env, slot] >= 0
        return {
            "blueprint": self._name(int(table.blueprint[env, slot])),
            "age": int(table.age[env, slot]),
            "contribution": float(table.contribution[env, slot]) if measured else None,
        }

    def _epochs(self, step: StepRecord) -> None:
        columns = (
            step.train_loss,
            step.signals.val_loss,
            step.signals.val_accuracy,
            step.parameters_added,
            step.rewards,
        )
        for env, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            names = ("train_loss", "val_loss", "val_accuracy", "parameters_added", "reward")
            self._emit(events.EpochCompleted(**dict(zip(names, values, strict=True))), env)
        for env in np.flatnonzero(step.signals.just_stabilised).tolist():
            settled = events.HostStabilized(
                val_loss=float(step.signals.val_loss[env]), val_accuracy=float(step.signals.val_accuracy[env])
            )
            self._emit(settled, env)

    def _counterfactuals(self, step: StepRecord) -> None:
        if not self.hub.wants(events.CounterfactualComputed):
            return
        fresh = step.table.contribution_age == 0
        for env in np.flatnonzero(fresh.any(axis=1)).tolist():
            slots = np.flatnonzero(fresh[env]).tolist()
            pairs = np.argwhere(np.triu(step.interaction_measured[env], 1)).tolist()
            told = events.CounterfactualComputed(
                contributions={self._slots[slot]: float(step.table.contribution[env, slot]) for slot in slots},
                interactions={
                    f"{self._slots[i]}+{self._slots[j]}": float(step.interaction[env, i, j]) for i, j in pairs
                },
            )
            self._emit(told, env)

    def _governor(self, step: StepRecord) -> None:
        judgement = step.judgement
        for env in np.flatnonzero(judgement.reason != Reason.HEALTHY).tolist():
            threshold = float(judgement.threshold[env])
            seen: dict[str, Any] = {
                "reason": REASONS[int(judgement.reason[env])],
                "loss": float(step.judged_loss[env]),
                "threshold": None if np.isnan(threshold) else threshold,
                "panics": int(judgement.panics[env]),
            }
            self._emit(events.GovernorPanic(**seen), env)
            if env in step.rescues:
                pruned = np.flatnonzero(step.before.has_seed[env] & ~step.table.has_seed[env]).tolist()
                told = events.GovernorRollback(
                    **seen,
                    rollbacks=int(step.rollbacks[env]),
                    snapshot_epoch=int(step.snapshot_epoch[env]),
                    pruned=tuple(self._slots[slot] for slot in pruned),
                    skipped_op=Op(step.asked.op[env]).name,
                    missing=step.rescues[env].missing,
                    unexpected=step.rescues[env].unexpected,
                )
                self._emit(told, env)
        if self.hub.wants(events.GovernorSnapshot):
            for env in np.flatnonzero(step.put_aside).tolist():
                self._snapshot(env, step.signals, step.table.stage == Stage.FOSSILIZED)

    def _snapshot(self, env: int, signals: Signals, fossilized: Mask) -> None:
        slots = tuple(self._slots[slot] for slot in np.flatnonzero(fossilized[env]).tolist())
        self._emit(events.GovernorSnapshot(val_loss=float(signals.val_loss[env]), fossilized=slots), env)

    def _machine(self, step: StepRecord) -> None:
        for env in np.flatnonzero(step.breached.any(axis=1)).tolist():
            training = np.flatnonzero(step.isolated[env]).tolist()
            what = " and ".join(
                name for name, seen in zip(("outputs", "statistics"), step.breached[env], strict=True) if seen
            )
            self._emit(events.IsolationViolation(slots=tuple(self._slots[slot] for slot in training), what=what), env)
        crossed = self._memory.check()
        if crossed is not None:
            self.hub.emit(crossed)
