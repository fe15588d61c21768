"""Commands in messages can be typed as they stand, and values are short."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from esper_env import FlatActions, describe_action
from esper_env.suggestions import esper_command, shown
from esper_env.vector_env import EsperVectorEnv


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.arange(4000).reshape(500, 8), "an array of int64 with shape (500, 8)"),
        (torch.zeros(2, 3), "a tensor of torch.float32 with shape (2, 3)"),
        (np.float64(0.5), "np.float64(0.5)"),
        ("a" * 100, repr("a" * 100)[:100] + "..."),
        (np.ndarray, "<class 'numpy.ndarray'>"),
        (gymnasium.spaces.Box(0, 1, (2,)), "Box(0.0, 1.0, (2,), float32)"),
    ],
)
def test_values_in_messages_are_short_and_arrays_described(value: object, text: str) -> None:
    assert shown(value) == text


def test_rejected_arrays_are_not_printed() -> None:
    env = gymnasium.make("Esper-Digits-v0", batches_per_step=1)
    flat, many = FlatActions(env), np.arange(4000).reshape(500, 8)
    calls: list[Callable[[], object]] = [
        lambda: env.reset(seed=many),  # type: ignore[arg-type]
        lambda: env.reset(options={"topology": many}),
        lambda: flat.action(many),  # type: ignore[arg-type]
        lambda: describe_action(many),
        lambda: EsperVectorEnv("Esper-Digits-v0", many),  # type: ignore[arg-type]
        lambda: env.get_wrapper_attr("sample_valid_actions")(many),
        lambda: env.get_wrapper_attr("conditional_masks")(many),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=r"is an array of int64 with shape \(500, 8\); expected "):
            call()


def test_actions_with_rows_of_unequal_length_are_rejected() -> None:
    env = gymnasium.make("Esper-Digits-v0", batches_per_step=1)
    flat, uneven = FlatActions(env), [[0] * 8, [1]]
    env.reset(seed=0)
    calls: list[Callable[[], object]] = [
        lambda: env.unwrapped.step(uneven),
        lambda: flat.action(uneven),  # type: ignore[arg-type]
        lambda: flat.index(uneven),
        lambda: describe_action(uneven),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^action (is|has shape) .*; expected "):
            call()
