"""A completed step of N networks, and its events."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env import telemetry as events
from esper_env.infos import Mask
from esper_env.population import Measurement, Structure, TrainStats
from esper_env.rules.actions import ActionNames
from esper_env.rules.gates import CHECKS, NO_GATE, Gate
from esper_env.rules.governor import Judgement, Reason
from esper_env.rules.heads import HEAD_NAMES, Op, Operator
from esper_env.rules.lifecycle import Changes, CommandBatch
from esper_env.rules.rejection import Rejection
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage

#: An event of a step: environment, slot if the event is about one, and payload.
Emission = tuple[int, int | None, events.Payload]


class TrainedEpoch(NamedTuple):
    """An epoch of N networks, after training, measurement, judgement and rollbacks."""

    structure: Structure  # after rollbacks
    isolated: Mask  # (N, S) seeds that trained in isolation
    stats: TrainStats
    measured: Measurement  # after rollbacks
    judgement: Judgement
    judged_loss: NDArray[np.float64]  # (N,) validation, before rollbacks
    snapshot_epoch: NDArray[np.int64]  # (N,) of the snapshots before this epoch


class StepRecord(NamedTuple):
    """One completed step of N networks. Arrays are (N, ...)."""

    idle: Mask  # environments whose episode had ended before; they have no events
    before: SlotTable
    table: SlotTable
    command: CommandBatch
    changes: Changes
    rejection: NDArray[np.int64]  # a ``Rejection``
    epoch: TrainedEpoch
    rollbacks: NDArray[np.int64]
    snapshots: Mask  # networks whose snapshot was taken
    signals: Signals
    parameters_added: NDArray[np.int64]
    rewards: NDArray[np.float64]


class StepEvents:
    """Events of a step, in order; slow ones of full detail are built only if ``full`` is set."""

    def __init__(self, step: StepRecord, names: ActionNames, full: bool) -> None:
        self._step, self._names, self._full = step, names, full
        self._commands = [(env, self._command(env)) for env in self._envs(step.command.requested_op != Op.WAIT)]

    def __iter__(self) -> Iterator[Emission]:
        for env, command in self._commands if self._full else ():
            yield env, None, events.CommandIssued(**command)
        yield from self._gates()
        yield from self._isolation()
        yield from self._governor()
        yield from self._stages()
        yield from self._epochs()
        if self._full:
            step = self._step
            yield from self._counterfactuals()
            fossilized = step.epoch.structure.fossilized
            yield from snapshots(step.snapshots & ~step.idle, step.signals, fossilized, self._names)
        yield from self._outcomes()

    def _envs(self, mask: Mask) -> list[int]:
        """Return the environments, except idle ones, in which ``mask`` (N,) is True."""
        return [int(env) for env in np.flatnonzero(mask & ~self._step.idle)]

    def _command(self, env: int) -> dict[str, Any]:
        """Op and arguments of an action; the arguments of an illegal one are unknown."""
        command = self._step.command
        op = int(command.requested_op[env])
        heads = [int(getattr(command, head)[env]) for head in HEAD_NAMES]
        return {"op": Op(op).name, "arguments": self._names.arguments(heads) if command.valid[env] else {}}

    def _gates(self) -> Iterator[Emission]:
        for env in self._envs(self._step.changes.gates.gate != NO_GATE):
            yield env, int(self._step.changes.slot[env]), self._gate(env)

    def _gate(self, env: int) -> events.SeedGateEvaluated:
        gates = self._step.changes.gates
        row = tuple(gates.asked[env].tolist()), tuple(gates.answers[env].tolist())
        return _gate_evaluated(int(gates.gate[env]), *row)

    def _isolation(self) -> Iterator[Emission]:
        breached: Mask = self._step.epoch.stats.breached
        for env in self._envs(np.any(breached, axis=1)):
            what = " and ".join(compress(("outputs", "statistics"), breached[env]))
            slots = _slots(self._step.epoch.isolated[env], self._names)
            yield env, None, events.IsolationViolation(slots=slots, what=what)

    def _governor(self) -> Iterator[Emission]:
        step, judgement = self._step, self._step.epoch.judgement
        for env in self._envs(judgement.reason != Reason.HEALTHY):
            threshold = float(judgement.threshold[env])
            panic: dict[str, Any] = {
                "reason": Reason(judgement.reason[env]).name.lower().replace("_", "-"),
                "loss": float(step.epoch.judged_loss[env]),
                "threshold": None if np.isnan(threshold) else threshold,
                "panics": int(judgement.panics[env]),
            }
            yield env, None, events.GovernorPanic(**panic)
            if judgement.roll_back[env]:
                rollback = events.GovernorRollback(
                    **panic,
                    rollbacks=int(step.rollbacks[env]),
                    snapshot_epoch=int(step.epoch.snapshot_epoch[env]),
                    pruned=_slots(step.before.has_seed[env] & ~step.table.has_seed[env], self._names),
                    skipped_op=Op(step.command.op[env]).name,
                )
                yield env, None, rollback

    def _stages(self) -> Iterator[Emission]:
        """Events of slots that changed their stage, and of their seeds.

        A rollback that undoes a commitment is one change, from FOSSILIZED to PRUNED.
        """
        before, table = self._step.before, self._step.table
        blueprint = self._names.blueprints
        moved = (before.stage != table.stage) & ~self._step.idle[:, None]
        stages = zip(before.stage[moved].tolist(), table.stage[moved].tolist(), strict=True)
        for (env, slot), (source, target) in zip(np.argwhere(moved).tolist(), stages, strict=True):
            yield env, slot, events.SeedStageChanged(from_stage=Stage(source).name, to_stage=Stage(target).name)
            if target == Stage.GERMINATED:
                born = events.SeedGerminated(
                    blueprint=blueprint[int(table.blueprint[env, slot])],
                    operator=Operator(table.operator[env, slot]).name,
                    alpha_target=float(table.first_target[env, slot]),
                )
                yield env, slot, born
            if target not in (Stage.FOSSILIZED, Stage.PRUNED):
                continue
            measured = before.contribution_age[env, slot] >= 0
            seed: dict[str, Any] = {
                "blueprint": blueprint[int(before.blueprint[env, slot])],
                "age": int(before.age[env, slot]),
                "contribution": float(before.contribution[env, slot]) if measured else None,
            }
            if target == Stage.FOSSILIZED:
                yield env, slot, events.SeedFossilized(**seed)
            else:
                initiator = "governor" if self._step.epoch.judgement.roll_back[env] else "agent"
                yield env, slot, events.SeedPruned(**seed, stage=Stage(source).name, initiator=initiator)

    def _epochs(self) -> Iterator[Emission]:
        step, signals = self._step, self._step.signals
        columns = {
            "train_loss": step.epoch.stats.loss,
            "val_loss": signals.val_loss,
            "val_accuracy": signals.val_accuracy,
            "parameters_added": step.parameters_added,
            "reward": step.rewards,
        }
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        for env, row in enumerate(rows):
            if not step.idle[env]:
                yield env, None, events.EpochCompleted(**dict(zip(columns, row, strict=True)))
        for env in self._envs(signals.just_stabilised):
            loss, accuracy = float(signals.val_loss[env]), float(signals.val_accuracy[env])
            yield env, None, events.HostStabilized(val_loss=loss, val_accuracy=accuracy)

    def _counterfactuals(self) -> Iterator[Emission]:
        slot_id, table, measured = self._names.slot, self._step.table, self._step.epoch.measured
        fresh = table.contribution_age == 0
        for env in self._envs(fresh.any(axis=1)):
            alone = np.flatnonzero(fresh[env]).tolist()
            pairs = np.argwhere(np.triu(measured.interaction_measured[env], 1)).tolist()
            payload = events.CounterfactualComputed(
                contributions={slot_id(slot): float(table.contribution[env, slot]) for slot in alone},
                interactions={f"{slot_id(i)}+{slot_id(j)}": float(measured.interaction[env, i, j]) for i, j in pairs},
            )
            yield env, None, payload

    def _outcomes(self) -> Iterator[Emission]:
        for env, command in self._commands:
            rejection = Rejection(self._step.rejection[env])
            if rejection is Rejection.NONE:
                yield env, None, events.CommandSucceeded(**command)
            else:
                reason = self._reason(env, rejection)
                yield env, None, events.CommandRejected(**command, rejection=rejection.name, reason=reason)

    def _reason(self, env: int, rejection: Rejection) -> str:
        if rejection is Rejection.ILLEGAL:
            return "it was not legal"
        if rejection is Rejection.ROLLED_BACK:
            return "the governor rolled the network back"
        return self._gate(env).message  # a legal action without a gate always succeeds


@lru_cache(maxsize=1024)  # many payloads are equal
def _gate_evaluated(gate: int, asked: tuple[bool, ...], answers: tuple[bool, ...]) -> events.SeedGateEvaluated:
    checked = [(name, answer) for name, has, answer in zip(CHECKS, asked, answers, strict=True) if has]
    good = tuple(name for name, answer in checked if answer)
    bad = tuple(name for name, answer in checked if not answer)
    name = Gate(gate).name
    return events.SeedGateEvaluated(
        gate=name,
        passed=not bad,
        score=len(good) / len(checked) if checked else 1.0,
        checks_passed=good,
        checks_failed=bad,
        message=f"{name} failed: {', '.join(bad)}" if bad else f"{name} passed",
    )


def snapshots(rows: Mask, signals: Signals, fossilized: Mask, names: ActionNames) -> Iterator[Emission]:
    """Events of snapshots in ``rows`` (N,), with ``fossilized`` (N, S) seeds."""
    for env in np.flatnonzero(rows).tolist():
        slots = _slots(fossilized[env], names)
        yield env, None, events.GovernorSnapshot(val_loss=float(signals.val_loss[env]), fossilized=slots)


def _slots(mask: Mask, names: ActionNames) -> tuple[str, ...]:
    """Return the names of the slots in which ``mask`` (S,) is True."""
    return tuple(names.slot(slot) for slot in np.flatnonzero(mask).tolist())
