"""Verification of the datasets on the disk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from archives import fashion_files, small_in_files, write
from esper_env.data.catalog import LOADERS
from esper_env.data.fetch import fetch_dataset
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import FetchProgress, FetchStage
from esper_env.data.verify import DatasetState, verify_dataset
from esper_env.suggestions import esper_command
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


def test_verify_finds_a_changed_byte(root: Path) -> None:
    """The byte is a pixel, which the loader accepts."""
    path = root / FOLDER / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[1_000] ^= 1
    path.write_bytes(content)
    (root / FOLDER / "data_batch_2.bin").unlink()
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.DAMAGED, True)
    assert verdict.detail == ("data_batch_2.bin is missing; test_batch.bin differs from the fetched file (SHA-256)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "cannot be read"),
        (lambda manifest: manifest | {"files": [{"name": "x"}]}, "cannot be read"),
        (lambda manifest: manifest | {"files": manifest["files"][1:]}, "is not a manifest of CIFAR-10"),
        (lambda manifest: manifest | {"name": "cifar100"}, "is not a manifest of CIFAR-10"),
        (lambda manifest: manifest | {"files": [{"name": "../../x", "sha256": ""}]}, "is not a manifest of CIFAR-10"),
    ],
)
def test_verify_rejects_a_damaged_manifest(root: Path, change, message: str) -> None:
    path = root / FOLDER / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.DAMAGED, True)
    assert f"{MANIFEST} {message}" in verdict.detail


def test_verify_only_loads_files_without_a_manifest(root: Path) -> None:
    (root / FOLDER / MANIFEST).unlink()
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.READABLE, False)
    assert verdict.detail == "manually copied, without a manifest: the loader accepts it; its sizes are the original's"
    content = bytearray((root / FOLDER / "test_batch.bin").read_bytes())
    content[0] = 99
    (root / FOLDER / "test_batch.bin").write_bytes(content)
    verdict = verify_dataset("cifar10", root)
    assert (verdict.state, verdict.replaceable) == (DatasetState.DAMAGED, False)
    assert "record 0 has label 99" in verdict.detail
    command = esper_command("data", "fetch", "cifar10", "--data-dir", str(root))
    assert verdict.detail.endswith(f"; move {root / FOLDER} away, then `{command}`")
    (root / FOLDER).rename(root / "away")
    assert not fetch_dataset("cifar10", root).already_there


def test_verify_compares_the_sizes_of_the_loaded_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fashion_files()
    source = small_in_files("fashion-mnist", files, "https://nowhere.invalid/")
    monkeypatch.setitem(ORIGINALS, "fashion-mnist", source)
    write(tmp_path / "fashion-mnist", files)
    assert verify_dataset("fashion-mnist", tmp_path).detail.endswith("; its sizes are the original's")
    first = next(iter(files))
    write(tmp_path / "fashion-mnist", {first[:-3]: gzip.decompress(files[first])})
    detail = verify_dataset("fashion-mnist", tmp_path).detail
    assert detail.endswith(f"; not of the original's size: {first[:-3]}")
    assert fetch_dataset("fashion-mnist", tmp_path).detail == detail


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
        ("procedural-cifar", r"dataset 'procedural-cifar' needs no files; expected one of cifar10, cifar100"),
        ("mnist", r"dataset 'mnist' is not known; expected one of cifar10, cifar100"),
        ("CIFAR10", r"dataset 'CIFAR10' is not known; expected .*; did you mean 'cifar10'\?"),
    ],
)
def test_verify_rejects_a_name_without_files(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify_dataset(name, tmp_path)
