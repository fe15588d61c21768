"""Sinks: rotating files of JSON lines, and a list in memory."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from esper_env.persistence import atomic
from esper_env.telemetry.events import Event
from esper_env.telemetry.lines import encode

_NAME = re.compile(r"events-(\d{5,})\.jsonl", re.ASCII)
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def event_files(folder: Path) -> list[Path]:
    """Return the files of ``JsonlSink`` in a folder, oldest first."""
    return [path for _, path in sorted(_numbered(folder))]


def drop_events(folder: str | Path, first: int) -> None:
    """Remove the events from id ``first`` on from the files of a ``JsonlSink``.

    Ids must increase from file to file, as they do in a run. Each file changes atomically. A torn line is removed;
    other lines that are not events stay.

    Args:
        folder: of the ``JsonlSink``; it need not exist.
        first: lowest id to remove.
    """
    path = Path(folder)
    for file in reversed(event_files(path) if path.is_dir() else []):
        lines = file.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and not _is_dropped(line, first)]
        if not kept:
            file.unlink()
        elif len(kept) < len(lines):
            with atomic.replaced(file) as temporary:
                temporary.write_bytes(b"".join(kept))
        if kept and len(kept) == len(lines):
            return


class JsonlSink:
    """Writes one line of JSON per event to events-00000.jsonl, events-00001.jsonl and so on in a folder.

    One call in append mode writes each line, so a crash tears at most the last one. The sink never writes to an
    existing file: another run, a forked process and writing after an error take the next free number. A file is created
    with its first line.

    Args:
        folder: created if it does not exist.
        max_bytes: a line that would make a file longer starts a new file.
        keep: number of files to keep, the latest ones; None keeps all.

    Raises:
        ValueError: a number is below 1, or the folder cannot be created.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 16 * 2**20, keep: int | None = None) -> None:
        for name, value in (("max_bytes", max_bytes), ("keep", 1 if keep is None else keep)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive integer")
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the folder {folder} cannot be created: {error.strerror}; choose another one") from None
        self.max_bytes = max_bytes
        self.keep = keep
        self._descriptor: int | None = None
        self._path = self.folder
        self._size = 0
        self._process = os.getpid()

    def write(self, events: Sequence[Event]) -> None:
        """Append the events.

        Raises:
            OSError: the file, which the error names, cannot be written.
        """
        lines = [encode(event) for event in events]
        if self._process != os.getpid():  # forked: the file belongs to the parent
            self._close_file()
            self._process = os.getpid()
        pending: list[bytes] = []
        size = self._size
        for line in lines:
            if size and size + len(line) > self.max_bytes:
                self._append(pending)
                self._close_file()
                pending, size = [], 0
            pending.append(line)
            size += len(line)
        self._append(pending)

    def close(self) -> None:
        """Close the current file; another write starts a new one."""
        self._close_file()

    def _append(self, lines: list[bytes]) -> None:
        if not lines:
            return
        try:
            descriptor = self._open_file() if self._descriptor is None else self._descriptor
            rest = memoryview(b"".join(lines))
            while rest:
                written = os.write(descriptor, rest)
                self._size += written
                rest = rest[written:]
        except OSError as error:
            self._close_file()  # its last line may be torn, so nothing may follow it
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _open_file(self) -> int:
        number = max((number for number, _ in _numbered(self.folder)), default=-1) + 1
        while self._descriptor is None:
            self._path = self.folder / f"events-{number:05d}.jsonl"
            try:
                self._descriptor = os.open(self._path, _FLAGS, 0o666)
            except FileExistsError:  # another process created it first
                number += 1
        for old in event_files(self.folder)[: -self.keep] if self.keep else ():
            old.unlink(missing_ok=True)
        return self._descriptor

    def _close_file(self) -> None:
        descriptor, self._descriptor, self._size = self._descriptor, None, 0
        if descriptor is not None:
            os.close(descriptor)


class MemorySink:
    """Keeps events in the list ``events``, for tests and notebooks. Call the hub's ``flush`` before you read it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, events: Sequence[Event]) -> None:
        """Append the events."""
        self.events.extend(events)

    def close(self) -> None:
        """Do nothing: the events stay."""


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [(int(match[1]), path) for match, path in found if match]


def _is_dropped(line: bytes, first: int) -> bool:
    try:
        number = json.loads(line)["id"]
    except (ValueError, TypeError, KeyError):
        return False
    return isinstance(number, int) and number >= first
