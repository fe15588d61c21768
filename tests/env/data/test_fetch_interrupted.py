"""All of a data set is there, or nothing of it, whatever ends a fetch."""

from __future__ import annotations

import fcntl
import gzip
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from archives import (
    CIFAR10_NAMES,
    download,
    fashion_files,
    member,
    packed,
    small_in_files,
    tinystories_files,
    write,
)
from esper_env.data.fetch import fetch
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import Progress, Stage
from esper_env.data.web import FetchError
from fetching import ARCHIVE, FOLDER, assert_not_there, contents
from serving import Server, file, status


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = len(server.archive) + sum(map(len, cifar.values()))
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    with pytest.raises(FetchError, match=f"has {needed - 1:,} bytes free and CIFAR-10 needs {needed:,}"):
        fetch("cifar10", root)
    assert server.requests == []
    free.free = needed
    fetch("cifar10", root)


def test_an_archive_that_was_put_there_needs_room_for_its_files_alone(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, {ARCHIVE[1:]: server.archive})
    needed = sum(map(len, cifar.values()))
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    with pytest.raises(FetchError, match=f"has {needed - 1:,} bytes free and CIFAR-10 needs {needed:,}"):
        fetch("cifar10", root)
    free.free = needed
    fetch("cifar10", root)
    assert server.requests == []


def test_what_has_arrived_needs_no_room_again(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.says(ARCHIVE, file(server.archive, cut=10_000), status(404))
    with pytest.raises(FetchError):
        fetch("cifar10", root)
    server.says(ARCHIVE, file(server.archive))
    room = len(server.archive) + sum(map(len, cifar.values())) - 10_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=room))
    fetch("cifar10", root)
    assert server.ranges[-1] == "bytes=10000-"


@pytest.mark.usefixtures("cifar")
def test_nothing_is_there_until_all_of_it_is(root: Path) -> None:
    stages = set()

    def look(progress: Progress) -> None:
        stages.add(progress.stage)
        assert_not_there(root)

    fetch("cifar10", root, watch=look)
    assert stages == {Stage.DOWNLOAD, Stage.CHECK, Stage.UNPACK}


@pytest.mark.parametrize("stage", [Stage.DOWNLOAD, Stage.CHECK, Stage.UNPACK])
def test_an_interrupt_leaves_nothing_half_done_and_costs_nothing(
    server: Server, cifar: dict[str, bytes], root: Path, stage: Stage
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage is stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("cifar10", root, watch=interrupt)
    assert_not_there(root)
    fetch("cifar10", root)
    assert contents(root / FOLDER) == cifar
    sent = sum(1 for wanted in server.ranges if wanted is None)
    assert sent == 1  # what had arrived was not asked for again


KILLED = """
import os, sys
from pathlib import Path
from archives import small_cifar10
from esper_env.data import fetch as fetching
from esper_env.data.originals import ORIGINALS
ORIGINALS["cifar10"] = small_cifar10(sys.argv[1])[0]
setattr(fetching, sys.argv[3], lambda *_: os._exit(9))
fetching.fetch("cifar10", Path(sys.argv[2]))
"""


@pytest.mark.parametrize("at", ["unpack", "write_manifest", "install"])
def test_a_killed_fetch_is_finished_by_the_next_one(
    server: Server, cifar: dict[str, bytes], root: Path, at: str
) -> None:
    arguments = [sys.executable, "-c", KILLED, server.url + ARCHIVE, str(root), at]
    path = os.pathsep.join(sys.path)
    assert subprocess.run(arguments, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == 9
    assert_not_there(root)
    server.says(ARCHIVE, status(500))
    fetch("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert len(server.requests) == 1


def test_files_that_have_arrived_survive_a_kill(server: Server, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    files = tinystories_files()
    monkeypatch.setitem(ORIGINALS, "tinystories", small_in_files("tinystories", files, server.url + "/"))
    train, valid = files
    server.says("/" + train, file(files[train]))
    server.says("/" + valid, status(404), file(files[valid]))
    with pytest.raises(FetchError):
        fetch("tinystories", root)
    assert not (root / "tinystories").exists()
    fetch("tinystories", root)
    assert contents(root / "tinystories") == files
    assert [path for path, _ in server.requests] == ["/" + train, "/" + valid, "/" + valid]


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing_half_done(
    cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("esper_env.data.unpack._write", full)
        with pytest.raises(FetchError, match=r"CIFAR-10 could not be put into .*No space left on device"):
            fetch("cifar10", root)
    assert_not_there(root)
    fetch("cifar10", root)
    assert contents(root / FOLDER) == cifar


def test_two_fetches_at_once_do_not_disturb_each_other(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(_progress: Progress) -> None:
        inside.set()
        assert go_on.wait(60)

    first = threading.Thread(target=fetch, args=("cifar10", root), kwargs={"watch": wait})
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(FetchError, match=r"CIFAR-10 is being fetched into .* by another process"):
            fetch("cifar10", root)
        files = fashion_files()
        monkeypatch.setitem(ORIGINALS, "fashion-mnist", small_in_files("fashion-mnist", files, server.url + "/"))
        for path, content in files.items():
            server.says("/" + path, file(content))
        fetch("fashion-mnist", root)  # another data set does not wait
    finally:
        go_on.set()
        first.join()
    assert contents(root / FOLDER) == cifar
    assert contents(root / "fashion-mnist") == files
    assert fetch("cifar10", root).already_there


@pytest.mark.usefixtures("cifar")
def test_the_lock_of_a_process_that_ended_is_no_lock(root: Path) -> None:
    lock = root / ".esper-downloads" / "cifar10.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    fetch("cifar10", root)
    assert not lock.parent.exists()
    lock.parent.mkdir()
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(FetchError, match="another process"):
        fetch("cifar10", root)
    os.close(descriptor)


@pytest.mark.usefixtures("cifar")
def test_a_lock_that_was_removed_while_it_was_opened_is_no_lock(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = root / ".esper-downloads" / "cifar10.lock"
    opening, held = os.open, []

    def removed(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opening(path, flags, mode)
        if path == lock:
            held.append(os.fstat(descriptor).st_ino)
            if len(held) == 1:  # the fetch before ends between the two calls
                path.rename(path.with_name("gone"))
        return descriptor

    def look(_progress: Progress) -> None:
        assert lock.stat().st_ino == held[-1]

    monkeypatch.setattr(os, "open", removed)
    fetch("cifar10", root, watch=look)
    assert len(held) == 2


def hostile(server: Server, monkeypatch: pytest.MonkeyPatch, archive: bytes) -> None:
    """The table has the checksum of a hostile archive."""
    source = replace(ORIGINALS["cifar10"], downloads=(download(server.url + ARCHIVE, archive),))
    monkeypatch.setitem(ORIGINALS, "cifar10", source)
    server.says(ARCHIVE, file(archive))


def test_a_hostile_archive_leaves_nothing_where_loaders_look(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [member(f"{FOLDER}/{name}", content) for name, content in cifar.items()]
    for archive in (
        packed([*good, member("../../evil", b"x")]),
        packed([*good, member(f"{FOLDER}/test_batch.bin", cifar["test_batch.bin"])]),
        packed(good[:-1]),
        packed(good)[:-9],
        gzip.compress(b"nothing"),
    ):
        hostile(server, monkeypatch, archive)
        with pytest.raises(FetchError):
            fetch("cifar10", root)
        assert_not_there(root)
        assert not list(root.parent.rglob("evil"))


def test_what_the_loader_does_not_take_is_not_put_there(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mislabelled = np.frombuffer(cifar["test_batch.bin"], np.uint8).reshape(-1, 3073).copy()
    mislabelled[3, 0] = 10
    files = cifar | {"test_batch.bin": mislabelled.tobytes()}
    hostile(server, monkeypatch, packed([member(f"{FOLDER}/{name}", files[name]) for name in CIFAR10_NAMES]))
    with pytest.raises(FetchError, match=r"cannot be read: .*record 3 has label 10"):
        fetch("cifar10", root)
    assert_not_there(root)
