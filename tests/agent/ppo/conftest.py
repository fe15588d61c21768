"""A world of masks: the spaces of the growth environments with three slots, new random legality in every step."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch as th
from blueprints import CNN_BLUEPRINTS
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_env.rules.heads import Blueprint, Head, Op, head_sizes
from esper_env.rules.masks import ActionRules
from gymnasium.spaces import Box, Dict, MultiDiscrete
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

SLOTS = 3
NVEC = head_sizes(SLOTS)
RULES = ActionRules(SLOTS, CNN_BLUEPRINTS, SLOTS)


def random_observation(rng, density=0.5):
    op_slot = (rng.random((len(Op), SLOTS)) < density).astype(np.int8)
    op_slot[Op.WAIT] = 1
    return {
        "features": rng.uniform(-2, 2, 31 + 30 * SLOTS).astype(np.float32),
        "blueprints": rng.integers(0, 14, SLOTS),
        "action_mask": RULES.marginal(op_slot[None].astype(bool))[0],
        "op_slot_mask": op_slot.ravel(),
    }


def stack(observations):
    return {key: th.as_tensor(np.stack([obs[key] for obs in observations])) for key in observations[0]}


class MaskWorld(gymnasium.Env):
    """Pays 1 for germinating CONV_LIGHT, 0 otherwise; ``horizon`` terminates, ``cut`` truncates."""

    def __init__(self, horizon=8, cut=None, density=0.5, always_germinate=False):
        self.horizon, self.cut, self.density, self.always_germinate = horizon, cut, density, always_germinate
        self.observation_space = Dict(
            features=Box(-2, 2, (31 + 30 * SLOTS,), np.float32),
            blueprints=Box(0, 13, (SLOTS,), np.int64),
            action_mask=Box(0, 1, (sum(NVEC),), np.int8),
            op_slot_mask=Box(0, 1, (len(Op) * SLOTS,), np.int8),
        )
        self.action_space = MultiDiscrete(NVEC)
        self.executed = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        legal = self.observation["op_slot_mask"].reshape(len(Op), SLOTS)
        assert legal[action[Head.OP], action[Head.SLOT]], "the policy took an illegal action"
        self.executed.append(np.array(action))
        reward = float(action[Head.OP] == Op.GERMINATE and action[Head.BLUEPRINT] == Blueprint.CONV_LIGHT)
        self.steps += 1
        terminated = self.steps >= self.horizon
        truncated = not terminated and self.cut is not None and self.steps >= self.cut
        return self._observe(), reward, terminated, truncated, {}

    def _observe(self):
        self.observation = random_observation(self.np_random, self.density)
        if self.always_germinate:
            op_slot = self.observation["op_slot_mask"].reshape(len(Op), SLOTS)
            op_slot[Op.GERMINATE] = 1
            self.observation["action_mask"] = RULES.marginal(op_slot[None].astype(bool))[0]
        self.observation["features"][0] = self.steps / self.horizon
        return dict(self.observation)


@pytest.fixture(scope="session")
def spaces():
    env = MaskWorld()
    return env.observation_space, env.action_space


@pytest.fixture(scope="session")
def observations():
    """``observations(count, seed=0, density=0.5)``: a batch of random legal observations as tensors."""

    def make(count, seed=0, density=0.5):
        rng = np.random.default_rng(seed)
        return stack([random_observation(rng, density) for _ in range(count)])

    return make


@pytest.fixture(scope="session")
def mask_world():
    """``mask_world(num_envs=4, **kwargs)``: a monitored DummyVecEnv of MaskWorlds."""

    def make(num_envs=4, **kwargs):
        return DummyVecEnv([lambda: Monitor(MaskWorld(**kwargs))] * num_envs)

    return make


@pytest.fixture(scope="session")
def make_model():
    """``make_model(env, **settings)``: a small learner on the CPU, seed 0."""
    small = {"features_dim": 32, "lstm_hidden_size": 32, "head_dim": 32, "logit_bias": {}}
    defaults = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu", "policy_kwargs": small}

    def make(env, **settings):
        return FactoredRecurrentPPO("FactoredLstmPolicy", env, **(defaults | settings))

    return make


@pytest.fixture(scope="session")
def collect():
    """``collect(model, callback=None)``: one rollout and no update; returns the buffer."""

    def run(model, callback=None):
        _, callback = model._setup_learn(10**6, callback)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        return model.rollout_buffer

    return run


@pytest.fixture(scope="session")
def roughen():
    """``roughen(model)``: random last layers, so that probabilities are not uniform; every op keeps a fair share."""

    def change(model):
        generator = th.Generator().manual_seed(3)
        with th.no_grad():
            for head in Head:
                weight = model.policy.action_net.output_layer(head).weight
                weight.copy_(th.randn(weight.shape, generator=generator) * 0.1)
            model.policy.value_net.output.weight.mul_(10)
        return model

    return change
