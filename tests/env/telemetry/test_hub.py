"""The hub: ids and order, detail, attaching and removing sinks, copies, threads."""

import copy
import gc
import pickle
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from esper_env.telemetry import (
    PAYLOADS,
    Detail,
    EpochCompleted,
    GovernorPanic,
    GovernorSnapshot,
    MemorySink,
    Severity,
    Telemetry,
)
from hypothesis import given
from hypothesis import strategies as st
from made_events import PATIENCE, WatchedSink, epoch_completed, snapshot


@pytest.mark.parametrize("detail", Detail)
@pytest.mark.parametrize("together", [True, False], ids=["emit_all", "emit"])
def test_events_of_the_level_reach_every_sink_in_order_with_their_place(telemetry, detail, together):
    panic = GovernorPanic(reason="collapse", loss=1.0, threshold=2.0, panics=1)
    occurrences = [
        (epoch_completed(1.0), 0, 7, 3, None),
        (snapshot(), 1, 8, 4, None),
        (panic, 1, 8, 4, "r0c0"),
        (epoch_completed(2.0), None, None, None, None),
    ]
    sinks = [telemetry.add_sink(MemorySink()) for _ in range(2)]
    telemetry.detail, telemetry.next_id, before = detail, 40, time.time()
    if together:
        telemetry.emit_all(iter(occurrences))
        telemetry.emit_all([])
    else:
        for payload, *place in occurrences[:-1]:
            telemetry.emit(payload, **dict(zip(("env", "episode", "epoch", "slot"), place, strict=True)))
        telemetry.emit(occurrences[-1][0])
    after = time.time()
    telemetry.flush()
    events = sinks[0].events
    assert events == sinks[1].events
    expected = [entry for entry in occurrences if detail >= entry[0].DETAIL]
    assert [(e.payload, e.env, e.episode, e.epoch, e.slot) for e in events] == expected
    assert [event.id for event in events] == list(range(40, telemetry.next_id))
    assert [event.severity for event in events] == [payload.SEVERITY for payload, *_ in expected]
    assert (events[-2].type, events[-2].severity) == ("GOVERNOR_PANIC", Severity.WARNING)
    assert all(before - 1e-6 <= event.time == round(event.time, 6) <= after + 1e-6 for event in events)
    assert not together or len({event.time for event in events}) == 1


def test_hub_without_sink_wants_and_numbers_nothing(telemetry):
    for _ in range(2):
        assert not telemetry.active
        assert not any(telemetry.wants(kind) for kind in PAYLOADS.values())
        telemetry.emit(epoch_completed())
        telemetry.flush()
        assert telemetry.next_id == 0
        telemetry.remove_sink(telemetry.add_sink(MemorySink()))


@given(calls=st.lists(st.one_of(st.just(0), st.integers(1, 5)), max_size=30), detail=st.sampled_from(Detail))
def test_escalation_lasts_as_long_as_the_longest_request(calls, detail):
    """A request without a number lasts five epochs."""
    telemetry = Telemetry(detail)
    telemetry.add_sink(MemorySink())
    ends = now = 0
    for epochs in calls:
        if epochs:
            telemetry.escalate(*([] if epochs == 5 else [epochs]))
            ends = max(ends, now + epochs)
        else:
            telemetry.epoch_passed()
            now += 1
        full = now < ends or detail == Detail.FULL
        assert telemetry.detail == (Detail.FULL if full else Detail.NORMAL)
        assert (telemetry.wants(GovernorSnapshot), telemetry.wants(EpochCompleted)) == (full, True)


def test_hub_rejects_invalid_detail_sinks_and_escalations(telemetry):
    for epochs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"epochs` is .*; expected a positive integer"):
            telemetry.escalate(epochs)
    with pytest.raises(TypeError, match=r"detail is 'FULL'; expected Detail\.NORMAL or Detail\.FULL"):
        telemetry.detail = "FULL"
    assert telemetry.detail == Detail.NORMAL
    sink = telemetry.add_sink(MemorySink())
    for other, error in ((print, TypeError), (MemorySink, TypeError), (sink, ValueError)):
        with pytest.raises(error, match=r"is not a sink: it needs the methods|attached already"):
            telemetry.add_sink(other)


def test_removed_sink_has_the_events_before_and_is_closed_once(telemetry):
    leaving, staying = telemetry.add_sink(WatchedSink()), telemetry.add_sink(WatchedSink())
    telemetry.emit(epoch_completed())
    for _ in range(2):
        telemetry.remove_sink(leaving)
        assert (len(leaving.events), leaving.closings) == (1, 1)
        telemetry.emit(epoch_completed())
    telemetry.close()
    assert (len(staying.events), staying.closings) == (3, 1)


def test_hub_can_be_closed_twice_and_used_again_and_keeps_no_earlier_sinks(telemetry):
    sink = telemetry.add_sink(WatchedSink())
    telemetry.close()  # never got an event, and is closed all the same
    telemetry.close()
    assert sink.closings == 1
    telemetry.add_sink(sink)
    telemetry.emit(epoch_completed())
    telemetry.close()
    assert len(sink.events) == 1
    gone = weakref.ref(sink)
    del sink
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda hub: pickle.loads(pickle.dumps(hub))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copy_has_detail_and_next_id_and_no_sinks(duplicate):
    original = Telemetry(Detail.FULL)
    sink = original.add_sink(MemorySink())
    original.emit(epoch_completed())
    twin = duplicate(original)
    assert (twin.detail, twin.next_id, twin.active) == (Detail.FULL, 1, False)
    own = twin.add_sink(MemorySink())
    twin.emit(snapshot())
    for hub in (original, twin):
        hub.close()
    assert [[event.id for event in each.events] for each in (sink, own)] == [[0], [1]]


def test_concurrent_threads_share_the_ids(telemetry):
    sink = telemetry.add_sink(MemorySink())
    threads, each = 8, 300
    start = threading.Barrier(threads)

    def emit(thread):
        start.wait()
        for number in range(each):
            telemetry.emit(epoch_completed(float(number)), env=thread)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(emit, range(threads)))
    finally:
        sys.setswitchinterval(interval)
    telemetry.flush(PATIENCE)
    assert [event.id for event in sink.events] == list(range(threads * each))
    for thread in range(threads):
        assert [event.payload.reward for event in sink.events if event.env == thread] == list(range(each))


def test_one_daemon_thread_calls_a_sink_and_starts_with_the_first_event(telemetry):
    seen = []

    class Asking(MemorySink):
        def write(self, *_):
            seen.append(threading.current_thread())

        close = write

    before = threading.active_count()
    telemetry.add_sink(Asking())
    telemetry.emit(snapshot())  # excluded by the level of detail
    telemetry.flush()
    assert threading.active_count() == before
    for _ in range(2):
        telemetry.emit(epoch_completed())
        telemetry.flush()
    telemetry.close()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert seen[0] is not threading.current_thread()
    assert seen[0].daemon
    seen[0].join(PATIENCE)
    assert not seen[0].is_alive()


def test_deleted_hub_leaves_nothing_unwritten():
    telemetry = Telemetry()
    sink = telemetry.add_sink(WatchedSink())
    telemetry.emit(epoch_completed())
    del telemetry
    gc.collect()
    assert sink.closed.wait(PATIENCE)
    assert len(sink.events) == 1
