"""Adapter for Stable-Baselines3: transitions equal those of its own DummyVecEnv."""

import gymnasium
import numpy as np
import pytest
from esper_agent.evaluation.play import run_episodes
from esper_agent.sb3 import GymVecEnv, make_sb3_env
from esper_agent.vectors import split_infos
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

pytestmark = pytest.mark.numeric

HORIZON = 5


def adapted(toy_id, num_envs=3, **kwargs):
    return GymVecEnv(gymnasium.make_vec(toy_id, num_envs=num_envs, horizon=HORIZON, **kwargs))


def actions_for(space, steps, num_envs):
    rng = np.random.default_rng(5)
    return [rng.integers(0, space.nvec, size=(num_envs, len(space.nvec))) for _ in range(steps)]


def assert_same(left, right):
    """Assert equal values, types and keys."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, np.ndarray):
        np.testing.assert_array_equal(left, right)
    else:
        assert left == right
        assert type(left) is type(right)


def test_transitions_equal_those_of_dummy_vec_env(toy_id):
    ours, theirs = adapted(toy_id), DummyVecEnv([lambda: gymnasium.make(toy_id, horizon=HORIZON)] * 3)
    ours.seed(40)
    theirs.seed(40)
    assert_same(dict(ours.reset()), dict(theirs.reset()))
    assert_same(ours.reset_infos[1], theirs.reset_infos[1])
    ended = 0
    for actions in actions_for(ours.action_space, 3 * HORIZON, 3):
        (obs, rewards, dones, infos), (their_obs, their_rewards, their_dones, their_infos) = (
            ours.step(actions),
            theirs.step(actions),
        )
        assert_same(dict(obs), dict(their_obs))
        assert rewards.dtype == np.float32
        np.testing.assert_array_equal(rewards, their_rewards)
        np.testing.assert_array_equal(dones, their_dones)
        for index in range(3):
            assert_same(infos[index], their_infos[index])
            assert_same(ours.reset_infos[index], theirs.reset_infos[index])
        ended += dones.sum()
    assert ended == 9


def test_truncated_flag_is_true_only_before_the_horizon(toy_id):
    for limit, expected in ((2, True), (HORIZON, False), (HORIZON + 1, False)):
        env = adapted(toy_id, max_episode_steps=limit)
        env.reset()
        for actions in actions_for(env.action_space, min(limit, HORIZON), 3):
            _, _, dones, infos = env.step(actions)
        assert dones.all()
        assert [info["TimeLimit.truncated"] for info in infos] == [expected] * 3
        assert infos[0]["TimeLimit.truncated"] is expected


def test_infos_have_no_masks_and_copied_arrays(toy_id):
    env = adapted(toy_id)
    env.reset()
    _, _, _, infos = env.step(actions_for(env.action_space, 1, 3)[0])
    assert not any(key.startswith("_") for key in infos[0])
    infos[0]["action_mask"][:] = 7
    assert infos[1]["action_mask"].max() == 1


def test_observations_are_copies(toy_id):
    """The wrapped vector reuses its arrays in every step."""
    toys = [lambda: gymnasium.make(toy_id)] * 2
    env = GymVecEnv(SyncVectorEnv(toys, copy=False, autoreset_mode=AutoresetMode.SAME_STEP))
    first = env.reset()
    kept = first["features"].copy()
    env.step(actions_for(env.action_space, 1, 2)[0])
    np.testing.assert_array_equal(first["features"], kept)


def test_seed_applies_to_one_reset_and_none_leaves_the_global_generator_unchanged(toy_id):
    env = adapted(toy_id)
    env.seed(7)
    assert not np.array_equal(env.reset()["features"], env.reset()["features"])
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert env.seed(None) != env.seed(None)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_masks_and_attributes_have_one_entry_per_environment(toy_id):
    env = adapted(toy_id)
    env.reset()
    masks = env.env_method("action_masks")
    assert len(masks) == 3
    np.testing.assert_array_equal(masks, env.vec_env.action_masks())
    np.testing.assert_array_equal(env.env_method("action_masks", indices=[2])[0], masks[2])
    assert env.has_attr("action_masks")
    assert not env.has_attr("no_such_thing")
    assert env.get_attr("slot_ids") == [("r0c0", "r0c1")] * 3
    assert env.get_attr("observation_space", 0) == [env.observation_space]
    assert env.get_attr("render_mode") == [None] * 3
    env.set_attr("dataset_name", "other")
    assert env.vec_env.dataset_name == "other"
    assert env.env_is_wrapped(gymnasium.Wrapper) == [False] * 3


def test_attributes_and_methods_of_a_vector_reject_single_environments(toy_id):
    env = adapted(toy_id)
    with pytest.raises(ValueError, match=r"set_attr\('dataset_name'\) received environments \[1\]"):
        env.set_attr("dataset_name", "other", indices=1)
    env.vec_env.unwrapped.total = lambda: 3
    with pytest.raises(TypeError, match="returned a int; expected one entry for each of its 3 environments"):
        env.env_method("total")


def test_attributes_of_sync_vector_env_are_per_environment(toy_id):
    sync = SyncVectorEnv([lambda: gymnasium.make(toy_id)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    env = GymVecEnv(sync)
    env.reset()
    assert len(env.env_method("action_masks")) == 2
    assert env.get_attr("dataset_name") == ["toy", "toy"]
    env.set_attr("dataset_name", "other", indices=[1])
    assert env.get_attr("dataset_name") == ["toy", "other"]
    assert env.env_is_wrapped(gymnasium.wrappers.OrderEnforcing) == [True, True]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_adapter_rejects_other_autoreset_modes(toy_id, mode):
    with pytest.raises(ValueError, match=r"needs AutoresetMode.SAME_STEP"):
        adapted(toy_id, autoreset_mode=mode.value)


def test_options_apply_to_one_reset(toy_id):
    env = adapted(toy_id)
    seen = []
    reset = env.vec_env.unwrapped.reset
    env.vec_env.unwrapped.reset = lambda **kwargs: seen.append(kwargs["options"]) or reset(seed=kwargs["seed"])
    env.set_options({"topology": {"r0c0": "norm"}})
    env.reset()
    env.reset()
    assert seen == [{"topology": {"r0c0": "norm"}}, None]
    env.set_options([{"a": 1}, {}, {}])
    with pytest.raises(ValueError, match="different options per environment"):
        env.reset()


def test_make_sb3_env_monitors_and_passes_env_kwargs(toy_id):
    env = make_sb3_env(toy_id, num_envs=2, seed=3, horizon=2)
    assert isinstance(env, VecMonitor)
    env.reset()
    steps = [env.step(actions) for actions in actions_for(env.action_space, 2, 2)]
    episode = steps[-1][3][0]["episode"]
    assert (episode["l"], episode["r"]) == (2, pytest.approx(steps[0][1][0] + steps[1][1][0], abs=1e-5))
    env.close()
    assert env.venv.vec_env.closed


def test_split_infos_applies_masks_at_every_depth():
    infos = {
        "a": np.array([1.5, 2.5]),
        "_a": np.array([True, False]),
        "nested": {"b": np.array([[1, 2], [3, 4]]), "c": np.array([0, 9]), "_c": np.array([False, True])},
        "shared": "text",
        "objects": np.array([None, {"x": np.ones(2)}], dtype=object),
        "_objects": np.array([False, True]),
    }
    first, second = split_infos(infos, 2)
    assert first.keys() == {"a", "nested", "shared"}
    assert first["a"] == 1.5
    assert first["nested"].keys() == {"b"}
    assert second["nested"]["c"] == 9
    np.testing.assert_array_equal(second["nested"]["b"], [3, 4])
    assert second["shared"] == "text"
    np.testing.assert_array_equal(second["objects"]["x"], [1, 1])


SMALL_TASK = {"batches_per_step": 1, "horizon": 6, "device": "cpu"}


@pytest.mark.slow
def test_stock_evaluation_agrees_with_ours_on_a_real_task():
    """Both play the same seeds and carry the recurrent state."""
    env = make_sb3_env("Esper-Digits-v0", num_envs=3, seed=50, **SMALL_TASK)
    model = RecurrentPPO("MultiInputLstmPolicy", env, n_steps=6, device="cpu", seed=0)
    env.seed(50)
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=3, return_episode_rewards=True)
    records = run_episodes(model, "Esper-Digits-v0", 3, seed=50, env_kwargs=SMALL_TASK)
    assert returns == pytest.approx([record.episode_return for record in records], abs=1e-4)
    assert lengths == [6, 6, 6]
