"""How the networks fared: their epochs, what the governor did, and whether seeds left their hosts alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from esper_env import telemetry as events
from esper_env.recording.step import Mask, Names, StepRecord, Told
from esper_env.rules.governor import Reason
from esper_env.rules.heads import Op
from esper_env.rules.signals import Signals

REASONS: dict[int, str] = {
    Reason.NON_FINITE: "non-finite",
    Reason.COLLAPSE: "collapse",
    Reason.DIVERGENCE: "divergence",
}


def epochs(step: StepRecord) -> Told:
    """What an epoch came to, and which validation curves have settled."""
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
            told = events.EpochCompleted(
                train_loss=train_loss,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                parameters_added=parameters_added,
                reward=reward,
            )
            yield env, None, told
    for env in step.where(signals.just_stabilised):
        loss, accuracy = float(signals.val_loss[env]), float(signals.val_accuracy[env])
        yield env, None, events.HostStabilized(val_loss=loss, val_accuracy=accuracy)


def governor(step: StepRecord, names: Names) -> Told:
    """Which networks looked broken, and which of them were put back."""
    judgement = step.epoch.judgement
    for env in step.where(judgement.reason != Reason.HEALTHY):
        threshold = float(judgement.threshold[env])
        seen: dict[str, Any] = {
            "reason": REASONS[int(judgement.reason[env])],
            "loss": float(step.epoch.judged_loss[env]),
            "threshold": None if np.isnan(threshold) else threshold,
            "panics": int(judgement.panics[env]),
        }
        yield env, None, events.GovernorPanic(**seen)
        if env in step.epoch.rescues:
            missing, unexpected = step.epoch.rescues[env]
            told = events.GovernorRollback(
                **seen,
                rollbacks=int(step.rollbacks[env]),
                snapshot_epoch=int(step.epoch.snapshot_epoch[env]),
                pruned=names.of(step.before.has_seed[env] & ~step.table.has_seed[env]),
                skipped_op=Op(int(step.asked.op[env])).name,
                missing=missing,
                unexpected=unexpected,
            )
            yield env, None, told


def snapshots(envs: list[int], signals: Signals, fossilized: Mask, names: Names) -> Told:
    """Which networks were put aside, of ``fossilized`` (N, S) seeds."""
    for env in envs:
        told = events.GovernorSnapshot(val_loss=float(signals.val_loss[env]), fossilized=names.of(fossilized[env]))
        yield env, None, told


def isolation(step: StepRecord, names: Names) -> Told:
    """Which hosts computed something else because of their seeds in TRAINING."""
    breached: Mask = step.epoch.stats.breached
    for env in step.where(np.any(breached, axis=1)):
        kinds = zip(("outputs", "statistics"), breached[env].tolist(), strict=True)
        what = " and ".join(name for name, seen in kinds if seen)
        yield env, None, events.IsolationViolation(slots=names.of(step.epoch.isolated[env]), what=what)
