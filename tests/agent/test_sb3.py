"""Adapter for Stable-Baselines3: transitions equal those of its own DummyVecEnv."""

import gymnasium
import numpy as np
import pytest
from esper_agent.evaluation.play import run_episodes
from esper_agent.sb3 import GymVecEnv, make_sb3_env
from esper_agent.vectors import split_infos
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

pytestmark = pytest.mark.numeric

HORIZON, TOY_ID = 5, "GrowthToy-v0"


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


class AddsInfos(VectorWrapper):
    """Adds a key to every reset and step, one to the ends of episodes, and one without a mask; removes one of steps."""

    def reset(self, **kwargs):
        observation, infos = super().reset(**kwargs)
        self.steps = np.zeros(self.num_envs, dtype=np.int64)
        return observation, infos | {"steps": self.steps.copy(), "_steps": np.ones(self.num_envs, dtype=bool)}

    def step(self, actions):
        *results, infos = super().step(actions)
        self.steps += 1
        ends = results[2] | results[3]
        added = {"steps": self.steps.copy(), "_steps": np.ones(self.num_envs, dtype=bool), "version": "2"}
        if ends.any():
            added |= {"ended": {"after": np.where(ends, self.steps, 0), "_after": ends}, "_ended": ends}
            self.steps[ends] = 0
        del infos["op"], infos["_op"]
        return *results, {**infos, **added}


@pytest.mark.parametrize("vectorization_mode", ["vector_entry_point", "sync"])
def test_infos_of_vector_wrappers_belong_to_the_step_that_they_were_added_to(toy_id, vectorization_mode):
    """The first episodes of the three environments have 3, 4 and 5 steps."""
    modes = {"vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}} if vectorization_mode == "sync" else {}
    vector = gymnasium.make_vec(toy_id, 3, vectorization_mode, horizon=HORIZON, **modes)
    env = GymVecEnv(AddsInfos(RecordEpisodeStatistics(vector)))
    env.reset()
    assert [info["steps"] for info in env.reset_infos] == [0, 0, 0]
    own = env.reset_infos[0].keys() - {"steps", "op"}
    for row, inner in enumerate(vector.envs if vectorization_mode == "sync" else vector.rows):
        inner.unwrapped.epoch = 2 - row
    returns, lengths, ended = np.zeros(3), np.zeros(3, dtype=int), 0
    for actions in actions_for(env.action_space, 4 * HORIZON, 3):
        _, rewards, dones, infos = env.step(actions)
        returns, lengths = returns + rewards, lengths + 1
        for row, info in enumerate(infos):
            assert (info["steps"], info["version"]) == (lengths[row], "2")
            assert ("episode" in info, "ended" in info, "shapley" in info) == (dones[row],) * 3
            if not dones[row]:
                continue
            assert (info["episode"]["l"], info["ended"]) == (lengths[row], {"after": lengths[row]})
            assert info["episode"]["r"] == pytest.approx(returns[row], abs=1e-5)
            assert "terminal_observation" in info
            assert env.reset_infos[row].keys() == own
            returns[row], lengths[row], ended = 0.0, 0, ended + 1
    assert ended == 12


def test_every_episode_of_recorded_statistics_is_logged(toy_id):
    vector = RecordEpisodeStatistics(gymnasium.make_vec(toy_id, num_envs=3, horizon=HORIZON))
    below = vector.env
    model = PPO("MultiInputPolicy", GymVecEnv(vector), n_steps=20, batch_size=60, n_epochs=1, device="cpu").learn(60)
    assert [episode["l"] for episode in model.ep_info_buffer] == [HORIZON] * 12
    assert vector.env is below


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
    env.set_attr("render_mode", "ansi")
    assert env.vec_env.render_mode == "ansi"
    assert env.env_is_wrapped(gymnasium.Wrapper) == [False] * 3


def test_attributes_and_methods_of_a_vector_reject_single_environments(toy_id):
    env = adapted(toy_id)
    with pytest.raises(ValueError, match=r"set_attr\('render_mode'\) received environments \[1\]"):
        env.set_attr("render_mode", "ansi", indices=1)
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


@pytest.mark.parametrize(
    ("env_id", "made", "kind"),
    [
        (TOY_ID, {"autoreset_mode": "NextStep"}, None),
        (TOY_ID, {"autoreset_mode": "Disabled"}, None),
        (TOY_ID, {"vectorization_mode": "sync"}, SyncVectorEnv),
        ("CartPole-v1", {}, SyncVectorEnv),  # its own vector has only NEXT_STEP
        ("CartPole-v1", {"vectorization_mode": "sync"}, SyncVectorEnv),
        ("CartPole-v1", {"vectorization_mode": "async"}, AsyncVectorEnv),
    ],
)
@pytest.mark.usefixtures("toy_id")
def test_adapter_rejects_other_autoreset_modes_with_advice_that_works(env_id, made, kind):
    vector = gymnasium.make_vec(env_id, 2, **made)
    with pytest.raises(ValueError, match=r"needs AutoresetMode.SAME_STEP: use .*, or make_sb3_env$") as caught:
        GymVecEnv(vector)
    advised = eval(str(caught.value).split(": use ")[1].removesuffix(", or make_sb3_env"))
    assert type(advised) is (kind or type(vector))
    env = GymVecEnv(advised)
    assert (env.num_envs, env.spec.id) == (2, env_id)
    env.close()
    vector.close()


@pytest.mark.parametrize("vectorization_mode", [None, "sync", "async"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", TOY_ID])
@pytest.mark.usefixtures("toy_id")
def test_made_environment_trains_in_every_vectorization(env_id, vectorization_mode):
    env = make_sb3_env(env_id, 2, seed=0, vectorization_mode=vectorization_mode, max_episode_steps=5)
    policy = "MlpPolicy" if env_id == "CartPole-v1" else "MultiInputPolicy"
    model = PPO(policy, env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)
    assert {episode["l"] for episode in model.ep_info_buffer} == {5}
    assert len(model.ep_info_buffer) == 6
    env.close()


@pytest.mark.parametrize(
    ("given", "near"), [("n_envs", "num_envs"), ("monitor_dir", "monitor_file"), ("sed", "seed"), ("horizn", "horizon")]
)
def test_made_environment_rejects_unknown_arguments_with_the_closest(given, near):
    with pytest.raises(
        TypeError, match=f"got an unexpected keyword argument {given!r}; did you mean {near!r}"
    ) as caught:
        make_sb3_env("Esper-Digits-v0", **{given: 3})
    assert str(caught.value).startswith("make_sb3_env() ") is (given != "horizn")


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
