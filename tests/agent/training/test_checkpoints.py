"""Checkpoints on disk: the latest two are kept, and a full disk, damage or foreign files lose as little as possible."""

import errno
import os
import shutil

import pytest
from esper_agent.training import checkpoints as saving
from esper_agent.training.checkpoints import SaveCheckpoints, checkpoint_paths, latest_checkpoint
from esper_agent.training.run import resume, train
from esper_agent.training.session import fixed_settings
from esper_agent.training.state import KIND, LAYOUT
from esper_env.persistence.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from resuming import ROLLOUT, Crash, differences, small_settings
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
    return latest_checkpoint(folder, fixed_settings(small_settings(folder, *TOY)))


def names(folder):
    return [int(path.stem) for path in checkpoint_paths(folder)]


def saved_during(model, folder, timesteps, **arguments):
    saved = []
    saver = SaveCheckpoints(folder, on_saved=lambda path, done: saved.append((path, done)), **arguments)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(timesteps, callback=saver)
    return saver, saved


@pytest.mark.parametrize(
    ("every", "at"),
    [(1, [1, 2, 3]), (ROLLOUT, [1, 2, 3]), (ROLLOUT + 1, [2]), (2 * ROLLOUT, [2]), (9 * ROLLOUT, []), (0, [])],
)
def test_checkpoint_interval_is_rounded_up_to_rollouts(finished, tmp_path, every, at):
    model = finished[1].model
    _, saved = saved_during(model, tmp_path, 4 * ROLLOUT, every=every)
    assert saved == [(tmp_path / "checkpoints" / f"{n * ROLLOUT:012}.safetensors", n * ROLLOUT) for n in at]
    assert names(tmp_path) == [n * ROLLOUT for n in reversed(at[-2:])]


def test_save_checkpoints_rejects_a_negative_interval(tmp_path):
    with pytest.raises(ValueError, match="every is -1"):
        SaveCheckpoints(tmp_path, -1)


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


def truncate(path):
    os.truncate(path, path.stat().st_size - 100)


def forge(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def unreadable(path):
    """Replace a file by a link to itself, which no system opens."""
    path.unlink()
    path.symlink_to(path.name)


def folder_of_version_1(path):
    path.unlink()
    path.with_suffix("").mkdir()


def another_kind(path):
    path.unlink()
    write_checkpoint(path, {"x": 1}, kind="something else")


def put(path, **tree):
    write_checkpoint(path, {"settings": {}, "state": {"layout": LAYOUT}} | tree, kind=KIND)


def older_layout(path):
    tree = read_checkpoint(path, kind=KIND)
    tree["state"]["layout"] = LAYOUT - 1
    write_checkpoint(path, tree, kind=KIND)


DAMAGES = {
    "truncated": (truncate, "is incomplete"),
    "one bit": (forge, "its checksum does not match"),
    "empty": (lambda path: path.write_bytes(b""), "is incomplete"),
    "foreign": (another_kind, "is a checkpoint of the kind 'something else'"),
    "unreadable": (unreadable, "does not exist|symbolic link"),
    "folder": (folder_of_version_1, "is a folder"),
    "older layout": (older_layout, f"has layout {LAYOUT - 1}; this version of esper-agent reads layout {LAYOUT}"),
    "no state": (lambda path: put(path, state=3), "state of .* is 3; expected a dict"),
    "no settings": (lambda path: put(path, settings=[]), "settings of .* is .*; expected a dict"),
    "no timesteps": (put, "holds timestep None"),
    "renamed": (lambda path: path.rename(path.with_stem("000000000999")), "it was renamed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint_falls_back_to_the_previous_one(run, name):
    damage, message = DAMAGES[name]
    assert latest(run).timesteps == 6 * ROLLOUT
    damage(checkpoint_paths(run)[0])
    before = f"resumes from .*{5 * ROLLOUT:012}"
    with pytest.warns(RuntimeWarning, match=rf"newer checkpoint cannot be read: .*(?:{message}).*{before}"):
        assert latest(run).timesteps == 5 * ROLLOUT


@pytest.mark.parametrize("name", DAMAGES)
def test_unreadable_checkpoints_are_named_in_the_error(run, name):
    damage, message = DAMAGES[name]
    newer, older = checkpoint_paths(run)
    older.unlink()
    damage(newer)
    with pytest.raises(
        CheckpointError, match=f"no readable checkpoint: .*(?:{message}).*To start again, use another folder"
    ):
        latest(run)


def test_full_disk_warns_and_keeps_the_previous_checkpoint(finished, tmp_path, monkeypatch):
    inner, calls = saving.write_checkpoint, []

    def full(folder, tree, *, kind):
        calls.append(folder)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return inner(folder, tree, kind=kind)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    settings = small_settings(tmp_path / "run", *TOY)
    with (
        pytest.warns(RuntimeWarning, match=r"cannot be saved .*No space left.*0024.safetensors is kept") as caught,
        pytest.raises(Crash.Killed),
    ):
        train(settings, [Crash(5 * ROLLOUT + 1)])
    assert len(caught) == 3  # one per failed save
    assert sorted(path.name for path in (settings.out / "checkpoints").iterdir()) == [
        f"{n * ROLLOUT:012}.safetensors" for n in (1, 2)
    ]
    monkeypatch.undo()
    assert resume(settings.out, progress=False).resumed_from == 2 * ROLLOUT
    assert differences(settings.out, finished[1].folder) == []


def test_full_disk_without_earlier_checkpoint_does_not_stop_training(finished, tmp_path, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_checkpoint", full)
    settings = small_settings(tmp_path / "run", *TOY)
    with pytest.warns(RuntimeWarning, match="no earlier checkpoint exists, and training continues"):
        train(settings)
    assert differences(settings.out, finished[1].folder) == []
