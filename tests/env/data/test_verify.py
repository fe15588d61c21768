"""What is said of the data sets on the disk."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import fashion_files, small_cifar10, small_in_files, tinystories_files, write
from esper_env.data.catalog import LOADERS
from esper_env.data.fetch import fetch
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import Progress, Stage
from esper_env.data.verify import State, verify
from serving import Server, file

FOLDER = "cifar-10-batches-bin"
MANIFEST = "esper-manifest.json"


@pytest.fixture
def root(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A data folder into which a small CIFAR-10 was fetched."""
    source, _, archive = small_cifar10(server.says("/cifar-10-binary.tar.gz", file(b"")))
    server.says("/cifar-10-binary.tar.gz", file(archive))
    monkeypatch.setitem(ORIGINALS, "cifar10", source)
    fetch("cifar10", tmp_path)
    return tmp_path


def test_what_was_fetched_is_intact(root: Path) -> None:
    verdict = verify("cifar10", root)
    assert (verdict.state, verdict.folder, verdict.fetched) == (State.INTACT, root / FOLDER, True)


def test_every_file_is_checked_and_told(root: Path) -> None:
    seen: list[Progress] = []
    verify("cifar10", root, seen.append)
    assert {progress.stage for progress in seen} == {Stage.CHECK}
    assert {progress.file for progress in seen} == {file.name for file in ORIGINALS["cifar10"].files}


@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin"])
def test_a_byte_that_changed_is_found(root: Path, name: str) -> None:
    path = root / FOLDER / name
    content = bytearray(path.read_bytes())
    content[1_000] ^= 1  # a pixel: the loader does not mind
    path.write_bytes(content)
    verdict = verify("cifar10", root)
    assert verdict.state is State.DAMAGED
    assert verdict.detail == f"{name} is not what was fetched (SHA-256)"


def test_all_that_changed_is_named(root: Path) -> None:
    (root / FOLDER / "data_batch_2.bin").unlink()
    (root / FOLDER / "data_batch_3.bin").write_bytes(b"short")
    verdict = verify("cifar10", root)
    assert verdict.state is State.DAMAGED
    assert verdict.detail == "data_batch_2.bin is missing; data_batch_3.bin has 5 bytes, 122,920 were fetched"


def rename_one(manifest: dict) -> dict:
    manifest["files"][0]["name"] = "../../etc/passwd"
    return manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "cannot be read"),
        (lambda manifest: manifest | {"files": manifest["files"][1:]}, "is not the one of CIFAR-10"),
        (lambda manifest: manifest | {"name": "cifar100"}, "is not the one of CIFAR-10"),
        (lambda manifest: manifest | {"files": [{"name": "x"}]}, "cannot be read"),
        (
            lambda manifest: manifest | {"files": [*manifest["files"], manifest["files"][0]]},
            "is not the one of CIFAR-10",
        ),
        (rename_one, "is not the one of CIFAR-10"),
        (lambda manifest: {**manifest, "files": [{**f, "size": "1"} for f in manifest["files"]]}, "is not the one of"),
    ],
)
def test_a_damaged_manifest_is_damage(root: Path, change, message: str) -> None:
    path = root / FOLDER / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    verdict = verify("cifar10", root)
    assert verdict.state is State.DAMAGED
    assert message in verdict.detail
    assert MANIFEST in verdict.detail


def test_files_put_there_by_hand_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / FOLDER / MANIFEST).unlink()
    verdict = verify("cifar10", root)
    assert (verdict.state, verdict.fetched) == (State.READABLE, False)
    assert verdict.detail == ("put there by hand, without a manifest: the loader takes it; sizes are the original's")
    source = ORIGINALS["cifar10"]
    longer = tuple(replace(file, size=file.size + 3_073) for file in source.files[:2])
    monkeypatch.setitem(ORIGINALS, "cifar10", replace(source, files=longer + source.files[2:]))
    detail = verify("cifar10", root).detail
    assert detail.endswith("; not of the original's size: data_batch_1.bin, data_batch_2.bin")


@pytest.mark.parametrize("form", [".gz", ""], ids=["gzipped", "unpacked"])
def test_short_files_of_every_form_are_told(tmp_path: Path, form: str) -> None:
    files = fashion_files(100, 20)
    if not form:
        files = {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}
    write(tmp_path / "fashion-mnist", files)
    assert verify("fashion-mnist", tmp_path).detail.endswith(f"; not of the original's size: {', '.join(files)}")
    assert fetch("fashion-mnist", tmp_path).detail == verify("fashion-mnist", tmp_path).detail


def test_the_file_that_is_read_is_the_one_whose_size_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fashion_files()
    first = next(iter(files))
    unpacked = gzip.decompress(files[first])
    source = small_in_files("fashion-mnist", files, "https://nowhere.invalid/")
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", source)
    write(tmp_path / "fashion-mnist", files | {first.removesuffix(".gz"): unpacked})
    assert verify("fashion-mnist", tmp_path).detail.endswith(f"; not of the original's size: {first[:-3]}")
    whole = replace(source.files[0], unpacked_size=len(unpacked))
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", replace(source, files=(whole, *source.files[1:])))
    assert verify("fashion-mnist", tmp_path).detail.endswith("; sizes are the original's")


def test_files_put_there_by_hand_can_be_damaged(root: Path) -> None:
    (root / FOLDER / MANIFEST).unlink()
    records = np.fromfile(root / FOLDER / "test_batch.bin", np.uint8)
    records[0] = 99
    records.tofile(root / FOLDER / "test_batch.bin")
    verdict = verify("cifar10", root)
    assert (verdict.state, verdict.fetched) == (State.DAMAGED, False)
    assert "record 0 has label 99" in verdict.detail
    command = f"esper data fetch cifar10 --data-dir {root}"
    assert verdict.detail.endswith(f"; move {root / FOLDER} away, then `{command}`")
    (root / FOLDER).rename(root / "away")
    assert not fetch("cifar10", root).already_there


def test_what_is_as_it_was_fetched_has_to_be_readable_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: Path) -> None:
        raise ValueError("not these")

    monkeypatch.setitem(LOADERS, "cifar10", refuse)
    verdict = verify("cifar10", root)
    assert (verdict.state, verdict.detail) == (State.DAMAGED, "not these")


def test_a_text_that_was_cut_is_found(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tinystories_files()
    monkeypatch.setitem(ORIGINALS, "tinystories", small_in_files("tinystories", files, server.url + "/"))
    for name, content in files.items():
        server.says("/" + name, file(content))
    fetch("tinystories", tmp_path)
    train = next(iter(files))
    write(tmp_path / "tinystories", {train: files[train][:-50]})
    verdict = verify("tinystories", tmp_path)  # the loader would take it: it ends in a whole story
    assert verdict.state is State.DAMAGED
    assert verdict.detail == f"{train} has {len(files[train]) - 50:,} bytes, {len(files[train]):,} were fetched"


def test_what_is_not_there_is_absent(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").touch()
    verdict = verify("cifar10", tmp_path)
    assert (verdict.state, verdict.folder) == (State.ABSENT, None)
    assert verdict.detail == f"not in {tmp_path} (there is cifar-10-python.tar.gz: the Python version)"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("digits", "needs no files"),
        ("procedural", "needs no files"),
        ("procedural-cifar", "needs no files"),
        ("mnist", "is not known"),
    ],
)
def test_a_name_without_files_lists_the_others(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"data set '{name}' {why}; expected one of cifar10, cifar100"):
        verify(name, tmp_path)


def test_a_name_that_is_nearly_right_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'CIFAR10' is not known; expected .*; did you mean 'cifar10'\?"):
        verify("CIFAR10", tmp_path)
