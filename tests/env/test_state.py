"""The state of an environment is complete, and is restored bit for bit or not at all."""

import copy
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.persistence.checkpoint import CheckpointError, write_checkpoint
from growing import SEEDS, built_with, examples
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st
from stepping import begun, drive, new_env, plan_for

MODES = ("SameStep", "NextStep", "Disabled")


# Round trips


@pytest.mark.parametrize(("mode", "steps"), [("SameStep", 13), ("NextStep", 5), ("Disabled", 0)])
def test_vector_continues_from_state_bit_for_bit(make, assert_same, mode, steps):
    env = make(2, autoreset_mode=mode, max_episode_steps=8)
    plan = plan_for(env)
    state = begun(env, plan, steps).get_state()
    future = drive(env, plan, range(steps, steps + 9))
    other = begun(make(2, autoreset_mode=mode, max_episode_steps=8), plan_for(env, 5), 3)
    other.set_state(state)
    assert_same(other.get_state(), state)
    assert_same(drive(other, plan, range(steps, steps + 9)), future)
    assert_same(other.get_state(), env.get_state())


def test_single_environment_continues_from_state_bit_for_bit(make, assert_same):
    env, steps = make(None), 12
    plan = plan_for(env)
    state = begun(env, plan, steps).get_state()
    future = drive(env, plan, range(steps, steps + 9))
    other = make(None)
    other.set_state(state)
    assert other.np_random is other._vector.np_random[0]
    assert_same(drive(other, plan, range(steps, steps + 9)), future)
    assert other.np_random.integers(2**60) == env.np_random.integers(2**60)
    assert other.np_random_seed == env.np_random_seed


def test_state_includes_finished_episodes_before_their_reset(make, assert_same):
    env = make(autoreset_mode="NextStep", max_episode_steps=4)
    plan = plan_for(env)
    state = begun(env, plan, 4).get_state()
    assert state["clock"]["finished"].all()
    other = make(autoreset_mode="NextStep", max_episode_steps=4)
    other.set_state(state)
    assert_same(drive(other, plan, range(4, 7)), drive(env, plan, range(4, 7)))


def test_state_before_the_first_reset_includes_the_generators(make, assert_same):
    env, other = make(2), make(2)
    other.set_state(env.get_state())
    with pytest.raises(ResetNeeded):
        other.observe()
    assert_same(other.reset(), env.reset())


def test_single_environment_and_vector_of_one_exchange_states(make):
    env, vector = make(None), make(1, autoreset_mode="Disabled")
    plan = plan_for(env)
    vector.set_state(begun(env, plan, 6).get_state())
    for ours, theirs in zip(drive(env, plan, range(6, 12)), drive(vector, plan, range(6, 12)), strict=True):
        np.testing.assert_array_equal(ours[0]["features"], theirs[0]["features"][0])
    env.set_state(vector.get_state())
    np.testing.assert_array_equal(env.observe()["features"], vector.observe()["features"][0])


def test_restoring_repeats_the_future_in_the_same_environment(make, assert_same):
    """Includes cached trainers, whose copies of the weights must not be used again."""
    env = make(shard_size=1)
    plan = plan_for(env)
    state = begun(env, plan, 7).get_state()
    seen, kept = env.observe(), copy.deepcopy(state)
    futures = []
    for _ in range(3):
        futures.append((drive(env, plan, range(7, 14)), env.get_state()))
        env.set_state(state)
        assert_same(env.observe(), seen)
    assert_same(futures[1], futures[0])
    assert_same(futures[2], futures[0])
    assert_same(state, kept)


def test_state_shares_nothing_with_the_environment(make, assert_same):
    env, twin = make(), make()
    plan = plan_for(env)
    begun(env, plan, 6)
    begun(twin, plan, 6)

    def spoil(tree):
        for key, value in tree.items():
            if isinstance(value, np.ndarray):
                value[...] = 1
            elif isinstance(value, dict):
                spoil(value)
            elif isinstance(value, list):
                value.clear()
            else:
                tree[key] = None

    spoil(env.get_state())
    state = twin.get_state()
    env.set_state(state)
    spoil(state)
    assert_same(drive(env, plan, range(6, 12)), drive(twin, plan, range(6, 12)))


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 2)])
def test_state_is_independent_of_the_layout_of_shards(make, assert_same, before, after):
    with built_with(torch.float64):
        env, other = make(shard_size=before), make(shard_size=after)
    plan = plan_for(env)
    state = begun(env, plan, 7).get_state()
    other.set_state(state)
    assert_same(other.get_state(), state)
    for ours, theirs in zip(drive(env, plan, range(7, 13)), drive(other, plan, range(7, 13)), strict=True):
        np.testing.assert_allclose(ours[0]["features"], theirs[0]["features"], atol=1e-5)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


# Files

PROCESS = """
import sys, numpy as np
from esper_env.vector_env import EsperVectorEnv
path, actions = sys.argv[1:]
settings = {"horizon": 9, "batches_per_step": 2, "batch_size": 8, "device": "cpu", "autoreset_mode": "SameStep"}
envs = EsperVectorEnv("Esper-Digits-v0", 2, **settings)
envs.load_state(path)
results = [envs.step(action) for action in np.load(actions)]
np.savez(path + ".npz", rewards=[each[1] for each in results], features=[each[0]["features"] for each in results])
envs.save_state(path)
"""


def test_another_process_continues_from_file_bit_for_bit(make, assert_same, tmp_path):
    env = make(2)
    rng = np.random.default_rng(0)
    env.reset(seed=1)
    for _ in range(12):
        env.step(env.sample_valid_actions(rng))
    path = env.save_state(tmp_path / "state")
    actions = [env.sample_valid_actions(rng) for _ in range(8)]
    np.save(tmp_path / "actions.npy", actions)
    future = [env.step(action) for action in actions]
    subprocess.run([sys.executable, "-c", PROCESS, str(path), str(tmp_path / "actions.npy")], check=True, timeout=300)
    with np.load(f"{path}.npz") as theirs:
        np.testing.assert_array_equal(theirs["rewards"], [each[1] for each in future])
        np.testing.assert_array_equal(theirs["features"], [each[0]["features"] for each in future])
    state = env.get_state()
    env.load_state(path)
    assert_same(env.get_state(), state)


def test_load_state_rejects_another_checkpoint_and_changes_nothing(make, assert_same, tmp_path):
    env = begun(make(), plan_for(make()), 4)
    before = env.get_state()
    write_checkpoint(tmp_path / "run", {"a": 1}, kind="esper training run")
    with pytest.raises(CheckpointError, match="esper training run"):
        env.load_state(tmp_path / "run")
    with pytest.raises(CheckpointError, match="esper training run"):
        env.save_state(tmp_path / "run")
    write_checkpoint(tmp_path / "state", {"a": 1}, kind="esper environment")
    with pytest.raises(ValueError, match="not the state of an environment"):
        env.load_state(tmp_path / "state")
    assert_same(env.get_state(), before)


# Any growth


@pytest.mark.slow
@given(
    seed=SEEDS,
    steps=st.integers(0, 20),
    mode=st.sampled_from(MODES),
    num_envs=st.sampled_from([None, 1, 3]),
    kwargs=st.fixed_dictionaries(
        {
            "isolation": st.sampled_from(["shadow", "straight_through"]),
            "reward_mode": st.sampled_from(["accuracy", "sparse", "contribution"]),
            "precision": st.sampled_from(["float32", "float32", "bfloat16"]),
            "shard_size": st.sampled_from(["auto", 1, 2]),
            "gates": st.sampled_from(["permissive", "strict"]),
        }
    ),
)
@examples(12)
def test_growth_continues_from_any_step(assert_same, tmp_path_factory, seed, steps, mode, num_envs, kwargs):
    if num_envs is not None:
        kwargs = {**kwargs, "autoreset_mode": mode}
    env, other = new_env(num_envs, **kwargs), new_env(num_envs, **kwargs)
    plan = plan_for(env, seed, 36)
    begun(env, plan, steps)
    other.load_state(env.save_state(tmp_path_factory.mktemp("states") / "state"))
    ahead = range(steps, steps + 12)
    assert_same(drive(other, plan, ahead), drive(env, plan, ahead))
    assert_same(other.get_state(), env.get_state())
    env.close()
    other.close()


@pytest.mark.slow
def test_convolutional_task_on_colour_images_continues_from_file(assert_same, tmp_path):
    kwargs = {"horizon": 9, "batches_per_step": 1, "batch_size": 8, "dataset": "procedural", "device": "cpu"}
    env, other = (gymnasium.make_vec("Esper-CIFAR-Surfaces-v0", 1, **kwargs) for _ in range(2))
    plan = plan_for(env, 3, 12)
    begun(env, plan, 5)
    assert env.get_state()["population"].keys() >= {"seeds", "gates"}
    other.load_state(env.save_state(tmp_path / "state"))
    assert_same(drive(other, plan, range(5, 8)), drive(env, plan, range(5, 8)))
    assert_same(other.get_state(), env.get_state())
    env.close()
    other.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("capture", ["auto", "off"])
def test_cuda_state_is_restored_exactly_and_the_future_within_rounding(make, assert_same, capture):
    with built_with(torch.float64):
        env, other = (make(device="cuda", capture=capture) for _ in range(2))
    plan = plan_for(env)
    state = begun(env, plan, 6).get_state()
    futures = []
    for each in (env, env, other):
        each.set_state(state)
        assert_same(each.get_state(), state)
        futures.append(drive(each, plan, range(6, 9)))
    assert_same(futures[1], futures[0], atol=1e-5)
    assert_same(futures[2], futures[0], atol=1e-5)
    with pytest.raises(ValueError, match="device_kind is 'cuda' in the state and 'cpu' here"):
        make().set_state(state)


def test_set_state_keeps_the_generators_when_the_state_does_not_fit(make):
    env = make(2)
    state = begun(env, plan_for(env), 1).get_state()
    env.np_random = rngs = (np.random.default_rng(0), np.random.Generator(np.random.MT19937(0)))
    with pytest.raises(ValueError, match="clock: it lacks"):
        env.set_state(state | {"clock": {}})
    assert all(kept is rng for kept, rng in zip(env.np_random, rngs, strict=True))


def test_set_state_replaces_generators_whose_state_cannot_be_saved(make, assert_same):
    env = make(2)
    state = begun(env, plan_for(env), 1).get_state()
    env.np_random = [np.random.Generator(np.random.MT19937(seed)) for seed in range(2)]
    env.set_state(state)
    assert_same(env.get_state(), state)
