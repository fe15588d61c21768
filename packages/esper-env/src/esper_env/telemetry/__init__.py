"""Telemetry: typed events, a hub that never slows training, sinks, and a reader."""

from esper_env.telemetry.events import Event
from esper_env.telemetry.hub import Telemetry
from esper_env.telemetry.lines import SCHEMA
from esper_env.telemetry.memory import MemoryWatch
from esper_env.telemetry.payloads import (
    PAYLOADS,
    Command,
    CommandIssued,
    CommandRejected,
    CommandSucceeded,
    CounterfactualComputed,
    Detail,
    EpisodeCompleted,
    EpochCompleted,
    GovernorPanic,
    GovernorRollback,
    GovernorSnapshot,
    HostStabilized,
    IsolationViolation,
    MemoryWarning,
    Payload,
    SeedFossilized,
    SeedGateEvaluated,
    SeedGerminated,
    SeedPruned,
    SeedStageChanged,
    Severity,
    UndeclaredPayload,
)
from esper_env.telemetry.reader import event_table, read_events
from esper_env.telemetry.sinks import JsonlSink, MemorySink, drop_events
from esper_env.telemetry.writer import Sink

__all__ = [
    "PAYLOADS",
    "SCHEMA",
    "Command",
    "CommandIssued",
    "CommandRejected",
    "CommandSucceeded",
    "CounterfactualComputed",
    "Detail",
    "EpisodeCompleted",
    "EpochCompleted",
    "Event",
    "GovernorPanic",
    "GovernorRollback",
    "GovernorSnapshot",
    "HostStabilized",
    "IsolationViolation",
    "JsonlSink",
    "MemorySink",
    "MemoryWarning",
    "MemoryWatch",
    "Payload",
    "SeedFossilized",
    "SeedGateEvaluated",
    "SeedGerminated",
    "SeedPruned",
    "SeedStageChanged",
    "Severity",
    "Sink",
    "Telemetry",
    "UndeclaredPayload",
    "drop_events",
    "event_table",
    "read_events",
]
