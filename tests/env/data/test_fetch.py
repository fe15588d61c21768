"""Fetching puts a dataset where tasks find it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from archives import fashion_files, small_in_files, tinystories_files, write
from esper_env.data import DataFamily, download, load_data
from esper_env.data import fetch as fetching
from esper_env.data.fetch import fetch_dataset
from esper_env.data.originals import ORIGINALS
from esper_env.data.sources import FetchError
from fetching import ARCHIVE, FOLDER, MANIFEST, assert_not_there, contents, load
from serving import Server, file, redirect, sends, status


def serve_files(server: Server, monkeypatch: pytest.MonkeyPatch, name: str, place: str = "/") -> dict[str, bytes]:
    """Put a small dataset without archive on the server."""
    files = tinystories_files() if name == "tinystories" else fashion_files()
    monkeypatch.setitem(ORIGINALS, name, small_in_files(name, files, server.url + place))
    for path, content in files.items():
        server.says(place + path, file(content))
    return files


def test_fetch_downloads_and_unpacks_an_archive(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    outcome = fetch_dataset("cifar10", root)
    assert (outcome.folder, outcome.already_there) == (root / FOLDER, False)
    assert contents(root / FOLDER) == cifar
    assert load(root).name == "cifar10"
    assert len(server.requests) == 1
    left = {str(path.relative_to(root)) for path in root.rglob("*")} - {f"{FOLDER}/{name}" for name in cifar}
    assert left == {FOLDER, f"{FOLDER}/{MANIFEST}", ".esper-downloads", ".esper-downloads/cifar10.lock"}


def test_fetch_downloads_files_one_by_one(server: Server, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("fashion-mnist", "tinystories"):
        files = serve_files(server, monkeypatch, name, f"/{name}/")
        fetch_dataset(name, root)
        assert contents(root / name) == files
    assert load(root, "fashion-mnist").image_shape == (1, 28, 28)
    assert load_data("auto", str(root), family=DataFamily.TINYSTORIES).name == "tinystories"


def test_fetch_writes_a_manifest(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    fetch_dataset("cifar10", root)
    manifest = json.loads((root / FOLDER / MANIFEST).read_text())
    (got,) = manifest["downloads"]
    assert got["from"] == server.url + ARCHIVE
    assert (got["size"], got["sha256"]) == (len(server.archive), ORIGINALS["cifar10"].downloads[0].sha256)
    assert {entry["name"]: entry["size"] for entry in manifest["files"]} == {n: len(c) for n, c in cifar.items()}
    assert manifest["name"] == "cifar10"
    assert manifest["fetched"].endswith("+00:00")


@pytest.mark.usefixtures("cifar")
def test_fetch_changes_nothing_the_second_time(server: Server, root: Path) -> None:
    fetch_dataset("cifar10", root)
    times = {path: path.stat().st_mtime_ns for path in (root / FOLDER).iterdir()}
    assert fetch_dataset("cifar10", root).already_there
    assert len(server.requests) == 1
    assert {path: path.stat().st_mtime_ns for path in (root / FOLDER).iterdir()} == times


def test_fetch_accepts_manually_copied_files(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    write(root / FOLDER, cifar)
    outcome = fetch_dataset("cifar10", root)
    assert outcome.already_there
    assert "manually copied" in outcome.detail
    assert contents(root / FOLDER) == cifar
    assert server.requests == []


def test_fetch_unpacks_an_original_archive_in_the_data_folder(
    server: Server, cifar: dict[str, bytes], root: Path
) -> None:
    write(root, {ARCHIVE[1:]: server.archive})
    fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert server.requests == []
    assert (root / ARCHIVE[1:]).read_bytes() == server.archive


@pytest.mark.parametrize("cut", [True, False])
def test_fetch_ignores_a_different_archive_in_the_data_folder(
    server: Server, cifar: dict[str, bytes], root: Path, cut: bool
) -> None:
    size = len(server.archive)
    other = server.archive[:-5] if cut else bytes(size)
    problem = f"it has {size - 5:,} bytes, the original {size:,}" if cut else r"it is not the original \(SHA-256\)"
    write(root, {ARCHIVE[1:]: other})
    with pytest.warns(UserWarning, match=rf"binary\.tar\.gz is ignored: {problem}; remove it"):
        fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert (root / ARCHIVE[1:]).read_bytes() == other


def test_offline_remedy_works_for_an_archive(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSES", ())
    server.says(ARCHIVE, status(503))
    with pytest.raises(FetchError) as caught:
        fetch_dataset("cifar10", root)
    said = f"download {server.url}{ARCHIVE} on another one, put it into {root}, and run "
    assert f"{said}`esper data fetch cifar10 --data-dir {root}` here" in str(caught.value)
    write(root, {ARCHIVE[1:]: server.archive})
    fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == cifar


def test_offline_remedy_works_for_files(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", ())
    files = serve_files(server, monkeypatch, "fashion-mnist")
    for name in files:
        server.says("/" + name, status(503))
    with pytest.raises(FetchError) as caught:
        fetch_dataset("fashion-mnist", root)
    urls = ", ".join(f"{server.url}/{name}" for name in files)
    place = root / "fashion-mnist"
    assert f"download {urls} on another one, put it into {place}, and nothing else is needed" in str(caught.value)
    write(place, files)
    assert fetch_dataset("fashion-mnist", root).already_there
    assert load(root, "fashion-mnist").name == "fashion-mnist"


def test_fetch_requires_the_original_from_another_url(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    server.says(ARCHIVE, status(500))
    mirror = server.says("/mirror?id=7", sends(bytes(len(server.archive)), len(server.archive)))
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
        ("procedural", None, "'procedural' needs no files"),
        ("cifar10", "http://me:secret@example.org/a", "url has a user or password in front of example.org"),
        ("cifar10", "file:///etc/passwd", "expected a URL that begins with https"),
        ("tinystories", "https://example.org/a.txt", "consists of 2 files; expected the URL of a folder"),
    ],
)
def test_fetch_rejects_bad_input_before_it_creates_anything(
    root: Path, name: str, url: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fetch_dataset(name, root, url)
    assert not root.exists()


def test_fetch_rejects_a_file_as_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a file; expected a folder"):
        fetch_dataset("cifar10", tmp_path / "file")


def test_fetch_reports_a_failed_folder_creation(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(fetching.Path, "mkdir", refuse)
    with pytest.raises(FetchError, match=r"could not be put into .*Permission denied"):
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
    with pytest.raises(FetchError, match=f"has {needed - 1:,} bytes free but CIFAR-10 needs {needed:,}"):
        fetch_dataset("cifar10", root)
    assert server.requests == []
    free.free = needed
    fetch_dataset("cifar10", root)
    assert server.ranges == {"nothing": [None], "part": ["bytes=10000-"], "archive": []}[here]
