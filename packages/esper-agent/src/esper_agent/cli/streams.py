"""Standard output and standard error whose errors do not end a command: closed, broken, full, or unencodable text."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any


class LenientStream:
    """A text stream whose errors do not end the program.

    A character that the encoding lacks becomes a replacement character. After a failed write, further text is ignored,
    and ``failure`` holds the error. Other attributes are the stream's own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, and return its length."""
        if self.failure is None:
            try:
                self._write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write the contents of the buffer."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))

    def _give_up(self, error: OSError) -> None:
        self.failure = error
        with suppress(OSError):  # a stream in memory has no descriptor
            number = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)  # Python writes the rest of the buffer when it exits
            os.close(null)

    @property
    def problem(self) -> str | None:
        """Reason why text was lost; None if none was, or if the reader of a pipe has ended, such as ``head``."""
        return None if self.failure is None or self.failure.errno == errno.EPIPE else self.failure.strerror


def open_missing_descriptors() -> None:
    """Open the null device in place of standard streams that are closed.

    Otherwise, the next files that the process opens would take their numbers and receive their text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one


@contextmanager
def lenient_streams() -> Iterator[LenientStream]:
    """Make standard output and standard error lenient within the block; yields standard output."""
    open_missing_descriptors()
    with Path(os.devnull).open("w", encoding="utf-8") as null:
        out, errors = (LenientStream(null if stream is None else stream) for stream in (sys.stdout, sys.stderr))
        with redirect_stdout(out), redirect_stderr(errors):
            try:
                yield out
            finally:
                out.flush()
                errors.flush()
