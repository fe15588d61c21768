"""Payloads of the events of training: runs, updates and their anomalies, trends, suspicions and checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from esper_env.telemetry import Payload, Severity
from typing_extensions import override

#: End of the sentence of an anomaly.
_THRESHOLD = " (threshold {self.threshold:.3g})."

# Runs


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Payload):
    """Training of a policy started, or resumed after ``timesteps`` steps."""

    TYPE = "TRAINING_STARTED"
    env_id: str
    dataset: str
    num_envs: int
    seed: int | None
    timesteps: int
    total_timesteps: int


# The policy


@dataclass(frozen=True, kw_only=True)
class PPOUpdateCompleted(Payload):
    """A round of updates is complete; ``metrics`` has the values of ``train/``, and of ``heads/`` as HEAD_STATISTIC."""

    TYPE = "PPO_UPDATE_COMPLETED"
    timesteps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Anomaly(Payload):
    """A metric of an update has passed its threshold."""

    SEVERITY = Severity.WARNING
    timesteps: int
    quantity: str  # a name of ``metrics``
    value: float
    threshold: float | None  # None if the value is not finite

    @property
    def head(self) -> str:
        """Name of the action head that the metric describes."""
        return re.sub("_(ratio|choice)_.*", "", self.quantity).replace("_", " ")


class RatioExplosion(Anomaly):
    """A probability ratio is far above 1."""

    TYPE = "RATIO_EXPLOSION_DETECTED"
    SENTENCE = "the 95% quantile of the {self.head} head's probability ratios is {self.value:.3g}" + _THRESHOLD


class RatioCollapse(Anomaly):
    """A probability ratio is far below 1."""

    TYPE = "RATIO_COLLAPSE_DETECTED"
    SENTENCE = "the 5% quantile of the {self.head} head's probability ratios is {self.value:.3g}" + _THRESHOLD


class ValueCollapse(Anomaly):
    """The critic explains too little of the variance of the returns."""

    TYPE = "VALUE_COLLAPSE_DETECTED"

    @override
    def sentence(self) -> str:
        limit = "" if self.threshold is None else f" (threshold {100 * self.threshold:.3g}%)"
        return f"the critic explains only {self.value:.1%} of the return variance{limit}."


class NumericalInstability(Anomaly):
    """A loss or ratio is not finite, or training skipped an update."""

    TYPE = "NUMERICAL_INSTABILITY_DETECTED"
    SEVERITY = Severity.ERROR

    @override
    def sentence(self) -> str:
        if self.quantity == "skipped_updates":
            return f"training skipped {self.value:.0f} updates that were not finite."
        return f"the policy's {self.quantity} is {self.value}; expected a finite number."


class GradientAnomaly(Anomaly):
    """Gradients explode or vanish."""

    TYPE = "GRADIENT_ANOMALY_DETECTED"
    SENTENCE = "the mean norm of the gradients is {self.value:.3g}" + _THRESHOLD


class EntropyCollapse(Anomaly):
    """A head that has a choice has stopped exploring."""

    TYPE = "ENTROPY_COLLAPSE_DETECTED"
    SENTENCE = "the {self.head} head has stopped exploring: its normalised entropy is {self.value:.3g}" + _THRESHOLD


@dataclass(frozen=True, kw_only=True)
class Trend(Payload):
    """Committed accuracy of the latest rollouts compared with the rollouts before, in points."""

    SENTENCE = (
        "the committed accuracy changed from {self.previous:.1f}% to {self.recent:.1f}% "
        "({self.change:+.1f} points; means of {self.rollouts} rollouts)."
    )
    timesteps: int
    change: float
    recent: float  # mean
    previous: float  # mean
    rollouts: int  # on each side


class PlateauDetected(Trend):
    """The committed accuracy has not changed."""

    TYPE = "PLATEAU_DETECTED"


class DegradationDetected(Trend):
    """The committed accuracy has fallen."""

    TYPE = "DEGRADATION_DETECTED"
    SEVERITY = Severity.WARNING


class ImprovementDetected(Trend):
    """The committed accuracy has risen."""

    TYPE = "IMPROVEMENT_DETECTED"


@dataclass(frozen=True, kw_only=True)
class RewardHackingSuspected(Payload):
    """The rewards of an episode exceed its achievement, or it kept a harmful seed that the network depends on."""

    TYPE = "REWARD_HACKING_SUSPECTED"
    SEVERITY = Severity.WARNING
    signature: str  # "overpaid", "ransomware"
    paid: float  # points of accuracy
    improvement: float  # points of accuracy
    ratio: float | None  # None if nothing improved

    @override
    def sentence(self) -> str:
        if self.signature == "overpaid":
            return (
                f"the episode was rewarded with {self.paid:.1f} points for growth, but its committed seeds are worth "
                f"{self.improvement:.1f}."
            )
        return (
            f"removing the seed would cost {self.paid:.1f} points of accuracy, but the accuracy is "
            f"{-self.improvement:.1f} points lower than before the seed was planted."
        )


# Files


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Payload):
    """A checkpoint on disk."""

    path: str
    timesteps: int


class CheckpointSaved(Checkpoint):
    """A checkpoint was saved."""

    TYPE = "CHECKPOINT_SAVED"


class CheckpointLoaded(Checkpoint):
    """Training resumed from a checkpoint."""

    TYPE = "CHECKPOINT_LOADED"
