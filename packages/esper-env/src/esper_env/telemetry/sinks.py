"""Sinks: rotating files of JSON lines, and a list in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from esper_env.checks import POSITIVE, check_value
from esper_env.paths import user_path
from esper_env.telemetry.events import Event
from esper_env.telemetry.jsonl import encode, event_files

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


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
        ValueError: a number is below 1, or the folder cannot be created or is not a path in UTF-8.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 16 * 2**20, keep: int | None = None) -> None:
        check_value("max_bytes", max_bytes, Annotated[int, POSITIVE])
        check_value("keep", keep, Annotated[int, POSITIVE] | None)
        self.folder, self.max_bytes, self.keep = user_path(folder), max_bytes, keep
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the folder {folder} cannot be created: {error.strerror}; choose another one") from None
        self._descriptor: int | None = None
        self._path = self.folder
        self._size = 0
        self._process = os.getpid()

    def write(self, events: Sequence[Event]) -> None:
        """Append the events.

        Raises:
            OSError: the file, which the error names, cannot be written.
        """
        if self._process != os.getpid():  # forked: the file belongs to the parent
            self.close()
            self._process = os.getpid()
        pending: list[bytes] = []
        size = self._size
        for line in map(encode, events):
            if size and size + len(line) > self.max_bytes:
                self._append(pending)
                self.close()
                pending, size = [], 0
            pending.append(line)
            size += len(line)
        self._append(pending)

    def close(self) -> None:
        """Close the current file; another write starts a new one."""
        descriptor, self._descriptor, self._size = self._descriptor, None, 0
        if descriptor is not None:
            os.close(descriptor)

    def _append(self, lines: list[bytes]) -> None:
        try:
            descriptor = self._open_file() if self._descriptor is None else self._descriptor
            rest = memoryview(b"".join(lines))
            while rest:
                written = os.write(descriptor, rest)
                self._size += written
                rest = rest[written:]
        except OSError as error:
            self.close()  # its last line may be torn, so nothing may follow it
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _open_file(self) -> int:
        files = event_files(self.folder)
        number = int(files[-1].stem.removeprefix("events-")) + 1 if files else 0
        while self._descriptor is None:
            self._path = self.folder / f"events-{number:05d}.jsonl"
            try:
                self._descriptor = os.open(self._path, _FLAGS, 0o666)
            except FileExistsError:  # another process created it first
                number += 1
        for old in event_files(self.folder)[: -self.keep] if self.keep else ():
            old.unlink(missing_ok=True)
        return self._descriptor


class MemorySink:
    """Keeps events in the list ``events``, for tests and notebooks. Call the hub's ``flush`` before you read it."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, events: Sequence[Event]) -> None:
        """Append the events."""
        self.events.extend(events)

    def close(self) -> None:
        """Do nothing: the events stay."""
