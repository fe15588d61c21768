"""Events that matter, on a terminal."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from esper_env.telemetry import Event, Severity
from rich.console import Console
from rich.text import Text

#: Severities that are shown, and how.
STYLES = {Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
_PLACE = ("env", "episode", "epoch", "slot")


class ErrorConsole(Console):
    """Standard error. One that nobody reads is a ``BrokenPipeError``; rich would end the process instead."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the error."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads standard error any more")


class ConsoleSink:
    """Prints a line for each event of severity warning or worse: UTC time, type, where it happened, the numbers.

    Of each type it prints ``most`` lines; at the end it says how many more there were.
    """

    def __init__(self, console: Console, most: int = 10) -> None:
        self.console, self.most = console, most
        self._seen: Counter[str] = Counter()

    def write(self, events: Sequence[Event]) -> None:
        """Print those that matter."""
        for event in events:
            if event.severity not in STYLES:
                continue
            self._seen[event.type] += 1
            if self._seen[event.type] <= self.most:
                self.console.print(_line(event), soft_wrap=True)
            if self._seen[event.type] == self.most:
                self.console.print(f"{event.type}: more of them are only counted", soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Say what was counted. The console stays open: it belongs to whoever made it."""
        for kind, count in self._seen.items():
            if count > self.most:
                self.console.print(f"{kind}: {count:,} in all", soft_wrap=True, highlight=False)


def _line(event: Event) -> Text:
    moment = datetime.fromtimestamp(event.time, UTC).strftime("%H:%M:%S")
    place = {name: getattr(event, name) for name in _PLACE}
    shown = {name: value for name, value in {**place, **asdict(event.payload)}.items() if value is not None}
    numbers = "  ".join(f"{name} {_short(value)}" for name, value in shown.items())
    return Text.assemble((moment, "dim"), " ", (event.type, STYLES[event.severity]), " ", numbers)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
