"""Sinks that raise, hang or have no room: switched off with one warning, and nothing else happens."""

import errno
import os

import pytest
from esper_env.telemetry import JsonlSink, read_events
from esper_env.telemetry import channel as channels
from made_events import PATIENCE, RaisingSink, WatchedSink, epoch_completed

FULL = OSError(errno.ENOSPC, "No space left on device")


def emit(telemetry, count=1):
    for _ in range(count):
        telemetry.emit(epoch_completed())


def ids(sink):
    return [event.id for event in sink.events]


def emit_together(telemetry):
    telemetry.emit_all([(epoch_completed(), 0, 0, 1, None)])


@pytest.mark.parametrize("again", [emit, emit_together])
@pytest.mark.parametrize("error", [FULL, ValueError("what?"), SystemExit(3)])
def test_a_sink_that_raises_costs_one_warning_and_the_others_go_on(telemetry, error, again):
    bad, good = telemetry.add_sink(RaisingSink(error)), telemetry.add_sink(WatchedSink())
    emit(telemetry)
    assert bad.closed.wait(PATIENCE)
    with pytest.warns(RuntimeWarning, match=f"RaisingSink is switched off: {type(error).__name__}") as caught:
        again(telemetry)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # where the hub was called
    emit(telemetry)
    telemetry.flush()
    assert telemetry.active
    telemetry.close()
    assert ids(good) == [0, 1, 2]
    assert (bad.closings, good.closings) == (1, 1)


@pytest.mark.parametrize("finish", ["flush", "close"])
def test_flush_and_close_tell_a_failure_too(telemetry, finish):
    telemetry.add_sink(RaisingSink(FULL))
    emit(telemetry)
    with pytest.warns(RuntimeWarning, match="No space left") as caught:
        getattr(telemetry, finish)(PATIENCE)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not telemetry.active
    emit(telemetry)
    telemetry.flush()
    telemetry.close()


def test_a_failure_is_told_where_the_sink_is_removed(telemetry):
    bad = telemetry.add_sink(RaisingSink(FULL))
    emit(telemetry)
    with pytest.warns(RuntimeWarning, match="No space left"):
        telemetry.remove_sink(bad)


def test_warnings_that_are_errors_reach_the_emitting_thread_after_the_event_was_queued(telemetry):
    bad = [telemetry.add_sink(RaisingSink(FULL)) for _ in range(2)]
    good = telemetry.add_sink(WatchedSink())
    emit(telemetry)
    assert all(sink.closed.wait(PATIENCE) for sink in bad)
    with pytest.raises(RuntimeWarning, match="RaisingSink"):
        emit(telemetry)
    with pytest.raises(RuntimeWarning, match="RaisingSink"):  # the other one, at the next occasion
        telemetry.flush(PATIENCE)
    emit(telemetry)
    telemetry.close(PATIENCE)
    assert ids(good) == [0, 1, 2]


def test_a_sink_that_cannot_be_closed_is_told(telemetry):
    class Unclosable(WatchedSink):
        def close(self):
            raise FULL

    sink = telemetry.add_sink(Unclosable())
    emit(telemetry)
    with pytest.warns(RuntimeWarning, match="No space left"):
        telemetry.close(PATIENCE)
    assert ids(sink) == [0]


def test_a_sink_that_hangs_is_given_up_when_its_queue_is_full(telemetry, hanging, monkeypatch):
    monkeypatch.setattr(channels, "CAPACITY", 4)
    monkeypatch.setattr(channels, "LINGER", 0.0)
    bad, good = telemetry.add_sink(hanging()), telemetry.add_sink(WatchedSink())
    emit(telemetry)
    assert bad.reached.wait(PATIENCE)  # it holds the first event and will not let go
    good.await_next()
    for _ in range(4):
        emit(telemetry)
        good.await_next()
    with pytest.warns(RuntimeWarning, match="HangingSink is switched off: its queue is full: 4 events wait") as caught:
        emit(telemetry)
    assert len(caught) == 1
    good.await_next()
    emit(telemetry)
    telemetry.flush(PATIENCE)
    telemetry.close(PATIENCE)
    assert ids(good) == list(range(7))


def test_a_sink_that_hangs_in_flush_costs_one_warning(telemetry, hanging):
    bad, good = telemetry.add_sink(hanging()), telemetry.add_sink(WatchedSink())
    emit(telemetry)
    good.await_next()
    with pytest.warns(RuntimeWarning, match="HangingSink .*not written 1 events in time") as caught:
        telemetry.flush(0.2)
    assert len(caught) == 1
    emit(telemetry)
    telemetry.flush(PATIENCE)
    telemetry.close(PATIENCE)
    assert ids(good) == [0, 1]
    assert not bad.closed.is_set()


@pytest.mark.parametrize("where", ["write", "close"])
def test_a_sink_that_hangs_in_close_costs_one_warning(telemetry, hanging, where):
    good, bad = telemetry.add_sink(WatchedSink()), telemetry.add_sink(hanging(where))
    emit(telemetry)
    telemetry.remove_sink(good)
    with pytest.warns(RuntimeWarning, match="HangingSink .*not written to and closed in time") as caught:
        telemetry.close(0.2)
    assert len(caught) == 1
    assert bad.reached.is_set()
    assert not telemetry.active
    telemetry.close(PATIENCE)
    assert ids(good) == [0]


def test_a_sink_that_wakes_up_too_late_is_closed_and_gets_nothing_more(telemetry, hanging):
    bad = telemetry.add_sink(hanging())
    emit(telemetry)
    assert bad.reached.wait(PATIENCE)
    emit(telemetry)
    with pytest.warns(RuntimeWarning, match="HangingSink"):
        telemetry.flush(0.0)
    bad.gate.set()
    assert bad.closed.wait(PATIENCE)
    assert ids(bad) == [0]


def test_a_thread_that_cannot_start_is_a_failure_of_its_sink(telemetry, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    sink = telemetry.add_sink(WatchedSink())
    monkeypatch.setattr(channels.threading.Thread, "start", refuse)
    with pytest.warns(RuntimeWarning, match="can't start new thread"):
        emit(telemetry)
    monkeypatch.undo()
    assert not telemetry.active
    assert ids(sink) == []


def test_a_disk_that_fills_up_leaves_whole_events_and_one_warning(telemetry, tmp_path, monkeypatch):
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
    emit(telemetry)
    with pytest.warns(RuntimeWarning, match=r"JsonlSink .*No space left on device: '.*events-00000.jsonl'") as caught:
        telemetry.flush(PATIENCE)
    assert len(caught) == 1
    monkeypatch.undo()
    emit(telemetry)
    telemetry.close(PATIENCE)
    assert ids(good) == [0, 1, 2, 3, 4]
    with pytest.warns(RuntimeWarning, match="cut off"):
        assert [event.id for event in read_events(tmp_path)] == [0, 1, 2]
