"""What a fetch replaces, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from archives import (
    write,
)
from esper_env.data.fetch import fetch
from esper_env.data.verify import State, verify
from esper_env.data.web import FetchError
from fetching import FOLDER, MANIFEST, contents
from serving import Server


def test_damage_that_was_not_fetched_is_left_alone(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    damaged = cifar | {"test_batch.bin": b"short"}
    write(root / FOLDER, damaged)
    with pytest.raises(FetchError, match=r"was not put there by a fetch.*test_batch.bin is damaged.* Move it away"):
        fetch("cifar10", root)
    assert contents(root / FOLDER) == damaged
    assert server.requests == []


def test_damage_of_what_was_fetched_is_repaired(cifar: dict[str, bytes], root: Path) -> None:
    fetch("cifar10", root)
    damaged = root / FOLDER / "data_batch_3.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    outcome = fetch("cifar10", root)
    assert not outcome.already_there
    assert outcome.kept is None
    assert contents(root / FOLDER) == cifar
    assert {path.name for path in root.iterdir()} == {FOLDER}


@pytest.mark.parametrize("manifest", ["{", "[]", "null", '{"name": "cifar10", "files": []}'])
@pytest.mark.usefixtures("cifar")
def test_a_damaged_manifest_is_repaired(root: Path, manifest: str) -> None:
    fetch("cifar10", root)
    (root / FOLDER / MANIFEST).write_text(manifest)
    assert not fetch("cifar10", root).already_there
    assert verify("cifar10", root).state is State.INTACT


def test_somebodys_files_survive_a_repair(cifar: dict[str, bytes], root: Path) -> None:
    fetch("cifar10", root)
    (root / FOLDER / "notes.txt").write_text("mine")
    (root / FOLDER / "data_batch_3.bin").unlink()
    outcome = fetch("cifar10", root)
    assert outcome.kept == root / f"{FOLDER}.replaced-1"
    assert {path.name: path.read_text() for path in outcome.kept.iterdir()} == {"notes.txt": "mine"}
    assert contents(root / FOLDER) == cifar


@pytest.mark.usefixtures("cifar")
def test_what_is_in_the_way_is_left_alone(server: Server, root: Path) -> None:
    for make in (lambda path: path.write_text("mine"), lambda path: write(path, {"x": b"mine"}), dangling):
        place = root / FOLDER
        place.parent.mkdir(exist_ok=True)
        make(place)
        with pytest.raises(FetchError, match=f"{FOLDER} is in the way"):
            fetch("cifar10", root)
        assert os.path.lexists(place)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert server.requests == []


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def test_an_empty_folder_is_not_in_the_way(cifar: dict[str, bytes], root: Path) -> None:
    (root / FOLDER).mkdir(parents=True)
    fetch("cifar10", root)
    assert contents(root / FOLDER) == cifar


@pytest.mark.usefixtures("cifar")
def test_a_damaged_folder_that_was_named_itself_is_not_moved(root: Path) -> None:
    fetch("cifar10", root)
    (root / FOLDER / "data_batch_3.bin").unlink()
    with pytest.raises(FetchError, match="name the folder that it is in"):
        fetch("cifar10", root / FOLDER)
    assert (root / FOLDER / "data_batch_2.bin").exists()
