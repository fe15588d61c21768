"""An event, and the payloads of the events of growth: one frozen dataclass per event type.

A payload class that sets ``TYPE`` registers itself in ``PAYLOADS``; other packages declare their events the same way.
``SEVERITY`` is its usual severity and ``DETAIL`` the level of detail from which the hub emits it. Every field is a JSON
type, or a tuple or mapping of them. Slots are named by their ids ("r0c0"); stages, gates, ops and blueprints by their
names. Accuracies are percentages, contributions are points of accuracy, losses are nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

from typing_extensions import override

from esper_env.rules.actions import describe_command


class Severity(StrEnum):
    """Importance of an event."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Detail(IntEnum):
    """Level of detail: a hub at ``NORMAL`` skips payloads of level ``FULL``."""

    NORMAL = 0
    FULL = 1


#: Event type -> payload class, for all types that the imported packages declare.
PAYLOADS: dict[str, type[Payload]] = {}


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Base class of all payloads. A subclass that sets ``TYPE`` declares an event type.

    Raises:
        TypeError: another class has declared the type.
    """

    TYPE: ClassVar[str]
    SEVERITY: ClassVar[Severity] = Severity.INFO
    DETAIL: ClassVar[Detail] = Detail.NORMAL
    #: End of a sentence about the event, a format string for the payload as ``self``. Warnings and errors have one.
    SENTENCE: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        if "TYPE" not in vars(cls):
            return
        known = PAYLOADS.setdefault(cls.TYPE, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            other = f"{known.__qualname__} of {known.__module__}"
            raise TypeError(f"TYPE of {cls.__qualname__} is {cls.TYPE!r}, which {other} declares; choose another")
        PAYLOADS[cls.TYPE] = cls  # a notebook cell or a reload declares the class again

    def sentence(self) -> str:
        """Return ``SENTENCE`` with its values, or else the type and the fields."""
        if self.SENTENCE:
            return self.SENTENCE.format(self=self)
        fields = ", ".join(f"{name} {value}" for name, value in vars(self).items() if value is not None)
        return f"{self.TYPE} ({fields})."


class UndeclaredPayload(SimpleNamespace, Payload):
    """Payload of an event type that no imported package declares; its attributes hold plain JSON values.

    Import the package that declares the type, for example ``esper_agent``, to read events with typed payloads.
    """

    def __init_subclass__(cls) -> None:
        """Do not register the type."""


class Event(NamedTuple):
    """An occurrence. A field that does not apply is None: a policy update belongs to no environment."""

    id: int  # in the order of emission
    time: float  # seconds since the Unix epoch, UTC, in whole microseconds
    env: int | None  # index in the vector
    episode: int | None  # of this environment
    epoch: int | None  # of this episode
    slot: str | None
    severity: Severity
    payload: Payload

    @property
    def type(self) -> str:
        """Event type, for example "EPOCH_COMPLETED"."""
        return self.payload.TYPE


@dataclass(frozen=True, kw_only=True)
class EpisodeCompleted(Payload):
    """An episode has ended. Results of the committed network are None if it was truncated before the horizon."""

    TYPE = "EPISODE_COMPLETED"
    episode_return: float  # undiscounted sum of the rewards
    length: int
    truncated: bool
    val_accuracy: float
    committed_val_accuracy: float | None
    test_accuracy: float | None
    parameters_added: int | None  # of the committed seeds
    fossilized: int  # seeds
    commands: int  # actions other than WAIT
    rejected: int  # commands that had no effect
    rollbacks: int


@dataclass(frozen=True, kw_only=True)
class EpochCompleted(Payload):
    """A network has been trained for an epoch and measured."""

    TYPE = "EPOCH_COMPLETED"
    train_loss: float
    val_loss: float
    val_accuracy: float
    parameters_added: int
    reward: float


@dataclass(frozen=True, kw_only=True)
class SeedGerminated(Payload):
    """A seed was planted in a slot."""

    TYPE = "SEED_GERMINATED"
    blueprint: str
    operator: str
    alpha_target: float


@dataclass(frozen=True, kw_only=True)
class SeedStageChanged(Payload):
    """A slot changed its stage."""

    TYPE = "SEED_STAGE_CHANGED"
    from_stage: str
    to_stage: str


@dataclass(frozen=True, kw_only=True)
class SeedGateEvaluated(Payload):
    """A gate decided on a stage transition."""

    TYPE = "SEED_GATE_EVALUATED"
    gate: str
    passed: bool
    score: float  # share of the gate's checks that passed, 0..1; 1 for a gate without checks
    checks_passed: tuple[str, ...]
    checks_failed: tuple[str, ...]
    message: str


@dataclass(frozen=True, kw_only=True)
class SeedFossilized(Payload):
    """A seed became permanent."""

    TYPE = "SEED_FOSSILIZED"
    blueprint: str
    age: int  # epochs since germination
    contribution: float | None  # the decision was based on it; None if it was not measured


@dataclass(frozen=True, kw_only=True)
class SeedPruned(Payload):
    """A seed was removed."""

    TYPE = "SEED_PRUNED"
    blueprint: str
    stage: str  # before it was pruned
    age: int  # epochs since germination
    contribution: float | None  # last measurement
    initiator: str  # "agent", "governor"


@dataclass(frozen=True, kw_only=True)
class CounterfactualComputed(Payload):
    """Contributions were measured, in points of accuracy, by slot; pairs are named "r0c0+r0c1"."""

    TYPE = "COUNTERFACTUAL_COMPUTED"
    DETAIL = Detail.FULL
    contributions: Mapping[str, float]
    interactions: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class HostStabilized(Payload):
    """The validation loss has stabilised for the first time in the episode."""

    TYPE = "HOST_STABILIZED"
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, kw_only=True)
class _Command(Payload):
    """Op and arguments of an action; only the heads that the op reads. Each is issued, then succeeds or is rejected."""

    op: str
    arguments: Mapping[str, str]  # head -> value

    @override
    def sentence(self) -> str:
        """Return the type, and the action in the words of ``esper_env.describe_action``."""
        return f"{self.TYPE}: {describe_command(self.op, self.arguments)}."


@dataclass(frozen=True, kw_only=True)
class CommandIssued(_Command):
    """The agent chose an action other than WAIT."""

    TYPE = "COMMAND_ISSUED"
    DETAIL = Detail.FULL  # the event of its outcome repeats it


@dataclass(frozen=True, kw_only=True)
class CommandSucceeded(_Command):
    """The action took effect."""

    TYPE = "COMMAND_SUCCEEDED"


@dataclass(frozen=True, kw_only=True)
class CommandRejected(_Command):
    """The action had no effect: it was illegal, its gate failed, or the governor rolled the network back."""

    TYPE = "COMMAND_REJECTED"
    rejection: str  # name of a Rejection
    reason: str

    @override
    def sentence(self) -> str:
        """Return the type, the action in words and the reason."""
        return f"{super().sentence().removesuffix('.')}: {self.reason}."


@dataclass(frozen=True, kw_only=True)
class _Panic(Payload):
    """Judgement of the governor on a network that looks broken."""

    reason: str  # "non-finite", "collapse", "divergence"
    loss: float  # validation, nats, of the network that was judged
    threshold: float | None  # divergence: the limit; collapse: loss of guessing; non-finite: None
    panics: int  # in a row, this one included

    @property
    def problem(self) -> str:
        """Description of the problem."""
        if self.reason == "non-finite":
            return f"the network is not finite (validation loss {self.loss:.4g})"
        if self.reason == "collapse":
            return f"the validation loss {self.loss:.4g} is back at that of guessing ({self.threshold:.4g})"
        return f"the validation loss {self.loss:.4g} diverges (threshold {self.threshold:.4g})"


@dataclass(frozen=True, kw_only=True)
class GovernorPanic(_Panic):
    """A network looks broken; the governor acts at once, or after several panics in a row."""

    TYPE = "GOVERNOR_PANIC"
    SEVERITY = Severity.WARNING
    SENTENCE = "{self.problem}; panic {self.panics} in a row."


@dataclass(frozen=True, kw_only=True)
class GovernorRollback(_Panic):
    """A network was restored to its last snapshot, its live seeds were pruned, and its action was skipped."""

    TYPE = "GOVERNOR_ROLLBACK"
    SEVERITY = Severity.ERROR
    rollbacks: int  # in this episode, this one included
    snapshot_epoch: int
    pruned: tuple[str, ...]  # slots
    skipped_op: str

    @override
    def sentence(self) -> str:
        return (
            f"{self.problem}; the governor restored the snapshot of epoch {self.snapshot_epoch}, pruned the seeds in "
            f"{', '.join(self.pruned) or 'no slot'} and skipped {self.skipped_op} (rollback {self.rollbacks} of this "
            "episode)."
        )


@dataclass(frozen=True, kw_only=True)
class GovernorSnapshot(Payload):
    """The governor took a snapshot of a healthy network."""

    TYPE = "GOVERNOR_SNAPSHOT"
    DETAIL = Detail.FULL
    val_loss: float
    fossilized: tuple[str, ...]  # slots


@dataclass(frozen=True, kw_only=True)
class IsolationViolation(Payload):
    """A seed in TRAINING changed the computation of its host."""

    TYPE = "ISOLATION_VIOLATION"
    SEVERITY = Severity.ERROR
    slots: tuple[str, ...]  # with a seed in TRAINING
    what: str  # "outputs", "statistics" or both

    @override
    def sentence(self) -> str:
        return f"a seed in TRAINING in {' or '.join(self.slots)} changed the {self.what} of its host."


@dataclass(frozen=True, kw_only=True)
class MemoryWarning(Payload):
    """The process or an accelerator uses more memory than its limit."""

    TYPE = "MEMORY_WARNING"
    SEVERITY = Severity.WARNING
    SENTENCE = "the {self.kind} memory in use is {self.used_mib:,.0f} MiB (threshold {self.limit_mib:,.0f} MiB)."
    kind: str  # "resident", or the name of the accelerator
    used_mib: float
    limit_mib: float
