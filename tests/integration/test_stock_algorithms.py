"""Stock algorithms learn on stock vectors without warnings; tests/agent/test_sb3.py tests them on the native vector."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_agent import FactoredRecurrentPPO
from esper_agent.policies.baselines import POLICIES
from esper_agent.sb3 import make_sb3_env
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

pytestmark = pytest.mark.numeric

ENV_ID = "Esper-Digits-v0"
COUNT, HORIZON, STEPS = 2, 6, 12
TINY = {"horizon": HORIZON, "batches_per_step": 1, "batch_size": 8}
SMALL = {"n_steps": STEPS, "batch_size": STEPS, "n_epochs": 1, "seed": 0, "device": "cpu"}


def stock_vector(**kwargs):
    return make_vec_env(ENV_ID, n_envs=COUNT, seed=0, env_kwargs=TINY, **kwargs)


def stock_vector_with_masker():
    masks = {"action_mask_fn": lambda env: env.unwrapped.action_masks()}
    return stock_vector(wrapper_class=ActionMasker, wrapper_kwargs=masks)


def native_vector(**kwargs):
    return make_sb3_env(ENV_ID, num_envs=COUNT, seed=0, **TINY, **kwargs)


@pytest.mark.parametrize(
    ("algorithm", "policy", "make"),
    [
        (PPO, "MultiInputPolicy", stock_vector),
        (RecurrentPPO, "MultiInputLstmPolicy", stock_vector),
        (MaskablePPO, "MultiInputPolicy", stock_vector_with_masker),
    ],
)
def test_algorithm_learns_on_stock_vectors(algorithm, policy, make):
    env = make()
    model = algorithm(policy, env, **SMALL)
    before = [value.clone() for value in model.policy.state_dict().values()]
    model.learn(2 * COUNT * STEPS)
    after = list(model.policy.state_dict().values())
    assert any((old != new).any() for old, new in zip(before, after, strict=True))
    assert all(torch.isfinite(value).all() for value in after)
    assert [episode["l"] for episode in model.ep_info_buffer] == [HORIZON] * (2 * COUNT * STEPS // HORIZON)
    env.close()


@pytest.mark.parametrize("make", [stock_vector_with_masker, native_vector])
def test_masks_reach_the_masked_policy(make):
    env = make()
    model = MaskablePPO("MultiInputPolicy", env, **SMALL)
    observations = env.reset()
    splits = np.cumsum(env.action_space.nvec)[:-1]
    for _ in range(2 * HORIZON):
        masks = get_action_masks(env)
        np.testing.assert_array_equal(masks, observations["action_mask"].astype(bool))
        actions, _ = model.predict(observations, action_masks=masks)
        for mask, action in zip(masks, actions, strict=True):
            assert all(part[value] for part, value in zip(np.split(mask, splits), action, strict=True))
        observations, *_ = env.step(actions)
    env.close()


@pytest.mark.parametrize("name", ["learner", "heuristic", "conv_light", "random", "wait"])
def test_masked_evaluation_of_sb3_contrib_plays_every_policy(name):
    env = native_vector()
    if name == "learner":
        policy = FactoredRecurrentPPO("FactoredLstmPolicy", env, **SMALL)
    else:
        policy = POLICIES[name](gymnasium.make(ENV_ID, **TINY), 0)
    returns, lengths = evaluate_policy(policy, env, n_eval_episodes=3, return_episode_rewards=True)
    assert lengths == [HORIZON] * 3
    assert np.isfinite(returns).all()
    env.close()


def test_masked_evaluation_callback_of_sb3_contrib_evaluates_the_learner():
    env, held_out = native_vector(), native_vector()
    evaluation = MaskableEvalCallback(held_out, n_eval_episodes=2, eval_freq=STEPS, verbose=0)
    FactoredRecurrentPPO("FactoredLstmPolicy", env, **SMALL).learn(COUNT * STEPS, callback=evaluation)
    assert np.isfinite(evaluation.last_mean_reward)
    env.close()
    held_out.close()


def test_stock_and_native_vectors_play_equal_episodes():
    """Networks run serially in both, because other shapes round differently."""
    stock, native = stock_vector(), native_vector(shard_size=1)
    stock.seed(5)
    native.seed(5)
    left, right = stock.reset(), native.reset()
    rng = np.random.default_rng(0)
    for _ in range(2 * HORIZON):
        np.testing.assert_equal(dict(left), dict(right))
        actions = rng.integers(0, stock.action_space.nvec, size=(COUNT, 8))
        (left, *results, infos), (right, *own_results, own_infos) = stock.step(actions), native.step(actions)
        np.testing.assert_equal(results, own_results)
        for info, own in zip(infos, own_infos, strict=True):
            assert info.keys() == own.keys()
            assert info["TimeLimit.truncated"] is own["TimeLimit.truncated"] is False
            np.testing.assert_equal(info.get("terminal_observation"), own.get("terminal_observation"))
    stock.close()
    native.close()
