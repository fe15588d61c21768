"""What a fetch replaces, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from archives import (
    write,
)
from esper_env.data import replacement
from esper_env.data.fetch import fetch
from esper_env.data.verify import State, verify
from esper_env.data.web import FetchError
from fetching import FOLDER, MANIFEST, contents
from serving import Server


def test_damage_that_was_not_fetched_is_left_alone(server: Server, cifar: dict[str, bytes], root: Path) -> None:
    damaged = cifar | {"test_batch.bin": b"short"}
    write(root / FOLDER, damaged)
    with pytest.raises(FetchError, match=r"was not put there by a fetch.*test_batch.bin is damaged.*; move .* away"):
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


@pytest.mark.parametrize("step", range(1, 10))
def test_somebodys_files_survive_a_repair_that_is_interrupted(
    cifar: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Ctrl-C behind each change of the disk, from the moment at which the damaged folder makes room."""
    fetch("cifar10", root)
    write(root / FOLDER, {"notes.txt": b"mine", "test_batch.bin": b"short"})
    done = []

    def counted(method):
        def change(path: Path, *arguments, **keywords):
            result = method(path, *arguments, **keywords)
            if replacement.NOTE in [path.name for path in root.rglob("*")]:
                done.append(path)
            if len(done) == step:
                raise KeyboardInterrupt
            return result

        return change

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with pytest.raises(KeyboardInterrupt):
            fetch("cifar10", root)
    found = [path.read_text() for path in root.rglob("notes.txt")]
    assert found == ["mine"]
    outcome = fetch("cifar10", root)
    assert outcome.kept == root / f"{FOLDER}.replaced-1"
    assert {path.name: path.read_text() for path in outcome.kept.iterdir()} == {"notes.txt": "mine"}
    assert contents(root / FOLDER) == cifar
    assert {path.name for path in root.iterdir()} == {FOLDER, f"{FOLDER}.replaced-1"}
    assert fetch("cifar10", root).kept is None  # told once


@pytest.mark.usefixtures("cifar")
def test_a_repair_that_is_interrupted_first_of_all_has_moved_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_path: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    fetch("cifar10", root)
    damaged = write(root / FOLDER, {"notes.txt": b"mine", "test_batch.bin": b"short"})
    before = contents(damaged)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("cifar10", root)
    assert contents(damaged) == before
    outcome = fetch("cifar10", root)
    assert outcome.kept == root / f"{FOLDER}.replaced-1"


@pytest.mark.usefixtures("cifar")
def test_what_is_in_the_way_is_left_alone(server: Server, root: Path) -> None:
    makers = (lambda path: path.write_text("mine"), lambda path: write(path, {"x": b"mine"}), dangling, to_nothing)
    for make in makers:
        place = root / FOLDER
        place.parent.mkdir(exist_ok=True)
        make(place)
        with pytest.raises(FetchError, match=f"{FOLDER} is in the way"):
            fetch("cifar10", root)
        assert os.path.lexists(place)
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    assert server.requests == []


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def to_nothing(path: Path) -> None:
    """A link to an empty folder."""
    (path.parent / "empty").mkdir()
    path.symlink_to(path.parent / "empty")


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
