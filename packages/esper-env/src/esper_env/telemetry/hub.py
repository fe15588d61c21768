"""Hub that numbers events and passes them to sinks."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar

from esper_env.checks import POSITIVE, check_value
from esper_env.telemetry.events import Detail, Event, Payload
from esper_env.telemetry.writer import OPEN, Sink, Writer

#: Payload and place of an event: payload, env, episode, epoch, slot.
Occurrence = tuple[Payload, int | None, int | None, int | None, str | None]
S = TypeVar("S", bound=Sink)


class Telemetry:
    """Hub that numbers events and queues them; one thread for each sink writes them.

    A sink that raises, lets too many events wait or does not finish in time is switched off. The next ``emit``,
    ``flush`` or ``close`` then issues one ``RuntimeWarning``; the other sinks continue. The hub owns its
    sinks: it closes them when they are removed, when they fail, and when the hub is closed or deleted. All methods are
    thread-safe. A copy, pickled or not, has the detail and ``next_id`` of the original and no sinks. A forked process
    keeps the sinks and restarts them.

    ``next_id`` is the id of the next event. Events are not numbered while no sink is attached.
    """

    _writers: list[Writer]

    def __init__(self, detail: Detail = Detail.NORMAL) -> None:
        self.next_id = 0
        self._epochs_left = 0  # of the escalation
        self._set_up()
        self.detail = detail

    @property
    def active(self) -> bool:
        """True if a working sink is attached."""
        return bool(self._writers)

    @property
    def detail(self) -> Detail:
        """Current level of detail. Assigning changes it for good; an escalation raises it temporarily."""
        return Detail.FULL if self._epochs_left else self._base

    @detail.setter
    def detail(self, detail: Detail) -> None:
        if not isinstance(detail, Detail):
            raise TypeError(f"detail is {detail!r}; expected Detail.NORMAL or Detail.FULL")
        self._base = detail

    def add_sink(self, sink: S) -> S:
        """Attach a sink and return it.

        Raises:
            TypeError: the object is not a sink.
            ValueError: the sink is attached already.
        """
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise TypeError(f"{sink!r} is not a sink: it needs the methods write(events) and close()")
        with self._lock:
            if any(writer.sink is sink for writer in self._writers):
                raise ValueError(f"{sink!r} is attached already; attach a sink once")
            self._writers = [*self._writers, Writer(sink)]
        return sink

    def remove_sink(self, sink: Sink) -> None:
        """Write the events that wait for a sink, close it and detach it. Ignores a sink that is not attached."""
        self._close([writer for writer in self._writers if writer.sink is sink], timeout=5.0)

    def wants(self, kind: type[Payload]) -> bool:
        """Return True if events with this payload are emitted now; ask before you build an expensive payload."""
        return self.active and self.detail >= kind.DETAIL

    def emit(
        self,
        payload: Payload,
        *,
        env: int | None = None,
        episode: int | None = None,
        epoch: int | None = None,
        slot: str | None = None,
    ) -> None:
        """Number an event and queue it for every sink, if the level of detail includes it.

        The hub writes the payload later, so do not change the objects that it holds.
        """
        self._send([(payload, env, episode, epoch, slot)])

    def emit_all(self, occurrences: Iterable[Occurrence]) -> None:
        """Emit the events of one moment, in this order; faster than one by one."""
        self._send(occurrences)

    def escalate(self, epochs: int = 5) -> None:
        """Emit in full detail until ``epoch_passed`` has been called ``epochs`` times; a longer escalation stays."""
        check_value("epochs", epochs, Annotated[int, POSITIVE])
        self._epochs_left = max(self._epochs_left, epochs)

    def epoch_passed(self) -> None:
        """Count an epoch; an environment calls this once per step."""
        self._epochs_left = max(self._epochs_left - 1, 0)

    def flush(self, timeout: float = 5.0) -> None:
        """Wait until the sinks have all events; a sink that takes more than ``timeout`` seconds fails."""
        for writer in self._writers:
            writer.wait(timeout)
        self._report()

    def close(self, timeout: float = 5.0) -> None:
        """Write all events, then close and detach every sink; one that takes more than ``timeout`` seconds fails."""
        self._close(self._writers, timeout)

    def __getstate__(self) -> dict[str, Any]:
        return {"next_id": self.next_id, "_base": self._base, "_epochs_left": self._epochs_left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()

    def __del__(self) -> None:
        for writer in self._writers:
            if writer.started:
                writer.end()

    def _set_up(self, sinks: Iterable[Sink] = ()) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may emit
        self._writers = [Writer(sink) for sink in sinks]
        _HUBS.add(self)

    def _send(self, occurrences: Iterable[Occurrence]) -> None:
        """Number the events that the level of detail includes, and queue them."""
        detail = self.detail
        wanted = [occurrence for occurrence in occurrences if detail >= occurrence[0].DETAIL]
        if not wanted or not self.active:
            return
        with self._lock:
            first = self.next_id
            self.next_id = first + len(wanted)
            moment = round(time.time(), 6)
            events = [
                Event(number, moment, env, episode, epoch, slot, payload.SEVERITY, payload)
                for number, (payload, env, episode, epoch, slot) in enumerate(wanted, first)
            ]
            for writer in self._writers:
                writer.put(events)
        self._report(stacklevel=4)

    def _close(self, writers: Sequence[Writer], timeout: float) -> None:
        with self._lock:
            self._detach(writers)
            for writer in writers:
                writer.end()
        for writer in writers:
            writer.wait(timeout)
        self._report(writers, stacklevel=4)

    def _detach(self, writers: Sequence[Writer]) -> None:
        with self._lock:
            self._writers = [writer for writer in self._writers if writer not in writers]

    def _report(self, detached: Sequence[Writer] = (), stacklevel: int = 3) -> None:
        """Detach failed sinks and warn of them. A warning raised as an error leaves the others for the next call."""
        for writer in [*self._writers, *detached]:
            if writer.failure is not None:
                self._detach([writer])
                writer.warn(stacklevel)


#: Hubs to repair in a forked process.
_HUBS: weakref.WeakSet[Telemetry] = weakref.WeakSet()


def _repair_fork() -> None:
    """Replace locks and threads; the parent process writes the events that wait."""
    OPEN.clear()
    for hub in list(_HUBS):
        hub._set_up([writer.sink for writer in hub._writers if writer.failure is None])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_repair_fork)
