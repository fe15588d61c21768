"""Only one process at a time trains in a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from esper_agent.training.run_folder import RunError

LOCK = "train.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the operating system releases when the process ends.

    Raises:
        RunError: another process, or another training in this one, holds it.
    """
    try:
        lock = FileLock(folder / LOCK).acquire(blocking=False)
    except Timeout:
        raise RunError(f"{folder} is being trained by another process; wait for it to end, or stop it") from None
    with lock:
        yield
