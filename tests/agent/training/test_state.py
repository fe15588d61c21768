"""The state of training: restoring makes learners equal, and a misfit state changes nothing."""

import copy
import random

import numpy as np
import pytest
import torch
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.sb3 import make_sb3_env
from esper_agent.training.callbacks import TrainingMetricsCallback
from esper_agent.training.outputs import CurvesRecorder, ProgressFile
from esper_agent.training.state import (
    KIND,
    LAYOUT,
    environment_parts,
    restore_training,
    training_state,
)
from esper_env.persistence.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from gymnasium.vector import VectorWrapper
from resuming import StopAt, flat
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

CUT = {"horizon": 5}


class Learner:
    """A model with its callbacks, three steps into its second episodes."""

    def __init__(self, env_id, folder, num_envs=2, seed=0, learn=True, **policy_kwargs):
        env = VecNormalize(make_sb3_env(env_id, num_envs, seed, **CUT), norm_obs=False, gamma=0.98)
        self.model = FactoredRecurrentPPO(
            "FactoredLstmPolicy",
            env,
            n_steps=4,
            batch_size=8,
            n_epochs=1,
            seed=seed,
            device="cpu",
            policy_kwargs={"features_dim": 8, "lstm_hidden_size": 8, "head_dim": 8} | policy_kwargs,
        )
        self.model.set_logger(Logger(str(folder), [ProgressFile(folder / "progress.csv")]))
        self.callbacks = [TrainingMetricsCallback(), CurvesRecorder(folder / "episodes.csv")]
        if learn:
            self.model.learn(16 * num_envs, callback=self.callbacks)

    def state(self):
        return training_state(self.model, self.callbacks)

    def restore(self, tree):
        restore_training(self.model, self.callbacks, tree)


@pytest.fixture(scope="module")
def learner(toy_id):
    """Make learners; close their files after the tests."""
    made = []

    def make(*arguments, **changes):
        made.append(Learner(toy_id, *arguments, **changes))
        return made[-1]

    yield make
    for one in made:
        one.model.logger.close()


@pytest.fixture(scope="module")
def two(learner, tmp_path_factory):
    """Two learners with different states."""
    folder = tmp_path_factory.mktemp("two")
    return learner(folder / "a"), learner(folder / "b", seed=5)


def test_state_from_disk_makes_learners_equal(learner, tmp_path):
    """The saved learner has done half a rollout."""
    saved = learner(tmp_path / "a")
    saved.model.learn(16, callback=[StopAt(44), *saved.callbacks], reset_num_timesteps=False)
    assert (saved.model.num_timesteps, saved.model.rollout_buffer.pos) == (44, 2)
    saved.model._skipped_in_a_row, saved.model._current_progress_remaining = 2, 0.25
    saved.model._last_episode_starts = np.array([True, False])
    random.gauss(0, 1)  # both calls draw two numbers and keep one
    np.random.standard_normal()  # noqa: NPY002
    tree = saved.state()
    wanted = flat(tree)
    write_checkpoint(tmp_path / "c.safetensors", tree, kind=KIND)
    other = learner(tmp_path / "b", seed=7)
    before = flat(other.state())
    other.restore(read_checkpoint(tmp_path / "c.safetensors", kind=KIND))
    assert flat(other.state()) == wanted
    # A leaf that was equal before would prove nothing.
    parts = {path.split("/")[1] for path, leaf in wanted.items() if before.get(path) != leaf}
    assert parts == set(tree) - {"layout"}
    assert all(before[f"/counters/{name}"] != wanted[f"/counters/{name}"] for name in tree["counters"])


def test_fresh_learner_continues_like_the_saved_one(learner, tmp_path):
    saved = learner(tmp_path)
    tree = copy.deepcopy(saved.state())
    draws = [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002
    fresh = learner(tmp_path, seed=9, learn=False)
    fresh.restore(tree)
    assert [random.random(), np.random.random(), float(torch.rand(()))] == draws  # noqa: NPY002
    states = []
    for one in (saved, fresh):
        one.restore(copy.deepcopy(tree))
        one.model.learn(16, callback=one.callbacks, reset_num_timesteps=False)
        states.append(flat(one.state()))
    clocks = {"/episodes/columns/t", "/logger/outputs/ProgressFile/json"}  # the time of an episode, and fps
    assert {path for path in states[0] if states[0][path] != states[1].get(path)} <= clocks
    assert states[0].keys() == states[1].keys()


def test_state_shares_nothing_with_the_learner(learner, tmp_path):
    saved = learner(tmp_path)
    tree = saved.state()
    before = flat(tree)
    saved.model.learn(16, callback=saved.callbacks, reset_num_timesteps=False)
    assert flat(tree) == before
    assert flat(saved.state()) != before


def test_state_keeps_pending_logger_values(learner, tmp_path):
    saved, other = (learner(tmp_path / name) for name in "ab")
    logger = saved.model.logger
    logger.record("a/float32", np.float32(0.1))
    logger.record("a/nan", float("nan"), exclude="stdout")
    logger.record("a/text", "yes, 1", exclude=("csv", "stdout"))
    logger.record_mean("a/mean", 1.0)
    logger.record_mean("a/mean", 4.0)
    other.restore(saved.state())
    there = other.model.logger
    assert {name: str(value) for name, value in there.name_to_value.items()} == {
        name: str(value) for name, value in logger.name_to_value.items()
    }
    assert there.name_to_excluded == logger.name_to_excluded
    there.record_mean("a/mean", 4.0)
    assert there.name_to_value["a/mean"] == 3.0


WRONG = {
    "layout": (lambda tree: tree.update(layout=LAYOUT + 1), f"layout {LAYOUT + 1}; .* reads layout {LAYOUT}"),
    "a part too few": (lambda tree: tree.pop("generators"), r"lacks \['generators'\]"),
    "a part too many": (lambda tree: tree.update(x={}), r"has the unknown keys \['x'\]"),
    "a weight": (
        lambda tree: tree["policy"].update({"latent_norm.bias": np.zeros(9, np.float32)}),
        r"policy: latent_norm.bias is an array \(9,\) of float32; expected an array \(8,\)",
    ),
    "a moment": (
        lambda tree: tree["optimizer"]["0"].update(exp_avg=np.zeros((2, 2), np.float32)),
        r"optimizer: 0/exp_avg is an array \(2, 2\)",
    ),
    "a parameter": (
        lambda tree: tree["optimizer"].update({"999": {"exp_avg": np.zeros(1)}}),
        "the checkpoint does not fit",
    ),
    "a count": (lambda tree: tree["counters"].update(n_updates=1.0), "counters: n_updates is a float"),
    "the observation": (
        lambda tree: tree["decision"]["observation"].update(features=np.zeros((2, 3), np.float32)),
        r"decision: observation/features is an array \(2, 3\)",
    ),
    "the rollout's length": (
        lambda tree: tree.update(rollout={"rewards": np.zeros((5, 2), np.float32)}),
        "rollout: the rollout has 5 steps; expected at most 4",
    ),
    "the rollout": (lambda tree: tree.update(rollout={"rewards": np.zeros((1, 2), np.float32)}), "rollout: it lacks"),
    "a generator": (lambda tree: tree["generators"].update(torch=np.zeros(3, np.uint8)), "does not fit this run: "),
    "a generator's numbers": (lambda tree: tree["generators"]["torch"].fill(0), "does not fit this run: "),
    "metrics of an update": (
        lambda tree: tree.update(last_update={"loss": "low"}),
        "last_update: loss is a str; expected",
    ),
    "an array among metrics": (
        lambda tree: tree["last_update"].update(loss=np.zeros(())),
        r"last_update: loss is an array \(\) of float64; expected a float",
    ),
    "metrics in a list": (lambda tree: tree.update(last_update=[1.0]), "last_update: it is a list; expected a dict"),
    "a return": (
        lambda tree: tree["episodes"]["columns"].update(r=3.0),
        "episodes: columns/r is a float; expected an array with one axis",
    ),
    "returns": (lambda tree: tree["episodes"]["columns"].pop("r"), r"episodes: columns lacks \['r'\]"),
    "successes": (lambda tree: tree["episodes"].update(successes=[1]), "episodes: successes .* list of booleans"),
    "a value to log": (
        lambda tree: tree["logger"]["pending"]["0"].update(count="1"),
        "logger: pending/0/count is a str; expected a int",
    ),
    "values to log": (lambda tree: tree["logger"].update(pending=[]), "logger: pending is a list; expected a dict"),
    "an output": (lambda tree: tree["logger"]["outputs"].pop("ProgressFile"), r"logger: it lacks \['ProgressFile'\]"),
    "the monitor": (
        lambda tree: tree["environment"]["VecMonitor"].update(episode_lengths=np.zeros(3, np.int32)),
        "environment: VecMonitor: episode_lengths",
    ),
    "the vector": (lambda tree: tree["environment"]["vector"].update(envs=[]), "0 environments; expected 2"),
    "a callback": (lambda tree: tree["callbacks"].pop("CurvesRecorder.1"), r"lacks \['CurvesRecorder.1'\]"),
    "means": (
        lambda tree: tree["callbacks"]["TrainingMetricsCallback.0"].update(test_accuracy=np.zeros((1, 2))),
        r"test_accuracy is an array \(1, 2\)",
    ),
    "lines": (lambda tree: tree["callbacks"]["CurvesRecorder.1"].update(log={"json": 3}), "does not fit this run: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_restore_rejects_a_misfit_state_and_changes_nothing(two, name):
    edit, message = WRONG[name]
    saved, other = two
    folder = other.callbacks[1].log.path.parent
    before, files = flat(other.state()), {path: path.read_bytes() for path in folder.iterdir()}
    tree = copy.deepcopy(saved.state())
    edit(tree)
    with pytest.raises(CheckpointError, match=message):
        other.restore(tree)
    assert flat(other.state()) == before
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


def test_restore_keeps_a_fresh_learner_and_its_files_when_the_last_part_does_not_fit(learner, two, tmp_path):
    fresh = learner(tmp_path, seed=3, learn=False)
    (tmp_path / "episodes.csv").write_text("mine")
    base = fresh.model.get_env().unwrapped
    base.set_options({"topology": {"r0c0": "norm"}})
    before, recurrent = flat(fresh.state()), copy.deepcopy(fresh.model._last_lstm_states)
    tree = copy.deepcopy(two[0].state())
    tree["logger"]["outputs"]["ProgressFile"]["json"] = np.zeros(3, np.uint8)
    with pytest.raises(CheckpointError, match="logger: ProgressFile: "):
        fresh.restore(tree)
    assert flat(fresh.state()) == before
    assert base._seeds == [3, 4]
    assert base._options == [{"topology": {"r0c0": "norm"}}] * 2
    assert fresh.model._last_obs is None
    assert fresh.model._last_good is None
    assert all(torch.equal(*pair) for pair in zip(fresh.model._last_lstm_states.pi, recurrent.pi, strict=True))
    assert (tmp_path / "episodes.csv").read_text() == "mine"
    fresh.restore(two[0].state())  # discards seeds and options for the next reset
    assert base._seeds == [None, None]
    assert base._options == [{}, {}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 3}, "VecNormalize: returns is an array"),
        ({"lstm_hidden_size": 16}, "policy: .* expected an array"),
    ],
)
def test_restore_rejects_a_learner_of_another_size(learner, two, tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=message):
        learner(tmp_path, **changes).restore(two[0].state())


def wrapped(env):
    env.venv.vec_env = VectorWrapper(env.venv.vec_env)
    return env


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda env: VecFrameStack(env, 2), "the state of VecFrameStack cannot be saved; use make_sb3_env, VecMon"),
        (lambda env: VecNormalize(env, norm_obs_keys=["features"]), "the state of VecNormalize .*norm_obs=False"),
        (wrapped, "the state of VectorWrapper cannot be saved; use an environment with get_state and set_state"),
    ],
)
def test_get_state_rejects_wrappers_without_a_state(toy_id, wrap, message):
    env = make_sb3_env(toy_id, 2, seed=0, **CUT)
    environment_parts(env)
    with pytest.raises(CheckpointError, match=f"{message}.*checkpoint_every=0"):
        environment_parts(wrap(env))


def test_diverging_update_after_a_restore_falls_back_to_the_restored_weights(learner, tmp_path):
    saved = learner(tmp_path)
    fresh = learner(tmp_path, seed=2, learn=False)
    fresh.restore(saved.state())
    wanted = saved.model.policy.state_dict()
    with torch.no_grad():
        for parameter in fresh.model.policy.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="last good parameters"):
        fresh.model._stop_training("test")
    assert all(torch.equal(value, wanted[name]) for name, value in fresh.model.policy.state_dict().items())
