"""Where a data set is until it is complete: a folder for what has arrived of it, for one fetch at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from esper_env.data.sources import Source
from esper_env.data.web import FetchError

#: Below the data folder: what has arrived of each data set, and the locks. Loaders never look there.
WORK = ".esper-downloads"
#: Below that: the files of a data set before they take their place.
READY = "ready"
#: How often to try for a lock that others remove at the same moment.
MOST_TRIES = 100


@contextmanager
def workplace(source: Source, root: Path) -> Iterator[Path]:
    """The folder for what arrives of a data set, locked; nothing empty stays behind, and no lock.

    The kernel lets go of the lock when the process ends, however it ends. Raises ``FetchError`` where another process
    has it, and ``OSError`` for a folder that cannot be made.
    """
    place = root / WORK
    lock, work = place / f"{source.name}.lock", place / source.name
    descriptor = _locked(lock)
    if descriptor is None:
        raise FetchError(f"{source.title} is being fetched into {root} by another process")
    try:
        yield work
    finally:
        _remove_empty(work / READY, work)
        lock.unlink(missing_ok=True)  # while it is held: who has opened it meanwhile sees that it is gone
        _remove_empty(place)
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor of the file ``path``, locked and in its place; None if another process has it."""
    for _ in range(MOST_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a fetch that is through has removed the folder
            continue
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # a fetch that was through has removed the file
    return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()
