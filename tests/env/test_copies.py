"""Copies of environments, pickled or not, continue like the originals."""

import copy
import os
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from esper_env import register_blueprint, register_task
from esper_env.rules.heads import Op
from esper_env.tasks import TASKS
from esper_env.telemetry import Detail, MemorySink
from plain_rules import action as build_action
from stepping import ENV, TINY, begun, drive, new_env, plan_for
from torch import nn


def pickled(env):
    return pickle.loads(pickle.dumps(env))


COPIES = pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled], ids=["copy", "deepcopy", "pickle"])
KINDS = {
    "single": {"num_envs": None},
    "vector": {"num_envs": 2, "autoreset_mode": "NextStep", "max_episode_steps": 7},
    "worker threads": {"num_envs": 3, "shard_size": 1},
}


@COPIES
@pytest.mark.parametrize("steps", [None, 0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_copy_continues_bit_for_bit(kind, steps, copied, make, use_threads, assert_same):
    use_threads(2)
    env = make(**KINDS[kind])
    plan = plan_for(env)
    if steps is not None:
        begun(env, plan, steps)
    twin = copied(env)
    futures = []
    for each in (twin, env):  # neither changes the other
        future = [each.get_state(), each.action_space.sample().tolist()]
        if steps is None:
            future.append(each.reset())  # draws the seed of the episode
        futures.append([*future, *drive(each, plan, range(9)), each.get_state()])
    assert_same(*futures)
    assert type(twin) is type(env)
    assert twin.task == env.task


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("steps", [None, 2])
def test_wrapped_environment_is_copied_with_its_wrappers(steps, copied):
    env = gymnasium.make(ENV, max_episode_steps=4, render_mode="ansi", **TINY)
    if steps is not None:
        env.reset(seed=3, options={"topology": {"r0c0": "conv_light"}})
        for _ in range(steps):
            env.step(build_action())
    twin = copied(env)
    assert twin.spec == env.spec
    assert twin.unwrapped.spec == env.unwrapped.spec
    for each in (env, twin):
        if steps is None:
            each.reset(seed=3)
        *_, truncated, _ = [each.step(build_action()) for _ in range(4 - (steps or 0))][-1]
        assert truncated
    assert twin.render() == env.render() != ""
    np.testing.assert_array_equal(env.unwrapped.observe()["features"], twin.unwrapped.observe()["features"])


def test_vector_of_gymnasium_is_copied_with_its_attributes(make_digits_vec):
    env = make_digits_vec(2, autoreset_mode="Disabled", render_mode="rgb_array")
    env.note = ["mine"]
    twin = pickled(env)
    assert (twin.spec, twin.metadata, twin.render_mode, twin.note) == (env.spec, env.metadata, "rgb_array", ["mine"])
    assert twin.note is not env.note


@COPIES
def test_copy_has_its_own_generators_of_any_kind(copied, make):
    env = make(2)
    env.reset(seed=0)
    env.np_random = [np.random.Generator(np.random.MT19937(5))] * 2
    twin = copied(env)
    assert twin.np_random[0] is twin.np_random[1]
    assert twin.np_random[0].integers(2**60) == env.np_random[0].integers(2**60)
    assert twin.np_random[0].integers(2**60) == env.np_random[0].integers(2**60)


@COPIES
@pytest.mark.parametrize("count", [None, 2])
def test_copy_has_no_sinks_and_the_telemetry_of_the_original(count, copied, make):
    env = make(count)
    sink = env.telemetry.add_sink(MemorySink())
    env.telemetry.detail = Detail.FULL
    env.reset(seed=0)
    env.telemetry.flush()
    twin, emitted = copied(env), len(sink.events)
    assert (twin.telemetry.active, twin.telemetry.detail) == (False, Detail.FULL)
    assert twin.telemetry.next_id == env.telemetry.next_id > 0
    own = twin.telemetry.add_sink(MemorySink())
    twin.reset()
    twin.telemetry.flush()
    env.telemetry.flush()
    assert own.events[0].id == emitted
    assert len(sink.events) == emitted


@pytest.mark.usefixtures("own_tables")
def test_copy_of_a_custom_task_needs_the_task_and_its_blueprints_where_it_is_loaded():
    register_task("Mine-v0", data_dir=None, horizon=5)
    register_blueprint("mine", "cnn", lambda channels: nn.Conv2d(channels, channels, 1))
    env = gymnasium.make("Mine-v0", **TINY).unwrapped
    env.reset(seed=0, options={"topology": {"r0c0": "mine"}})
    data = pickle.dumps(env)
    np.testing.assert_array_equal(pickle.loads(data).observe()["features"], env.observe()["features"])
    del TASKS["Mine-v0"]
    with pytest.raises(ValueError, match="'Mine-v0' is not registered in this process; import the module that"):
        pickle.loads(data)
    TASKS["Mine-v0"] = env.task
    register_blueprint("another", "cnn", lambda channels: nn.Conv2d(channels, channels, 1))
    with pytest.raises(ValueError, match="the state was saved in another environment: offered_blueprints is"):
        pickle.loads(data)


LOAD = """
import hashlib, pickle, sys
import numpy as np
with open(sys.argv[1], "rb") as file:
    env = pickle.load(file)
observations, rewards, *_ = env.step(np.zeros((2, 8), dtype=np.int64))
print(hashlib.sha256(observations["features"].tobytes() + rewards.tobytes()).hexdigest())
"""


def test_another_process_continues_a_pickle(tmp_path, capsys, monkeypatch):
    env = new_env(2)
    env.reset(seed=0)
    env.step(np.array([build_action(Op.GERMINATE, 0, blueprint=2)] * 2))
    path = tmp_path / "env.pickle"
    path.write_bytes(pickle.dumps(env))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path], capture_output=True, text=True, env=os.environ, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", ["", str(path)])
    exec(LOAD, {})
    assert capsys.readouterr().out == done.stdout
