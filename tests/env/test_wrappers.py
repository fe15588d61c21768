"""Flat actions: spaces, exact masks in reachable states, equal effects, autoreset, copies, and errors."""

import copy
import doctest
import pickle

import gymnasium
import numpy as np
import pytest
from esper_env import FlatActions, FlatVectorActions, wrappers
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_RELEVANCE, Head, Op
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stepping import growth_of

pytestmark = pytest.mark.numeric

#: Settings of tasks with the number of their joint actions.
TASKS = {
    "Esper-Digits-v0": ({}, 1543),
    "Esper-CIFAR-Impaired-v0": ({"slots": ["r0c0", "r0c2"], "max_seeds": 1}, 1029),
    "Esper-Text-v0": ({}, 1029),
}


def judged(env, numbers):
    """The environment's own judgement of joint actions in its present state."""
    growth = growth_of(env.unwrapped)
    return [bool(growth.rules.decode([env.action(number)], growth.table).valid[0]) for number in numbers]


def test_docstring_examples_pass():
    results = doctest.testmod(wrappers)
    assert (results.failed, results.attempted > 0) == (0, True)


@pytest.mark.parametrize("env_id", TASKS)
def test_masks_equal_the_judgement_of_the_environment_in_random_states(env_id, tiny):
    settings, count = TASKS[env_id]
    env = FlatActions(gymnasium.make(env_id, **tiny(env_id) | {"horizon": 12} | settings))
    assert env.action_space.n == count
    observation, info = env.reset(seed=0)
    rng, seen, over = np.random.default_rng(0), set(), False
    while not over:
        assert observation in env.observation_space
        assert observation.keys() == {"features", "blueprints", "action_mask"}
        mask = observation["action_mask"]
        assert (mask.dtype, mask.shape) == (np.int8, (env.action_space.n,))
        np.testing.assert_array_equal(mask, info["action_mask"])
        np.testing.assert_array_equal(mask, env.action_masks())
        some = rng.choice(len(mask), 200, replace=False)
        assert mask[some].astype(bool).tolist() == judged(env, some)
        legal = np.flatnonzero(mask)
        op = rng.choice(np.unique(env._joint.actions[legal, Head.OP]))  # most joint actions are GERMINATE
        number = rng.choice(legal[env._joint.actions[legal, Head.OP] == op])
        observation, _, over, _, info = env.step(number)
        assert info["action_valid"]
        seen.add(int(op))
    assert {Op.WAIT, Op.GERMINATE, Op.ADVANCE} <= seen
    env.close()


def test_factored_actions_have_the_effect_of_their_number(make_digits, assert_same):
    """Also illegal ones, if their blueprint is offered. Heads that the op does not read have random values."""
    factored, flat = make_digits(horizon=12), FlatActions(make_digits(horizon=12))
    left, right = factored.reset(seed=3), flat.reset(seed=3)
    rng = np.random.default_rng(3)
    for step in range(12):
        chosen = factored.unwrapped.sample_valid_actions(rng)
        if step % 4 == 3:
            chosen[Head.OP], chosen[Head.BLUEPRINT] = rng.integers(6), 1
        noise = rng.integers(0, factored.action_space.nvec)
        noisy = np.where(HEAD_RELEVANCE[chosen[Head.OP]], chosen, noise)
        number = flat.index(noisy)
        canonical = np.where(HEAD_RELEVANCE[chosen[Head.OP]], chosen, HEAD_DEFAULTS)
        assert flat.action(number).tolist() == canonical.tolist()
        left, right = factored.step(noisy), flat.step(number)
        for name in ("features", "blueprints"):
            assert_same(left[0][name], right[0][name])
        assert_same(left[1:4], right[1:4])
        assert_same({**left[4], "action_mask": 0}, {**right[4], "action_mask": 0})


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_checkers_of_gymnasium_and_stable_baselines3_pass(make_digits):
    env = FlatActions(make_digits(horizon=20, render_mode="ansi"))
    check_env(env)
    check_env_sb3(env, warn=True)


def test_spec_makes_the_wrapped_environment_again(make_digits):
    spec = FlatActions(make_digits()).spec
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert again.action_space == gymnasium.spaces.Discrete(1543)
    again.close()


def test_mask_follows_a_restored_state(make_digits):
    env = FlatActions(make_digits())
    env.reset(seed=0)
    state, before = env.unwrapped.get_state(), env.action_masks()
    env.step(1)
    assert (env.action_masks() != before).any()
    env.unwrapped.set_state(state)
    np.testing.assert_array_equal(env.action_masks(), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("count", [None, 2])
def test_copies_continue_like_the_original(make_digits, make_digits_vec, duplicate, count, assert_same):
    env = FlatActions(make_digits()) if count is None else FlatVectorActions(make_digits_vec(count))
    env.reset(seed=0)
    twin = duplicate(env)
    first = 1 if count is None else np.array([1, 300])
    assert_same(env.step(first), twin.step(first))
    np.testing.assert_array_equal(env.action_masks(), twin.action_masks())
    twin.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_masks_are_exact_in_every_autoreset_mode(make_digits_vec, mode):
    envs = FlatVectorActions(make_digits_vec(3, horizon=4, autoreset_mode=mode))
    plain = make_digits_vec(3, horizon=4, autoreset_mode=mode)
    count = envs.single_action_space.n
    assert envs.action_space.nvec.tolist() == [count] * 3
    rng = np.random.default_rng(0)

    def check(observations, infos, expected, expected_infos):
        assert observations in envs.observation_space
        assert infos.keys() == expected_infos.keys()
        masks = envs._joint.mask(expected["op_slot_mask"])
        np.testing.assert_array_equal(observations["action_mask"], masks)
        np.testing.assert_array_equal(envs.action_masks(), masks)
        if "action_mask" in infos:
            rows = expected_infos["_action_mask"]
            np.testing.assert_array_equal(infos["action_mask"], masks * rows[:, None])
        for row in np.flatnonzero(expected_infos.get("_final_obs", [])):
            last = envs._joint.mask(expected_infos["final_obs"][row]["op_slot_mask"])
            np.testing.assert_array_equal(infos["final_obs"][row]["action_mask"], last)
            assert "op_slot_mask" not in infos["final_obs"][row]
            np.testing.assert_array_equal(infos["final_info"]["action_mask"][row], last)

    results, expected = envs.reset(seed=0), plain.reset(seed=0)
    check(*results, *expected)
    for step in range(9):
        numbers = np.array([rng.choice(np.flatnonzero(mask)) for mask in envs.action_masks()])
        (observations, *_, infos), (theirs, *_, their_infos) = envs.step(numbers), plain.step(envs.action(numbers))
        check(observations, infos, theirs, their_infos)
        if step % 4 == 3 and mode is AutoresetMode.DISABLED:
            results, expected = envs.reset(), plain.reset()
            check(*results, *expected)
    partial = {"options": {"reset_mask": np.array([False, True, False])}}
    results, expected = envs.reset(**partial), plain.reset(**partial)
    check(*results, *expected)
    assert results[1]["action_mask"].any(axis=1).tolist() == [False, True, False]
    np.testing.assert_array_equal(envs.index(envs.action(numbers)), numbers)


def test_vectors_of_gymnasium_take_the_single_wrapper(tiny):
    envs = gymnasium.make_vec(
        "Esper-Digits-v0", num_envs=2, vectorization_mode="sync", wrappers=[FlatActions], **tiny("Esper-Digits-v0")
    )
    observations, infos = envs.reset(seed=0)
    np.testing.assert_array_equal(observations["action_mask"], infos["action_mask"])
    *_, infos = envs.step(np.array([1, 0]))
    assert infos["op"].tolist() == [Op.GERMINATE, Op.WAIT]
    envs.close()


@pytest.mark.parametrize("number", [-1, 1543, 0.0, True, [0], None])
def test_single_environment_rejects_numbers_out_of_range(make_digits, number):
    env = FlatActions(make_digits())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is .*; expected an integer in \[0, 1542\]"):
        env.step(number)


@pytest.mark.parametrize("numbers", [[0, 1543], [-1, 0], [0], 0, [0.0, 0.0]])
def test_vector_rejects_numbers_out_of_range(make_digits_vec, numbers):
    envs = FlatVectorActions(make_digits_vec(2))
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"action is .*; expected \(2,\) integers in \[0, 1542\]"):
        envs.step(numbers)


def test_wrappers_reject_other_environments(make_digits, make_digits_vec):
    with pytest.raises(TypeError, match=r"env is .*; expected an EsperEnv \(use FlatVectorActions for a vector\)"):
        FlatActions(gymnasium.make("CartPole-v1"))
    with pytest.raises(TypeError, match=r"env is .*; expected an EsperVectorEnv \(use FlatActions for a single"):
        FlatVectorActions(gymnasium.make_vec("CartPole-v1", num_envs=1))
    for wrapper, env in ((FlatActions, make_digits_vec(1)), (FlatVectorActions, make_digits())):
        with pytest.raises(TypeError):
            wrapper(env)
    with pytest.raises(TypeError, match="without 'action_mask' and 'op_slot_mask'; apply this wrapper before"):
        FlatActions(FlattenObservation(make_digits()))
