"""The folder of a fetch under way: nothing empty stays, and a fetch that ends at the same moment does no harm."""

import fcntl
import os
from pathlib import Path

import pytest
from esper_env.data.fetch import fetch
from esper_env.data.originals import ORIGINALS
from esper_env.data.web import FetchError
from esper_env.data.workplace import WORK, workplace
from fetching import ARCHIVE
from serving import Server, status

SOURCE = ORIGINALS["cifar10"]


def test_a_lock_that_goes_between_two_looks_is_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looking, gone = Path.exists, []

    def exists(path: Path) -> bool:
        there = looking(path)
        if path.suffix == ".lock" and not gone:  # the fetch that had made it anew ends here
            gone.append(path)
            path.unlink()
        return there

    monkeypatch.setattr(Path, "exists", exists)
    with workplace(SOURCE, root):
        assert gone


def test_a_fetch_in_its_last_moment_is_no_fetch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is still held, and the file is gone already."""
    opening, held = os.open, []

    def ending(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opening(path, flags, mode)
        if Path(path).suffix == ".lock" and not held:
            held.append(opening(path, os.O_RDWR))
            fcntl.flock(held[0], fcntl.LOCK_EX)
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr(os, "open", ending)
    with workplace(SOURCE, root):
        assert held
    os.close(held[0])


def test_what_ended_a_fetch_is_told_though_its_lock_cannot_be_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing = Path.unlink

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if path.suffix == ".lock":
            raise PermissionError(13, "Permission denied")
        removing(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(KeyError, match="what ended it"), workplace(SOURCE, root):
        raise KeyError("what ended it")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.usefixtures("cifar")
def test_a_folder_that_a_refused_fetch_made_does_not_stay(server: Server, root: Path) -> None:
    assert not root.exists()
    server.says(ARCHIVE, status(404))
    with pytest.raises(FetchError):
        fetch("cifar10", root)
    assert not (root / WORK).exists()
    assert not root.exists()
