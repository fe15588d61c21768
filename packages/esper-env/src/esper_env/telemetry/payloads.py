"""What the events of growth say: one frozen dataclass per event type.

A payload class carries its event type in ``TYPE``, its usual ``SEVERITY``, and the ``DETAIL`` level from which it is
emitted. Every field is a JSON type, or a tuple or mapping of them. Slots are named by their ids ("r0c0"), stages,
gates, ops and blueprints by their names. Accuracies are percentages, contributions points of accuracy, losses nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import ClassVar


class Severity(StrEnum):
    """How much an event matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Detail(IntEnum):
    """How much is emitted: a hub at ``NORMAL`` leaves out the payloads of level ``FULL``."""

    NORMAL = 0
    FULL = 1


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Base of all payloads."""

    TYPE: ClassVar[str]
    SEVERITY: ClassVar[Severity] = Severity.INFO
    DETAIL: ClassVar[Detail] = Detail.NORMAL


# Episodes and epochs


@dataclass(frozen=True, kw_only=True)
class EpisodeCompleted(Payload):
    """An episode is over. What the network came to is None where the episode was cut before the horizon."""

    TYPE = "EPISODE_COMPLETED"
    episode_return: float  # undiscounted sum of the rewards
    length: int
    truncated: bool
    val_accuracy: float
    committed_val_accuracy: float | None
    test_accuracy: float | None
    parameters_added: int | None  # of the committed seeds
    fossilized: int  # seeds
    rollbacks: int


@dataclass(frozen=True, kw_only=True)
class EpochCompleted(Payload):
    """A network was trained for an epoch and measured."""

    TYPE = "EPOCH_COMPLETED"
    train_loss: float
    val_loss: float
    val_accuracy: float
    parameters_added: int
    reward: float


# Seeds


@dataclass(frozen=True, kw_only=True)
class SeedGerminated(Payload):
    """A seed was put into a slot."""

    TYPE = "SEED_GERMINATED"
    blueprint: str
    operator: str
    alpha_target: float


@dataclass(frozen=True, kw_only=True)
class SeedStageChanged(Payload):
    """A slot went from one stage to another."""

    TYPE = "SEED_STAGE_CHANGED"
    from_stage: str
    to_stage: str


@dataclass(frozen=True, kw_only=True)
class SeedGateEvaluated(Payload):
    """A gate was asked on the way into a stage."""

    TYPE = "SEED_GATE_EVALUATED"
    gate: str
    passed: bool
    score: float
    checks_passed: tuple[str, ...]
    checks_failed: tuple[str, ...]
    message: str


@dataclass(frozen=True, kw_only=True)
class SeedFossilized(Payload):
    """A seed became permanent."""

    TYPE = "SEED_FOSSILIZED"
    blueprint: str
    age: int  # epochs since germination
    contribution: float | None  # as it was when the decision fell; None: not measured


@dataclass(frozen=True, kw_only=True)
class SeedPruned(Payload):
    """A seed is gone."""

    TYPE = "SEED_PRUNED"
    blueprint: str
    stage: str  # it was pruned in
    age: int  # epochs since germination
    contribution: float | None  # the last one measured
    initiator: str  # "agent", "governor"


@dataclass(frozen=True, kw_only=True)
class CounterfactualComputed(Payload):
    """Contributions were measured, in points of accuracy, by slot; pairs as "r0c0+r0c1"."""

    TYPE = "COUNTERFACTUAL_COMPUTED"
    DETAIL = Detail.FULL
    contributions: Mapping[str, float]
    interactions: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class HostStabilized(Payload):
    """The validation loss has settled for the first time in the episode."""

    TYPE = "HOST_STABILIZED"
    val_loss: float
    val_accuracy: float


# Commands: each is issued, and then succeeds or is rejected


@dataclass(frozen=True, kw_only=True)
class Command(Payload):
    """What was asked of a network; only the heads that the op reads."""

    op: str
    arguments: Mapping[str, str]  # head -> value


@dataclass(frozen=True, kw_only=True)
class CommandIssued(Command):
    """An action other than WAIT arrived."""

    TYPE = "COMMAND_ISSUED"
    DETAIL = Detail.FULL  # its outcome says the same and more


@dataclass(frozen=True, kw_only=True)
class CommandSucceeded(Command):
    """It took effect."""

    TYPE = "COMMAND_SUCCEEDED"


@dataclass(frozen=True, kw_only=True)
class CommandRejected(Command):
    """It did not: it was illegal, its gate failed, or the governor rolled the network back."""

    TYPE = "COMMAND_REJECTED"
    reason: str


# The governor


@dataclass(frozen=True, kw_only=True)
class GovernorPanic(Payload):
    """A network looks broken; the governor acts at once, or when it has seen enough in a row."""

    TYPE = "GOVERNOR_PANIC"
    SEVERITY = Severity.WARNING
    reason: str  # "non-finite", "collapse", "divergence"
    loss: float  # validation, nats
    threshold: float | None  # that the loss passed, or the loss of guessing; None for what is not finite
    panics: int  # in a row, this one included


@dataclass(frozen=True, kw_only=True)
class GovernorRollback(Payload):
    """A network was put back to its last snapshot, its live seeds were pruned, and its action was not carried out."""

    TYPE = "GOVERNOR_ROLLBACK"
    SEVERITY = Severity.ERROR
    reason: str
    loss: float  # validation, nats, of the broken network
    threshold: float | None
    panics: int  # in a row, before they were reset
    rollbacks: int  # of the episode, this one included
    snapshot_epoch: int
    pruned: tuple[str, ...]  # slots
    skipped_op: str
    missing: tuple[str, ...]  # tensors of the network that the snapshot lacks: always empty in a sound system
    unexpected: tuple[str, ...]  # tensors of the snapshot that the network lacks


@dataclass(frozen=True, kw_only=True)
class GovernorSnapshot(Payload):
    """A healthy network was put aside."""

    TYPE = "GOVERNOR_SNAPSHOT"
    DETAIL = Detail.FULL
    val_loss: float
    fossilized: tuple[str, ...]  # slots


# The machine


@dataclass(frozen=True, kw_only=True)
class IsolationViolation(Payload):
    """A seed in TRAINING changed what its host computes."""

    TYPE = "ISOLATION_VIOLATION"
    SEVERITY = Severity.ERROR
    slots: tuple[str, ...]  # with a seed in TRAINING
    what: str  # "outputs", "statistics" or both


@dataclass(frozen=True, kw_only=True)
class MemoryWarning(Payload):
    """The process, or the accelerator, holds more memory than is sensible."""

    TYPE = "MEMORY_WARNING"
    SEVERITY = Severity.WARNING
    kind: str  # "resident", or the name of the accelerator
    used_mib: float
    limit_mib: float
