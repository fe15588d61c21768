"""An interrupted and resumed run equals an uninterrupted one bit for bit, or raises an error with the reason."""

import json
import os
import shutil
import signal
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import yaml
from esper_agent.sb3 import make_sb3_env
from esper_agent.settings.named_values import ConfigError
from esper_agent.training import checkpoints as saving
from esper_agent.training.checkpoints import SaveCheckpoints, checkpoint_paths
from esper_agent.training.run import Trained, resume, train
from esper_agent.training.run_folder import RunError
from esper_agent.training.run_lock import locked
from esper_agent.training.session import save_model
from esper_agent.training.state import KIND
from esper_env.persistence.checkpoint import CheckpointError, read_checkpoint
from resuming import N_STEPS, NUM_ENVS, REAL, ROLLOUT, Crash, differences, small_settings
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TOY = ("GrowthToy-v0", ("horizon=5",))
EVALUATED = {"eval_every": 2 * ROLLOUT, "eval_episodes": 2}
TOTAL = 6 * ROLLOUT


@pytest.fixture(scope="module", autouse=True)
def _toy(toy_id):
    """Register the toy before the first run of this module."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs by task."""
    made = {}

    def run(task):
        if task not in made:
            made[task] = train(small_settings(tmp_path_factory.mktemp("whole") / "run", *task, **EVALUATED))
        return made[task]

    return run


def cut(folder, at, task=TOY, **changes):
    """Train a run that is killed at a timestep."""
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, *task, **EVALUATED | changes), [Crash(at)])
    return folder


def finish(folder, **more) -> Trained:
    return resume(folder, progress=False, **more)


@pytest.mark.parametrize("task", [TOY, REAL], ids=["toy", "digits"])
@pytest.mark.parametrize("rollouts", [1, 3, 5])
def test_killed_run_resumes_bit_for_bit(whole, tmp_path, task, rollouts):
    assert N_STEPS % 5  # checkpoints are saved within episodes
    folder = cut(tmp_path / "run", rollouts * ROLLOUT + NUM_ENVS, task)
    assert not (folder / "model.zip").exists()
    resumed = finish(folder)
    assert resumed.resumed_from == rollouts * ROLLOUT
    assert differences(folder, whole(task).folder) == []
    assert resumed.episodes == whole(task).episodes
    assert whole(task).resumed_from is None


@pytest.fixture(scope="module")
def _killed(tmp_path_factory):
    return cut(tmp_path_factory.mktemp("killed") / "run", 3 * ROLLOUT + 1)


@pytest.fixture
def killed(_killed, tmp_path):
    """A run killed soon after its third rollout."""
    return shutil.copytree(_killed, tmp_path / "run")


def test_run_without_checkpoint_restarts_with_a_warning(whole, tmp_path):
    folder = cut(tmp_path / "run", ROLLOUT - 1)
    with pytest.warns(RuntimeWarning, match="has no checkpoint yet; training starts from the beginning"):
        resumed = finish(folder)
    assert resumed.resumed_from is None
    assert differences(folder, whole(TOY).folder) == []


def test_run_resumes_after_repeated_kills_and_a_move(whole, tmp_path):
    folder = cut(tmp_path / "run", 17)
    for number, at in enumerate((25, 26, 50)):
        with pytest.raises(Crash.Killed):
            finish(folder, callbacks=[Crash(at)])
        folder = folder.rename(tmp_path / f"moved {number}")
    finish(folder)
    assert differences(folder, whole(TOY).folder) == []


def test_checkpoint_interval_does_not_change_results(whole, tmp_path):
    folder = cut(tmp_path / "run", 5 * ROLLOUT, checkpoint_every=ROLLOUT + 1)
    assert finish(folder).resumed_from == 4 * ROLLOUT
    assert differences(folder, whole(TOY).folder) == []


class Interrupt(BaseCallback):
    """Sends SIGINT at a timestep."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        if self.num_timesteps == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return True


@pytest.mark.parametrize("at", [2 * ROLLOUT + NUM_ENVS, TOTAL - NUM_ENVS])
def test_interrupted_run_resumes_bit_for_bit(whole, tmp_path, at):
    """Includes an interrupt in the very last step, before the last update."""
    settings = small_settings(tmp_path / "run", *TOY, **EVALUATED)
    stopped = train(settings, [Interrupt(at)])
    assert stopped.interrupted
    assert stopped.model.num_timesteps == at + NUM_ENVS
    assert finish(settings.out).model.num_timesteps == TOTAL
    assert differences(settings.out, whole(TOY).folder) == []


@pytest.mark.parametrize("before", ["the model", "the last checkpoint"])
def test_run_killed_while_finishing_resumes(whole, tmp_path, monkeypatch, before):
    def killed(*_arguments):
        raise Crash.Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if before == "the model":
            patch.setattr("esper_agent.training.session.save_model", killed)
        else:
            patch.setattr(
                "esper_agent.training.session.save_model",
                lambda *a: (patch.setattr(SaveCheckpoints, "save", killed), save_model(*a))[1],
            )
        with pytest.raises(Crash.Killed):
            train(small_settings(folder, *TOY, **EVALUATED))
    assert finish(folder).resumed_from == TOTAL - ROLLOUT
    assert differences(folder, whole(TOY).folder) == []


@pytest.mark.parametrize("name", ["write_checkpoint", "SaveCheckpoints._remove_others"])
@pytest.mark.parametrize("saves", [1, 3])
def test_run_killed_while_saving_resumes(whole, tmp_path, monkeypatch, name, saves):
    owner, _, attribute = f"esper_agent.training.checkpoints.{name}".rpartition(".")
    inner = getattr(saving, name) if "." not in name else getattr(getattr(saving, name.split(".")[0]), attribute)
    calls = []

    def killed(*arguments, **more):
        calls.append(name)
        if len(calls) == saves:
            raise Crash.Killed
        return inner(*arguments, **more)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"{owner}.{attribute}", killed)
        with pytest.raises(Crash.Killed):
            train(small_settings(folder, *TOY, **EVALUATED))
    monkeypatch.undo()
    with warnings.catch_warnings():
        if saves == 1 and name == "write_checkpoint":
            warnings.simplefilter("ignore")  # there may be no checkpoint yet
        finish(folder)
    assert differences(folder, whole(TOY).folder) == []
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        f"{at:012}.safetensors" for at in (5 * ROLLOUT, TOTAL)
    ]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.lock"}


def test_truncated_checkpoint_resumes_from_the_previous_one(whole, killed):
    file = killed / "checkpoints" / f"{3 * ROLLOUT:012}.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    with pytest.warns(RuntimeWarning, match="newer checkpoint cannot be read"):
        assert finish(killed).resumed_from == 2 * ROLLOUT
    assert differences(killed, whole(TOY).folder) == []


def test_run_with_unreadable_checkpoints_is_not_restarted(killed):
    for path in checkpoint_paths(killed):
        path.unlink()
        path.with_suffix("").mkdir()  # the format of versions before 2
    before = contents(killed)
    with pytest.raises(CheckpointError, match=r"no readable checkpoint: .*is a folder"):
        finish(killed)
    assert contents(killed) == before


def test_resume_keeps_files_that_are_not_checkpoints(whole, killed):
    (killed / "checkpoints" / "notes.txt").write_text("mine")
    (killed / "checkpoints" / "best").mkdir()
    finish(killed)
    assert {path.name for path in (killed / "checkpoints").iterdir()} >= {"notes.txt", "best"}
    assert differences(killed, whole(TOY).folder) == []


def test_finished_run_is_not_trained_again(whole):
    before = contents(whole(TOY).folder)
    with pytest.raises(RunError, match="is finished: all of its 72 timesteps are done"):
        finish(whole(TOY).folder)
    assert contents(whole(TOY).folder) == before


def test_run_trained_without_checkpoints_cannot_resume(tmp_path):
    settings = small_settings(tmp_path / "run", *TOY, checkpoint_every=0, total_timesteps=ROLLOUT)
    train(settings)
    assert not (settings.out / "checkpoints").exists()
    with pytest.raises(RunError, match="has a model but no checkpoint to resume from"):
        finish(settings.out)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda _folder: None, RunError, "there is no run folder"),
        (lambda folder: folder.write_text("x"), RunError, "is a file"),
        (lambda folder: folder.mkdir(), RunError, "is not a run: it has no config.yaml"),
        (lambda folder: config(folder, "env: [1"), RunError, "cannot be used: .* is neither YAML nor JSON"),
        (lambda folder: config(folder, "seed: 1"), RunError, "does not name an environment"),
        (lambda folder: config(folder, "env: x\nsed: 1"), ConfigError, "'sed' is not a setting; did you mean 'seed'"),
        (lambda folder: config(folder, "env: x\nseed: -1"), ConfigError, "`seed` is -1; expected"),
    ],
)
def test_resume_rejects_a_folder_without_a_run(tmp_path, make, error, message):
    make(tmp_path / "run")
    with pytest.raises(error, match=message):
        finish(tmp_path / "run")


def config(folder, text):
    folder.mkdir()
    (folder / "config.yaml").write_text(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 4), ("total_timesteps", 144), ("env_settings", {"horizon": 6}), ("ppo", {"learning_rate": 0.5})],
)
def test_resume_rejects_a_changed_configuration(killed, name, value):
    settings = yaml.safe_load((killed / "config.yaml").read_text())
    settings[name] = settings[name] | value if isinstance(value, dict) else value
    (killed / "config.yaml").write_text(yaml.safe_dump(settings))
    before = contents(killed)
    with pytest.raises(CheckpointError, match=rf"was saved with {name}[.\w]* = .*; the run's configuration has"):
        finish(killed)
    assert contents(killed) == before


def test_run_is_locked_by_one_process(killed):
    before = contents(killed)
    with (
        locked(killed),
        pytest.raises(RunError, match="is being trained by another process; wait for it to end"),
    ):
        finish(killed)
    assert contents(killed) == before
    finish(killed)


class Rival(BaseCallback):
    """Tries to resume the run that is being trained."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.refused = folder, False

    def _on_step(self):
        if not self.refused:
            with pytest.raises(RunError, match="is being trained by another process"):
                finish(self.folder)
            self.refused = True
        return True


def test_new_run_is_locked(tmp_path):
    rival = Rival(tmp_path / "run")
    train(small_settings(tmp_path / "run", *TOY, total_timesteps=ROLLOUT), [rival])
    assert rival.refused


def test_resume_warns_about_other_versions(killed):
    versions = json.loads((killed / "versions.json").read_text())
    (killed / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}))
    with pytest.warns(RuntimeWarning, match=r"started with torch 1\.0, now .*; its results may differ"):
        finish(killed)


@pytest.mark.parametrize("name", ["episodes.csv", "progress.csv"])
def test_lost_lines_leave_a_gap_and_a_warning(whole, killed, name):
    lines = (killed / name).read_text().splitlines(keepends=True)
    (killed / name).write_text("".join(lines[:2]))
    with pytest.warns(RuntimeWarning, match=rf"{name} has 1 of the \d+ lines"):
        finish(killed)
    assert differences(killed, whole(TOY).folder) == [name.removesuffix(".csv")]


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda lines: lines[1:], lambda saved: saved),
        (lambda lines: [*lines[:2], lines[2].replace(",", "\0,", 1), *lines[3:]], lambda _: 1),
        (lambda lines: [lines[0], "this,is,no,line,of,such,a,file,at all\n", *lines[2:]], lambda _: 1),
        (lambda _: ["notes,of mine\n", *["1,2\n"] * 30], lambda saved: saved),
    ],
)
def test_unreadable_lines_are_dropped_with_a_warning(whole, killed, damage, lost):
    file = killed / "episodes.csv"
    lines = file.read_text().splitlines(keepends=True)
    saved = read_checkpoint(checkpoint_paths(killed)[0], kind=KIND)["state"]["callbacks"]["CurvesRecorder"]["rows"]
    assert saved > 1
    file.write_text("".join(damage(lines)))
    with pytest.warns(RuntimeWarning, match=f"episodes.csv has {saved - lost(saved)} of the {saved} lines"):
        resumed = finish(killed)
    assert differences(killed, whole(TOY).folder) == ["episodes"]
    assert len(resumed.episodes) == len(whole(TOY).episodes) - lost(saved)
    assert all(episode in whole(TOY).episodes for episode in resumed.episodes)


def test_environment_without_state_is_rejected_before_writing(toy_id, tmp_path, monkeypatch):
    monkeypatch.delattr(type(make_sb3_env(toy_id).unwrapped.vec_env), "get_state")
    settings = small_settings(tmp_path / "run", *TOY, total_timesteps=ROLLOUT)
    with pytest.raises(CheckpointError, match=r"has no get_state and set_state.*checkpoint_every=0"):
        train(settings)
    assert not settings.out.exists()
    train(replace(settings, checkpoint_every=0))


def test_settings_accept_whole_numbers(tmp_path):
    """Python callers pass integers; the configuration file has floats."""
    whole_numbers = {"max_grad_norm": 10, "clip_range": 1, "ent_coef": 0, "final_ent_coef": 0, "vf_coef": 1}
    folder = cut(tmp_path / "run", 2 * ROLLOUT + 1, ppo=whole_numbers)
    whole = train(small_settings(tmp_path / "whole", *TOY, **EVALUATED, ppo=whole_numbers))
    assert {type(value) for value in finish(folder).model.last_update.values()} == {float}
    assert differences(folder, whole.folder) == []


class Counter(BaseCallback):
    """Custom callback whose state counts the started rollouts and the steps."""

    def __init__(self):
        super().__init__()
        self.seen = np.zeros(2, dtype=np.int64)

    def get_state(self):
        return {"seen": self.seen.copy()}

    def set_state(self, state):
        self.seen = state["seen"]

    def _on_rollout_start(self):
        self.seen += [1, 0]

    def _on_step(self):
        self.seen += [0, 1]
        return True


def test_custom_callback_resumes_its_state(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, *TOY), [Counter(), Crash(2 * ROLLOUT + 1)])
    with pytest.raises(CheckpointError, match=r"callbacks: it has the unknown keys \['Counter'\]"):
        finish(folder)
    counter = Counter()
    finish(folder, callbacks=[counter])
    assert counter.seen.tolist() == [TOTAL / ROLLOUT, TOTAL / NUM_ENVS]


def test_tensorboard_shows_one_curve_after_a_resume(whole, tmp_path):
    """Events of the killed run after its checkpoint are purged."""
    folder = cut(tmp_path / "run", 5 * ROLLOUT + 1, checkpoint_every=3 * ROLLOUT)
    first = int(next(folder.glob("events.*")).name.split(".")[3])
    while int(time.time()) <= first:  # TensorBoard orders files by the seconds in their names
        time.sleep(0.05)
    assert finish(folder).resumed_from == 3 * ROLLOUT
    assert curves(folder) == curves(whole(TOY).folder)


def curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("time/")]
    assert "train/loss" in names
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
