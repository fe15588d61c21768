"""Errors of policies, learners, run folders, configuration files and the command about malformed input.

Each row is (id, input, error, parts of the message: value, expectation, remedy if there is one). There is a row for
each place of an input; the tests of the modules have further values.
"""

import os
import signal
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from command_line import bad, interruptible
from esper_agent import (
    FactoredRecurrentPPO,
    FixedPlanPolicy,
    GymVecEnv,
    HeuristicPolicy,
    RandomPolicy,
    WaitPolicy,
    load_run,
    make_sb3_env,
    run_episodes,
)
from esper_agent.ppo.settings import ARGUMENTS
from esper_agent.training.run_folder import RunError
from malformed import assert_says, lines, refused, table
from stable_baselines3 import PPO

ID = "Esper-Digits-v0"
TINY = {"horizon": 6, "batches_per_step": 1, "batch_size": 8}
NAN = float("nan")
COUNT = "expected a positive integer"
POSITIVE = "expected a positive number"
UP_TO_1 = "expected a number in (0, 1]"


def line_of(arguments, capsys):
    """Return the single line of standard error of a command that exits with code 2."""
    start, line = bad(arguments, capsys).split(maxsplit=1)
    assert start == "Error:"
    assert line.endswith("\n")
    return line[:-1]


# Learners


@pytest.fixture(scope="module")
def env():
    env = make_sb3_env(ID, 2, seed=0, **TINY)
    yield env
    env.close()


def bias(value):
    return {"policy_kwargs": {"logit_bias": value}}


DEVICES = "expected 'auto', 'cpu', 'cuda' or 'cuda:N'"


@table(
    *((name, {name: -2}, ValueError, f"`{name}` is -2", "expected") for name in sorted(ARGUMENTS)),
    ("lr-nan", {"learning_rate": NAN}, ValueError, "`learning_rate` is nan", POSITIVE),
    ("gamma-above-1", {"gamma": 2}, ValueError, "`gamma` is 2", UP_TO_1),
    ("seed", {"seed": -1}, ValueError, "`seed` is -1", "expected an integer in [0, 4294967295] or None"),
    ("device", {"device": "warp"}, ValueError, "`device` is 'warp'", DEVICES),
    ("entropy-head", {"entropy_multipliers": {"size": 1}}, ValueError, "has the head 'size'", "expected one of slot"),
    ("entropy-nan", {"entropy_multipliers": {"op": NAN}}, ValueError, "_multipliers['op']` is nan", "non-negative"),
    ("bias-value", bias({"op": {"GROW": 1}}), ValueError, "has the value 'GROW' of head 'op'", "expected one of WAIT"),
    ("bias-number", bias(3), ValueError, "`logit_bias` is 3", "expected a mapping"),
    ("env-of-gymnasium", {"env": gymnasium.vector.VectorEnv()}, TypeError, "of Stable-Baselines3", "make_sb3_env"),
    ("env-without-heads", {"env": "CartPole-v1"}, ValueError, "action space is Discrete(2)", "MultiDiscrete"),
)
def test_learner_rejects_malformed_input(env, what, error, says):
    small = {"env": env, "n_steps": 4, "batch_size": 4, "device": "cpu"}
    refused(lambda: FactoredRecurrentPPO("FactoredLstmPolicy", **(small | what)), error, says)


# Vectors and policies by rules


def sb3(**kwargs):
    return lambda: make_sb3_env(**({"env_id": ID, "num_envs": 2} | TINY | kwargs))


SEEDS = "expected an integer in [0, 4294967295]"


@table(
    ("num_envs", sb3(num_envs="3"), ValueError, "`num_envs` is '3'", COUNT),
    ("seed", sb3(seed=-1), ValueError, "`seed` is -1", f"{SEEDS} or None"),
    ("id", sb3(env_id="Esper-X-v0"), ValueError, "'Esper-X-v0' is not a registered", "one of Esper-CIFAR"),
    ("kwarg", sb3(horizn=3), TypeError, "got an unexpected keyword argument 'horizn'", "did you mean 'horizon'?"),
    ("own", sb3(n_envs=3), TypeError, "make_sb3_env() got an unexpected keyword argument 'n_envs'", "mean 'num_envs'?"),
    ("not-a-vector", lambda: GymVecEnv(3), TypeError, "vec_env is a int", "expected a gymnasium.vector.VectorEnv"),
    ("horizon", lambda: HeuristicPolicy(-5, "cnn"), ValueError, "`horizon` is -5", COUNT),
    (
        "gates",
        lambda: HeuristicPolicy(6, "cnn", "lax"),
        ValueError,
        "`gates` is 'lax'",
        "one of 'permissive', 'strict'",
    ),
    ("plan-gates", lambda: FixedPlanPolicy(1, 6, None), ValueError, "`gates` is None", "one of 'permissive', 'strict'"),
    ("config", lambda: HeuristicPolicy(6, "cnn", config={}), ValueError, "`config` is {}", "a HeuristicConfig"),
    ("no-esper", lambda: HeuristicPolicy.for_env(gymnasium.make("CartPole-v1")), TypeError, "CartPole", "make_vec"),
    ("random-seed", lambda: RandomPolicy("x"), ValueError, "`seed` is 'x'", SEEDS),
    ("episodes", lambda: run_episodes(WaitPolicy(), ID, 0), ValueError, "`episodes` is 0", COUNT),
)
def test_vectors_and_policies_reject_malformed_input(what, error, says):
    refused(what, error, says)


@table(
    (
        "none",
        lambda _: None,
        ValueError,
        "the observation is a NoneType",
        "expected the dict of an Esper environment",
    ),
    ("nan", lambda given: given | {"features": given["features"] * NAN}, ValueError, "features are not all finite"),
)
def test_policy_rejects_malformed_observations(env, what, error, says):
    refused(lambda: HeuristicPolicy(6, "cnn").predict(what(env.reset())), error, says)


def test_policy_rejects_episode_starts_of_other_environments(env):
    policy, observation = HeuristicPolicy(6, "cnn"), env.reset()
    _, state = policy.predict(observation)
    says = ["episode_start has shape (3,)", "expected (2,), one flag per environment"]
    refused(lambda: policy.predict(observation, state, np.ones(3, dtype=bool)), ValueError, says)


# Runs

OURS = "env: Esper-Digits-v0\n"
PAIRS = "expected `name: value` pairs, or a list such as [horizon=20]"
DAMAGED = "it is damaged, or not a FactoredRecurrentPPO model"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a model of another algorithm."""
    folder = tmp_path_factory.mktemp("run")
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=4, device="cpu").save(folder / "model.zip")
    return folder


@table(
    ("model", OURS, RunError, "model.zip cannot be loaded", DAMAGED),
    ("env-number", "env: 5", RunError, "does not name an environment"),
    ("settings-number", f"{OURS}env_settings: 5", RunError, "`env_settings` is 5", PAIRS),
    ("other-task", "env: Other-v0", RunError, "on Other-v0, not on", "--env Other-v0"),
)
def test_evaluate_rejects_malformed_run_folders(run, capsys, what, error, says):
    (run / "config.yaml").write_text(what)
    refused(lambda: load_run(run, ID), error, says)
    assert_says(line_of(["evaluate", "--policy", str(run), "--env", ID, "--episodes", "1"], capsys), says)


@table(
    ("folder", FactoredRecurrentPPO.load, ValueError, "is a folder", "expected a saved model", "model.zip, or use"),
    ("another", lambda run: FactoredRecurrentPPO.load(run / "model.zip"), ValueError, "is not a model of Factored"),
)
def test_load_rejects_malformed_files(run, what, error, says):
    refused(lambda: what(run), error, says)


# The command


def play(*arguments):
    return ["evaluate", "--policy", "wait", "--episodes", "1", *arguments]


CIFAR_FILES = ("--env", "Esper-CIFAR-v0", "--env-settings", "dataset=cifar10", "data_dir=nowhere")


@lines(
    ("policy", ["evaluate", "--policy", "wiat"], "policy 'wiat'", "heuristic, random", "did you mean 'wait'?"),
    ("episodes", play("--episodes", "0"), "--episodes is '0'", COUNT, "for example 20"),
    ("num_envs", play("--num-envs", "-1"), "--num-envs is '-1'", COUNT),
    ("setting-value", play("--env-settings", "horizon=-5"), "`horizon` is -5", COUNT),
    ("no-cifar", play(*CIFAR_FILES), "CIFAR-10 was requested by name but is not in nowhere", "download"),
    ("device", play("--device", "tpu"), "`device` is 'tpu'", DEVICES),
    ("nothing-compared", ["benchmark", "--policies", "wait", "wait", "--out", "b"], "`policies`", "each once"),
    ("steps", ["train", "--out", "never", "--total_timesteps=20k"], "--total_timesteps is '20k'", COUNT, "for example"),
)
def test_command_rejects_malformed_input(capsys, monkeypatch, tmp_path, what, says):
    monkeypatch.chdir(tmp_path)
    assert_says(line_of(what, capsys), says)
    assert list(tmp_path.iterdir()) == []


@lines(
    ("key", "total_timestep: 5", "'total_timestep' is not a setting", "did you mean 'total_timesteps'?"),
    ("nested-type", "ppo: {gamma: [1]}", "`ppo.gamma` is [1]", UP_TO_1),
    ("range", "ppo: {n_steps: 0}", "`ppo.n_steps` is 0", COUNT),
    ("thresholds", "anomalies: {ratio_explosion: 1}", "`anomalies.ratio_explosion` is 1", "a number greater than 1"),
)
def test_train_rejects_malformed_configuration_files(capsys, tmp_path, what, says):
    file = tmp_path / "config.yaml"
    file.write_text(what)
    assert_says(line_of(["train", "--out", str(tmp_path / "run"), "--config", str(file)], capsys), says)
    assert not (tmp_path / "run").exists()


def test_interrupt_during_imports_is_one_line(tmp_path):
    """A stand-in for torch signals its own process while the command imports it."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n    raise ImportError('half loaded') from None\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "esper_agent", "info"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        preexec_fn=interruptible,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "Interrupted\n")
