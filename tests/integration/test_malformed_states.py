"""Errors about malformed states, and about runs that cannot be resumed.

Each row is (id, damage, error, parts of the message: value, expectation, remedy if there is one). A rejected state or
run changes nothing: the environment keeps its state, and the run its files.
"""

import json
import os
import shutil
from contextlib import closing, nullcontext
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import yaml
from command_line import bad
from esper_agent.cli.main import main
from esper_agent.settings.named_values import ConfigError
from esper_agent.training.checkpoints import checkpoint_paths
from esper_agent.training.run import resume, train
from esper_agent.training.run_folder import RunError
from esper_agent.training.run_lock import locked
from esper_agent.training.state import KIND as TRAINING
from esper_env.persistence import checkpoint
from esper_env.persistence.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from esper_env.rules.heads import HEAD_DEFAULTS, Head, Op
from esper_env.tasks.identity import FORMAT, KIND
from malformed import assert_says, refused, table
from resuming import REAL, ROLLOUT, Crash, small_settings
from stepping import changed

ID = "Esper-Digits-v0"
TINY = {"horizon": 4, "batches_per_step": 1, "batch_size": 8}
REMEDY = "Make the environment with the state's values"
ANEW = "use another checkpoint, or save this one again"
BEFORE = "Load it with the version that saved it"


def env_of(env_id=ID, num_envs=2, **kwargs):
    return gymnasium.make_vec(env_id, num_envs=num_envs, **(TINY | kwargs)).unwrapped


def grown(env):
    """Seeds are planted and trained for a step."""
    action = np.array(HEAD_DEFAULTS)
    action[Head.OP], action[Head.BLUEPRINT] = Op.GERMINATE, 1
    env.reset(seed=5)
    env.step(np.stack([action] * env.num_envs))
    return env


@pytest.fixture(scope="module")
def env():
    with closing(grown(env_of())) as made:
        yield made


@pytest.fixture(scope="module")
def saved(env, tmp_path_factory):
    return env.save_state(tmp_path_factory.mktemp("states") / "state.safetensors")


@pytest.fixture
def file(saved, tmp_path):
    """A copy of the saved state, for the test to damage."""
    return shutil.copy(saved, tmp_path / "state.safetensors")


def contents(folder):
    """Every file below a folder except the lock, which names the last process."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "train.lock"}


def keeps_its_state(env, call):
    before = env.get_state()
    call()
    np.testing.assert_equal(env.get_state(), before)


# States


def of(env_id=ID, num_envs=2, **kwargs):
    """The state of another environment."""

    def take(_state):
        with closing(env_of(env_id, num_envs, **kwargs)) as other:
            other.reset(seed=5)
            return other.get_state()

    return take


def at(*path, value):
    """The state with one leaf replaced, or with all numbers of an array."""
    return lambda state: changed(
        state, path, lambda leaf: np.full_like(leaf, value) if isinstance(leaf, np.ndarray) else value
    )


def without(name):
    return lambda state: {key: part for key, part in state.items() if key != name}


def shortened(*path):
    return lambda state: changed(state, path, lambda leaf: leaf[:-1])


STREAMS = ("population", "streams")


@table(
    ("another-task", of("Esper-CIFAR-v0", dataset="procedural"), ValueError, "env_id is 'Esper-CIFAR-v0'", REMEDY),
    ("more-networks", of(num_envs=3), ValueError, "num_envs is 3 in the state and 2 here", REMEDY),
    ("another-horizon", of(horizon=9), ValueError, "horizon is 9 in the state and 4 here", REMEDY),
    ("none", lambda _: None, ValueError, "not the state of an environment", "expected a tree from get_state"),
    ("older-format", at("format", value=0), ValueError, "has format 0", f"reads format {FORMAT}", BEFORE),
    ("no-population", without("population"), ValueError, "lacks ['population']"),
    (
        "short-array",
        shortened("steps", "epoch"),
        ValueError,
        "steps: epoch is an array (1,) of int64",
        "expected an array (2,)",
    ),
    (
        "short-stack",
        shortened("population", "births"),
        ValueError,
        "population: births is an array (1, 3)",
        "expected an array (2, 3)",
    ),
    ("nan-alpha", at("table", "alpha", value=np.nan), ValueError, "table: ", "alpha"),
    ("alpha-beyond", at("table", "alpha", value=1.5), ValueError, "table: ", "alpha"),
    ("stage-unknown", at("table", "stage", value=77), ValueError, "table: ", "stage"),
    ("stage-negative", at("table", "stage", value=-1), ValueError, "table: ", "stage"),
    ("blueprint-unknown", at("table", "blueprint", value=99), ValueError, "blueprint"),
    ("negative-lengths", at(*STREAMS, "left_lengths", value=-1), ValueError, "left_lengths sum to -2; left has"),
    (
        "index-beyond",
        at(*STREAMS, "left", value=10**6),
        ValueError,
        "population: streams: network 0",
        "left has impossible sample numbers",
    ),
    (
        "births-negative",
        at("population", "births", value=-1),
        ValueError,
        "births have negative numbers",
    ),
)
def test_set_state_rejects_malformed_states(env, what, error, says):
    state = what(env.get_state())
    keeps_its_state(env, lambda: refused(lambda: env.set_state(state), error, says))


# Files of states


def manifest(change):
    """Change the manifest and its checksum."""

    def edit(path):
        with safetensors.safe_open(path, framework="numpy") as file:
            content = json.loads(file.metadata()["esper"])
        arrays = safetensors.numpy.load(path.read_bytes())
        change(content)
        content["sha256"] = checkpoint._checksum(content, arrays)
        safetensors.numpy.save_file(arrays, path, {"esper": json.dumps(content)})

    return edit


def edited(path):
    whole = path.read_bytes()
    assert whole.count(rb"\"horizon\":4") == 1
    path.write_bytes(whole.replace(rb"\"horizon\":4", rb"\"horizon\":9"))


def cut(size):
    return lambda path: os.truncate(path, size)


def removed(name):
    return lambda folder: (folder / name).unlink()


def replaced_by(tree, kind):
    def edit(path):
        path.unlink()
        write_checkpoint(path, tree, kind=kind)

    return edit


def folder_of_version_1(path):
    path.unlink()
    path.mkdir()


@table(
    ("nowhere", Path.unlink, CheckpointError, "does not exist", "expected the file of a checkpoint"),
    ("a-folder", folder_of_version_1, CheckpointError, "is a folder", "expected the file of a checkpoint"),
    ("empty", cut(0), CheckpointError, "is incomplete or not a safetensors file", ANEW),
    ("cut", cut(100), CheckpointError, "is incomplete or not a safetensors file", ANEW),
    ("edited", edited, CheckpointError, "was changed after it was saved", "checksum does not match", ANEW),
    ("older-format", manifest(lambda c: c.update(format=1)), CheckpointError, "format 1", "reads format 2", "Read it"),
    ("newer-format", manifest(lambda c: c.update(format=9)), CheckpointError, "format 9", "reads format 2", "Read it"),
    ("of-training", replaced_by({"x": 1}, TRAINING), CheckpointError, f"kind {TRAINING!r}", f"expected {KIND!r}"),
    ("of-nothing", replaced_by({"x": 1}, KIND), ValueError, "not the state of an environment", "get_state"),
)
def test_load_state_rejects_files_and_changes_nothing(env, file, what, error, says):
    what(file)
    files = contents(file.parent)
    keeps_its_state(env, lambda: refused(lambda: env.load_state(file), error, says))
    assert contents(file.parent) == files


# Runs to resume


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of six rollouts that was killed in the second."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    with pytest.raises(Crash.Killed):
        train(small_settings(folder, *REAL), [Crash(2 * ROLLOUT + 1)])
    return folder


@pytest.fixture
def run(killed, tmp_path):
    """A copy of the run, for the test to damage."""
    return shutil.copytree(killed, tmp_path / "run")


def configured(**changes):
    def edit(run):
        content = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(content | changes))

    return edit


def written(name, text):
    return lambda run: (run / name).write_text(text)


def every_checkpoint(damage):
    def edit(run):
        for path in checkpoint_paths(run):
            damage(path)

    return edit


def in_training(change):
    """Change the tree of a training checkpoint, and its checksum."""

    def edit(path):
        tree = read_checkpoint(path, kind=TRAINING)
        change(tree)
        write_checkpoint(path, tree, kind=TRAINING)

    return every_checkpoint(edit)


def events_file(run):
    shutil.rmtree(run / "events")
    (run / "events").write_text("mine")


def without_run(run):
    shutil.rmtree(run)


def in_place_of_the_run(run):
    shutil.rmtree(run)
    run.write_text("x")


OWN = "A run cannot change its settings"
UNREADABLE = "has no readable checkpoint"
OTHER = "To start again, use another folder"


@table(
    ("nowhere", without_run, RunError, "there is no run folder", "train one with `esper train --out"),
    ("a-file", in_place_of_the_run, RunError, "is a file", "give the folder that `esper train --out` wrote"),
    ("no-config", removed("config.yaml"), RunError, "is not a run: it has no config.yaml"),
    ("config-cut", written("config.yaml", "env: [Esp"), RunError, "config.yaml is neither YAML nor JSON"),
    ("config-key", configured(sed=1), ConfigError, "'sed' is not a setting", "did you mean 'seed'?"),
    ("config-range", configured(num_envs=0), ConfigError, "`num_envs` is 0", "expected a positive integer"),
    ("another-task", configured(env="Esper-CIFAR-v0"), CheckpointError, f"env = {ID}", "has Esper-CIFAR-v0", OWN),
    ("more-networks", configured(num_envs=5), CheckpointError, "num_envs = 4", "has 5", OWN),
    ("longer", configured(total_timesteps=999), CheckpointError, "total_timesteps = 72", "has 999", OWN),
    ("cut", every_checkpoint(cut(9)), CheckpointError, UNREADABLE, "is incomplete", OTHER),
    ("of-a-state", every_checkpoint(replaced_by({"x": 1}, KIND)), CheckpointError, UNREADABLE, f"kind {KIND!r}", OTHER),
    ("no-state", in_training(lambda t: t.pop("state")), CheckpointError, UNREADABLE, "state", OTHER),
    (
        "layout",
        in_training(lambda t: t["state"].update(layout=0)),
        CheckpointError,
        "has layout 0",
        "reads layout 2",
        OTHER,
    ),
    ("events-file", events_file, ValueError, "events cannot be created", "choose another one"),
)
def test_resume_rejects_malformed_runs(run, what, error, says):
    what(run)
    files = contents(run.parent)
    refused(lambda: resume(run, progress=False), error, says)
    assert contents(run.parent) == files


@table(
    ("locked", locked, [], "is being trained by another process", "wait for it to end, or stop it"),
    (
        "seed",
        nullcontext,
        ["--seed", "4"],
        "--seed cannot be combined with --resume",
        "leave out all options but --device",
    ),
    (
        "out",
        nullcontext,
        ["--out", "x"],
        "--out cannot be combined with --resume",
        "leave out all options but --device",
    ),
    ("device", nullcontext, ["--device", "tpu"], "`device` is 'tpu'", "cuda:N"),
)
def test_resume_command_rejects_malformed_input(run, capsys, what, error, says):
    files = contents(run)
    with what(run):
        assert_says(bad(["train", "--resume", str(run), *error], capsys).strip(), says)
    assert contents(run) == files


def test_resume_command_rejects_a_finished_run(run, capsys):
    assert main(["train", "--resume", str(run), "--no-progress"]) == 0
    capsys.readouterr()
    files = contents(run)
    says = ["is finished: all of its 72 timesteps are done", "to train for longer, start another run"]
    refused(lambda: resume(run, progress=False), RunError, says)
    assert contents(run) == files
