"""Taking back events: those of a future that is no more, when training goes on from a checkpoint before them."""

from __future__ import annotations

import json
from pathlib import Path

from esper_env.persistence import atomic
from esper_env.telemetry.sinks import event_files


def drop_events(folder: str | Path, first: int) -> None:
    """Remove the events with the id ``first`` and all later ones from the files that a ``JsonlSink`` wrote.

    Ids have to grow from file to file, as those of one run do; a torn line goes too. A file appears changed at once or
    not at all. Other lines that are no events stay, for ``read_events`` to complain about.
    """
    place = Path(folder)
    for file in reversed(event_files(place) if place.is_dir() else []):
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and not _is_dropped(line, first)]
        if not kept:
            file.unlink()
        elif len(kept) < len(lines):
            with atomic.replaced(file) as temporary:
                temporary.write_bytes(b"".join(kept))
        if len(kept) == len(lines):
            return


def _is_dropped(line: bytes, first: int) -> bool:
    try:
        number = json.loads(line)["id"]
    except (ValueError, TypeError, KeyError):
        return False
    return isinstance(number, int) and number >= first
