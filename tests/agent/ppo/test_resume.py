"""Stop, save, load and go on equals never having stopped."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch as th
from esper_agent.ppo import FactoredRecurrentPPO
from esper_agent.resume import capture, restore
from stable_baselines3.common.callbacks import BaseCallback


class Checkpoint(BaseCallback):
    """Saves everything when the given number of timesteps is reached, and lets training go on."""

    def __init__(self, path, at):
        super().__init__()
        self.path, self.at = path, at

    def _on_rollout_start(self):
        if self.num_timesteps == self.at:
            self.model.save(self.path)
            self.state = capture(self.model)
            self.env = copy.deepcopy(self.model.env)

    def _on_step(self):
        return True


def test_an_interrupted_run_ends_in_the_same_bits(mask_world, tmp_path, make_model):
    checkpoint = Checkpoint(tmp_path / "model", at=80)
    whole = make_model(mask_world(horizon=7, cut=6), n_steps=10).learn(160, callback=checkpoint)
    random.seed(1)
    th.manual_seed(1)
    resumed = FactoredRecurrentPPO.load(tmp_path / "model", env=checkpoint.env, device="cpu")
    restore(resumed, checkpoint.state)
    resumed.learn(80, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps == 160
    assert resumed.last_update == whole.last_update
    for left, right in zip(resumed.policy.parameters(), whole.policy.parameters(), strict=True):
        assert th.equal(left, right)
    assert all(isinstance(value, np.ndarray) for value in checkpoint.state.values())


def test_the_captured_state_matters(mask_world, tmp_path, make_model):
    checkpoint = Checkpoint(tmp_path / "model", at=80)
    whole = make_model(mask_world(horizon=7, cut=6), n_steps=10).learn(160, callback=checkpoint)
    without = FactoredRecurrentPPO.load(tmp_path / "model", env=checkpoint.env, device="cpu")
    without.learn(80, reset_num_timesteps=False)
    assert without.last_update != whole.last_update


def test_a_state_of_other_environments_is_refused(mask_world, make_model):
    state = capture(make_model(mask_world(num_envs=2), n_steps=20).learn(40))
    with pytest.raises(ValueError, match="load the model with the environments"):
        restore(make_model(mask_world(num_envs=4)), state)


def test_there_is_nothing_to_capture_before_training(mask_world, make_model):
    with pytest.raises(ValueError, match="after training has begun"):
        capture(make_model(mask_world()))
