"""Verification of the datasets on the disk."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import fashion_files, small_in_files, write
from esper_env.data.catalog import LOADERS
from esper_env.data.fetch import fetch_dataset
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import FetchProgress, FetchStage
from esper_env.data.verify import DatasetState, verify_dataset
from fetching import FOLDER, MANIFEST


@pytest.fixture
def root(root: Path, request: pytest.FixtureRequest) -> Path:
    """A data folder into which a small CIFAR-10 was fetched."""
    request.getfixturevalue("cifar")
    fetch_dataset("cifar10", root)
    return root


def test_verify_checks_every_fetched_file(root: Path) -> None:
    seen: list[FetchProgress] = []
    verdict = verify_dataset("cifar10", root, seen.append)
    assert (verdict.state, verdict.folder, verdict.replaceable) == (DatasetState.INTACT, root / FOLDER, True)
    assert {progress.stage for progress in seen} == {FetchStage.CHECK}
    assert {progress.file for progress in seen} == {file.name for file in ORIGINALS["cifar10"].files}


@pytest.mark.parametrize("name", ["data_batch_1.bin", "test_batch.bin"])
def test_verify_finds_a_changed_byte(root: Path, name: str) -> None:
    path = root / FOLDER / name
    content = bytearray(path.read_bytes())
    content[1_000] ^= 1  # a pixel, which the loader accepts
    path.write_bytes(content)
    verdict = verify_dataset("cifar10", root)
    assert verdict.state is DatasetState.DAMAGED
    assert verdict.detail == f"{name} differs from the fetched file (SHA-256)"


def test_verify_names_all_changes(root: Path) -> None:
    (root / FOLDER / "data_batch_2.bin").unlink()
    (root / FOLDER / "data_batch_3.bin").write_bytes(b"short")
    verdict = verify_dataset("cifar10", root)
    assert verdict.state is DatasetState.DAMAGED
    assert verdict.detail == "data_batch_2.bin is missing; data_batch_3.bin has 5 bytes, 122,920 were fetched"


def rename_first_file(manifest: dict) -> dict:
    manifest["files"][0]["name"] = "../../etc/passwd"
    return manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "cannot be read"),
        (lambda manifest: manifest | {"files": [{"name": "x"}]}, "cannot be read"),
        (lambda manifest: manifest | {"files": manifest["files"][1:]}, "is not a manifest of CIFAR-10"),
        (lambda manifest: manifest | {"files": [*manifest["files"], manifest["files"][0]]}, "is not a manifest of"),
        (lambda manifest: manifest | {"name": "cifar100"}, "is not a manifest of CIFAR-10"),
        (rename_first_file, "is not a manifest of CIFAR-10"),
        (lambda manifest: {**manifest, "files": [{**f, "size": "1"} for f in manifest["files"]]}, "is not a manifest"),
        (lambda manifest: {**manifest, "files": [{**f, "name": 1} for f in manifest["files"]]}, "is not a manifest"),
    ],
)
def test_verify_rejects_a_damaged_manifest(root: Path, change, message: str) -> None:
    path = root / FOLDER / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.DAMAGED, True)
    assert f"{MANIFEST} {message}" in verdict.detail


def test_verify_loads_files_without_a_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / FOLDER / MANIFEST).unlink()
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.READABLE, False)
    assert verdict.detail == (
        "manually copied, without a manifest: the loader accepts it; its sizes are the original's"
    )
    source = ORIGINALS["cifar10"]
    longer = tuple(replace(file, size=file.size + 3_073) for file in source.files[:2])
    monkeypatch.setitem(ORIGINALS, "cifar10", replace(source, files=longer + source.files[2:]))
    detail = verify_dataset("cifar10", root).detail
    assert detail.endswith("; not of the original's size: data_batch_1.bin, data_batch_2.bin")


@pytest.mark.parametrize("form", [".gz", ""], ids=["gzipped", "unpacked"])
def test_verify_names_short_files(tmp_path: Path, form: str) -> None:
    files = fashion_files(100, 20)
    if not form:
        files = {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}
    write(tmp_path / "fashion-mnist", files)
    assert verify_dataset("fashion-mnist", tmp_path).detail.endswith(
        f"; not of the original's size: {', '.join(files)}"
    )
    assert fetch_dataset("fashion-mnist", tmp_path).detail == verify_dataset("fashion-mnist", tmp_path).detail


def test_verify_compares_the_size_of_the_loaded_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fashion_files()
    first = next(iter(files))
    unpacked = gzip.decompress(files[first])
    source = small_in_files("fashion-mnist", files, "https://nowhere.invalid/")
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", source)
    write(tmp_path / "fashion-mnist", files | {first.removesuffix(".gz"): unpacked})
    assert verify_dataset("fashion-mnist", tmp_path).detail.endswith(f"; not of the original's size: {first[:-3]}")
    whole = replace(source.files[0], unpacked_size=len(unpacked))
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", replace(source, files=(whole, *source.files[1:])))
    assert verify_dataset("fashion-mnist", tmp_path).detail.endswith("; its sizes are the original's")


def test_verify_explains_replacing_damaged_files_without_a_manifest(root: Path) -> None:
    (root / FOLDER / MANIFEST).unlink()
    records = np.fromfile(root / FOLDER / "test_batch.bin", np.uint8)
    records[0] = 99
    records.tofile(root / FOLDER / "test_batch.bin")
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.DAMAGED, False)
    assert "record 0 has label 99" in verdict.detail
    command = f"esper data fetch cifar10 --data-dir {root}"
    assert verdict.detail.endswith(f"; move {root / FOLDER} away, then `{command}`")
    (root / FOLDER).rename(root / "away")
    assert not fetch_dataset("cifar10", root).already_there


def test_verify_loads_unchanged_files_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_folder: Path) -> None:
        raise ValueError("not these")

    monkeypatch.setitem(LOADERS, "cifar10", refuse)
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.DAMAGED, False)  # a fetch would bring the same files
    assert verdict.detail.startswith(f"not these; move {root / FOLDER} away")


def test_verify_describes_a_lookalike_of_an_absent_dataset(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").touch()
    verdict = verify_dataset("cifar10", tmp_path)
    assert (verdict.state, verdict.folder) == (DatasetState.ABSENT, None)
    assert verdict.detail == f"not in {tmp_path} (there is cifar-10-python.tar.gz: the Python version)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", r"dataset 'digits' needs no files; expected one of cifar10, cifar100"),
        ("procedural-cifar", r"dataset 'procedural-cifar' needs no files; expected one of cifar10, cifar100"),
        ("mnist", r"dataset 'mnist' is not known; expected one of cifar10, cifar100"),
        ("CIFAR10", r"dataset 'CIFAR10' is not known; expected .*; did you mean 'cifar10'\?"),
    ],
)
def test_verify_rejects_a_name_without_files(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify_dataset(name, tmp_path)
