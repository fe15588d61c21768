"""Sinks: files of JSON lines that rotate, and a list in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from esper_env.telemetry.events import Event
from esper_env.telemetry.lines import encode

_NAME = re.compile(r"events-(\d{5,})\.jsonl", re.ASCII)
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def event_files(folder: Path) -> list[Path]:
    """The files of ``JsonlSink`` in a folder, oldest first."""
    return [path for _, path in sorted(_numbered(folder))]


class JsonlSink:
    """Writes one line of JSON per event to events-00000.jsonl, events-00001.jsonl and so on in a folder.

    A line is written whole, by a single call on a descriptor in append mode, so a crash tears the last line at most. A
    file that is there already is never written to: another run, a forked process and writing after an error go on under
    the next free number. A file appears with its first line.

    Args:
        folder: made where it is missing.
        max_bytes: a line that would make a file longer begins a new one.
        keep: how many files to keep; the oldest are deleted. None keeps all.

    Raises:
        ValueError: numbers below 1, or a folder that cannot be made.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 16 * 2**20, keep: int | None = None) -> None:
        for name, value in (("max_bytes", max_bytes), ("keep", 1 if keep is None else keep)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the folder {folder} cannot be made: {error.strerror}; give another one") from None
        self.max_bytes = max_bytes
        self.keep = keep
        self._descriptor: int | None = None
        self._path = self.folder
        self._size = 0
        self._process = os.getpid()

    def write(self, events: Sequence[Event]) -> None:
        """Append the events. ``OSError`` names the file that could not be written."""
        lines = [encode(event) for event in events]
        if self._process != os.getpid():  # forked: the file belongs to the parent
            self._leave_file()
            self._process = os.getpid()
        together: list[bytes] = []
        size = self._size
        for line in lines:
            if size and size + len(line) > self.max_bytes:
                self._append(together)
                self._leave_file()
                together, size = [], 0
            together.append(line)
            size += len(line)
        self._append(together)

    def close(self) -> None:
        """Close the present file; writing again begins a new one."""
        self._leave_file()

    def _append(self, lines: list[bytes]) -> None:
        if not lines:
            return
        try:
            descriptor = self._begin_file() if self._descriptor is None else self._descriptor
            rest = memoryview(b"".join(lines))
            while rest:
                written = os.write(descriptor, rest)
                self._size += written
                rest = rest[written:]
        except OSError as error:
            self._leave_file()  # its last line may be torn, so nothing may follow in this file
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _begin_file(self) -> int:
        number = max((number for number, _ in _numbered(self.folder)), default=-1) + 1
        while self._descriptor is None:
            self._path = self.folder / f"events-{number:05d}.jsonl"
            try:
                self._descriptor = os.open(self._path, _FLAGS, 0o666)
            except FileExistsError:  # another process was quicker
                number += 1
        for old in event_files(self.folder)[: -self.keep] if self.keep else ():
            old.unlink(missing_ok=True)
        return self._descriptor

    def _leave_file(self) -> None:
        descriptor, self._descriptor, self._size = self._descriptor, None, 0
        if descriptor is not None:
            os.close(descriptor)


class MemorySink:
    """Keeps events in the list ``events``: for tests and notebooks. Call the hub's ``flush`` before reading it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, events: Sequence[Event]) -> None:
        """Append the events."""
        self.events.extend(events)

    def close(self) -> None:
        """Nothing to let go of: the events stay."""


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [(int(match[1]), path) for match, path in found if match]
