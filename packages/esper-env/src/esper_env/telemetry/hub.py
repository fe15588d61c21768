"""Hub that numbers events and passes them to sinks."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from esper_env.telemetry.events import Event
from esper_env.telemetry.payloads import Detail, Payload, Severity
from esper_env.telemetry.writer import OPEN, Outlet, Sink, Writer

#: Payload and place of an event: payload, env, episode, epoch, slot.
Occurrence = tuple[Payload, int | None, int | None, int | None, str | None]
S = TypeVar("S", bound=Sink)
#: Level of a hub without sinks, which emits nothing.
_NOTHING = -1


class Telemetry:
    """Hub that numbers events and queues them; one thread writes them to the sinks.

    A sink that raises, holds up the thread too long or does not finish in time is switched off. The next ``emit``,
    ``flush`` or ``close`` then issues one ``RuntimeWarning``; the other sinks continue. The hub owns its
    sinks: it closes them when they are removed, when they fail, and when the hub is closed or deleted. All methods are
    thread-safe. A copy, pickled or not, has the detail and ``next_id`` of the original and no sinks. A forked process
    keeps the sinks and restarts them.

    ``next_id`` is the id of the next event. Events are not numbered while no sink is attached.

    Args:
        detail: level of detail of the events.
    """

    _finalizer: weakref.finalize[..., Telemetry] | None = None

    def __init__(self, detail: Detail = Detail.NORMAL) -> None:
        self.next_id = 0
        self._base = Detail(detail)
        self._epochs_left = 0  # of the escalation
        self._set_up()

    @property
    def active(self) -> bool:
        """True if a working sink is attached."""
        return self._level != _NOTHING

    @property
    def detail(self) -> Detail:
        """Current level of detail. Assigning changes it for good; an escalation raises it temporarily."""
        return Detail.FULL if self._epochs_left else self._base

    @detail.setter
    def detail(self, detail: Detail) -> None:
        if not isinstance(detail, Detail):
            raise TypeError(f"detail is {detail!r}; expected Detail.NORMAL or Detail.FULL")
        with self._lock:
            self._base = detail
            self._update_level()

    def add_sink(self, sink: S) -> S:
        """Attach a sink and return it.

        Raises:
            TypeError: the object is not a sink.
            ValueError: the sink is attached already.
        """
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise TypeError(f"{sink!r} is not a sink: it needs the methods write(events) and close()")
        with self._lock:
            if any(outlet.sink is sink for outlet in self._writer.outlets):
                raise ValueError(f"{sink!r} is attached already; attach a sink once")
            self._writer.outlets.append(Outlet(sink))
            self._update_level()
        return sink

    def remove_sink(self, sink: Sink) -> None:
        """Write the events that wait for a sink, close it and detach it. Ignores a sink that is not attached."""
        with self._lock:
            writer = self._writer
            leaving = [outlet for outlet in writer.outlets if outlet.sink is sink]
            for outlet in leaving:
                writer.outlets.remove(outlet)
                writer.close(outlet)
            self._update_level()
        if leaving:
            writer.flush(timeout=5.0)
        self._report(leaving)

    def wants(self, kind: type[Payload]) -> bool:
        """Return True if events with this payload are emitted now; ask before you build an expensive payload."""
        return self._level >= kind.DETAIL

    def emit(
        self,
        payload: Payload,
        *,
        env: int | None = None,
        episode: int | None = None,
        epoch: int | None = None,
        slot: str | None = None,
        severity: Severity | None = None,
    ) -> None:
        """Number an event and queue it for every sink, if the level of detail includes it.

        The hub writes the payload later, so do not change the objects that it holds. ``severity`` replaces that of the
        payload's class.
        """
        if self.wants(type(payload)):
            self._send([(payload, env, episode, epoch, slot)], severity)
            self._report()

    def emit_all(self, occurrences: Iterable[Occurrence]) -> None:
        """Emit the events of one moment, in this order; faster than one by one."""
        level = self._level
        wanted = [occurrence for occurrence in occurrences if level >= occurrence[0].DETAIL]
        if wanted:
            self._send(wanted)
            self._report()

    def escalate(self, epochs: int = 5) -> None:
        """Emit in full detail until ``epoch_passed`` has been called ``epochs`` times; a longer escalation stays."""
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"epochs is {epochs!r}; expected a positive integer")
        with self._lock:
            self._epochs_left = max(self._epochs_left, epochs)
            self._update_level()

    def epoch_passed(self) -> None:
        """Count an epoch; an environment calls this once per step."""
        if self._epochs_left:
            with self._lock:
                self._epochs_left = max(self._epochs_left - 1, 0)
                self._update_level()

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until the sinks have all events; a sink that takes more than ``timeout`` seconds fails."""
        self._writer.flush(timeout)
        self._report()

    def close(self, timeout: float = 5.0) -> None:
        """Write all events, then close and detach every sink; one that takes more than ``timeout`` seconds fails."""
        with self._lock:
            writer = self._writer
            writer.end()
            self._renew_writer()
        writer.join(timeout)
        self._report(writer.outlets)

    def __getstate__(self) -> dict[str, Any]:
        return {"next_id": self.next_id, "_base": self._base, "_epochs_left": self._epochs_left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()

    def _set_up(self, sinks: Sequence[Sink] = ()) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may emit
        self._failed: deque[Outlet] = deque()  # to warn of
        self._renew_writer(sinks)
        _HUBS.add(self)

    def _after_fork(self) -> None:
        """Replace locks and threads; the parent process writes the events that wait."""
        self._set_up([outlet.sink for outlet in self._writer.outlets if outlet.failure is None])

    def _renew_writer(self, sinks: Sequence[Sink] = ()) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()  # it would keep the previous writer alive
        self._writer = Writer(sinks)
        self._finalizer = weakref.finalize(self, self._writer.release)
        self._finalizer.atexit = False  # the writer finishes at exit by itself
        self._update_level()

    def _send(self, occurrences: list[Occurrence], severity: Severity | None = None) -> None:
        """Number events and queue them."""
        with self._lock:
            first = self.next_id
            self.next_id = first + len(occurrences)
            moment = round(time.time(), 6)
            self._writer.put(
                [
                    Event(number, moment, env, episode, epoch, slot, severity or payload.SEVERITY, payload)
                    for number, (payload, env, episode, epoch, slot) in enumerate(occurrences, first)
                ]
            )

    def _update_level(self) -> None:
        self._level = self.detail if self._writer.outlets else _NOTHING

    def _report(self, detached: Iterable[Outlet] = ()) -> None:
        """Detach failed sinks and warn of them. A warning raised as an error leaves the others for the next call."""
        outlets = self._writer.outlets
        if failed := [outlet for outlet in (*outlets, *detached) if outlet.failure is not None]:
            with self._lock:
                outlets[:] = [outlet for outlet in outlets if outlet not in failed]
                self._update_level()
                self._failed += failed
        while self._failed:
            self._failed.popleft().warn(stacklevel=3)


#: Hubs to repair in a forked process.
_HUBS: weakref.WeakSet[Telemetry] = weakref.WeakSet()


def _repair_fork() -> None:
    OPEN.clear()
    for hub in list(_HUBS):
        hub._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_repair_fork)
