"""Fetching repairs the files that it wrote, and does not touch others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from archives import write
from esper_env.data.fetch import fetch_dataset
from esper_env.data.sources import FetchError
from esper_env.data.verify import DatasetState, verify_dataset
from fetching import FOLDER, MANIFEST, contents
from serving import Server


def test_fetch_leaves_damaged_files_of_others_alone(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    damaged = cifar | {"test_batch.bin": b"short"}
    write(root / FOLDER, damaged)
    with pytest.raises(FetchError, match=r"was not written by a fetch.*test_batch.bin is damaged.*; move .* away"):
        fetch_dataset("cifar10", root)
    assert contents(root / FOLDER) == damaged
    assert server.requests == []


@pytest.mark.parametrize("named", [False, True], ids=["data-folder", "dataset-folder"])
@pytest.mark.parametrize("missing", [False, True])
def test_fetch_repairs_fetched_files_and_keeps_others(
    cifar: dict[str, bytes], root: Path, named: bool, missing: bool
) -> None:
    folder = fetch_dataset("cifar10", root).folder
    write(folder, {"notes.txt": b"mine", "data_batch_3.bin": cifar["data_batch_3.bin"][:-1] + b"?"})
    if missing:
        (folder / "test_batch.bin").unlink()
    outcome = fetch_dataset("cifar10", folder if named else root)
    assert (outcome.folder, outcome.already_there) == (folder, False)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != MANIFEST}
    assert files == cifar | {"notes.txt": b"mine"}
    assert verify_dataset("cifar10", root).state is DatasetState.INTACT


@pytest.mark.parametrize("manifest", ["{", "[]", "null", '{"name": "cifar10", "files": []}'])
@pytest.mark.usefixtures("cifar")
def test_fetch_repairs_a_damaged_manifest(root: Path, manifest: str) -> None:
    fetch_dataset("cifar10", root)
    (root / FOLDER / MANIFEST).write_text(manifest)
    assert not fetch_dataset("cifar10", root).already_there
    assert verify_dataset("cifar10", root).state is DatasetState.INTACT


@pytest.mark.parametrize("step", range(1, 8))
def test_interrupted_repair_is_finished_by_the_next_fetch(
    cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Ctrl-C after each file that is moved into its place."""
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
    assert verify_dataset("cifar10", root).state is (
        DatasetState.DAMAGED if len(new) < len(cifar) else DatasetState.INTACT
    )
    fetch_dataset("cifar10", root)
    assert contents(folder) == cifar | {"notes.txt": b"mine"}
    assert verify_dataset("cifar10", root).state is DatasetState.INTACT


def link_to_empty_folder(path: Path) -> None:
    (path.parent / "empty").mkdir()
    path.symlink_to(path.parent / "empty")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("mine"),
        lambda path: write(path, {"x": b"mine"}),
        lambda path: path.symlink_to(path.parent / "nowhere"),
        link_to_empty_folder,
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
