"""Checkpoints on disk: the last two, each whole; a full disk, damage and foreign files cost what they must, no more."""

import errno
import json
import os
import shutil

import pytest
from esper_agent.training import checkpoints as saving
from esper_agent.training.checkpoints import SaveCheckpoints, checkpoint_paths, latest_checkpoint
from esper_agent.training.run import resume, train
from esper_agent.training.session import lasting
from esper_agent.training.state import KIND
from esper_env.persistence.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from resuming import ROLLOUT, Crash, differences, small_settings
from stable_baselines3.common.logger import Logger

TOY = ("GrowthToy-v0", ("horizon=5",))


@pytest.fixture(scope="module")
def finished(toy_id, tmp_path_factory):
    """A run with everything that SaveCheckpoints reported of it."""
    assert TOY[0] == toy_id
    settings = small_settings(tmp_path_factory.mktemp("finished") / "run", *TOY)
    return settings, train(settings)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, whose checkpoints may be damaged."""
    return shutil.copytree(finished[1].folder, tmp_path / "run")


def latest(folder):
    return latest_checkpoint(folder, lasting(small_settings(folder, *TOY)))


def names(folder):
    return [int(path.name) for path in checkpoint_paths(folder)]


def saved_during(model, folder, timesteps, **arguments):
    told = []
    saver = SaveCheckpoints(folder, on_saved=lambda path, done: told.append((path, done)), **arguments)
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.learn(timesteps, callback=saver)
    return saver, told


@pytest.mark.parametrize(
    ("every", "at"),
    [(1, [1, 2, 3]), (ROLLOUT, [1, 2, 3]), (ROLLOUT + 1, [2]), (2 * ROLLOUT, [2]), (9 * ROLLOUT, []), (0, [])],
)
def test_one_is_saved_every_so_many_timesteps_rounded_up_to_rollouts(finished, tmp_path, every, at):
    model = finished[1].model
    _, told = saved_during(model, tmp_path, 4 * ROLLOUT, every=every)
    assert told == [(tmp_path / "checkpoints" / f"{n * ROLLOUT:012}", n * ROLLOUT) for n in at]
    assert names(tmp_path) == [n * ROLLOUT for n in reversed(at[-2:])]


def test_a_negative_distance_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every is -1"):
        SaveCheckpoints(tmp_path, -1)


def test_the_last_one_is_of_the_end_and_is_saved_once(finished, tmp_path):
    saver, told = saved_during(finished[1].model, tmp_path, 2 * ROLLOUT, every=1)
    saver.save()
    saver.save()
    assert [done for _, done in told] == [ROLLOUT, 2 * ROLLOUT]
    assert not saver.in_rollout


def test_what_killed_processes_left_is_tidied_up(finished, tmp_path):
    place = tmp_path / "checkpoints"
    for name in (f".{ROLLOUT:012}", ".000000000001", f"{2 * ROLLOUT:012}", "000000009999"):
        (place / name).mkdir(parents=True)
        (place / name / "half").touch()
    (place / f"{ROLLOUT:012}").touch()
    saved_during(finished[1].model, tmp_path, 3 * ROLLOUT, every=1)
    assert sorted(path.name for path in place.iterdir()) == [f"{n * ROLLOUT:012}" for n in (1, 2)]
    assert all(read_checkpoint(path, kind=KIND) for path in place.iterdir())


def truncate(checkpoint):
    file = next(checkpoint.glob("arrays-*"))
    os.truncate(file, file.stat().st_size - 100)


def forge(checkpoint):
    file = next(checkpoint.glob("arrays-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def age(checkpoint):
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))


def unreadable(checkpoint):
    """What every system refuses to open: a link to itself."""
    file = checkpoint / "manifest.json"
    file.unlink()
    file.symlink_to(file.name)


def replace_by_another_kind(checkpoint):
    shutil.rmtree(checkpoint)
    write_checkpoint(checkpoint, {"x": 1}, kind="something else")


def put(checkpoint, **tree):
    write_checkpoint(checkpoint, {"settings": {}, "state": {"layout": 1}} | tree, kind=KIND)


def older_layout(checkpoint):
    tree = read_checkpoint(checkpoint, kind=KIND)
    tree["state"]["layout"] = 0
    write_checkpoint(checkpoint, tree, kind=KIND)


def move(checkpoint):
    checkpoint.rename(checkpoint.with_name("000000000999"))


DAMAGES = {
    "truncated": (truncate, "bytes of the"),
    "one bit": (forge, "or other ones"),
    "no manifest": (lambda checkpoint: (checkpoint / "manifest.json").unlink(), "it has no manifest.json"),
    "half a manifest": (lambda checkpoint: os.truncate(checkpoint / "manifest.json", 50), "is incomplete or no JSON"),
    "foreign": (replace_by_another_kind, "is a checkpoint of the kind 'something else'"),
    "a file": (lambda checkpoint: (shutil.rmtree(checkpoint), checkpoint.touch()), "it has no manifest.json"),
    "unreadable": (unreadable, "symbolic link"),
    "older format": (age, "has an older format, 0"),
    "older layout": (older_layout, "has layout 0, this version of esper-agent reads 1"),
    "no state": (lambda checkpoint: put(checkpoint, state=3), "state of .* is 3; expected a dict"),
    "no settings": (lambda checkpoint: put(checkpoint, settings=[]), "settings of .* is .*; expected a dict"),
    "no timesteps": (put, "is of timestep None"),
    "renamed": (move, "it has been renamed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_taken(run, name):
    damage, message = DAMAGES[name]
    assert latest(run).timesteps == 6 * ROLLOUT
    damage(checkpoint_paths(run)[0])
    before = f"goes on from .*{5 * ROLLOUT:012}"
    with pytest.warns(RuntimeWarning, match=rf"newer checkpoint cannot be read: .*{message}.*{before}"):
        assert latest(run).timesteps == 5 * ROLLOUT


@pytest.mark.parametrize("name", DAMAGES)
def test_checkpoints_of_which_none_can_be_read_are_an_error_that_names_them(run, name):
    damage, message = DAMAGES[name]
    newer, older = checkpoint_paths(run)
    shutil.rmtree(older)
    damage(newer)
    with pytest.raises(
        CheckpointError, match=f"none that can be read: .*{message}.*To train anew, give another folder"
    ):
        latest(run)


def test_a_full_disk_costs_a_warning_and_keeps_the_checkpoint_before(finished, tmp_path, monkeypatch):
    inner, calls = saving.write_checkpoint, []

    def full(folder, tree, *, kind):
        calls.append(folder)
        if len(calls) > 2:
            folder.mkdir(parents=True)
            (folder / "half").write_bytes(b"...")
            raise OSError(errno.ENOSPC, "No space left on device")
        return inner(folder, tree, kind=kind)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    settings = small_settings(tmp_path / "run", *TOY)
    with (
        pytest.warns(RuntimeWarning, match=r"cannot be saved .*No space left on device.*0024 stays") as caught,
        pytest.raises(Crash.Killed),
    ):
        train(settings, [Crash(5 * ROLLOUT + 1)])
    assert len(caught) == 3  # one for each that failed
    assert sorted(path.name for path in (settings.out / "checkpoints").iterdir()) == [
        f"{n * ROLLOUT:012}" for n in (1, 2)
    ]
    monkeypatch.undo()
    assert resume(settings.out, progress=False).resumed_from == 2 * ROLLOUT
    assert differences(settings.out, finished[1].folder) == []


def test_a_disk_that_is_always_full_does_not_stop_the_training(finished, tmp_path, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_checkpoint", full)
    settings = small_settings(tmp_path / "run", *TOY)
    with pytest.warns(RuntimeWarning, match="there is none before it, and training goes on"):
        train(settings)
    assert differences(settings.out, finished[1].folder) == []
