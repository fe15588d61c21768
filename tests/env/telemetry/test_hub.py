"""The hub: ids and order, detail, attaching and removing sinks, copies, threads."""

import copy
import gc
import pickle
import sys
import threading
import time
import weakref

import pytest
from esper_env.telemetry import (
    PAYLOADS,
    CounterfactualComputed,
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


def test_events_reach_every_sink_in_order_with_their_place(telemetry):
    sinks = [telemetry.add_sink(MemorySink()) for _ in range(2)]
    telemetry.next_id = 40
    before = time.time()
    payloads = [epoch_completed(float(number)) for number in range(5)]
    for number, payload in enumerate(payloads):
        telemetry.emit(payload, env=number, episode=7, epoch=number + 1, slot="r0c0")
    after = time.time()
    telemetry.flush()
    assert sinks[0].events == sinks[1].events
    events = sinks[0].events
    assert [event.payload for event in events] == payloads
    assert [(e.id, e.env, e.episode, e.epoch, e.slot) for e in events] == [
        (40 + number, number, 7, number + 1, "r0c0") for number in range(5)
    ]
    assert telemetry.next_id == 45
    assert all(before - 1e-6 <= event.time <= after + 1e-6 for event in events)
    assert all(event.time == round(event.time, 6) for event in events)
    assert events[0].type == "EPOCH_COMPLETED"


@pytest.mark.parametrize("detail", Detail)
def test_emit_all_equals_emitting_one_by_one(telemetry, detail):
    together, alone = telemetry, Telemetry()
    occurrences = [
        (epoch_completed(1.0), 0, 7, 3, None),
        (snapshot(), 1, 8, 4, None),
        (GovernorPanic(reason="collapse", loss=1.0, threshold=2.0, panics=1), 1, 8, 4, "r0c0"),
    ]
    sinks = []
    for hub in (together, alone):
        hub.detail = detail
        sinks.append(hub.add_sink(MemorySink()))
        hub.emit(epoch_completed())
    together.emit_all(iter(occurrences))
    together.emit_all([])
    for payload, env, episode, epoch, slot in occurrences:
        alone.emit(payload, env=env, episode=episode, epoch=epoch, slot=slot)
    for hub in (together, alone):
        hub.flush()
    received, expected = ([event._replace(time=0.0) for event in sink.events] for sink in sinks)
    assert received == expected
    assert together.next_id == alone.next_id == len(received) == (4 if detail == Detail.FULL else 3)
    assert len({event.time for event in sinks[0].events[1:]}) == 1
    alone.close()


def test_emit_defaults_to_no_place_and_the_severity_of_the_payload(telemetry):
    sink = telemetry.add_sink(MemorySink())
    panic = GovernorPanic(reason="collapse", loss=1.0, threshold=2.0, panics=1)
    telemetry.emit(panic)
    telemetry.emit(panic, severity=Severity.INFO)
    telemetry.flush()
    first, second = sink.events
    assert (first.env, first.episode, first.epoch, first.slot) == (None, None, None, None)
    assert (first.severity, second.severity) == (Severity.WARNING, Severity.INFO)


def test_hub_without_sink_wants_and_numbers_nothing(telemetry):
    assert not telemetry.active
    assert not any(telemetry.wants(kind) for kind in PAYLOADS.values())
    telemetry.emit(epoch_completed())
    telemetry.flush()
    assert telemetry.next_id == 0
    sink = telemetry.add_sink(MemorySink())
    assert telemetry.active
    telemetry.remove_sink(sink)
    assert not telemetry.active
    assert not telemetry.wants(EpochCompleted)


@pytest.mark.parametrize(
    ("detail", "expected"),
    [(Detail.NORMAL, ["EPOCH_COMPLETED"]), (Detail.FULL, ["GOVERNOR_SNAPSHOT", "EPOCH_COMPLETED"])],
)
def test_detail_selects_events(detail, expected):
    telemetry = Telemetry(detail)
    sink = telemetry.add_sink(MemorySink())
    assert telemetry.wants(EpochCompleted)
    assert telemetry.wants(GovernorSnapshot) == (detail == Detail.FULL)
    telemetry.emit(snapshot())
    telemetry.emit(epoch_completed())
    telemetry.close()
    assert [event.type for event in sink.events] == expected
    assert telemetry.next_id == len(expected)


@given(calls=st.lists(st.one_of(st.just(0), st.integers(1, 4)), max_size=30))
def test_escalation_lasts_as_long_as_the_longest_request(calls):
    telemetry = Telemetry()
    telemetry.add_sink(MemorySink())
    ends = now = 0
    for epochs in calls:
        if epochs:
            telemetry.escalate(epochs)
            ends = max(ends, now + epochs)
        else:
            telemetry.epoch_passed()
            now += 1
        assert telemetry.wants(GovernorSnapshot) == (now < ends)
        assert telemetry.detail == (Detail.FULL if now < ends else Detail.NORMAL)
    telemetry.close()


def test_escalation_lasts_five_epochs_by_default():
    telemetry = Telemetry()
    telemetry.escalate()
    assert not telemetry.wants(GovernorSnapshot)  # nobody listens
    telemetry.add_sink(MemorySink())
    passed = 0
    while telemetry.wants(GovernorSnapshot):
        telemetry.epoch_passed()
        passed += 1
    assert passed == 5
    assert telemetry.wants(EpochCompleted)


def test_detail_can_be_assigned(telemetry):
    telemetry.add_sink(MemorySink())
    telemetry.detail = Detail.FULL
    for _ in range(7):
        telemetry.epoch_passed()
    assert telemetry.wants(CounterfactualComputed)
    telemetry.detail = Detail.NORMAL
    assert not telemetry.wants(CounterfactualComputed)
    with pytest.raises(TypeError, match=r"detail is 'FULL'; expected Detail\.NORMAL or Detail\.FULL"):
        telemetry.detail = "FULL"


def test_hub_rejects_invalid_detail_sinks_and_escalations(telemetry):
    for epochs in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"epochs is .*; expected a positive integer"):
            telemetry.escalate(epochs)
    assert telemetry.detail == Detail.NORMAL
    with pytest.raises(ValueError, match="7"):
        Telemetry(7)
    with pytest.raises(TypeError, match="not a sink: it needs the methods"):
        telemetry.add_sink(print)
    sink = telemetry.add_sink(MemorySink())
    with pytest.raises(ValueError, match="attached already"):
        telemetry.add_sink(sink)


def test_removed_sink_has_the_events_before_and_is_closed_once(telemetry):
    leaving, staying = telemetry.add_sink(WatchedSink()), telemetry.add_sink(WatchedSink())
    telemetry.emit(epoch_completed())
    telemetry.remove_sink(leaving)
    assert len(leaving.events) == 1
    assert leaving.closings == 1
    telemetry.emit(epoch_completed())
    telemetry.remove_sink(leaving)
    telemetry.close()
    assert (len(leaving.events), len(staying.events)) == (1, 2)
    assert (leaving.closings, staying.closings) == (1, 1)


def test_hub_can_be_closed_twice_and_used_again(telemetry):
    sink = telemetry.add_sink(WatchedSink())
    telemetry.close()  # never got an event, and is closed all the same
    assert sink.closings == 1
    telemetry.close()
    again = telemetry.add_sink(WatchedSink())
    telemetry.emit(epoch_completed())
    telemetry.close()
    assert len(again.events) == 1


def test_closed_hub_keeps_no_earlier_sinks(telemetry):
    sink = telemetry.add_sink(WatchedSink())
    telemetry.emit(epoch_completed())
    telemetry.close()
    gone = weakref.ref(sink)
    del sink
    gc.collect()
    assert gone() is None


def test_thread_starts_with_the_first_event(telemetry):
    before = threading.active_count()
    for _ in range(2):
        telemetry.add_sink(MemorySink())
    telemetry.emit(snapshot())  # excluded by the level of detail
    telemetry.flush()
    assert threading.active_count() == before
    telemetry.emit(epoch_completed())
    assert threading.active_count() == before + 1


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
    original.emit(epoch_completed())
    original.close()
    twin.close()
    assert [event.id for event in sink.events] == [0, 1]
    assert [(event.id, event.type) for event in own.events] == [(1, "GOVERNOR_SNAPSHOT")]


def test_concurrent_threads_share_the_ids(telemetry):
    sink = telemetry.add_sink(MemorySink())
    threads, each = 8, 300
    start = threading.Barrier(threads)

    def emit(thread):
        start.wait()
        for number in range(each):
            telemetry.emit(epoch_completed(float(number)), env=thread)

    workers = [threading.Thread(target=emit, args=(thread,)) for thread in range(threads)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    telemetry.flush(PATIENCE)
    assert [event.id for event in sink.events] == list(range(threads * each))
    for thread in range(threads):
        rewards = [event.payload.reward for event in sink.events if event.env == thread]
        assert rewards == list(range(each))


def test_one_daemon_thread_calls_all_sinks(telemetry):
    seen = []

    class Asking(MemorySink):
        def write(self, _events):
            seen.append(threading.current_thread())

        def close(self):
            seen.append(threading.current_thread())

    for _ in range(2):
        telemetry.add_sink(Asking())
    telemetry.emit(epoch_completed())
    telemetry.flush()
    telemetry.emit(epoch_completed())
    telemetry.close()
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert seen[0] is not threading.current_thread()
    assert seen[0].daemon
    assert not seen[0].is_alive()


def test_deleted_hub_leaves_nothing_unwritten():
    telemetry = Telemetry()
    sink = telemetry.add_sink(WatchedSink())
    telemetry.emit(epoch_completed())
    del telemetry
    gc.collect()
    assert sink.closed.wait(PATIENCE)
    assert len(sink.events) == 1
