"""An interrupted and resumed run equals an uninterrupted one bit for bit, or raises an error with the reason."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import yaml
from esper_agent.sb3 import make_sb3_env
from esper_agent.settings.named_values import ConfigError
from esper_agent.training.checkpoints import SaveCheckpoints, checkpoint_paths
from esper_agent.training.run import Trained, resume, save_model, train
from esper_agent.training.run_folder import RunError, locked
from esper_env.persistence.checkpoint import CheckpointError
from malformed import refused, table
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


@pytest.mark.parametrize(("task", "rollouts"), [(TOY, 1), (TOY, 5), (REAL, 3)], ids=["toy-1", "toy-5", "digits-3"])
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


class Interrupt(BaseCallback):
    """Sends SIGINT at a timestep."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        if self.num_timesteps == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return True


@pytest.mark.parametrize(
    ("task", "at", "ends"),
    [
        (TOY, NUM_ENVS, 2 * NUM_ENVS),  # in the first rollout, before any checkpoint of an interval
        (TOY, 3 * ROLLOUT, 3 * ROLLOUT + NUM_ENVS),  # the first step of a rollout
        (TOY, 2 * ROLLOUT + NUM_ENVS, 2 * ROLLOUT + 2 * NUM_ENVS),
        (TOY, 3 * ROLLOUT - NUM_ENVS, 3 * ROLLOUT + NUM_ENVS),  # the last step is followed by updates
        (REAL, 2 * ROLLOUT + NUM_ENVS, 2 * ROLLOUT + 2 * NUM_ENVS),
    ],
)
def test_interrupted_run_loses_nothing_and_resumes_bit_for_bit(whole, tmp_path, task, at, ends):
    counters, settings = [Counter(), Counter()], small_settings(tmp_path / "run", *task, **EVALUATED)
    stopped = train(settings, [Interrupt(at), counters[0]])
    assert stopped.signal == signal.SIGINT
    assert stopped.model.num_timesteps == ends
    resumed = finish(settings.out, callbacks=[counters[1]])
    assert resumed.resumed_from == ends
    assert differences(settings.out, whole(task).folder) == []
    assert counters[1].seen.tolist() == [TOTAL / ROLLOUT, TOTAL / NUM_ENVS]


def test_run_interrupted_in_its_last_step_is_complete(tmp_path):
    settings = small_settings(tmp_path / "run", *TOY)
    assert not train(settings, [Interrupt(TOTAL - NUM_ENVS)]).interrupted
    with pytest.raises(RunError, match="is finished"):
        finish(settings.out)


def test_run_interrupted_twice_in_one_rollout_resumes_bit_for_bit(whole, tmp_path):
    settings = small_settings(tmp_path / "run", *TOY, **EVALUATED)
    train(settings, [Interrupt(2 * ROLLOUT - NUM_ENVS)])
    assert finish(settings.out, callbacks=[Interrupt(3 * ROLLOUT)]).interrupted
    assert finish(settings.out).resumed_from == 3 * ROLLOUT + NUM_ENVS
    assert differences(settings.out, whole(TOY).folder) == []


@pytest.mark.parametrize("at", [2 * ROLLOUT, TOTAL])
def test_run_interrupted_in_an_evaluation_repeats_its_rollout(whole, tmp_path, at):
    """The checkpoint before the evaluation is the last one whose future equals that of an uninterrupted run."""
    settings = small_settings(tmp_path / "run", *TOY, **EVALUATED)
    assert train(settings, [Interrupt(at)]).interrupted
    assert finish(settings.out).resumed_from == at - ROLLOUT
    assert differences(settings.out, whole(TOY).folder) == []


@pytest.mark.parametrize("before", ["the model", "the last checkpoint"])
def test_run_killed_while_finishing_resumes(whole, tmp_path, monkeypatch, before):
    def killed(*_arguments):
        raise Crash.Killed

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if before == "the model":
            patch.setattr("esper_agent.training.run.save_model", killed)
        else:
            patch.setattr(
                "esper_agent.training.run.save_model",
                lambda *a: (patch.setattr(SaveCheckpoints, "save", killed), save_model(*a))[1],
            )
        with pytest.raises(Crash.Killed):
            train(small_settings(folder, *TOY, **EVALUATED))
    assert finish(folder).resumed_from == TOTAL - ROLLOUT
    assert differences(folder, whole(TOY).folder) == []


def damaged(file):
    file.write_bytes(file.read_bytes()[:100] + b"\0torn")


@pytest.mark.parametrize("damage", [damaged, os.remove])
def test_resume_restores_damaged_logs_and_keeps_other_files(whole, killed, damage):
    (killed / "checkpoints" / "notes.txt").write_text("mine")
    (killed / "checkpoints" / "best").mkdir()
    for name in ("episodes.csv", "progress.csv"):
        damage(killed / name)
    assert finish(killed).episodes == whole(TOY).episodes
    assert differences(killed, whole(TOY).folder) == []
    assert {path.name for path in (killed / "checkpoints").iterdir()} >= {"notes.txt", "best"}


def test_run_trained_without_checkpoints_cannot_resume(tmp_path):
    settings = small_settings(tmp_path / "run", *TOY, checkpoint_every=0, total_timesteps=ROLLOUT)
    train(settings)
    assert not (settings.out / "checkpoints").exists()
    with pytest.raises(RunError, match="has a model but no checkpoint to resume from"):
        finish(settings.out)


def configured(**changes):
    def edit(run):
        content = yaml.safe_load((run / "config.yaml").read_text())
        content |= {name: content[name] | new if isinstance(new, dict) else new for name, new in changes.items()}
        (run / "config.yaml").write_text(yaml.safe_dump(content))

    return edit


def written(text):
    return lambda run: (run / "config.yaml").write_text(text)


def without_readable_checkpoint(run):
    for path in checkpoint_paths(run):
        path.unlink()
        path.with_suffix("").mkdir()  # the format of versions before 2


def events_file(run):
    shutil.rmtree(run / "events")
    (run / "events").write_text("mine")


def replaced_by_file(run):
    shutil.rmtree(run)
    run.write_text("x")


OWN = "A run cannot change its settings"


@table(
    ("nowhere", shutil.rmtree, RunError, "there is no run folder", "train one with `", "esper train --out"),
    ("file", replaced_by_file, RunError, "is not a run", "give the folder that `esper train --out` wrote"),
    ("no-config", lambda run: (run / "config.yaml").unlink(), RunError, "is not a run: it has no config.yaml"),
    ("config-cut", written("env: [1"), RunError, "config.yaml is neither YAML nor JSON"),
    ("no-env", written("seed: 1"), RunError, "does not name an environment"),
    ("config-key", configured(sed=1), ConfigError, "'sed' is not a setting", "did you mean 'seed'?"),
    ("config-range", configured(num_envs=0), ConfigError, "`num_envs` is 0", "expected a positive integer"),
    ("seed", configured(seed=4), CheckpointError, "seed = 3", "has 4", OWN),
    ("env-settings", configured(env_settings={"horizon": 6}), CheckpointError, "env_settings = ", "has ", OWN),
    ("ppo", configured(ppo={"learning_rate": 0.5}), CheckpointError, "ppo.learning_rate = ", "has 0.5", OWN),
    ("no-checkpoint", without_readable_checkpoint, CheckpointError, "no readable checkpoint", "is a folder"),
    ("events-file", events_file, ValueError, "events cannot be created", "choose another one"),
    ("finished", finish, RunError, "is finished: all of its 72 timesteps are done", "start another run"),
)
def test_resume_rejects_malformed_runs_and_changes_nothing(killed, what, error, says):
    what(killed)
    rejected(killed, error, says)


def rejected(run, error, says):
    def contents():
        files = [path for path in run.parent.rglob("*") if path.is_file() and path.name != "train.lock"]
        return {path: path.read_bytes() for path in files}

    before = contents()
    refused(lambda: finish(run), error, says)
    assert contents() == before


def test_run_is_locked_by_one_process(killed):
    with locked(killed):
        rejected(killed, RunError, ["is being trained by another process", "wait for it to end, or stop it"])


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


@pytest.mark.parametrize("known", [True, False])
def test_resume_warns_about_other_versions(killed, known):
    versions = json.loads((killed / "versions.json").read_text())
    (killed / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}) if known else "torn")
    said = r"started with torch 1\.0, now" if known else r"started with python None, now"
    with pytest.warns(RuntimeWarning, match=rf"{said} .*; its results may differ"):
        finish(killed)


def test_environment_without_state_is_rejected_before_writing(toy_id, tmp_path, monkeypatch):
    monkeypatch.delattr(type(make_sb3_env(toy_id).unwrapped.vec_env), "get_state")
    settings = small_settings(tmp_path / "run", *TOY, total_timesteps=ROLLOUT)
    with pytest.raises(CheckpointError, match=r"use an environment with get_state and set_state.*checkpoint_every=0"):
        train(settings)
    assert not settings.out.exists()
    train(replace(settings, checkpoint_every=0))


def test_settings_accept_whole_numbers(tmp_path):
    """Python callers pass integers; the configuration file has floats."""
    whole_numbers = {"max_grad_norm": 10, "clip_range": 1, "ent_coef": 0, "final_ent_coef": 0, "vf_coef": 1}
    folder = cut(tmp_path / "run", 2 * ROLLOUT + 1, ppo=whole_numbers)
    assert {type(value) for value in finish(folder).model.last_update.values()} == {float}


def test_custom_callback_resumes_its_state(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, *TOY), [Counter(), Crash(2 * ROLLOUT + 1)])
    with pytest.raises(CheckpointError, match=r"callbacks: it has the unknown keys \['Counter.\d'\]"):
        finish(folder)
    counter = Counter()
    finish(folder, callbacks=[counter])
    assert counter.seen.tolist() == [TOTAL / ROLLOUT, TOTAL / NUM_ENVS]


@pytest.mark.parametrize(("stop", "at"), [("kill", 3 * ROLLOUT), ("interrupt", 5 * ROLLOUT + NUM_ENVS)])
def test_tensorboard_shows_one_curve_after_a_resume(whole, tmp_path, stop, at):
    """Events of the stopped run after its checkpoint are purged."""
    if stop == "kill":
        folder = cut(tmp_path / "run", 5 * ROLLOUT + 1, checkpoint_every=3 * ROLLOUT)
    else:
        folder = train(small_settings(tmp_path / "run", *TOY, **EVALUATED), [Interrupt(5 * ROLLOUT)]).folder
    first = int(next(folder.glob("events.*")).name.split(".")[3])
    while int(time.time()) <= first:  # TensorBoard orders files by the seconds in their names
        time.sleep(0.05)
    assert finish(folder).resumed_from == at
    assert curves(folder) == curves(whole(TOY).folder)


def curves(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("time/")]
    assert "train/loss" in names
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
