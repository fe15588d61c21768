"""Delivery of events to a sink from a thread of its own, so that no sink slows or stops the emitting thread."""

from __future__ import annotations

import atexit
import math
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import QueueListener
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable

from esper_env.telemetry.events import Event

#: Number of events that may wait for a sink; beyond it, the sink is switched off.
CAPACITY = 2**16
#: Seconds for which an idle thread gathers events before it writes. Waking for each would take time from training.
LINGER = 0.05
#: Seconds that the end of the interpreter waits for all sinks, which write in parallel.
EXIT_TIMEOUT = 2.0


@runtime_checkable
class Sink(Protocol):
    """Destination of events. One thread of the hub calls both methods, which may raise."""

    def write(self, events: Sequence[Event]) -> None:
        """Take events, in the order of their ids."""

    def close(self) -> None:
        """Release all resources; called once, after the last events or after a failure."""


class Writer(QueueListener):
    """A sink, the events that wait for it, and the daemon thread that writes them; it starts with the first event.

    A sink that fails gets no more events and is closed, by the same thread, as soon as it returns.
    """

    queue: SimpleQueue[Any]  # events, or the sentinel, which closes the sink
    _sentinel = None

    def __init__(self, sink: Sink) -> None:
        super().__init__(SimpleQueue())
        self.sink = sink
        self.failure: str | None = None
        self.started = self._warned = False
        self._queued = self._written = 0.0  # events, infinity for the end
        self._progress = threading.Condition()

    def put(self, events: Sequence[Event]) -> None:
        """Queue events. The hub calls this under its lock."""
        if (waiting := self._queued - self._written) >= CAPACITY:
            self._fail(f"its queue is full: {waiting:.0f} events wait")
        self._queued += len(events)
        self.queue.put(events)
        self._start()

    def end(self) -> None:
        """Close the sink after its events, without waiting for it."""
        self._queued = math.inf
        self.enqueue_sentinel()
        self._start()

    def wait(self, timeout: float) -> None:
        """Wait until the sink has its events and, after ``end``, is closed; it fails after ``timeout`` seconds."""
        queued = self._queued
        with self._progress:
            if not self._progress.wait_for(lambda: self.failure is not None or self._written >= queued, timeout):
                self._fail(f"it did not finish within {timeout:g} seconds")

    def warn(self, stacklevel: int) -> None:
        """Warn of a failure, once."""
        if self.failure is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"the telemetry sink {type(self.sink).__name__} is switched off: {self.failure}; "
                "training and the other sinks are not affected",
                RuntimeWarning,
                stacklevel=stacklevel + 1,
            )

    def dequeue(self, block: bool) -> Any:
        """Return the next item for the thread. At the end and after a failure, close the sink and end the thread."""
        item = self._sentinel
        if self.failure is None:
            idle = self.queue.empty()
            item = self.queue.get(block)
            if idle:
                time.sleep(LINGER)
        if item is self._sentinel:
            with self._catching():
                self.sink.close()
            self._advance(math.inf)
        return item

    def handle(self, record: Any) -> None:
        """Write events; the thread calls this."""
        with self._catching():
            self.sink.write(record)
        self._advance(len(record))

    def _start(self) -> None:
        if self.started:
            return
        self.started = True
        try:
            self.start()
            OPEN.add(self)
        except RuntimeError as error:  # too many threads, or the interpreter ends
            self._fail(str(error))
            self.dequeue(block=False)  # closes the sink

    def _advance(self, events: float) -> None:
        with self._progress:
            self._written += events
            self._progress.notify_all()

    @contextmanager
    def _catching(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # whatever a sink raises
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason


#: Writers with a thread, to wait for at the end of the interpreter.
OPEN: weakref.WeakSet[Writer] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """Write all events before the interpreter ends, and warn of failures."""
    writers, deadline = list(OPEN), time.monotonic() + EXIT_TIMEOUT
    for writer in writers:
        writer.end()
    for writer in writers:
        writer.wait(max(deadline - time.monotonic(), 0.0))
    for writer in writers:
        writer.warn(stacklevel=1)  # after all have been waited for, because warnings may be errors
