"""Entry point of ``esper``. Ctrl-C ends the command with one line even while PyTorch is loading."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from esper_agent.cli.streams import open_missing_descriptors


def main() -> int:
    """Run the ``esper`` command and return its exit code."""
    try:
        with leaving_on_interrupt():
            open_missing_descriptors()
            from esper_agent.cli.main import main as run

        return run(importing=leaving_on_interrupt)
    except KeyboardInterrupt:  # outside the blocks
        _leave()


@contextmanager
def leaving_on_interrupt() -> Iterator[None]:
    """End the process on Ctrl-C within the block, unless the shell ignores interrupts."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    """End the process at once, because half-imported modules may turn an exception into another error."""
    os.write(2, b"Interrupted\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
