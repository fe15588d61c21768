"""One sink with its queue and its thread, so that what the sink does never reaches the thread that emits."""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Protocol, runtime_checkable
from weakref import WeakSet

from esper_env.telemetry.events import Event

#: Events that wait for one sink; a sink that is further behind is taken to hang.
CAPACITY = 2**16
#: Seconds for which a writer gathers events before it hands them on. Waking for each would take time from training.
LINGER = 0.5
#: Seconds that the end of the interpreter waits for all sinks together.
EXIT_TIMEOUT = 2.0


@runtime_checkable
class Sink(Protocol):
    """Where events go. Both methods are called from one thread that is the sink's own, and may raise."""

    def write(self, events: Sequence[Event]) -> None:
        """Take events, in the order of their ids."""

    def close(self) -> None:
        """Let go of everything; called once, after the last events, or after a failure."""


class Forked(Protocol):
    """Has locks or threads, which a forked process has to replace."""

    def after_fork(self) -> None: ...


class Channel:
    """Hands events to a sink from a daemon thread that starts with the first of them.

    A failure (the sink raises, its queue is full, or it is not done in time) is final: ``failure`` says what happened,
    what waits is dropped, and the sink is closed as soon as its thread gets to it.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.failure: str | None = None
        self._ending = False
        self.after_fork()
        FORKED.add(self)

    def after_fork(self) -> None:
        """Begin without a thread and without events: those that waited are written by the process they belong to."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._queue: list[Event] = []
        self._idle = self._hurried = self._ended = False
        self._put = self._written = 0

    def put(self, events: Sequence[Event]) -> bool:
        """Queue events; False when the sink has failed."""
        with self._changed:
            if self.failure is None and len(self._queue) >= CAPACITY:
                self.fail(f"its queue is full: {len(self._queue)} events wait")
            if self.failure is not None:
                return False
            waiting = len(self._queue)
            self._queue += events
            self._put += len(events)
            if self._thread is None:
                self._start()
            elif self._idle or waiting < CAPACITY // 2 <= len(self._queue):
                self._hurried = not self._idle
                self._idle = False
                self._changed.notify_all()
            return self.failure is None

    def hurry(self) -> None:
        """Write what waits now."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def end(self) -> None:
        """Write what waits, close the sink, and end the thread; does not wait for it."""
        with self._changed:
            self._ending = True
            if self._thread is None and self.failure is None:
                self._start()
            self._changed.notify_all()

    def release(self) -> None:
        """End what has started; nothing is left to do for a sink that never got an event."""
        if self._thread is not None:
            self.end()

    def await_written(self, deadline: float) -> None:
        """Wait until the events queued so far are written; a failure where ``time.monotonic()`` passes the deadline."""
        with self._changed:
            target = self._put
            if not self._changed.wait_for(
                lambda: self._written >= target or self.failure is not None, max(deadline - time.monotonic(), 0.0)
            ):
                self.fail(f"it has not written {target - self._written} events in time")

    def await_ended(self, deadline: float) -> None:
        """Wait until the sink is closed; a failure where ``time.monotonic()`` passes the deadline."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._ended or self.failure is not None, max(deadline - time.monotonic(), 0.0)
            ):
                self.fail("it was not written to and closed in time")

    def fail(self, reason: str) -> None:
        """Give the sink up. The first reason stays."""
        with self._changed:
            if self.failure is None:
                self.failure = reason
            self._ending = True
            self._queue = []
            self._changed.notify_all()

    def warn(self, stacklevel: int) -> None:
        """Say that the sink has failed. Never from the writer's thread, where a warning made an error would be lost."""
        _OPEN.discard(self)
        warnings.warn(
            f"the telemetry sink {type(self.sink).__name__} is switched off: {self.failure}; "
            "events go on to the other sinks, and training goes on",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name=f"esper-{type(self.sink).__name__}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter ends
            self.fail(str(error))
            return
        self._thread = thread
        _OPEN.add(self)

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self.sink.write(batch)
                with self._changed:
                    self._written += len(batch)
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, it must not go further than this sink
            self.fail(_told(error))
        try:
            self.sink.close()
        except BaseException as error:
            self.fail(_told(error))
        with self._changed:
            self._ended = True
            if self.failure is None:
                _OPEN.discard(self)
            self._changed.notify_all()

    def _next_batch(self) -> Sequence[Event]:
        """Events to write; none when it is over."""
        with self._changed:
            while not self._queue and not self._ending:
                self._idle, self._hurried = True, False
                self._changed.wait()
            self._idle = False
            self._changed.wait_for(lambda: self._hurried or self._ending, LINGER)
            self._hurried = False
            batch, self._queue = self._queue, []
            return batch


#: What forked processes have to repair.
FORKED: WeakSet[Forked] = WeakSet()
#: Channels with a thread, until they end well or their failure is told.
_OPEN: set[Channel] = set()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _repair_fork() -> None:
    _OPEN.clear()
    for owner in list(FORKED):
        owner.after_fork()


def _finish() -> None:
    """Write what waits before the interpreter ends, and say what could not be."""
    channels, deadline = list(_OPEN), time.monotonic() + EXIT_TIMEOUT
    for channel in channels:
        channel.end()
    for channel in channels:
        channel.await_ended(deadline)
    for channel in channels:
        if channel.failure is not None:
            channel.warn(stacklevel=1)


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_repair_fork)
