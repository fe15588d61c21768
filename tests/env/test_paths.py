"""One rule for paths: ``~`` is the home folder, and a path is UTF-8."""

from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest
from esper_env.data import DataFamily, absolute_dataset, data_folder, fetch_dataset, load_data, verify_dataset
from esper_env.paths import user_path
from esper_env.persistence import read_checkpoint, write_checkpoint, write_text
from esper_env.telemetry import Event, JsonlSink, Severity, event_table, read_events
from made_events import epoch_completed

SMALL = {"horizon": 2, "batches_per_step": 1, "batch_size": 8}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the current folder is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_home_is_expanded_and_other_paths_stay(home: Path) -> None:
    assert user_path("~/a") == user_path(Path("~/a")) == home / "a"
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    assert user_path("a/~") == Path("a/~")
    assert user_path(user_path("~/a")) == home / "a"


@pytest.mark.parametrize(
    ("path", "said"),
    [("a\udcff", "is not UTF-8 text"), ("a\0b", "has a NUL byte"), ("", "is ''; expected a path that is not empty")],
)
def test_path_that_no_file_could_record_is_rejected(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        user_path(path)


def test_functions_with_paths_expand_the_home_folder(home: Path) -> None:
    write_text("~/text.txt", "a line of a text\n" * 100)
    assert load_data("~/text.txt", family=DataFamily.TEXT).name == "text:text.txt"
    assert absolute_dataset("~/text.txt", DataFamily.TEXT) == str(home / "text.txt")
    assert data_folder("~/data") == home / "data"
    write_checkpoint("~/state.safetensors", {"a": 1}, kind="test")
    assert read_checkpoint("~/state.safetensors", kind="test") == {"a": 1}
    sink = JsonlSink("~/events")
    sink.write([Event(0, 0.0, 0, 0, 0, None, Severity.INFO, epoch_completed())])
    sink.close()
    assert len(list(read_events("~/events"))) == len(event_table("~/events")["id"]) == 1
    env = gymnasium.make("Esper-Digits-v0", **SMALL)
    env.reset(seed=0)
    env.unwrapped.save_state("~/env.safetensors")
    env.unwrapped.load_state("~/env.safetensors")
    env.close()
    assert str(home / "data") in verify_dataset("cifar10", "~/data").detail
    assert {path.name for path in home.iterdir()} == {"text.txt", "state.safetensors", "events", "env.safetensors"}
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "use",
    [
        lambda path: write_text(path, ""),
        lambda path: write_checkpoint(path, {}, kind="test"),
        JsonlSink,
        data_folder,
        lambda path: load_data(path, family=DataFamily.TEXT),
        lambda path: fetch_dataset("cifar10", path),
    ],
)
def test_functions_with_paths_reject_other_bytes_before_anything_is_made(
    home: Path, use: Callable[[str], object]
) -> None:
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        use(f"{home}/bad\udce9")
    with pytest.raises(ValueError, match="is ''; expected "):
        use("")
    assert not home.exists()
    assert list(Path().iterdir()) == []
