"""Fetching puts a dataset where tasks find it, repairs the files that it wrote, and does not touch others."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from archives import fashion_files, small_in_files, tinystories_files, write
from esper_env.data import DataFamily, download, load_data
from esper_env.data.fetch import fetch_dataset
from esper_env.data.originals import ORIGINALS, FetchError
from esper_env.data.verify import DatasetState, verify_dataset
from esper_env.suggestions import esper_command
from fetching import ARCHIVE, FOLDER, MANIFEST, assert_not_there, contents, load
from serving import Server, file, redirect, sends, status


def serve_files(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, place: str = "/") -> dict[str, bytes]:
    """Put a small dataset without archive on the server."""
    files = tinystories_files() if name == "tinystories" else fashion_files()
    monkeypatch.setitem(ORIGINALS, name, small_in_files(name, files, server.url + place))
    for path, content in files.items():
        server.says(place + path, file(content))
    return files


def test_fetch_downloads_and_unpacks_an_archive_once(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    outcome = fetch_dataset("cifar10", root)
    assert (outcome.folder, outcome.already_there) == (root / FOLDER, False)
    assert contents(root / FOLDER) == cifar
    assert load(root).name == "cifar10"
    left = {str(path.relative_to(root)) for path in root.rglob("*")} - {f"{FOLDER}/{name}" for name in cifar}
    assert left == {FOLDER, f"{FOLDER}/{MANIFEST}", ".esper-downloads", ".esper-downloads/cifar10.lock"}
    times = {path: path.stat().st_mtime_ns for path in (root / FOLDER).iterdir()}
    assert fetch_dataset("cifar10", root).already_there
    assert len(server.requests) == 1
    assert {path: path.stat().st_mtime_ns for path in (root / FOLDER).iterdir()} == times


def test_fetch_writes_a_manifest(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    fetch_dataset("cifar10", root)
    manifest = json.loads((root / FOLDER / MANIFEST).read_text())
    archive = ORIGINALS["cifar10"].archive
    (got,) = manifest["downloads"]
    assert got == {**got, "from": server.url + ARCHIVE, "size": archive.size, "sha256": archive.sha256}
    assert {entry["name"]: entry["size"] for entry in manifest["files"]} == {n: len(c) for n, c in cifar.items()}
    assert manifest["name"] == "cifar10"
    assert manifest["fetched"].endswith("+00:00")


def test_fetch_downloads_files_one_by_one(server: Server, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("fashion-mnist", "tinystories"):
        files = serve_files(server, monkeypatch, name, f"/{name}/")
        fetch_dataset(name, root)
        assert contents(root / name) == files
    assert load(root, "fashion-mnist").image_shape == (1, 28, 28)
    assert load_data("auto", str(root), family=DataFamily.TINYSTORIES).name == "tinystories"


def test_fetch_accepts_manually_copied_files(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    write(root / FOLDER, cifar)
    outcome = fetch_dataset("cifar10", root)
    assert outcome.already_there
    assert "manually copied" in outcome.detail
    assert contents(root / FOLDER) == cifar
    assert server.requests == []


@pytest.mark.parametrize("damaged", [False, True])
def test_fetch_unpacks_only_an_original_archive_in_the_data_folder(
    server: Server, cifar: dict[str, bytes], root: Path, damaged: bool
) -> None:
    archive = server.archive[:-1] + b"?" if damaged else server.archive
    write(root, {ARCHIVE[1:]: archive})
    if damaged:
        with pytest.warns(
            UserWarning, match=r"binary\.tar\.gz is ignored: its size or SHA-256 .*; remove it"
        ) as caught:
            fetch_dataset("cifar10", root)
        assert caught[0].filename == __file__
    else:
        fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert len(server.requests) == damaged
    assert (root / ARCHIVE[1:]).read_bytes() == archive


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
@pytest.mark.usefixtures("cifar")
def test_offline_remedy_works(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(download, "PAUSES", ())
    command = esper_command("data", "fetch", name, "--data-dir", str(root))
    files, place, remedy = {ARCHIVE[1:]: server.archive}, root, f"run `{command}` here"
    if name != "cifar10":
        files, place, remedy = serve_files(server, monkeypatch, name), root / name, "nothing else is needed"
    for path in files:
        server.says("/" + path, status(503))
    with pytest.raises(FetchError) as caught:
        fetch_dataset(name, root)
    urls = ", ".join(f"{server.url}/{path}" for path in files)
    assert f"download {urls} on another one, put it into {place}, and {remedy}" in str(caught.value)
    write(place, files)
    requests = len(server.requests)
    assert load(fetch_dataset(name, root).folder.parent, name).name == name
    assert len(server.requests) == requests


def test_fetch_requires_the_original_from_another_url(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    server.says(ARCHIVE, status(500))
    mirror = server.says("/mirror?id=7", sends(bytes(len(server.archive))))
    with pytest.raises(FetchError, match="SHA-256"):
        fetch_dataset("cifar10", root, mirror)
    assert_not_there(root)
    server.says("/mirror?id=7", redirect("/files" + ARCHIVE))
    server.says("/files" + ARCHIVE, file(server.archive))
    fetch_dataset("cifar10", root, mirror)
    assert contents(root / FOLDER) == cifar


def test_fetch_takes_the_url_of_a_folder(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = serve_files(server, monkeypatch, "fashion-mnist", "/m/")
    server.says("/m" + ARCHIVE, file(server.archive))
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", small_in_files("fashion-mnist", files, "https://nowhere.invalid/"))
    for name in ("fashion-mnist", "cifar10"):
        fetch_dataset(name, root, server.url + "/m/")
    assert contents(root / "fashion-mnist") == files
    assert contents(root / FOLDER) == cifar


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("cifar1", None, "'cifar1' is not known; expected one of cifar10, cifar100, fashion-mnist, tinystories"),
        ("digits", None, "'digits' needs no files"),
        ("cifar10", "http://me:secret@example.org/a", "url has a user or password in front of example.org"),
        ("tinystories", "https://example.org/a.txt", "consists of 2 files; expected the URL of a folder"),
    ],
)
def test_fetch_rejects_bad_input_before_it_creates_anything(
    root: Path, name: str, url: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fetch_dataset(name, root, url)
    assert not root.exists()
    root.touch()
    with pytest.raises(ValueError, match="a file; expected a folder"):
        fetch_dataset("cifar10", root)


@pytest.mark.parametrize("here", ["nothing", "part", "archive"])
def test_fetch_checks_the_free_space_for_missing_files(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    present = {"nothing": 0, "part": 10_000, "archive": len(server.archive)}[here]
    if here == "part":
        write(root / ".esper-downloads" / "cifar10", {ARCHIVE[1:] + ".part": server.archive[:present]})
    if here == "archive":
        write(root, {ARCHIVE[1:]: server.archive})
    needed = len(server.archive) - present + sum(map(len, cifar.values()))
    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    remedy = "free some space, or name another folder in data_dir or the environment variable ESPER_DATA_DIR"
    with pytest.raises(FetchError, match=f"has {needed - 1:,} bytes free but CIFAR-10 needs {needed:,}; {remedy}"):
        fetch_dataset("cifar10", root)
    assert server.requests == []
    free.free = needed
    fetch_dataset("cifar10", root)
    assert server.ranges == {"nothing": [None], "part": ["bytes=10000-"], "archive": []}[here]


def test_fetch_leaves_damaged_files_of_others_alone(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    damaged = cifar | {"test_batch.bin": b"short"}
    write(root / FOLDER, damaged)
    with pytest.raises(FetchError, match=r"was not written by a fetch.*test_batch.bin is damaged.*; move .* away"):
        fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == damaged
    assert server.requests == []


@pytest.mark.parametrize("named", [False, True], ids=["data-folder", "dataset-folder"])
def test_fetch_repairs_fetched_files_and_keeps_others(cifar: dict[str, bytes], root: Path, named: bool) -> None:
    folder = fetch_dataset("cifar10", root).folder
    write(folder, {"notes.txt": b"mine", "data_batch_3.bin": cifar["data_batch_3.bin"][:-1] + b"?", MANIFEST: b"{"})
    (folder / "test_batch.bin").unlink()
    outcome = fetch_dataset("cifar10", folder if named else root)
    assert (outcome.folder, outcome.already_there) == (folder, False)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != MANIFEST}
    assert files == cifar | {"notes.txt": b"mine"}
    assert verify_dataset("cifar10", root).state is DatasetState.INTACT


@pytest.mark.parametrize("step", [1, 6, 7])
def test_interrupted_repair_is_finished_by_the_next_fetch(
    cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Ctrl-C comes after the move of a file: of the first, the last, or the manifest."""
    folder = fetch_dataset("cifar10", root).folder
    damaged = dict.fromkeys(cifar, b"short")
    write(folder, damaged | {"notes.txt": b"mine"})
    moved, replace = [], Path.replace

    def replace_and_count(path: Path, target: Path) -> None:
        replace(path, target)
        if Path(target).parent == folder:
            moved.append(target.name)
            if len(moved) == step:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_count)
        with pytest.raises(KeyboardInterrupt):
            fetch_dataset("cifar10", root)
    new = {name: cifar[name] for name in moved if name != MANIFEST}
    assert contents(folder) == damaged | new | {"notes.txt": b"mine"}
    assert fetch_dataset("cifar10", root).already_there == (step >= 6)  # the manifest moves after all files
    assert contents(folder) == cifar | {"notes.txt": b"mine"}
    assert verify_dataset("cifar10", root).state is DatasetState.INTACT


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("mine"),
        lambda path: write(path, {"x": b"mine"}),
        lambda path: path.symlink_to(path.parent / "nowhere"),
        lambda path: path.symlink_to(write(path.parent / "empty", {})),
    ],
    ids=["file", "folder", "link-to-nothing", "link-to-empty-folder"],
)
@pytest.mark.usefixtures("cifar")
def test_fetch_keeps_foreign_files_in_its_way(server: Server, root: Path, make) -> None:
    root.mkdir()
    make(root / FOLDER)
    with pytest.raises(FetchError, match=f"{FOLDER} is in the way"):
        fetch_dataset("cifar10", root)
    assert os.path.lexists(root / FOLDER)
    assert server.requests == []


def test_fetch_uses_an_empty_folder(cifar: dict[str, bytes], root: Path) -> None:
    (root / FOLDER).mkdir(parents=True)
    fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
