"""A data set is fetched once, from where it is, and put where tasks find it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from archives import (
    fashion_files,
    small_in_files,
    tinystories_files,
    write,
)
from esper_env.data import DataFamily, download, load_data
from esper_env.data import fetch as fetching
from esper_env.data.fetch import fetch
from esper_env.data.originals import ORIGINALS
from esper_env.data.web import FetchError
from fetching import ARCHIVE, FOLDER, MANIFEST, assert_not_there, contents, load
from serving import Server, file, redirect, sends, status


def test_an_archive_is_fetched_unpacked_and_read(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    outcome = fetch("cifar10", root)
    assert (outcome.folder, outcome.already_there, outcome.kept) == (root / FOLDER, False, None)
    assert contents(root / FOLDER) == cifar
    assert load(root).name == "cifar10"
    assert len(server.requests) == 1
    left = {str(path.relative_to(root)) for path in root.rglob("*")} - {f"{FOLDER}/{name}" for name in cifar}
    assert left == {FOLDER, f"{FOLDER}/{MANIFEST}"}


def test_files_are_fetched_one_by_one(server: Server, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for name, files in (("fashion-mnist", fashion_files()), ("tinystories", tinystories_files())):
        monkeypatch.setitem(ORIGINALS, name, small_in_files(name, files, f"{server.url}/{name}/"))
        for path, content in files.items():
            server.says(f"/{name}/{path}", file(content))
        fetch(name, root)
        assert contents(root / name) == files
    assert load(root, "fashion-mnist").image_shape == (1, 28, 28)
    assert load_data("auto", str(root), family=DataFamily.TINYSTORIES).name == "tinystories"


def test_the_manifest_says_what_came_from_where(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    fetch("cifar10", root)
    manifest = json.loads((root / FOLDER / MANIFEST).read_text())
    (got,) = manifest["downloads"]
    assert got["from"] == server.url + ARCHIVE
    assert (got["size"], got["sha256"]) == (len(server.archive), ORIGINALS["cifar10"].downloads[0].sha256)
    assert {entry["name"]: entry["size"] for entry in manifest["files"]} == {n: len(c) for n, c in cifar.items()}
    assert manifest["name"] == "cifar10"
    assert manifest["fetched"].endswith("+00:00")


@pytest.mark.usefixtures("cifar")
def test_a_second_fetch_asks_nobody(server: Server, root: Path) -> None:
    fetch("cifar10", root)
    times = {path: path.stat().st_mtime_ns for path in (root / FOLDER).iterdir()}
    outcome = fetch("cifar10", root)
    assert outcome.already_there
    assert len(server.requests) == 1
    assert {path: path.stat().st_mtime_ns for path in (root / FOLDER).iterdir()} == times


def test_files_put_there_by_hand_are_enough(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    write(root / FOLDER, cifar)
    outcome = fetch("cifar10", root)
    assert outcome.already_there
    assert "by hand" in outcome.detail
    assert contents(root / FOLDER) == cifar
    assert server.requests == []


def test_an_original_archive_in_the_folder_needs_no_server(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    write(root, {"cifar-10-binary.tar.gz": server.archive})
    fetch("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert server.requests == []
    assert (root / "cifar-10-binary.tar.gz").read_bytes() == server.archive


def test_another_archive_in_the_folder_is_left_alone(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    other = bytes(len(server.archive))
    write(root, {"cifar-10-binary.tar.gz": other})
    with pytest.warns(UserWarning, match=r"binary\.tar\.gz is not used: it is not the original \(SHA-256\); remove it"):
        fetch("cifar10", root)
    assert contents(root / FOLDER) == cifar
    assert (root / "cifar-10-binary.tar.gz").read_bytes() == other


@pytest.mark.usefixtures("cifar")
def test_an_archive_that_is_cut_is_told(server: Server, root: Path) -> None:
    write(root, {"cifar-10-binary.tar.gz": server.archive[:-5]})
    size = len(server.archive)
    with pytest.warns(UserWarning, match=f"is not used: it has {size - 5:,} bytes, the original {size:,}; remove it"):
        fetch("cifar10", root)


def test_without_network_an_archive_from_elsewhere_does(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSES", ())
    server.says(ARCHIVE, status(503))
    with pytest.raises(FetchError) as caught:
        fetch("cifar10", root)
    said = f"download {server.url}{ARCHIVE} on another one, put it into {root}, and run "
    assert f"{said}`esper data fetch cifar10 --data-dir {root}` here" in str(caught.value)
    write(root, {ARCHIVE[1:]: server.archive})
    fetch("cifar10", root)
    assert contents(root / FOLDER) == cifar


def test_without_network_files_from_elsewhere_do(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", ())
    files = fashion_files()
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", small_in_files("fashion-mnist", files, server.url + "/"))
    for name in files:
        server.says("/" + name, status(503))
    with pytest.raises(FetchError) as caught:
        fetch("fashion-mnist", root)
    addresses = ", ".join(f"{server.url}/{name}" for name in files)
    place = root / "fashion-mnist"
    assert f"download {addresses} on another one, put it into {place}, and nothing else is needed" in str(caught.value)
    write(place, files)
    assert fetch("fashion-mnist", root).already_there
    assert load(root, "fashion-mnist").name == "fashion-mnist"


@pytest.mark.usefixtures("cifar")
def test_a_refused_fetch_leaves_nothing_behind(server: Server, root: Path) -> None:
    for answer in (status(404), sends(b"<html>", 6)):
        server.says(ARCHIVE, answer)
        with pytest.raises(FetchError):
            fetch("cifar10", root)
        assert not root.exists()


def test_another_address_has_to_have_the_original(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    server.says(ARCHIVE, status(500))
    mirror = server.says("/mirror?id=7", sends(bytes(len(server.archive)), len(server.archive)))
    with pytest.raises(FetchError, match="SHA-256"):
        fetch("cifar10", root, mirror)
    assert_not_there(root)
    server.says("/mirror?id=7", redirect("/files" + ARCHIVE))
    server.says("/files" + ARCHIVE, file(server.archive))
    fetch("cifar10", root, mirror)
    assert contents(root / FOLDER) == cifar


def test_an_address_that_ends_in_a_slash_is_a_folder(
    server: Server, cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fashion_files()
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", small_in_files("fashion-mnist", files, "https://nowhere.invalid/"))
    for path, content in files.items():
        server.says(f"/m/{path}", file(content))
    server.says("/m" + ARCHIVE, file(server.archive))
    for name in ("fashion-mnist", "cifar10"):
        fetch(name, root, server.url + "/m/")
    assert contents(root / "fashion-mnist") == files
    assert contents(root / FOLDER) == cifar


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("cifar1", None, "'cifar1' is not known; expected one of cifar10, cifar100, fashion-mnist, tinystories"),
        ("digits", None, "'digits' needs no files"),
        ("procedural", None, "'procedural' needs no files"),
        ("cifar10", "http://me:secret@example.org/a", "url has a user or password in front of example.org"),
        ("cifar10", "file:///etc/passwd", "expected an address that begins with https"),
        ("tinystories", "https://example.org/a.txt", "consists of 2 files; expected the address of a folder"),
    ],
)
def test_bad_input_is_told_before_anything_is_made(root: Path, name: str, url: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fetch(name, root, url)
    assert not root.exists()


def test_a_file_in_place_of_the_data_folder_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a file; expected a folder"):
        fetch("cifar10", tmp_path / "file")


def test_a_folder_that_cannot_be_made_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(fetching.Path, "mkdir", refuse)
    with pytest.raises(FetchError, match=r"could not be put into .*Permission denied"):
        fetch("cifar10", root)
