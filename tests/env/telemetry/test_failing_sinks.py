"""Sinks that raise, hang or have no space cost one warning and nothing else."""

import errno
import os
import threading
from functools import partial

import pytest
from esper_env.telemetry import JsonlSink, read_events, writer
from made_events import PATIENCE, RaisingSink, WatchedSink, epoch_completed

FULL = OSError(errno.ENOSPC, "No space left on device")


def emit(telemetry, count=1):
    for _ in range(count):
        telemetry.emit(epoch_completed())


def emit_all(telemetry):
    telemetry.emit_all([(epoch_completed(), 0, 0, 1, None)])


def emit_and_flush(telemetry):
    emit(telemetry)
    telemetry.flush(PATIENCE)


def ids(sink):
    return [event.id for event in sink.events]


class Unclosable(WatchedSink):
    """A sink that cannot be closed."""

    def close(self):
        raise FULL


@pytest.fixture
def gate():
    """An event that raising sinks wait for."""
    return threading.Event()


@pytest.mark.parametrize(("error", "emit_again"), [(FULL, emit), (ValueError("?"), emit_all), (SystemExit(3), emit)])
def test_raising_sink_costs_one_warning_and_others_continue(telemetry, gate, error, emit_again):
    bad, good = telemetry.add_sink(RaisingSink(error, gate)), telemetry.add_sink(WatchedSink())
    emit(telemetry)
    gate.set()
    assert bad.closed.wait(PATIENCE)
    with pytest.warns(RuntimeWarning, match=f"RaisingSink is switched off: {type(error).__name__}") as caught:
        emit_again(telemetry)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # the caller of the hub
    emit(telemetry)
    assert telemetry.active
    telemetry.close()
    assert ids(good) == [0, 1, 2]
    assert (bad.closings, good.closings) == (1, 1)


@pytest.mark.parametrize(
    ("make", "finish"),
    [
        (partial(RaisingSink, FULL), lambda telemetry, _: telemetry.flush(PATIENCE)),
        (partial(RaisingSink, FULL), lambda telemetry, _: telemetry.close(PATIENCE)),
        (partial(RaisingSink, FULL), lambda telemetry, sink: telemetry.remove_sink(sink)),
        (lambda _: Unclosable(), lambda telemetry, _: telemetry.close(PATIENCE)),
        (lambda _: Unclosable(), lambda telemetry, sink: telemetry.remove_sink(sink)),
    ],
    ids=["flush", "close", "remove", "close unclosable", "remove unclosable"],
)
def test_failure_is_reported_by_flush_close_and_remove(telemetry, gate, make, finish):
    bad = telemetry.add_sink(make(gate))
    emit(telemetry)
    gate.set()
    with pytest.warns(RuntimeWarning, match="No space left") as caught:
        finish(telemetry, bad)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not telemetry.active
    emit(telemetry)
    telemetry.flush()
    telemetry.close()


def test_warnings_as_errors_reach_the_emitting_thread_after_the_event_was_queued(telemetry, gate):
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
    monkeypatch.setattr(writer, "CAPACITY", 4)
    bad, good = telemetry.add_sink(hanging()), telemetry.add_sink(WatchedSink())
    emit(telemetry)
    assert bad.reached.wait(PATIENCE)
    emit(telemetry)  # two events wait for two sinks
    with pytest.warns(RuntimeWarning, match="HangingSink is switched off: its queue is full: 4 events wait") as caught:
        emit(telemetry)
    assert len(caught) == 1
    emit(telemetry, 2)
    telemetry.flush(PATIENCE)
    assert ids(good) == [0, 1, 2, 3, 4]
    assert not bad.closed.is_set()
    bad.gate.set()  # it returns too late: it is closed and gets no other events
    assert bad.closed.wait(PATIENCE)
    emit(telemetry)
    telemetry.close(PATIENCE)
    assert (ids(bad), bad.closings) == ([0], 1)
    assert ids(good) == [0, 1, 2, 3, 4, 5]


def test_backlog_behind_a_hanging_sink_does_not_fail_the_other_sink(telemetry, hanging, monkeypatch):
    """The other sink starts with a full queue, and is not given up for it."""
    monkeypatch.setattr(writer, "CAPACITY", 4)
    bad, slow = telemetry.add_sink(hanging()), telemetry.add_sink(hanging())
    slow.gate = threading.Event()
    emit(telemetry)
    assert bad.reached.wait(PATIENCE)
    emit(telemetry)
    with pytest.warns(RuntimeWarning, match="switched off"):
        emit(telemetry)
    assert slow.reached.wait(PATIENCE)
    emit(telemetry)
    slow.gate.set()
    telemetry.close(PATIENCE)
    assert ids(slow) == [0, 1, 2, 3]


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
    assert ids(good) == ([0, 1] if finish == "flush" else [0])


def test_failing_thread_start_fails_its_sinks(telemetry, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    sink = telemetry.add_sink(WatchedSink())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.warns(RuntimeWarning, match="can't start new thread"):
        emit(telemetry)
    monkeypatch.undo()
    assert not telemetry.active
    assert ids(sink) == []


def test_full_disk_leaves_whole_events_and_one_warning(telemetry, tmp_path, monkeypatch):
    telemetry.add_sink(JsonlSink(tmp_path))
    good = telemetry.add_sink(WatchedSink())
    emit(telemetry, 3)
    telemetry.flush(PATIENCE)
    room = [50]
    write = os.write

    def nearly_full(where, data):
        if not room:
            raise FULL
        return write(where, data[: room.pop()])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.warns(RuntimeWarning, match=r"JsonlSink .*No space left on device: '.*events-00000.jsonl'") as caught:
        emit_and_flush(telemetry)
    assert len(caught) == 1
    monkeypatch.undo()
    emit(telemetry)
    telemetry.close(PATIENCE)
    assert ids(good) == [0, 1, 2, 3, 4]
    with pytest.warns(RuntimeWarning, match="incomplete"):
        assert [event.id for event in read_events(tmp_path)] == [0, 1, 2]
