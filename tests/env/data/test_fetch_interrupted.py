"""A dataset is complete or absent, however a fetch ends."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import fashion_files, original, packed, small_in_files, tinystories_files, write
from esper_env.data.fetch import fetch_dataset
from esper_env.data.originals import ORIGINALS, FetchError
from esper_env.data.progress import FetchProgress, FetchStage
from fetching import ARCHIVE, FOLDER, assert_not_there, contents
from serving import Server, file, sends, status


@pytest.mark.usefixtures("cifar")
def test_nothing_appears_until_the_dataset_is_complete(root: Path) -> None:
    stages = set()

    def look(progress: FetchProgress) -> None:
        stages.add(progress.stage)
        assert_not_there(root)

    fetch_dataset("cifar10", root, watch=look)
    assert stages == {FetchStage.DOWNLOAD, FetchStage.CHECK, FetchStage.UNPACK}


@pytest.mark.parametrize("stage", [FetchStage.DOWNLOAD, FetchStage.CHECK, FetchStage.UNPACK])
def test_interrupted_fetch_is_finished_by_the_next_one(
    server: Server, cifar: dict[str, bytes], root: Path, stage: FetchStage
) -> None:
    def interrupt(progress: FetchProgress) -> None:
        if progress.stage is stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_dataset("cifar10", root, watch=interrupt)
    assert_not_there(root)
    fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert server.ranges.count(None) == 1  # no byte was downloaded twice


KILLED = """
import os, sys
from pathlib import Path
from archives import small_cifar10
from esper_env.data import fetch as fetching
from esper_env.data.originals import ORIGINALS
ORIGINALS["cifar10"] = small_cifar10(sys.argv[1] + "/")[0]
setattr(fetching, sys.argv[3], lambda *_: os._exit(9))
fetching.fetch_dataset("cifar10", Path(sys.argv[2]))
"""


@pytest.mark.parametrize("at", ["_unpack", "_install"])
def test_killed_fetch_is_finished_by_the_next_one(server: Server, cifar: dict[str, bytes], root: Path, at: str) -> None:
    arguments = [sys.executable, "-c", KILLED, server.url, str(root), at]
    path = os.pathsep.join(sys.path)
    assert subprocess.run(arguments, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == 9
    assert_not_there(root)
    server.says(ARCHIVE, status(500))
    fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert len(server.requests) == 1


def test_fetch_keeps_the_complete_files_of_an_earlier_one(
    server: Server, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    files = tinystories_files()
    monkeypatch.setitem(ORIGINALS, "tinystories", small_in_files("tinystories", files, server.url + "/"))
    train, valid = files
    server.says("/" + train, file(files[train]))
    server.says("/" + valid, status(404), file(files[valid]))
    with pytest.raises(FetchError):
        fetch_dataset("tinystories", root)
    assert not (root / "tinystories").exists()
    fetch_dataset("tinystories", root)
    assert contents(root / "tinystories") == files
    assert [path for path, _ in server.requests] == ["/" + train, "/" + valid, "/" + valid]


@pytest.mark.parametrize("unpacking", [False, True])
def test_full_disk_leaves_no_dataset(server: Server, cifar: dict[str, bytes], root: Path, unpacking: bool) -> None:
    """A limit on the size of files stands in for a disk with room for a part of the file."""
    if unpacking:
        write(root, {ARCHIVE[1:]: server.archive})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(FetchError, match=r"CIFAR-10 could not be saved in .*File too large"):
            fetch_dataset("cifar10", root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_not_there(root)
    fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert server.ranges == ([] if unpacking else [None, "bytes=100000-"])


def test_fetches_of_one_dataset_exclude_each_other(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, proceed = threading.Event(), threading.Event()

    def wait(_progress: FetchProgress) -> None:
        inside.set()
        assert proceed.wait(60)

    first = threading.Thread(target=fetch_dataset, args=("cifar10", root), kwargs={"watch": wait})
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(FetchError, match=r"CIFAR-10 is being fetched into .* by another process"):
            fetch_dataset("cifar10", root)
        files = fashion_files()
        monkeypatch.setitem(ORIGINALS, "fashion-mnist", small_in_files("fashion-mnist", files, server.url + "/"))
        for path, content in files.items():
            server.says("/" + path, file(content))
        fetch_dataset("fashion-mnist", root)  # another dataset does not wait
    finally:
        proceed.set()
        first.join()
    assert contents(root / FOLDER) == cifar
    assert contents(root / "fashion-mnist") == files
    assert fetch_dataset("cifar10", root).already_there


@pytest.mark.usefixtures("cifar")
def test_refused_fetch_leaves_only_its_lock(server: Server, root: Path) -> None:
    for answer in (status(404), sends(b"<html>", Content_Length=6)):
        server.says(ARCHIVE, answer)
        with pytest.raises(FetchError):
            fetch_dataset("cifar10", root)
        assert [path.name for path in root.rglob("*") if path.is_file()] == ["cifar10.lock"]
        assert_not_there(root)


def serve_archive(
    server: Server, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], *links: tuple[str, bytes, str]
) -> None:
    """Put an archive on the server whose checksum is the expected one."""
    archive = packed(files, *links)
    source = replace(ORIGINALS["cifar10"], archive=original(ARCHIVE[1:], archive))
    monkeypatch.setitem(ORIGINALS, "cifar10", source)
    server.says(ARCHIVE, file(archive))


TEST, EVIL = f"{FOLDER}/test_batch.bin", b"evil"


@pytest.mark.parametrize(
    ("change", "links", "problem"),
    [
        ({"../../evil": EVIL}, [], "cannot be unpacked .*evil"),
        ({f"{FOLDER}/../../evil": EVIL}, [], "cannot be unpacked .*evil"),
        ({"/evil": EVIL}, [(TEST, tarfile.SYMTYPE, "/etc/passwd")], "cannot be unpacked .*absolute path"),
        ({}, [(TEST, tarfile.SYMTYPE, "data_batch_1.bin")], f"{TEST}, which is not a plain file"),
        ({}, [(FOLDER, tarfile.SYMTYPE, "..")], "cannot be unpacked .*" + FOLDER),
        ({}, [(TEST, tarfile.LNKTYPE, "../cifar10.lock")], "cannot be unpacked .*lock"),
        ({}, [(f"{FOLDER}/pipe", tarfile.FIFOTYPE, "")], "cannot be unpacked .*pipe"),
        ({TEST: EVIL}, [], f"{TEST}, which is not a plain file of 122,920 bytes"),
        ({TEST: None}, [], "cannot be loaded: .* is incomplete, without test_batch.bin"),
    ],
)
def test_hostile_archive_leaves_no_dataset(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch, change, links, problem
) -> None:
    files = {f"{FOLDER}/{name}": content for name, content in cifar.items()} | change
    serve_archive(server, monkeypatch, {name: content for name, content in files.items() if content}, *links)
    with pytest.raises(FetchError, match=problem):
        fetch_dataset("cifar10", root)
    assert_not_there(root)
    left = [path for path in root.parent.rglob("*") if path.is_file() or path.is_symlink()]
    assert not any(path.is_symlink() or path.read_bytes() == EVIL for path in left)


def test_fetch_does_not_install_rejected_files(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mislabelled = np.frombuffer(cifar["test_batch.bin"], np.uint8).reshape(-1, 3073).copy()
    mislabelled[3, 0] = 10
    files = cifar | {"test_batch.bin": mislabelled.tobytes()}
    serve_archive(server, monkeypatch, {f"{FOLDER}/{name}": content for name, content in files.items()})
    with pytest.raises(FetchError, match=r"cannot be loaded: .*record 3 has label 10"):
        fetch_dataset("cifar10", root)
    assert_not_there(root)


def test_unpacking_needs_the_data_filter(cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(tarfile, "data_filter")  # as in Python 3.11.0 to 3.11.3
        with pytest.raises(FetchError, match=r"use Python 3\.11\.4 or newer"):
            fetch_dataset("cifar10", root)
    fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
