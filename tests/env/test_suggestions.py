"""Commands in messages can be typed as they stand."""

import shlex
import sys
from pathlib import Path

import pytest
from esper_env.suggestions import esper_command


def program(folder: Path) -> Path:
    """Return an executable file ``esper`` in a folder."""
    folder.mkdir(parents=True)
    path = folder / "esper"
    path.touch(mode=0o755)
    return path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command beside a Python in ``.venv/bin``; another one is on PATH."""
    path, other = program(tmp_path / ".venv" / "bin"), program(tmp_path / "other")
    monkeypatch.setattr(sys, "executable", str(path.with_name("python")))
    monkeypatch.setenv("PATH", str(other.parent))
    return path


def test_command_on_the_path_is_named_alone(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own.parent))
    assert esper_command("info") == "esper info"


def test_command_in_the_current_folder_is_relative(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parents[2])
    assert esper_command("train", "--resume", "my runs/a") == ".venv/bin/esper train --resume 'my runs/a'"


def test_command_elsewhere_has_its_whole_path(own: Path) -> None:
    assert shlex.split(esper_command("info")) == [str(own), "info"]


def test_command_that_is_not_installed_is_named_alone(own: Path) -> None:
    own.unlink()
    assert esper_command("info") == "esper info"
