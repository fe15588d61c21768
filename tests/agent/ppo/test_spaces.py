"""Environments are rejected if their wrappers change the indices, masks or shapes of the observation."""

from __future__ import annotations

import gymnasium
import pytest
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.ppo.spaces import check_env
from esper_agent.sb3 import GymVecEnv, make_sb3_env
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

NORMALISED = (
    r'^VecNormalize normalises {} of .*: use VecNormalize\(env, norm_obs=False\), or norm_obs_keys=\["features"\]$'
)
FLAT = r"^observation space is Box\(\(\d+,\), float\d+\); expected a Dict of flat features .*; remove the wrapper {}$"


class FlatVector(VectorWrapper):
    """Only announces flat observations."""

    def __init__(self, env):
        super().__init__(env)
        self.single_observation_space = gymnasium.spaces.flatten_space(env.single_observation_space)


def flattened_vector(_env):
    return VecMonitor(GymVecEnv(FlatVector(gymnasium.make_vec("GrowthToy-v0", 2, autoreset_mode="SameStep"))))


CHANGES = {
    "all": (VecNormalize, NORMALISED.format(".*action_mask.*")),
    "one": (lambda env: VecNormalize(env, norm_obs_keys=["features", "blueprints"]), NORMALISED.format("blueprints")),
    "inside": (
        lambda env: VecNormalize(VecNormalize(env, norm_obs_keys=["op_slot_mask"]), norm_obs=False),
        NORMALISED.format("op_slot_mask"),
    ),
    "stacked": (
        lambda env: VecNormalize(VecFrameStack(env, 2), norm_obs=False),
        r"^observation space is Dict\(.*blueprints: Box\(\(6,\), int64\).*; remove the wrapper VecFrameStack$",
    ),
    "extracted": (lambda env: VecExtractDictObs(env, "features"), FLAT.format("VecExtractDictObs")),
    "two": (
        lambda env: VecFrameStack(VecExtractDictObs(env, "features"), 2),
        FLAT.format("VecFrameStack, .*"),
    ),
    "flattened": (
        lambda env: DummyVecEnv([lambda: FlattenObservation(env.envs[0])]),
        FLAT.format("FlattenObservation"),
    ),
    "flattened vector": (flattened_vector, FLAT.format("FlatVector")),
}


@pytest.mark.usefixtures("toy_id")
@pytest.mark.parametrize("name", CHANGES)
def test_environment_with_another_observation_is_rejected_with_the_wrapper(mask_world, make_model, name):
    change, message = CHANGES[name]
    with pytest.raises(ValueError, match=message) as caught:
        make_model(change(mask_world(2)))
    assert len(str(caught.value)) < 500


def test_environments_are_checked_wherever_they_are_given(mask_world, make_model, tmp_path):
    model, rejected = make_model(mask_world(2)), NORMALISED.format(".*")
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=rejected):
        model.set_env(VecNormalize(mask_world(2)))
    with pytest.raises(ValueError, match=rejected):
        FactoredRecurrentPPO.load(tmp_path / "model", env=VecNormalize(mask_world(2)))
    vector = VectorEnv()
    for give in (model.set_env, lambda env: FactoredRecurrentPPO.load(tmp_path / "model", env=env), make_model):
        with pytest.raises(TypeError, match=r"`env` is a gymnasium.*VectorEnv; expected .*make_sb3_env"):
            give(vector)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: VecNormalize(env, norm_obs=False),
        lambda env: VecNormalize(env, norm_obs_keys=["features"]),
        VecTransposeImage,  # changes images only
    ],
)
def test_environment_with_the_same_indices_and_masks_is_accepted(mask_world, make_model, wrap):
    assert make_model(wrap(mask_world(2)), n_steps=8, batch_size=16, n_epochs=1).learn(16).num_timesteps == 16


def test_environment_of_others_is_rejected_without_bounds():
    with pytest.raises(ValueError, match=r"^action space is Discrete\(2\); expected the heads of an Esper environment"):
        check_env(make_sb3_env("CartPole-v1"))
