"""A hub, and hanging sinks that are released at the end of the test, so that no thread outlives it."""

import threading

import pytest
from esper_env.telemetry import Telemetry, writer
from made_events import PATIENCE, HangingSink


@pytest.fixture
def telemetry(monkeypatch):
    """A hub whose thread writes at once, closed afterwards."""
    monkeypatch.setattr(writer, "LINGER", 0.0)
    hub = Telemetry()
    yield hub
    hub.close(PATIENCE)


@pytest.fixture
def hanging():
    """``hanging(where)``: a sink that hangs in "write" or "close" until the end of the test."""
    sinks = []
    yield lambda where="write": sinks.append(HangingSink(threading.Event(), where)) or sinks[-1]
    for sink in sinks:
        sink.gate.set()
        assert not sink.reached.is_set() or sink.closed.wait(PATIENCE)
