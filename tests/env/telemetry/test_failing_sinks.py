"""Sinks that raise, hang or cannot be closed cost one warning and nothing else."""

import errno
import threading
import time
from unittest.mock import Mock

import pytest
from esper_env.telemetry import writer
from made_events import PATIENCE, RaisingSink, WatchedSink, epoch_completed

FULL = OSError(errno.ENOSPC, "No space left on device")
CALLS = {
    "emit": lambda hub, _: hub.emit(epoch_completed()),
    "emit_all": lambda hub, _: hub.emit_all([(epoch_completed(), 0, 0, 1, None)]),
    "flush": lambda hub, _: hub.flush(PATIENCE),
    "close": lambda hub, _: hub.close(PATIENCE),
    "remove": lambda hub, sink: hub.remove_sink(sink),
}


def emit(telemetry, count=1):
    for _ in range(count):
        telemetry.emit(epoch_completed())


def ids(sink):
    return [event.id for event in sink.events]


class Unclosable(WatchedSink):
    """A sink that cannot be closed."""

    def close(self):
        super().close()
        raise FULL


@pytest.mark.parametrize(
    ("error", "call"),
    [*((FULL, call) for call in CALLS), (SystemExit(3), "emit"), (None, "close"), (None, "remove")],
)
def test_failing_sink_costs_one_warning_at_the_next_call_and_others_continue(telemetry, error, call):
    """If ``error`` is None, ``close`` fails instead of ``write``."""
    gate = threading.Event()
    bad = telemetry.add_sink(RaisingSink(error, gate) if error else Unclosable())
    good = telemetry.add_sink(WatchedSink())
    emit(telemetry)
    gate.set()
    assert error is None or bad.closed.wait(PATIENCE)
    message = f"{type(bad).__name__} is switched off: {type(error or FULL).__name__}"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        CALLS[call](telemetry, bad)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the caller of the hub
    emit(telemetry)
    assert telemetry.active == (call != "close")
    telemetry.close()
    assert ids(good) == list(range(telemetry.next_id))
    assert (bad.closings, good.closings) == (1, 1)


def test_warnings_as_errors_reach_the_emitting_thread_after_the_event_was_queued(telemetry):
    gate = threading.Event()
    bad = [telemetry.add_sink(RaisingSink(FULL, gate)) for _ in range(2)]
    good = telemetry.add_sink(WatchedSink())
    emit(telemetry)
    gate.set()
    assert all(sink.closed.wait(PATIENCE) for sink in bad)
    with pytest.raises(RuntimeWarning, match="RaisingSink"):
        emit(telemetry)
    with pytest.raises(RuntimeWarning, match="RaisingSink"):  # the other one, at the next call
        telemetry.flush(PATIENCE)
    emit(telemetry)
    telemetry.close(PATIENCE)
    assert ids(good) == [0, 1, 2]


def test_hanging_sink_is_dropped_at_a_full_queue_without_loss_for_others(telemetry, hanging, monkeypatch):
    bad, good = telemetry.add_sink(hanging()), telemetry.add_sink(WatchedSink())
    emit(telemetry, 3)
    assert bad.reached.wait(PATIENCE)
    while len(good.events) < 3:
        time.sleep(0.001)
    monkeypatch.setattr(writer, "CAPACITY", 3)
    with pytest.warns(RuntimeWarning, match="HangingSink is switched off: its queue is full: 3 events wait") as caught:
        emit(telemetry)
    assert len(caught) == 1
    assert not bad.closed.is_set()
    bad.gate.set()  # it returns too late: it is closed and gets no other events
    assert bad.closed.wait(PATIENCE)
    emit(telemetry)
    telemetry.close(PATIENCE)
    assert len(bad.events) <= 3
    assert bad.closings == 1
    assert ids(good) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("finish", "where"), [("flush", "write"), ("close", "write"), ("close", "close")])
def test_hanging_sink_costs_flush_and_close_one_warning(telemetry, hanging, finish, where):
    good, bad = telemetry.add_sink(WatchedSink()), telemetry.add_sink(hanging(where))
    emit(telemetry)
    assert where == "close" or bad.reached.wait(PATIENCE)
    with pytest.warns(RuntimeWarning, match=r"HangingSink .*it did not finish within 0\.2 seconds") as caught:
        getattr(telemetry, finish)(0.2)
    assert len(caught) == 1
    assert bad.reached.is_set()
    assert not bad.closed.is_set()
    assert telemetry.active == (finish == "flush")
    emit(telemetry)
    telemetry.close(PATIENCE)
    assert ids(good) == list(range(telemetry.next_id))


def test_failing_thread_start_fails_its_sink(telemetry, monkeypatch):
    sink = telemetry.add_sink(WatchedSink())
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    with pytest.warns(RuntimeWarning, match="can't start new thread"):
        emit(telemetry)
    monkeypatch.undo()
    assert not telemetry.active
    assert sink.closed.is_set()
