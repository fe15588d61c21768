"""Warnings and errors among the events, on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from esper_env.telemetry import Event, Severity
from rich.console import Console
from rich.text import Text

#: Severities that are shown, and their styles.
STYLES = {Severity.WARNING: "yellow", Severity.ERROR: "bold red"}


class ConsoleSink:
    """Prints a sentence for each warning and error: UTC time, severity, place, and the sentence of its payload.

    Args:
        console: destination; the sink never closes it.
        most: number of sentences per event type. The sink only counts further events, and reports the count at the end.
    """

    def __init__(self, console: Console, most: int = 10) -> None:
        self.console, self.most = console, most
        self._seen: Counter[str] = Counter()

    def write(self, events: Sequence[Event]) -> None:
        """Print the warnings and errors among the events."""
        for event in events:
            if event.severity not in STYLES:
                continue
            self._seen[event.type] += 1
            if self._seen[event.type] <= self.most:
                self.console.print(_line(event), soft_wrap=True)
            if self._seen[event.type] == self.most:
                self._print(f"Further {event.type} events are counted but not shown.")

    def close(self) -> None:
        """Print the number of events of each type that has more than ``most``."""
        for event_type, count in self._seen.items():
            if count > self.most:
                self._print(f"There were {count:,} {event_type} events.")

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)


def _line(event: Event) -> Text:
    moment = datetime.fromtimestamp(event.time, UTC).strftime("%H:%M:%S")
    severity = (event.severity.capitalize(), STYLES[event.severity])
    return Text.assemble((moment, "dim"), " ", severity, f"{_place(event)}: {event.payload.sentence()}")


def _place(event: Event) -> str:
    """Return the step of training, or the place in the environments."""
    timesteps = getattr(event.payload, "timesteps", None)
    if timesteps is not None:
        return f" at step {timesteps:,}"
    names = {"environment": event.env, "episode": event.episode, "epoch": event.epoch, "slot": event.slot}
    place = ", ".join(f"{name} {value}" for name, value in names.items() if value is not None)
    return f" in {place}" if place else ""
