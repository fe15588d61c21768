"""The folder of a fetch under way: nothing empty stays, and a fetch that ends at the same moment does no harm."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from esper_env.data.fetch import fetch
from esper_env.data.originals import ORIGINALS
from esper_env.data.web import FetchError
from esper_env.data.workplace import WORK, workplace
from fetching import ARCHIVE
from serving import Server, status

SOURCE = ORIGINALS["cifar10"]


@pytest.fixture
def lock(root: Path) -> Path:
    return root / WORK / "cifar10.lock"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors of locks that have been opened."""
    opening: Callable[..., int] = os.open
    descriptors = []

    def note(path: Any, *arguments: Any, **more: Any) -> int:
        descriptor = opening(path, *arguments, **more)
        if str(path).endswith(".lock"):
            descriptors.append(descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", note)
    return descriptors


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def is_held(lock: Path) -> bool:
    """Whether somebody has locked what is at this path now."""
    with lock.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def hold(lock: Path) -> int:
    """Lock the path as a fetch in another process does; the descriptor."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def test_the_lock_is_held_inside_and_gone_outside(root: Path, lock: Path, opened: list[int]) -> None:
    with workplace(SOURCE, root) as work:
        assert work == root / WORK / "cifar10"
        assert is_held(lock)
    assert not any(map(is_open, opened))
    assert not root.exists()


def removed(lock: Path) -> None:
    lock.unlink()


def removed_with_its_folder(lock: Path) -> None:
    lock.unlink()
    lock.parent.rmdir()


def replaced(lock: Path) -> None:
    """By that of a fetch that has ended without removing it."""
    lock.rename(lock.with_name("gone"))
    lock.touch()


@pytest.mark.parametrize("change", [removed, removed_with_its_folder, replaced])
def test_a_lock_that_goes_once_it_is_taken_is_tried_again(
    root: Path, lock: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    locking, taken = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        locking(descriptor, operation)
        taken.append(descriptor)
        if len(taken) == 1:
            change(lock)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        place = workplace(SOURCE, root)
        place.__enter__()
    assert len(taken) == 2
    assert is_held(lock)
    place.__exit__(None, None, None)
    assert not lock.exists()
    assert not any(map(is_open, opened))


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_lock_that_goes_between_two_looks_is_tried_again(
    root: Path, lock: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    looking, looks = Path.stat, []

    def stat(path: Path, **more: Any) -> os.stat_result:
        if path == lock:
            looks.append(path)
            if len(looks) <= look:  # the fetch that had made it anew ends here
                path.unlink(missing_ok=True)
        return looking(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    with workplace(SOURCE, root):
        assert len(looks) > look
        assert is_held(lock)


@pytest.mark.parametrize("folder", ["place", "root"])
def test_a_folder_that_goes_before_the_lock_is_in_it_is_made_again(
    root: Path, lock: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    opening, gone = os.open, []

    def ending(path: Path, flags: int, mode: int = 0o777) -> int:
        if path == lock and not gone:
            gone.append(path)
            lock.parent.rmdir()
            if folder == "root":
                root.rmdir()
        return opening(path, flags, mode)

    monkeypatch.setattr(os, "open", ending)
    with workplace(SOURCE, root):
        assert gone
        assert is_held(lock)


def test_a_folder_that_goes_while_it_is_made_is_made_again(
    root: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock.parent.mkdir(parents=True)
    looking, gone = Path.is_dir, []

    def is_dir(path: Path) -> bool:
        if path == lock.parent and not gone:  # it could not be made, since it was there
            gone.append(path)
            path.rmdir()
        return looking(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with workplace(SOURCE, root):
        assert gone
        assert is_held(lock)


def test_what_is_no_folder_is_told(root: Path, lock: Path) -> None:
    root.mkdir()
    lock.parent.touch()
    with pytest.raises(FileExistsError), workplace(SOURCE, root):
        pass
    assert lock.parent.is_file()


def test_a_fetch_in_its_last_moment_is_no_fetch(root: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is still held, and the file is gone already."""
    opening: Callable[..., int] = os.open
    held: list[int] = []

    def ending(path: Path, *arguments: Any) -> int:
        descriptor = opening(path, *arguments)
        if path == lock and not held:
            held.append(opening(path, os.O_RDWR))
            fcntl.flock(held[0], fcntl.LOCK_EX)
            lock.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", ending)
    with workplace(SOURCE, root):
        assert is_held(lock)
    os.close(held[0])


def test_the_lock_goes_while_it_is_held(root: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another fetch could take it in between, and find its own lock removed."""
    removing, held = Path.unlink, []

    def unlink(path: Path, **more: Any) -> None:
        if path == lock:
            held.append(is_held(lock))
        removing(path, **more)

    monkeypatch.setattr(Path, "unlink", unlink)
    with workplace(SOURCE, root):
        pass
    assert held == [True]


def test_what_ended_a_fetch_is_told_though_its_lock_cannot_be_removed(
    root: Path, lock: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_more: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(KeyError, match="what ended it"), workplace(SOURCE, root):
            raise KeyError("what ended it")
    assert len(opened) == 1
    assert not is_open(opened[0])
    assert not is_held(lock)
    with workplace(SOURCE, root):  # what has stayed is nobody's lock
        assert is_held(lock)


def test_a_refusal_lets_go_of_everything_and_leaves_the_lock_of_the_other_fetch(
    root: Path, lock: Path, opened: list[int]
) -> None:
    lock.parent.mkdir(parents=True)
    other = hold(lock)
    with pytest.raises(FetchError, match=r"is being fetched into .* by another process"), workplace(SOURCE, root):
        pass
    assert [is_open(descriptor) for descriptor in opened] == [True, False]
    assert opened[0] == other
    assert is_held(lock)
    os.close(other)


def test_a_lock_that_cannot_be_taken_is_let_go(root: Path, opened: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"), workplace(SOURCE, root):
        pass
    assert [is_open(descriptor) for descriptor in opened] == [False]


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("own", ["", "new", "new/folder/of/many"])
def test_folders_that_a_refused_fetch_made_do_not_stay(server: Server, tmp_path: Path, own: str) -> None:
    there = tmp_path / "there"
    there.mkdir()
    server.says(ARCHIVE, status(404))
    with pytest.raises(FetchError, match="404"):
        fetch("cifar10", there / own)
    assert list(tmp_path.rglob("*")) == [there]


@pytest.mark.usefixtures("cifar")
def test_what_others_put_into_a_folder_of_the_fetch_stays(root: Path) -> None:
    def put(_progress: object) -> None:
        (root / "mine").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("cifar10", root, watch=put)
    assert (root / "mine").exists()
