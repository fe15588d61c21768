"""Where a data set is until it is complete: a folder for what has arrived of it, for one fetch at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
    """The folder for what arrives of a data set, locked; nothing empty that it has made stays behind, and no lock.

    The kernel lets go of the lock when the process ends, however it ends. Raises ``FetchError`` where another process
    has it, and ``OSError`` for a folder that cannot be made.
    """
    place = root / WORK
    lock, work = place / f"{source.name}.lock", place / source.name
    absent = [folder for folder in (root, *root.parents) if not folder.exists()]
    with ExitStack() as leaving:  # last in, first out
        leaving.callback(_remove_empty, place, *absent)
        descriptor = _locked(lock)
        if descriptor is None:
            raise FetchError(f"{source.title} is being fetched into {root} by another process")
        leaving.callback(os.close, descriptor)
        leaving.callback(_remove, lock)  # while it is held: who has opened it meanwhile sees that it is gone
        leaving.callback(_remove_empty, work / READY, work)
        yield work


def _locked(path: Path) -> int | None:
    """A descriptor of the file ``path``, locked and in its place; None if another process has it."""
    for _ in range(MOST_TRIES):
        with ExitStack() as unless_kept:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:  # a fetch that is through has removed the folder
                continue
            except FileExistsError as error:
                if os.path.lexists(error.filename):  # no folder
                    raise
                continue  # a folder when it was to be made, and removed since
            unless_kept.callback(os.close, descriptor)
            locked = _lock(descriptor)
            if not _in_place(descriptor, path):  # a fetch that is through, or about to be, has removed the file
                continue
            if locked:
                unless_kept.pop_all()
            return descriptor if locked else None
    return None


def _in_place(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(lock: Path) -> None:
    with suppress(OSError):  # one that stays is nobody's lock: the next fetch takes it
        lock.unlink()


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()
