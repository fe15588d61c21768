"""Files that are either complete or not there: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper_env.paths import user_path


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` to write to; it takes the place of ``path`` when the block ends well.

        with replaced("results.csv") as temporary:
            temporary.write_text(...)

    When the block raises, ``path`` stays as it was and the temporary file is removed. Missing folders are made. An
    ``OSError`` without a file name, such as that of a full disk, gets the name ``path``.
    """
    target = user_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Check that :func:`replaced` can write ``path``, by writing an empty file beside it or in its nearest folder.

    The file is removed again, so a check before long work leaves nothing behind.

    Raises:
        ValueError: ``path`` is a folder, or cannot be written; the message has the reason.
    """
    target = user_path(path)
    if target.is_dir() or not target.name:
        raise ValueError(f"{str(path)!r} is a folder; expected the path of a file")
    if target.exists() and not target.is_file():
        raise ValueError(f"{target} is a device or pipe; expected the path of a regular file")
    try:
        _try_to_write(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error.strerror}; use another path") from None


def check_folder(path: str | Path) -> None:
    """Check that files can be written to a folder, which need not exist.

    Raises:
        ValueError: ``path`` is not a folder, or cannot be made or written to; the message has the reason.
    """
    folder = user_path(path)
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder")
        _try_to_write(folder / "file")
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be written to: {error.strerror}; use another one") from None


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")


def _try_to_write(target: Path) -> None:
    """Write the temporary file of ``target`` to the nearest of its folders that exists, and remove it."""
    present = next(folder for folder in target.absolute().parents if folder.exists())
    trial = present / _temporary(target).name
    try:
        trial.touch()
    finally:
        trial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace the contents of ``path``, all or nothing."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
