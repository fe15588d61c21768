"""A run that is cut off and resumed becomes what it would have become, bit for bit; what cannot go on says why."""

import errno
import json
import os
import shutil
import signal
import time
import warnings
from dataclasses import replace

import pytest
import yaml
from esper_agent import saving
from esper_agent.callbacks import TrainingMetricsCallback
from esper_agent.configuration import ConfigError
from esper_agent.run_lock import locked
from esper_agent.runs import RunError
from esper_agent.saving import SaveCheckpoints
from esper_agent.session import save_model
from esper_agent.training import Trained, resume, train
from esper_env.checkpoint import CheckpointError
from resuming import N_STEPS, NUM_ENVS, REAL, ROLLOUT, Crash, differences, small_settings
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TOY = ("GrowthToy-v0", ("horizon=5",))
EVALUATED = {"eval_every": 2 * ROLLOUT, "eval_episodes": 2}
TOTAL = 6 * ROLLOUT


@pytest.fixture(scope="module")
def whole(toy_id, tmp_path_factory):
    """Runs that nothing interrupts, by task."""
    made = {}

    def run(task):
        if task not in made:
            made[task] = train(small_settings(tmp_path_factory.mktemp("whole") / "run", *task, **EVALUATED))
        return made[task]

    return run


def cut(folder, at, task=TOY, **changes):
    """A run that was killed at a timestep."""
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, *task, **EVALUATED | changes), [Crash(at)])
    return folder


def go_on(folder, **more) -> Trained:
    return resume(folder, progress=False, **more)


@pytest.mark.parametrize("task", [TOY, REAL], ids=["toy", "digits"])
@pytest.mark.parametrize("rollouts", [1, 3, 5])
def test_a_killed_run_becomes_the_same(whole, tmp_path, task, rollouts):
    assert N_STEPS % 5  # episodes are under way when it is saved
    folder = cut(tmp_path / "run", rollouts * ROLLOUT + NUM_ENVS, task)
    assert not (folder / "model.zip").exists()
    resumed = go_on(folder)
    assert resumed.resumed_from == rollouts * ROLLOUT
    assert differences(folder, whole(task).folder) == []
    assert resumed.episodes == whole(task).episodes
    assert whole(task).resumed_from is None


def test_a_run_without_a_checkpoint_starts_from_the_beginning_and_says_so(whole, tmp_path):
    folder = cut(tmp_path / "run", ROLLOUT - 1)
    with pytest.warns(RuntimeWarning, match="has no checkpoint yet; training starts from the beginning"):
        resumed = go_on(folder)
    assert resumed.resumed_from is None
    assert differences(folder, whole(TOY).folder) == []


def test_a_run_may_be_killed_again_and_again_and_moved(whole, tmp_path):
    folder = cut(tmp_path / "run", 17)
    for number, at in enumerate((25, 26, 50)):
        with pytest.raises(Crash.Killed):
            go_on(folder, callbacks=[Crash(at)])
        folder = folder.rename(tmp_path / f"moved {number}")
    go_on(folder)
    assert differences(folder, whole(TOY).folder) == []


def test_checkpoints_further_apart_lose_more_and_change_nothing(whole, tmp_path):
    folder = cut(tmp_path / "run", 5 * ROLLOUT, checkpoint_every=ROLLOUT + 1)
    assert go_on(folder).resumed_from == 4 * ROLLOUT
    assert differences(folder, whole(TOY).folder) == []


class Interrupt(BaseCallback):
    """Presses Ctrl-C at a timestep."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        if self.num_timesteps == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return True


@pytest.mark.parametrize("at", [2 * ROLLOUT + NUM_ENVS, TOTAL - NUM_ENVS, TOTAL])
def test_an_interrupted_run_goes_on(whole, tmp_path, at):
    """Also one that was interrupted by its very last step, of which nothing has been learned yet."""
    settings = small_settings(tmp_path / "run", *TOY, **EVALUATED)
    stopped = train(settings, [Interrupt(at)])
    assert stopped.interrupted
    assert go_on(settings.out).model.num_timesteps == TOTAL
    assert differences(settings.out, whole(TOY).folder) == []


@pytest.mark.parametrize("before", ["the model", "the last checkpoint"])
def test_a_run_that_is_killed_while_it_finishes_goes_on(whole, tmp_path, monkeypatch, before):
    def killed(*_arguments):
        raise Crash.Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if before == "the model":
            patch.setattr("esper_agent.session.save_model", killed)
        else:
            patch.setattr(
                "esper_agent.session.save_model",
                lambda *a: (patch.setattr(SaveCheckpoints, "save", killed), save_model(*a))[1],
            )
        with pytest.raises(Crash.Killed):
            train(small_settings(folder, *TOY, **EVALUATED))
    assert go_on(folder).resumed_from == TOTAL - ROLLOUT
    assert differences(folder, whole(TOY).folder) == []


@pytest.mark.parametrize("name", ["write_checkpoint", "Path.rename", "atomic.sync", "SaveCheckpoints._remove_others"])
@pytest.mark.parametrize("saves", [1, 3])
def test_a_run_that_is_killed_while_it_saves_goes_on(whole, tmp_path, monkeypatch, name, saves):
    """A killed process does not tidy up either."""
    owner, _, attribute = f"esper_agent.saving.{name}".rpartition(".")
    inner = getattr(saving, name) if "." not in name else getattr(getattr(saving, name.split(".")[0]), attribute)
    calls = []

    def killed(*arguments, **more):
        calls.append(name)
        if len(calls) == saves:
            monkeypatch.setattr(shutil, "rmtree", lambda *_arguments, **_more: None)
            raise Crash.Killed
        return inner(*arguments, **more)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"{owner}.{attribute}", killed)
        with pytest.raises(Crash.Killed):
            train(small_settings(folder, *TOY, **EVALUATED))
    monkeypatch.undo()
    with warnings.catch_warnings():
        if saves == 1 and name in ("write_checkpoint", "Path.rename"):
            warnings.simplefilter("ignore")  # there is none yet
        go_on(folder)
    assert differences(folder, whole(TOY).folder) == []
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"{5 * ROLLOUT:012}", f"{TOTAL:012}"]


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


def replace_by_another_kind(checkpoint):
    shutil.rmtree(checkpoint)
    saving.write_checkpoint(checkpoint, {"x": 1}, kind="something else")


def older_layout(checkpoint):
    tree = saving.read_checkpoint(checkpoint, kind=saving.KIND)
    tree["state"]["layout"] = 0
    saving.write_checkpoint(checkpoint, tree, kind=saving.KIND)


def move(checkpoint):
    checkpoint.rename(checkpoint.with_name("000000000999"))


DAMAGES = {
    "truncated": (truncate, "bytes of the"),
    "one bit": (forge, "or other ones"),
    "no manifest": (lambda checkpoint: (checkpoint / "manifest.json").unlink(), "it has no manifest.json"),
    "half a manifest": (lambda checkpoint: os.truncate(checkpoint / "manifest.json", 50), "is incomplete or no JSON"),
    "foreign": (replace_by_another_kind, "is a checkpoint of an something else"),
    "a file": (lambda checkpoint: (shutil.rmtree(checkpoint), checkpoint.touch()), "it has no manifest.json"),
    "older format": (age, "has an older format, 0"),
    "older layout": (older_layout, "has layout 0, this version of esper-agent reads 1"),
    "renamed": (move, "it has been renamed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_costs_the_way_from_the_one_before(whole, tmp_path, name):
    damage, message = DAMAGES[name]
    folder = cut(tmp_path / "run", 3 * ROLLOUT + 1)
    damage(folder / "checkpoints" / f"{3 * ROLLOUT:012}")
    with pytest.warns(
        RuntimeWarning, match=rf"newer checkpoint cannot be read: .*{message}.*goes on from .*{2 * ROLLOUT}"
    ):
        assert go_on(folder).resumed_from == 2 * ROLLOUT
    assert differences(folder, whole(TOY).folder) == []


@pytest.mark.parametrize("name", ["truncated", "older format", "older layout", "foreign"])
def test_checkpoints_of_which_none_can_be_read_are_an_error_that_names_them(tmp_path, name):
    damage, message = DAMAGES[name]
    folder = cut(tmp_path / "run", 3 * ROLLOUT + 1)
    for checkpoint in (folder / "checkpoints").iterdir():
        damage(checkpoint)
    before = contents(folder)
    with pytest.raises(
        CheckpointError, match=f"none that can be read: .*{3 * ROLLOUT}.*{message}.*{2 * ROLLOUT}.*{message}"
    ):
        go_on(folder)
    assert contents(folder) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.lock"}


def test_what_is_no_checkpoint_is_left_alone(whole, tmp_path):
    folder = cut(tmp_path / "run", 3 * ROLLOUT + 1)
    (folder / "checkpoints" / "notes.txt").write_text("mine")
    (folder / "checkpoints" / "best").mkdir()
    go_on(folder)
    assert (folder / "checkpoints" / "notes.txt").read_text() == "mine"
    assert (folder / "checkpoints" / "best").is_dir()
    assert differences(folder, whole(TOY).folder) == []


def test_a_full_disk_costs_a_warning_and_keeps_the_checkpoint_before(whole, tmp_path, monkeypatch):
    inner, calls = saving.write_checkpoint, []

    def full(folder, tree, *, kind):
        calls.append(folder)
        if len(calls) > 2:
            folder.mkdir(parents=True)
            (folder / "half").write_bytes(b"...")
            raise OSError(errno.ENOSPC, "No space left on device")
        return inner(folder, tree, kind=kind)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    folder = tmp_path / "run"
    with pytest.warns(RuntimeWarning, match="cannot be saved .*No space left on device.*0024 stays") as caught:
        cut(folder, 5 * ROLLOUT + 1)
    assert len(caught) == 3  # one for each that failed
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"{n * ROLLOUT:012}" for n in (1, 2)]
    monkeypatch.undo()
    assert go_on(folder).resumed_from == 2 * ROLLOUT
    assert differences(folder, whole(TOY).folder) == []


def test_a_disk_that_is_full_for_all_checkpoints_does_not_stop_the_training(whole, tmp_path, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_checkpoint", full)
    folder = tmp_path / "run"
    with pytest.warns(RuntimeWarning, match="there is none before it, and training goes on"):
        train(small_settings(folder, *TOY, **EVALUATED))
    assert differences(folder, whole(TOY).folder) == []


def test_a_finished_run_is_not_trained_again(whole):
    before = contents(whole(TOY).folder)
    with pytest.raises(RunError, match="is finished: all of its 72 timesteps are done"):
        go_on(whole(TOY).folder)
    assert contents(whole(TOY).folder) == before


def test_a_run_that_was_trained_without_checkpoints_has_nothing_to_go_on_from(toy_id, tmp_path):
    settings = small_settings(tmp_path / "run", *TOY, checkpoint_every=0, total_timesteps=ROLLOUT)
    train(settings)
    assert not (settings.out / "checkpoints").exists()
    with pytest.raises(RunError, match="has a model but no checkpoint to go on from"):
        go_on(settings.out)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: None, RunError, "there is no run folder"),
        (lambda folder: folder.write_text("x"), RunError, "is a file"),
        (lambda folder: folder.mkdir(), RunError, "is not a run: it has no config.yaml"),
        (lambda folder: config(folder, "env: [1"), RunError, "cannot be used: .* is neither YAML nor JSON"),
        (lambda folder: config(folder, "seed: 1"), RunError, "does not name an environment"),
        (lambda folder: config(folder, "env: x\nsed: 1"), ConfigError, "'sed' is not a setting; did you mean 'seed'"),
        (lambda folder: config(folder, "env: x\nseed: -1"), ConfigError, "seed is -1; expected"),
    ],
)
def test_a_folder_that_is_no_run_says_so(tmp_path, make, error, message):
    make(tmp_path / "run")
    with pytest.raises(error, match=message):
        go_on(tmp_path / "run")


def config(folder, text):
    folder.mkdir()
    (folder / "config.yaml").write_text(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 4), ("total_timesteps", 144), ("env_settings", ["horizon=6"]), ("ppo", {"learning_rate": 0.5})],
)
def test_a_configuration_that_was_changed_is_refused(toy_id, tmp_path, name, value):
    folder = cut(tmp_path / "run", ROLLOUT + 1)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings[name] = settings[name] | value if isinstance(value, dict) else value
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    before = contents(folder)
    with pytest.raises(CheckpointError, match=f"was saved with {name} = .*, the run's configuration has"):
        go_on(folder)
    assert contents(folder) == before


def test_a_run_is_trained_by_one_process_at_a_time(toy_id, tmp_path):
    folder = cut(tmp_path / "run", ROLLOUT + 1)
    before = contents(folder)
    with (
        locked(folder),
        pytest.raises(RunError, match=rf"is being trained by another process \({os.getpid()}\); wait for it to end"),
    ):
        go_on(folder)
    assert contents(folder) == before
    go_on(folder)


class Rival(BaseCallback):
    """Tries to go on with the run that is being trained."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.refused = folder, False

    def _on_step(self):
        if not self.refused:
            with pytest.raises(RunError, match="is being trained by another process"):
                go_on(self.folder)
            self.refused = True
        return True


def test_a_run_that_has_just_begun_is_locked_too(toy_id, tmp_path):
    rival = Rival(tmp_path / "run")
    train(small_settings(tmp_path / "run", *TOY, total_timesteps=ROLLOUT), [rival])
    assert rival.refused


def test_other_versions_are_told(toy_id, tmp_path):
    folder = cut(tmp_path / "run", ROLLOUT + 1)
    versions = json.loads((folder / "versions.json").read_text())
    (folder / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}))
    with pytest.warns(RuntimeWarning, match="began with torch 1.0; it goes on with"):
        go_on(folder)


@pytest.mark.parametrize("name", ["episodes.csv", "progress.csv"])
def test_lines_that_are_lost_cost_a_gap_and_a_warning(whole, tmp_path, name):
    folder = cut(tmp_path / "run", 4 * ROLLOUT + 1)
    lines = (folder / name).read_text().splitlines(keepends=True)
    (folder / name).write_text("".join(lines[:2]))
    with pytest.warns(RuntimeWarning, match=rf"{name} has 1 of the \d+ lines"):
        go_on(folder)
    assert differences(folder, whole(TOY).folder) == [name.removesuffix(".csv")]


def test_an_environment_without_a_state_is_refused_before_anything_is_written(toy_id, tmp_path, monkeypatch):
    monkeypatch.delattr("conftest.GrowthToyVector.get_state", raising=False)
    settings = small_settings(tmp_path / "run", *TOY)
    vector = type(train(settings).model.get_env().unwrapped.vec_env)
    monkeypatch.delattr(vector, "get_state")
    with pytest.raises(CheckpointError, match="has no get_state and set_state.*checkpoint_every=0"):
        train(replace(settings, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()
    train(replace(settings, out=tmp_path / "other", checkpoint_every=0))


class Counter(TrainingMetricsCallback):
    """A callback of one's own with a state: steps that it has seen."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def get_state(self):
        return {"steps": self.steps}

    def set_state(self, state):
        self.steps = state["steps"]

    def _on_step(self):
        self.steps += 1
        return True


def test_a_callback_of_ones_own_goes_on_too(toy_id, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, *TOY), [Counter(), Crash(2 * ROLLOUT + 1)])
    with pytest.raises(CheckpointError, match=r"callbacks lacks \[\] and has \['Counter'\]"):
        go_on(folder)
    counter = Counter()
    go_on(folder, callbacks=[counter])
    assert counter.steps == TOTAL / NUM_ENVS


def test_tensorboard_shows_one_curve(whole, tmp_path):
    folder = cut(tmp_path / "run", 3 * ROLLOUT + 1)
    first = int(next(folder.glob("events.*")).name.split(".")[3])
    while int(time.time()) <= first:  # files are read in the order of the seconds that are in their names
        time.sleep(0.05)
    go_on(folder)
    assert curves(folder) == curves(whole(TOY).folder)


def curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("time/")]
    assert "train/loss" in names
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
