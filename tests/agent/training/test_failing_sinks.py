"""A run whose sinks raise, hang or have no room warns once and otherwise equals a run without sinks."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import SMALL
from esper_agent.training.run import train
from esper_env.telemetry import JsonlSink, MemorySink, read_events
from made_events import HangingSink, RaisingSink
from resuming import REAL, differences, small_settings

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The run without sinks."""
    settings = small_settings(tmp_path_factory.mktemp("sound") / "run", *REAL, telemetry=False)
    train(settings)
    return settings.out


@pytest.fixture
def gate():
    """The event that hanging sinks wait for, set after the test."""
    gate = threading.Event()
    yield gate
    gate.set()


def train_with(folder, sinks, message):
    """Train with ``sinks`` and a sound one, which receives every event; the run warns once."""
    good = MemorySink()
    with pytest.warns(RuntimeWarning, match=message) as caught:
        train(small_settings(folder, *REAL), sinks=[*sinks, good])
    assert len(caught) == 1
    return [event.id for event in good.events]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()], ids=repr)
def test_raising_sink_warns_once_and_changes_nothing(sound, tmp_path, error):
    name = type(error).__name__
    ids = train_with(tmp_path / "run", [RaisingSink(error)], f"RaisingSink is switched off: {name}")
    assert ids == list(range(len(ids)))
    assert differences(tmp_path / "run", sound) == ["events"]  # which the sound run does not write
    assert len(list(read_events(tmp_path / "run" / "events"))) == len(ids)


def test_hanging_sink_warns_once_and_changes_nothing(sound, tmp_path, gate):
    ids = train_with(tmp_path / "run", [HangingSink(gate, "write")], "HangingSink .*did not finish within 5 seconds")
    assert ids == list(range(len(ids)))
    assert differences(tmp_path / "run", sound) == ["events"]  # which the sound run does not write


def test_disk_filled_by_events_warns_once_and_changes_nothing(sound, tmp_path, monkeypatch):
    room, write = [True] * 2, os.write

    def nearly_full(descriptor, data):
        if Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".jsonl" and not (room and room.pop()):
            raise FULL
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", nearly_full)
    ids = train_with(tmp_path / "run", [], r"JsonlSink is switched off: .*No space left .*events-00000\.jsonl")
    monkeypatch.undo()
    kept = [event.id for event in read_events(tmp_path / "run" / "events")]
    assert kept == ids[: len(kept)]
    assert 0 < len(kept) < len(ids)
    assert differences(tmp_path / "run", sound) == ["events"]  # which the sound run does not write


def test_files_are_closed_if_warnings_are_errors(sound, tmp_path):
    """The run has ended and is complete on disk."""

    class Unclosable(JsonlSink):
        def close(self):
            raise FULL

    with pytest.raises(RuntimeWarning, match="Unclosable is switched off"):
        train(small_settings(tmp_path / "run", *REAL), sinks=[Unclosable(tmp_path / "more")])
    assert differences(tmp_path / "run", sound) == ["events"]  # which the sound run does not write


@pytest.mark.slow
def test_full_standard_error_does_not_stop_a_run(tmp_path):
    """The console sink fails at the first of many warnings, and so does the warning about it."""
    noisy = ["--max-grad-norm", "0.001", *SMALL, "--device", "cpu"]
    tiny = ["--env-settings", "horizon=4", "batches_per_step=1", "batch_size=8"]
    arguments = [sys.executable, "-m", "esper_agent", "train", "--out", str(tmp_path / "run"), *noisy, *tiny]
    with Path("/dev/full").open("w") as full:
        out = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=full, text=True, check=True, timeout=300).stdout
    assert "Trained for 48 timesteps" in out
    assert len(list(read_events(tmp_path / "run" / "events"))) > 0
