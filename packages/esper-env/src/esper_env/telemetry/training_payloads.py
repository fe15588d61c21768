"""What the events of training a policy say: its updates and their anomalies, trends of the episodes, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esper_env.telemetry.payloads import Payload, Severity

# Runs


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Payload):
    """A policy begins to train, or goes on after ``timesteps`` steps."""

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
    """A round of updates is done; ``metrics`` as under ``train/``."""

    TYPE = "PPO_UPDATE_COMPLETED"
    timesteps: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Anomaly(Payload):
    """A number of an update is where it should not be."""

    SEVERITY = Severity.WARNING
    timesteps: int
    quantity: str  # a name of ``metrics``
    value: float
    threshold: float | None  # None where the value is not finite


@dataclass(frozen=True, kw_only=True)
class RatioExplosion(Anomaly):
    """A probability ratio is far above 1."""

    TYPE = "RATIO_EXPLOSION_DETECTED"


@dataclass(frozen=True, kw_only=True)
class RatioCollapse(Anomaly):
    """A probability ratio is far below 1."""

    TYPE = "RATIO_COLLAPSE_DETECTED"


@dataclass(frozen=True, kw_only=True)
class ValueCollapse(Anomaly):
    """The critic explains nothing of the returns."""

    TYPE = "VALUE_COLLAPSE_DETECTED"


@dataclass(frozen=True, kw_only=True)
class NumericalInstability(Anomaly):
    """Losses or ratios are not finite."""

    TYPE = "NUMERICAL_INSTABILITY_DETECTED"
    SEVERITY = Severity.ERROR


@dataclass(frozen=True, kw_only=True)
class GradientAnomaly(Anomaly):
    """Gradients explode or vanish."""

    TYPE = "GRADIENT_ANOMALY_DETECTED"


@dataclass(frozen=True, kw_only=True)
class EntropyCollapse(Anomaly):
    """A head that still matters has stopped exploring."""

    TYPE = "ENTROPY_COLLAPSE_DETECTED"


@dataclass(frozen=True, kw_only=True)
class Trend(Payload):
    """How the latest batches of episodes compare with those before them, in points of committed accuracy."""

    timesteps: int
    change: float
    recent: float  # mean
    previous: float  # mean
    batches: int  # on each side


@dataclass(frozen=True, kw_only=True)
class PlateauDetected(Trend):
    """They are no different."""

    TYPE = "PLATEAU_DETECTED"


@dataclass(frozen=True, kw_only=True)
class DegradationDetected(Trend):
    """They are worse."""

    TYPE = "DEGRADATION_DETECTED"
    SEVERITY = Severity.WARNING


@dataclass(frozen=True, kw_only=True)
class ImprovementDetected(Trend):
    """They are better."""

    TYPE = "IMPROVEMENT_DETECTED"


@dataclass(frozen=True, kw_only=True)
class RewardHackingSuspected(Payload):
    """An episode was paid for more than it achieved, or kept a seed that the network depends on to no avail."""

    TYPE = "REWARD_HACKING_SUSPECTED"
    SEVERITY = Severity.WARNING
    signature: str  # "overpaid", "ransomware"
    paid: float  # points of accuracy
    improvement: float  # points of accuracy
    ratio: float | None  # None where nothing was improved


# Files


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Payload):
    """A checkpoint on disk."""

    path: str
    timesteps: int


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Checkpoint):
    """It was written."""

    TYPE = "CHECKPOINT_SAVED"


@dataclass(frozen=True, kw_only=True)
class CheckpointLoaded(Checkpoint):
    """Training goes on from it."""

    TYPE = "CHECKPOINT_LOADED"
