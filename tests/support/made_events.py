"""Events and sinks for tests."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import esper_agent  # noqa: F401 (declares the events of training)
from esper_env.telemetry import PAYLOADS, EpochCompleted, Event, GovernorSnapshot, MemorySink, Severity
from esper_env.telemetry.jsonl import field_types
from hypothesis import strategies as st

#: Seconds to wait for something that takes milliseconds; only a failing test reaches it.
PATIENCE = 60.0

_WHOLE = st.integers(-(2**70), 2**70)
_NUMBER = st.floats()  # NaN and infinities among them
_BY_HINT = {
    int: _WHOLE,
    int | None: st.none() | _WHOLE,
    float: _NUMBER,
    float | None: st.none() | _NUMBER,
    str: st.text(),
    bool: st.booleans(),
    tuple[str, ...]: st.lists(st.text(), max_size=3).map(tuple),
    Mapping[str, float]: st.dictionaries(st.text(), _NUMBER, max_size=3),
    Mapping[str, str]: st.dictionaries(st.text(), st.text(), max_size=3),
}


def events_of(event_type):
    """Hypothesis strategy for events of a type."""
    kind = PAYLOADS[event_type]
    return st.builds(
        Event,
        id=st.integers(0, 2**62),
        time=st.integers(0, 4 * 10**15).map(lambda microseconds: microseconds / 1e6),
        env=st.none() | st.integers(0, 9),
        episode=st.none() | st.integers(0, 2**40),
        epoch=st.none() | st.integers(0, 200),
        slot=st.none() | st.text(),
        severity=st.sampled_from(Severity),
        payload=st.builds(kind, **{name: _BY_HINT[hint] for name, hint in field_types(kind).items()}),
    )


def epoch_completed(reward=0.0):
    """A payload of normal detail."""
    return EpochCompleted(train_loss=1.0, val_loss=1.5, val_accuracy=50.0, parameters_added=0, reward=reward)


def snapshot():
    """A payload of full detail."""
    return GovernorSnapshot(val_loss=1.0, fossilized=("r0c0",))


def event(number=0, payload=None, **where):
    """An event with an id."""
    values = {"time": 1.5, "env": None, "episode": None, "epoch": None, "slot": None, "severity": Severity.INFO}
    return Event(id=number, payload=payload or epoch_completed(), **(values | where))


class WatchedSink(MemorySink):
    """A sink that a test can wait for."""

    def __init__(self):
        super().__init__()
        self.closed = threading.Event()
        self.closings = 0

    def close(self):
        self.closings += 1
        self.closed.set()


class RaisingSink(WatchedSink):
    """A sink that cannot write; it raises as soon as ``gate`` is set."""

    def __init__(self, error, gate=None):
        super().__init__()
        self.error, self.gate = error, gate

    def write(self, _events):
        if self.gate is not None:
            self.gate.wait()
        raise self.error


class HangingSink(WatchedSink):
    """A sink that waits for ``gate`` in "write" or in "close"."""

    def __init__(self, gate, where):
        super().__init__()
        self.gate, self.where, self.reached = gate, where, threading.Event()

    def write(self, events):
        self._hang("write")
        super().write(events)

    def close(self):
        self._hang("close")
        super().close()

    def _hang(self, where):
        if self.where == where:
            self.reached.set()
            self.gate.wait()
