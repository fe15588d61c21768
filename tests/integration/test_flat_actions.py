"""Stock algorithms for discrete actions learn on flat actions; masked ones never choose an illegal action."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_agent.sb3 import GymVecEnv
from esper_env import FlatActions, FlatVectorActions
from gymnasium.vector import AutoresetMode
from sb3_contrib import QRDQN, MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecMonitor

pytestmark = pytest.mark.numeric

ENV_ID = "Esper-Digits-v0"
COUNT, HORIZON = 2, 6
TINY = {"horizon": HORIZON, "batches_per_step": 1, "batch_size": 8}


def stock_vector():
    return make_vec_env(ENV_ID, n_envs=COUNT, seed=0, env_kwargs=TINY, wrapper_class=FlatActions)


def native_vector():
    envs = gymnasium.make_vec(ENV_ID, num_envs=COUNT, autoreset_mode=AutoresetMode.SAME_STEP, **TINY)
    adapted = GymVecEnv(FlatVectorActions(envs))
    adapted.seed(0)
    return VecMonitor(adapted)


def learned(model, timesteps):
    """Train a model; return the infos of all steps."""
    before, infos = [value.clone() for value in model.policy.state_dict().values()], []
    model.learn(timesteps, callback=lambda values, _: infos.extend(values["infos"]) or True)
    after = list(model.policy.state_dict().values())
    assert any((old != new).any() for old, new in zip(before, after, strict=True))
    assert all(torch.isfinite(value).all() for value in after)
    assert len(infos) == timesteps
    assert model.get_env().action_space == gymnasium.spaces.Discrete(1543)
    return infos


@pytest.mark.parametrize(("algorithm", "make"), [(DQN, stock_vector), (QRDQN, native_vector)])
def test_value_based_algorithm_learns(algorithm, make):
    env = make()
    small = {"buffer_size": 100, "learning_starts": 8, "batch_size": 4, "train_freq": 4}
    infos = learned(algorithm("MultiInputPolicy", env, seed=0, device="cpu", **small), 2 * COUNT * HORIZON)
    assert sum("terminal_observation" in info for info in infos) == 2 * COUNT
    env.close()


@pytest.mark.parametrize("make", [stock_vector, native_vector])
def test_masked_policy_chooses_legal_actions_only(make):
    env = make()
    model = MaskablePPO("MultiInputPolicy", env, n_steps=HORIZON, batch_size=HORIZON, n_epochs=1, seed=0, device="cpu")
    assert all(info["action_valid"] for info in learned(model, 3 * COUNT * HORIZON))
    observations, chosen = env.reset(), set()
    for _ in range(2 * HORIZON):
        masks = get_action_masks(env)
        np.testing.assert_array_equal(masks, observations["action_mask"].astype(bool))
        actions, _ = model.predict(observations, action_masks=masks)
        observations, _, _, infos = env.step(actions)
        assert all(info["action_valid"] for info in infos)
        chosen.update(actions.tolist())
    assert len(chosen) > HORIZON
    env.close()
