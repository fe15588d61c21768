"""The hub: where events are emitted, and from where they go to the sinks."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeVar

from esper_env.telemetry.channel import FORKED, Channel, Sink
from esper_env.telemetry.events import Event
from esper_env.telemetry.payloads import Detail, Payload, Severity

#: What happened, and where: payload, env, episode, epoch, slot.
Occurrence = tuple[Payload, int | None, int | None, int | None, str | None]
S = TypeVar("S", bound=Sink)
#: Below every level of detail: nothing is wanted.
_NOTHING = -1


class Telemetry:
    """Numbers events and hands them to sinks, each of which works in a thread of its own.

    A sink that raises, falls too far behind or does not end in time is switched off with one ``RuntimeWarning``, which
    comes from the next ``emit``, ``flush`` or ``close``; the others go on. A sink belongs to its hub from ``add_sink``
    on: it is closed when it is removed, when it fails and when the hub is closed or gone. Methods may be called from
    any thread. A copy, pickled or not, has the detail and ``next_id`` of the original and no sinks; a forked process
    keeps the sinks, and starts them anew.

    ``next_id`` is the id of the next event. Nothing is numbered while no sink is attached.
    """

    def __init__(self, detail: Detail = Detail.NORMAL) -> None:
        self.next_id = 0
        self._base = Detail(detail)
        self._epochs_left = 0  # of the escalation
        self._set_up()

    @property
    def active(self) -> bool:
        """Whether a working sink is attached."""
        return self._level != _NOTHING

    @property
    def detail(self) -> Detail:
        """The present level of detail. Setting it is for good; an escalation raises it for a while."""
        return Detail.FULL if self._epochs_left else self._base

    @detail.setter
    def detail(self, detail: Detail) -> None:
        if not isinstance(detail, Detail):
            raise TypeError(f"detail is {detail!r}; expected Detail.NORMAL or Detail.FULL")
        with self._lock:
            self._base = detail
            self._update_level()

    def add_sink(self, sink: S) -> S:
        """Attach a sink and return it. ``TypeError`` for what is no sink, ``ValueError`` for one that is attached."""
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise TypeError(f"{sink!r} is not a sink: it needs the methods write(events) and close()")
        with self._lock:
            if any(channel.sink is sink for channel in self._channels):
                raise ValueError(f"{sink!r} is attached already; a sink takes part once")
            self._channels.append(Channel(sink))
            self._update_level()
        return sink

    def remove_sink(self, sink: Sink) -> None:
        """Write what waits for a sink, close it and detach it; one that is not attached (any more) is left alone."""
        self._end([channel for channel in self._attached() if channel.sink is sink], timeout=5.0)
        self._report()

    def wants(self, kind: type[Payload]) -> bool:
        """Whether events with this payload are emitted at present; ask before a payload that costs something."""
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
        """Number an event and queue it for every sink, unless it is not wanted.

        The payload is written later, so what it holds must not change any more. ``severity`` replaces that of the
        payload's class.
        """
        if self.wants(type(payload)) and not self._send([(payload, env, episode, epoch, slot)], severity):
            self._report()

    def emit_all(self, occurrences: Iterable[Occurrence]) -> None:
        """Emit what happened at one moment, in this order: quicker than one by one."""
        level = self._level
        wanted = [occurrence for occurrence in occurrences if level >= occurrence[0].DETAIL]
        if wanted and not self._send(wanted):
            self._report()

    def escalate(self, epochs: int = 5) -> None:
        """Emit in full detail until ``epoch_passed`` has been called ``epochs`` times; a longer escalation stays."""
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise ValueError(f"epochs is {epochs!r}; expected a whole number of at least 1")
        with self._lock:
            self._epochs_left = max(self._epochs_left, epochs)
            self._update_level()

    def epoch_passed(self) -> None:
        """Count an epoch; an environment calls this once for every step."""
        if self._epochs_left:
            with self._lock:
                self._epochs_left = max(self._epochs_left - 1, 0)
                self._update_level()

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until the sinks have what was emitted so far; one that takes more than ``timeout`` seconds fails."""
        deadline = time.monotonic() + timeout
        channels = self._attached()
        for channel in channels:
            channel.hurry()
        for channel in channels:
            channel.await_written(deadline)
        with self._lock:
            self._retire([channel for channel in channels if channel.failure is not None])
        self._report()

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits, close every sink and detach it; one that takes more than ``timeout`` seconds fails."""
        self._end(self._attached(), timeout)
        self._report()

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.RLock()  # reentrant: a signal handler may emit

    def __getstate__(self) -> dict[str, Any]:
        return {"next_id": self.next_id, "_base": self._base, "_epochs_left": self._epochs_left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()

    def _set_up(self) -> None:
        self._channels: list[Channel] = []
        self._unreported: deque[Channel] = deque()
        self._level: int = _NOTHING
        self.after_fork()
        FORKED.add(self)
        # At exit, channels finish by themselves.
        weakref.finalize(self, _release, self._channels).atexit = False

    def _send(self, occurrences: list[Occurrence], severity: Severity | None = None) -> bool:
        """Number events and queue them; False when a sink has failed."""
        with self._lock:
            first = self.next_id
            self.next_id = first + len(occurrences)
            moment = round(time.time(), 6)
            events = [
                Event(number, moment, env, episode, epoch, slot, severity or payload.SEVERITY, payload)
                for number, (payload, env, episode, epoch, slot) in enumerate(occurrences, first)
            ]
            failed = [channel for channel in self._channels if not channel.put(events)]
            if failed:
                self._retire(failed)
        return not failed

    def _attached(self) -> list[Channel]:
        with self._lock:
            return list(self._channels)

    def _update_level(self) -> None:
        self._level = self.detail if self._channels else _NOTHING

    def _end(self, channels: list[Channel], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with self._lock:
            leaving = [channel for channel in channels if channel in self._channels]  # else another thread was first
            for channel in leaving:
                channel.end()
                self._channels.remove(channel)
            self._update_level()
        for channel in leaving:
            channel.await_ended(deadline)
        self._unreported.extend(channel for channel in leaving if channel.failure is not None)

    def _retire(self, channels: list[Channel]) -> None:
        for channel in channels:
            if channel in self._channels:
                self._channels.remove(channel)
                self._unreported.append(channel)
        self._update_level()

    def _report(self) -> None:
        """Warn of failures. One warning that is made an error leaves the others for the next call."""
        while self._unreported:
            self._unreported.popleft().warn(stacklevel=3)


def _release(channels: list[Channel]) -> None:
    for channel in channels:
        channel.release()
