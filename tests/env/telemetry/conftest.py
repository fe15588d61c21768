"""A gate that lets hanging sinks go when the test is over, so that no thread outlives it."""

import threading

import pytest
from esper_env.telemetry import Telemetry
from made_events import PATIENCE, HangingSink


@pytest.fixture
def telemetry():
    """A hub, closed afterwards."""
    hub = Telemetry()
    yield hub
    hub.close(PATIENCE)


@pytest.fixture
def hanging():
    """``hanging(where)``: a sink that hangs in "write" or "close" until the test is over."""
    gate, sinks = threading.Event(), []

    def make(where="write"):
        sinks.append(HangingSink(gate, where))
        return sinks[-1]

    yield make
    gate.set()
    for sink in sinks:
        assert not sink.reached.is_set() or sink.closed.wait(PATIENCE)
