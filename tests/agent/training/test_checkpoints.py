"""Checkpoints on disk: the latest two are kept, and a full disk, damage or foreign files lose as little as possible."""

import errno
import os
import shutil

import pytest
from esper_agent.training import checkpoints as saving
from esper_agent.training.checkpoints import SaveCheckpoints, checkpoint_paths, latest_checkpoint
from esper_agent.training.run import _fixed_settings, train
from esper_agent.training.state import KIND, LAYOUT
from esper_env.persistence.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from esper_env.telemetry import MemorySink
from resuming import ROLLOUT, differences, small_settings
from stable_baselines3.common.logger import Logger

TOY = ("GrowthToy-v0", ("horizon=5",))


@pytest.fixture(scope="module")
def finished(toy_id, tmp_path_factory):
    """A run and the reports of SaveCheckpoints."""
    assert TOY[0] == toy_id
    settings = small_settings(tmp_path_factory.mktemp("finished") / "run", *TOY)
    return settings, train(settings)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run whose checkpoints may be damaged."""
    return shutil.copytree(finished[1].folder, tmp_path / "run")


def latest(folder):
    return latest_checkpoint(folder, _fixed_settings(small_settings(folder, *TOY)))


def names(folder):
    return [int(path.stem) for path in checkpoint_paths(folder)]


def saved_during(model, folder, timesteps, **arguments):
    saved = []
    saver = SaveCheckpoints(folder, on_saved=lambda path, done: saved.append((path, done)), **arguments)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(timesteps, callback=saver)
    return saver, saved


def test_checkpoint_interval_cannot_be_negative(tmp_path):
    with pytest.raises(ValueError, match="`every` is -1; expected a non-negative integer"):
        SaveCheckpoints(tmp_path, every=-1)


@pytest.mark.parametrize(
    ("every", "at"),
    [(1, [1, 2, 3]), (ROLLOUT, [1, 2, 3]), (ROLLOUT + 1, [2]), (9 * ROLLOUT, []), (0, [])],
)
def test_checkpoint_interval_is_rounded_up_to_rollouts(finished, tmp_path, every, at):
    model = finished[1].model
    _, saved = saved_during(model, tmp_path, 4 * ROLLOUT, every=every)
    assert saved == [(tmp_path / "checkpoints" / f"{n * ROLLOUT:012}.safetensors", n * ROLLOUT) for n in at]
    assert names(tmp_path) == [n * ROLLOUT for n in reversed(at[-2:])]


def test_last_checkpoint_is_saved_once_at_the_end(finished, tmp_path):
    saver, saved = saved_during(finished[1].model, tmp_path, 2 * ROLLOUT, every=1)
    saver.save()
    saver.save()
    assert [done for _, done in saved] == [ROLLOUT, 2 * ROLLOUT]
    assert not saver.in_rollout


def test_save_removes_temporary_files_of_killed_processes(finished, tmp_path):
    place = tmp_path / "checkpoints"
    place.mkdir()
    for name in (f".{ROLLOUT:012}.7.safetensors", ".000000000001.7.safetensors", "000000009999.safetensors"):
        (place / name).write_bytes(b"torn")
    for name in (f"{ROLLOUT:012}.safetensors", f"{2 * ROLLOUT:012}.safetensors"):
        (place / name).touch()
    saved_during(finished[1].model, tmp_path, 3 * ROLLOUT, every=1)
    assert sorted(path.name for path in place.iterdir()) == [f"{n * ROLLOUT:012}.safetensors" for n in (1, 2)]
    assert all(read_checkpoint(path, kind=KIND) for path in place.iterdir())


def unreadable(path):
    """Replace a file by a link to itself, which no system opens."""
    path.unlink()
    path.symlink_to(path.name)


def another_kind(path):
    path.unlink()
    write_checkpoint(path, {"x": 1}, kind="something else")


def older_layout(path):
    tree = read_checkpoint(path, kind=KIND)
    tree["state"]["layout"] = LAYOUT - 1
    write_checkpoint(path, tree, kind=KIND)


DAMAGES = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 100), "is incomplete"),
    "foreign": (another_kind, "is a checkpoint of the kind 'something else'"),
    "unreadable": (unreadable, "does not exist|symbolic link"),
    "older layout": (older_layout, f"has layout {LAYOUT - 1}; this version of esper-agent reads layout {LAYOUT}"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_previous_one_if_there_is_one(run, name):
    damage, message = DAMAGES[name]
    newer, older = checkpoint_paths(run)
    assert latest(run).timesteps == 6 * ROLLOUT
    damage(newer)
    before = f"resumes from .*{5 * ROLLOUT:012}"
    with pytest.warns(RuntimeWarning, match=rf"newer checkpoint cannot be read: .*(?:{message}).*{before}"):
        assert latest(run).timesteps == 5 * ROLLOUT
    older.unlink()
    said = f"no readable checkpoint: .*(?:{message}).*To start again, use another folder"
    with pytest.raises(CheckpointError, match=said):
        latest(run)


@pytest.mark.parametrize("saves", [0, 2])
def test_full_disk_warns_and_keeps_the_previous_checkpoint(finished, tmp_path, monkeypatch, saves):
    """From the failing save on, no checkpoint is saved or reported."""
    inner, calls = saving.write_checkpoint, []

    def full(folder, tree, *, kind):
        calls.append(folder)
        if len(calls) > saves:
            raise OSError(errno.ENOSPC, "No space left on device")
        return inner(folder, tree, kind=kind)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    settings, sink = small_settings(tmp_path / "run", *TOY), MemorySink()
    kept = "0024.safetensors is kept" if saves else "no earlier checkpoint exists; training is not affected$"
    with pytest.warns(RuntimeWarning, match=rf"cannot be saved .*No space left.*{kept}") as caught:
        train(settings, sinks=[sink])
    assert len(caught) == 6 - saves
    assert differences(settings.out, finished[1].folder) == []
    assert names(tmp_path / "run") == [n * ROLLOUT for n in (2, 1)[:saves]]
    assert [event.type for event in sink.events].count("CHECKPOINT_SAVED") == saves
