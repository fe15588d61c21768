"""Delivery of events to the sinks of a hub from one thread, so that no sink slows or stops the emitting thread."""

from __future__ import annotations

import atexit
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from logging.handlers import QueueListener
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

from esper_env.telemetry.events import Event

#: Number of events that may wait; beyond it, the sink that holds up the thread is given up.
CAPACITY = 2**16
#: Seconds for which an idle thread gathers events before it writes. Waking for each would take time from training.
LINGER = 0.05
#: Seconds that the end of the interpreter waits for a sink.
EXIT_TIMEOUT = 2.0


@runtime_checkable
class Sink(Protocol):
    """Destination of events. The hub's thread calls both methods, which may raise."""

    def write(self, events: Sequence[Event]) -> None:
        """Take events, in the order of their ids."""

    def close(self) -> None:
        """Release all resources; called once, after the last events or after a failure."""


class Outlet:
    """An attached sink, and the reason why it failed."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.failure: str | None = None
        self._closed = self._warned = False

    def write(self, events: Sequence[Event]) -> None:
        """Write events; none, or a failure, close the sink."""
        if events:
            self._attempt(lambda: self.sink.write(events))
        if not events or self.failure is not None:
            self.close()

    def close(self) -> None:
        """Close the sink, once."""
        if not self._closed:
            self._closed = True
            self._attempt(self.sink.close)

    def fail(self, reason: str) -> None:
        """Record a failure; the first reason stays."""
        self.failure = self.failure or reason

    def warn(self, stacklevel: int) -> None:
        """Warn of a failure, once."""
        if self.failure is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"the telemetry sink {type(self.sink).__name__} is switched off: {self.failure}; "
                "training and the other sinks continue",
                RuntimeWarning,
                stacklevel=stacklevel + 1,
            )

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # nothing that a sink raises may end the thread
            self.fail(f"{type(error).__name__}: {error}")


class Writer(QueueListener):
    """The daemon thread that passes queued events to the sinks of one hub; it starts with the first event.

    A sink that holds up the thread is given up: another thread takes over the queue, and the stuck thread closes its
    sink when it is free again. The hub calls ``put``, ``close`` and ``end`` under its lock.
    """

    queue: SimpleQueue[Any]  # (outlet, events), (outlet, ()) to close it, an Event to set, or the sentinel
    _thread: threading.Thread | None
    _sentinel = None

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        super().__init__(SimpleQueue())
        self.outlets = [Outlet(sink) for sink in sinks]
        self._queued = self._written = 0  # events
        self._excused = 0  # events that may wait in addition to ``CAPACITY``
        self._lock = threading.RLock()
        self._current: Outlet | None = None  # the thread is calling its sink

    def put(self, events: Sequence[Event]) -> None:
        """Queue events for every sink that works."""
        waiting = self._queued - self._written
        if waiting >= CAPACITY + self._excused:
            self.give_up(f"its queue is full: {waiting} events wait")
        for outlet in self.outlets:
            self._put(outlet, events)

    def close(self, outlet: Outlet) -> None:
        """Request that a sink is closed after its events."""
        self._put(outlet, ())

    def end(self) -> None:
        """Request that all sinks are closed after their events, and that the thread ends then."""
        for outlet in self.outlets:
            self.close(outlet)
        self.enqueue_sentinel()

    def release(self) -> None:
        """End a thread whose hub is deleted."""
        if self._thread is not None:
            self.end()

    def flush(self, timeout: float) -> None:
        """Wait until the queue is written; give up each sink that takes longer than ``timeout`` seconds."""
        if self._thread is not None:
            done = threading.Event()
            self.queue.put(done)
            self._await(lambda seconds: done.wait(seconds) or self._has_ended(0.0), timeout)

    def join(self, timeout: float, first: float | None = None) -> None:
        """Wait for the end of the thread; give up each sink that takes longer than ``timeout`` seconds.

        Args:
            timeout: seconds.
            first: seconds for the first sink, if it has been waited for already.
        """
        self._await(self._has_ended, timeout, first)

    def start(self) -> None:
        """Start a thread; all sinks fail if there cannot be one."""
        self._thread = None
        try:
            super().start()
            OPEN.add(self)
        except RuntimeError as error:  # too many threads, or the interpreter ends
            self._thread = None
            for outlet in self.outlets:
                outlet.fail(str(error))

    def give_up(self, reason: str) -> None:
        """Fail the sink that holds up the thread, if there is one, and continue with another thread."""
        with self._lock:
            if self._current is not None:
                self._current.fail(reason)
                self._current = None
                self._excused = self._queued - self._written  # they are not the fault of the other sinks
                self.start()

    def dequeue(self, block: bool) -> Any:
        """Return the next item; an idle thread gathers more of them first."""
        if self._is_replaced():
            return self._sentinel
        idle = self.queue.empty()
        item = super().dequeue(block)
        if idle:
            time.sleep(LINGER)
        if item is self._sentinel and all(outlet.failure is None for outlet in self.outlets):
            OPEN.discard(self)
        return item

    def handle(self, item: Any) -> None:
        """Call the sink of an item."""
        if isinstance(item, threading.Event):
            item.set()
            return
        outlet, events = item
        if outlet.failure is None:
            self._current = outlet
            outlet.write(events)
            with self._lock:
                replaced = self._is_replaced()
                if not replaced:
                    self._current = None
            if replaced:
                outlet.close()
        self._written += len(events)

    def _put(self, outlet: Outlet, events: Sequence[Event]) -> None:
        self._queued += len(events)
        self.queue.put((outlet, events))
        if self._thread is None and outlet.failure is None:
            self.start()

    def _is_replaced(self) -> bool:
        return threading.current_thread() is not self._thread

    def _has_ended(self, timeout: float) -> bool:
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _await(self, is_done: Callable[[float], bool], timeout: float, first: float | None = None) -> None:
        for seconds in [timeout if first is None else first, *[timeout] * len(self.outlets)]:
            if is_done(seconds):
                return
            self.give_up(f"it did not finish within {timeout:g} seconds")


#: Writers with a thread or an unreported failure.
OPEN: set[Writer] = set()


@atexit.register
def _finish() -> None:
    """Write all events before the interpreter ends, and warn of failures."""
    writers, deadline = list(OPEN), time.monotonic() + EXIT_TIMEOUT
    for writer in writers:
        writer.end()
    for writer in writers:  # they run at once, so hanging sinks of several hubs cost one timeout
        writer.join(EXIT_TIMEOUT, first=max(deadline - time.monotonic(), 0.0))
    for outlet in [outlet for writer in writers for outlet in writer.outlets]:
        outlet.warn(stacklevel=1)  # in the end, because warnings may be errors
