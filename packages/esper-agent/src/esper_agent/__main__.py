"""Where ``esper`` starts. Loading PyTorch takes seconds, in which Ctrl-C must already end the command tidily."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> int:
    """Run the ``esper`` command and return its exit code."""
    try:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:  # not where the shell has interrupts ignored
            signal.signal(signal.SIGINT, _leave)
        from esper_agent.cli.main import main as run

        signal.signal(signal.SIGINT, before)
        return run()
    except KeyboardInterrupt:  # between two commands of this function
        _leave()


def _leave(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    """End the process at once: an exception would pass through half-imported modules, some of which turn it into
    another error. There is nothing to save yet."""
    os.write(2, b"Interrupted\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
