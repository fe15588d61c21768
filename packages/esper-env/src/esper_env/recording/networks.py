"""Events of the networks: epochs, the governor, and isolation."""

from __future__ import annotations

from typing import Any

import numpy as np

from esper_env import telemetry as events
from esper_env.recording.step import Emissions, Mask, Names, StepRecord
from esper_env.rules.governor import Reason
from esper_env.rules.heads import Op
from esper_env.rules.signals import Signals

REASONS: dict[int, str] = {
    Reason.NON_FINITE: "non-finite",
    Reason.COLLAPSE: "collapse",
    Reason.DIVERGENCE: "divergence",
}


def epochs(step: StepRecord) -> Emissions:
    """Events of the epoch and of validation curves that have stabilised."""
    signals = step.signals
    columns = zip(
        step.idle.tolist(),
        step.epoch.stats.loss.tolist(),
        signals.val_loss.tolist(),
        signals.val_accuracy.tolist(),
        step.parameters_added.tolist(),
        step.rewards.tolist(),
        strict=True,
    )
    for env, (idle, train_loss, val_loss, val_accuracy, parameters_added, reward) in enumerate(columns):
        if not idle:
            payload = events.EpochCompleted(
                train_loss=train_loss,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                parameters_added=parameters_added,
                reward=reward,
            )
            yield env, None, payload
    for env in step.where(signals.just_stabilised):
        loss, accuracy = float(signals.val_loss[env]), float(signals.val_accuracy[env])
        yield env, None, events.HostStabilized(val_loss=loss, val_accuracy=accuracy)


def governor(step: StepRecord, names: Names) -> Emissions:
    """Events of panics and rollbacks."""
    judgement = step.epoch.judgement
    for env in step.where(judgement.reason != Reason.HEALTHY):
        threshold = float(judgement.threshold[env])
        panic: dict[str, Any] = {
            "reason": REASONS[int(judgement.reason[env])],
            "loss": float(step.epoch.judged_loss[env]),
            "threshold": None if np.isnan(threshold) else threshold,
            "panics": int(judgement.panics[env]),
        }
        yield env, None, events.GovernorPanic(**panic)
        if env in step.epoch.rescues:
            missing, unexpected = step.epoch.rescues[env]
            rollback = events.GovernorRollback(
                **panic,
                rollbacks=int(step.rollbacks[env]),
                snapshot_epoch=int(step.epoch.snapshot_epoch[env]),
                pruned=names.of(step.before.has_seed[env] & ~step.table.has_seed[env]),
                skipped_op=Op(int(step.command.op[env])).name,
                missing=missing,
                unexpected=unexpected,
            )
            yield env, None, rollback


def snapshots(envs: list[int], signals: Signals, fossilized: Mask, names: Names) -> Emissions:
    """Events of the snapshots in ``envs``, with ``fossilized`` (N, S) seeds."""
    for env in envs:
        payload = events.GovernorSnapshot(val_loss=float(signals.val_loss[env]), fossilized=names.of(fossilized[env]))
        yield env, None, payload


def isolation(step: StepRecord, names: Names) -> Emissions:
    """Events of seeds in TRAINING that changed their hosts."""
    breached: Mask = step.epoch.stats.breached
    for env in step.where(np.any(breached, axis=1)):
        kinds = zip(("outputs", "statistics"), breached[env].tolist(), strict=True)
        what = " and ".join(name for name, seen in kinds if seen)
        yield env, None, events.IsolationViolation(slots=names.of(step.epoch.isolated[env]), what=what)
