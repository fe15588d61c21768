"""Every policy has the same ``predict``: its arguments, and its errors about observations and states of others."""

import gymnasium
import numpy as np
import pytest
from esper_agent import (
    FactoredLstmPolicy,
    FactoredRecurrentPPO,
    FixedPlanPolicy,
    HeuristicPolicy,
    Planting,
    RandomPolicy,
    WaitPolicy,
    make_sb3_env,
)
from esper_env.rules.heads import Blueprint

SMALL = {"lstm_hidden_size": 8, "features_dim": 8, "head_dim": 8}


def learner(toy_id):
    env = make_sb3_env(toy_id, 2)
    return FactoredRecurrentPPO("FactoredLstmPolicy", env, n_steps=8, policy_kwargs=SMALL, seed=0, device="cpu")


def network(toy_id):
    env = gymnasium.make(toy_id)
    return FactoredLstmPolicy(env.observation_space, env.action_space, lambda _progress: 1e-3, **SMALL)


POLICIES = {
    "learner": learner,
    "network": network,
    "heuristic": lambda toy_id: HeuristicPolicy.for_env(gymnasium.make(toy_id)),
    "plan": lambda _: FixedPlanPolicy([Planting(Blueprint.NORM), Planting(Blueprint.CONV_LIGHT, slot=1)], horizon=12),
    "random": lambda _: RandomPolicy(0),
    "wait": lambda _: WaitPolicy(),
}


@pytest.fixture(params=POLICIES)
def policy(request, toy_id):
    return POLICIES[request.param](toy_id)


def observations(toy_id, num_envs):
    return gymnasium.make_vec(toy_id, num_envs=num_envs).reset(seed=0)[0]


def test_masks_are_accepted_and_ignored(policy, toy_id):
    observation = observations(toy_id, 3)
    actions, state = policy.predict(observation, None, np.ones(3, dtype=bool), True)
    masked = {"action_masks": np.zeros((3, observation["action_mask"].shape[1]), dtype=bool)}
    again, _ = policy.predict(observation, None, np.ones(3, dtype=bool), deterministic=True, **masked)
    assert actions.shape == again.shape == (3, 8)
    if not isinstance(policy, RandomPolicy):
        np.testing.assert_array_equal(actions, again)
    policy.predict(observation, state, np.zeros(3, dtype=bool), True)


@pytest.mark.parametrize(("before", "now"), [(2, 3), (3, 1)])
@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"wait"}))
def test_state_of_another_number_of_environments_is_rejected(toy_id, name, before, now):
    policy = POLICIES[name](toy_id)
    _, state = policy.predict(observations(toy_id, before))
    message = rf"^the state is .*; expected .*, because the observation has {now} environments: pass the state that"
    with pytest.raises(ValueError, match=message):
        policy.predict(observations(toy_id, now), state)
    with pytest.raises(ValueError, match=r"^the state is a str; expected "):
        policy.predict(observations(toy_id, now), "state")


def test_message_about_a_state_shows_both_shapes(toy_id):
    policy = network(toy_id)
    _, state = policy.predict(observations(toy_id, 2))
    with pytest.raises(ValueError, match=r"is 2 x an array \(1, 2, 8\); expected 2 x an array \(1, 3, 8\), because"):
        policy.predict(observations(toy_id, 3), state)


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"wait"}))
def test_episode_starts_of_another_number_of_environments_are_rejected(toy_id, name):
    policy, observation = POLICIES[name](toy_id), observations(toy_id, 3)
    _, state = policy.predict(observation)
    with pytest.raises(ValueError, match=r"^episode_start has shape \(2,\); expected \(3,\)"):
        policy.predict(observation, state, np.ones(2, dtype=bool))


def without(key):
    return lambda given: {name: value for name, value in given.items() if name != key}


def with_part(key, change):
    return lambda given: given | {key: change(given[key])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: None, "the observation is a NoneType; expected the dict of an Esper environment"),
        (lambda given: given["features"], "the observation is a ndarray; expected the dict .*: do not flatten"),
        (without("op_slot_mask"), r"the observation lacks \['op_slot_mask'\]"),
        (with_part("features", lambda values: values * np.nan), "features are not all finite"),
        (with_part("features", lambda values: values.astype(str)), "features are not all finite"),
        (with_part("features", lambda _: None), "do not belong to the same environments"),
        (with_part("features", lambda values: values[:, :5]), "do not belong to the same environments"),
        (with_part("features", lambda values: values[:1]), "do not belong to the same environments"),
        (with_part("blueprints", lambda values: values[0]), "do not belong to the same environments"),
        (with_part("blueprints", lambda values: values + 1), "blueprints has values other than integers from 0 to 13"),
        (with_part("blueprints", lambda values: values - 14), "blueprints has values other than integers from 0 to 13"),
        (with_part("op_slot_mask", lambda values: values * 0.5), "op_slot_mask has values other than .* 0 to 1"),
        (with_part("action_mask", lambda values: values * 2), "action_mask has values other than integers from 0 to 1"),
    ],
)
def test_malformed_observation_is_rejected(policy, toy_id, change, message):
    with pytest.raises(ValueError, match=message):
        policy.predict(change(observations(toy_id, 2)))


def test_network_rejects_observations_of_another_number_of_slots(toy_id):
    other = gymnasium.make("Esper-Digits-v0", batches_per_step=1).reset(seed=0)[0]
    with pytest.raises(ValueError, match="the observation has 3 slots; expected 2, as in training"):
        network(toy_id).predict(other)
