"""Single environments: checkers of Gymnasium and Stable-Baselines3, spaces, infos, masks and seeds."""

import copy
import json

import gymnasium
import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS, TRANSFORMER_BLUEPRINTS
from esper_env import ENV_IDS
from esper_env.rules.heads import Blueprint, Head, Op, head_sizes
from esper_env.tasks import TransformerSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3

SLOTS = {"Esper-CIFAR-Deep-v0": 5, "Esper-CIFAR-Surfaces-v0": 6, "Esper-TinyStories-v0": 4, "Esper-Text-v0": 2}
HOST_PARAMETERS = {
    "Esper-CIFAR-v0": 6_418,
    "Esper-CIFAR-Impaired-v0": 77,
    "Esper-Digits-v0": 390,
}
#: Every task kwarg, as JSON types.
EVERY_KWARG = {
    "dataset": "digits",
    "data_dir": "somewhere",
    "batch_size": 8,
    "batches_per_step": 1,
    "horizon": 4,
    "host_lr": 0.01,
    "seed_lr": 0.02,
    "slots": ["r0c0", "r0c2"],
    "max_seeds": 1,
    "gates": "strict",
    "isolation": "straight_through",
    "reward_mode": "contribution",
    "reward_weights": {"rent_weight": 0.1},
    "param_budget": 99,
    "device": "cpu",
    "shard_size": 1,
}


@pytest.mark.parametrize("env_id", ["Esper-Digits-v0", "Esper-CIFAR-Impaired-v0", "Esper-Text-v0"])
def test_checkers_of_gymnasium_and_stable_baselines3_pass(env_id, tiny):
    """One task per layout: batched images, single images, sequences. Other tasks differ in size only."""
    env = gymnasium.make(env_id, render_mode="ansi", **(tiny(env_id) | {"horizon": 20}))
    check_env(env.unwrapped, skip_render_check=False)
    check_env_sb3(env, warn=True, skip_render_check=False)
    env.close()


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_spaces_depend_on_the_slots(env_id, tiny):
    env = gymnasium.make(env_id, **tiny(env_id)).unwrapped
    slots = SLOTS.get(env_id, 3)
    assert len(env.slot_ids) == slots
    if env_id == "Esper-CIFAR-Surfaces-v0":
        assert env.slot_ids == ("r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2")
    assert env.action_space.nvec.tolist() == [slots, 13, 4, 3, 3, 4, 5, 6]
    assert {key: (space.shape, space.dtype) for key, space in env.observation_space.items()} == {
        "features": ((31 + 30 * slots,), np.float32),
        "blueprints": ((slots,), np.int64),
        "action_mask": ((sum(head_sizes(slots)),), np.int8),
        "op_slot_mask": ((6 * slots,), np.int8),
    }
    assert env.host_parameters == HOST_PARAMETERS.get(env_id, env.host_parameters)
    assert env.task.env_id == env_id
    reads_text = isinstance(env.task.host, TransformerSpec)
    assert sorted(env.offered_blueprints) == sorted(TRANSFORMER_BLUEPRINTS if reads_text else CNN_BLUEPRINTS)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space


def test_spec_with_every_kwarg_is_json():
    env = gymnasium.make("Esper-Digits-v0", render_mode="ansi", max_episode_steps=3, **EVERY_KWARG)
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"] == EVERY_KWARG | {"env_id": "Esper-Digits-v0", "render_mode": "ansi"}
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(text))
    assert again.unwrapped.task == env.unwrapped.task
    for made in (env, again):
        made.reset(seed=0)
        made.close()
    kwargs = EVERY_KWARG | {"render_mode": "ansi", "autoreset_mode": "NextStep", "max_episode_steps": 3}
    envs = gymnasium.make_vec("Esper-Digits-v0", num_envs=3, **kwargs)
    recorded = json.loads(envs.spec.to_json())["kwargs"]
    assert recorded == recorded | kwargs | {"num_envs": 3}
    envs.close()


#: Kind and shape of every value of an info of Digits; a scalar has the shape ().
INFO_KINDS = {
    "action_mask": ("i", (41,)),
    "slot_stage": ("i", (3,)),
    "slot_blueprint": ("i", (3,)),
    "contribution": ("f", (3,)),
    "contribution_measured": ("b", (3,)),
    "shapley": ("f", (3,)),
    **dict.fromkeys(("val_accuracy", "val_loss", "train_loss", "committed_val_accuracy", "test_accuracy"), ("f", ())),
    **dict.fromkeys(
        ("parameters_added", "rollbacks", "op", "slot", "rejection", "committed_parameters_added"), ("i", ())
    ),
    **dict.fromkeys(("action_valid", "action_succeeded", "rollback", "committed_measured"), ("b", ())),
    **dict.fromkeys(("reward_accuracy", "reward_commitment", "reward_rent", "reward_op_cost"), ("f", ())),
    **dict.fromkeys(("reward_stages", "reward_governor"), ("f", ())),
}


def test_infos_have_the_same_keys_kinds_and_shapes_at_reset_and_at_every_step(make_digits, action):
    env = make_digits(horizon=3)
    _, info = env.reset(seed=0)
    infos = [info]
    for epoch in (1, 2, 3):
        observation, reward, terminated, truncated, info = env.step(action())
        assert type(reward) is float
        assert (terminated, truncated) == (epoch == 3, False)
        assert [type(flag) for flag in (terminated, truncated)] == [bool, bool]
        assert observation["features"][0] == pytest.approx(epoch / 3)
        assert info["committed_measured"] == terminated
        parts = [value for key, value in info.items() if key.startswith("reward_")]
        assert sum(parts) == pytest.approx(reward, abs=1e-12)
        np.testing.assert_array_equal(info["action_mask"], observation["action_mask"])
        infos.append(info)
    for info in infos:
        assert {key: (value.dtype.kind, value.shape) for key, value in info.items()} == INFO_KINDS
    assert len({str({key: value.dtype for key, value in info.items()}) for info in infos}) == 1
    assert np.isnan(infos[0]["train_loss"]), "nothing has been trained yet"
    assert (infos[0]["op"], infos[0]["rejection"]) == (Op.WAIT, 0)
    assert infos[-1]["test_accuracy"] > 0 == infos[-2]["test_accuracy"]


def test_seed_repeats_an_episode_and_none_continues(make_digits, assert_same):
    env = make_digits()
    first, second = env.reset(seed=4), env.reset()
    assert_same(env.reset(seed=4), first)
    assert_same(env.reset(), second)
    assert first[1]["val_loss"] != second[1]["val_loss"]


def test_reset_draws_from_the_users_generator(make_digits, assert_same):
    env = make_digits()
    expected = env.reset(seed=11)
    env.unwrapped.np_random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(11)))
    assert_same(env.reset(), expected)


def test_actions_may_be_lists_or_small_integers(make_digits, action, assert_same):
    env = make_digits()
    germinate = action(Op.GERMINATE, 1, blueprint=Blueprint.NORM)
    results = []
    for form in (germinate, germinate.tolist(), germinate.astype(np.uint8)):
        env.reset(seed=0)
        results.append(env.unwrapped.step(form))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    assert results[0][0]["blueprints"].tolist() == [13, Blueprint.NORM, 13]


@settings(max_examples=15)
@given(actions=st.lists(st.tuples(*(st.integers(0, size - 1) for size in head_sizes(3))), min_size=12, max_size=12))
def test_any_action_runs_and_validity_is_reported(digits_env, actions):
    env = digits_env
    observation, _ = env.reset(seed=1)
    for action in actions:
        mask = observation["op_slot_mask"].reshape(6, 3)
        offered = action[-1] != Op.GERMINATE or action[1] in env.unwrapped.offered_blueprints
        legal = bool(mask[action[-1], action[0]]) and offered
        observation, reward, _, _, info = env.step(np.array(action))
        assert info["action_valid"] == legal
        assert np.isfinite(reward)
        assert observation in env.observation_space
        assert observation["features"][24] == info["action_succeeded"]
        assert observation["features"][25:31].tolist() == [float(op == info["op"]) for op in range(6)]
        assert info["op"] == (action[-1] if legal else Op.WAIT)
        assert legal or not info["action_succeeded"]


@pytest.fixture(scope="module")
def digits_env():
    env = gymnasium.make("Esper-Digits-v0", horizon=12, batches_per_step=1, batch_size=8)
    yield env
    env.close()


def test_split_mask_equals_the_flat_mask_and_fits_the_action_space(digits_env):
    env = digits_env.unwrapped
    env.reset(seed=0)
    assert np.array_equal(np.concatenate(env.split_mask()), env.action_masks().astype(np.int8))
    env.action_space.seed(0)
    for _ in range(30):
        action = env.action_space.sample(mask=env.split_mask())
        assert action[Head.OP] in (Op.WAIT, Op.GERMINATE), "nothing else is possible in an empty network"
    germinate = env.conditional_masks(Op.GERMINATE)
    assert germinate[Head.SLOT].all()
    assert germinate[Head.OP].tolist() == [0, 1, 0, 0, 0, 0]
    *_, info = env.step(env.sample_valid_actions(np.random.default_rng(0)))
    assert info["action_valid"]


def test_illegal_action_acts_as_wait(make_digits, action, assert_same):
    env = make_digits()
    outcomes = []
    for choice in (action(), action(Op.FOSSILIZE, 2)):
        env.reset(seed=0)
        outcomes.append(env.step(choice))
    (waited, reward, *_), (refused, same_reward, *_, info) = outcomes
    assert reward == same_reward
    assert not info["action_valid"]
    assert (waited["features"][24], refused["features"][24]) == (1.0, 0.0)
    waited["features"][24] = 0.0
    assert_same(waited, refused)


def test_diverging_network_stays_in_the_observation_space(make_digits, action, script):
    env = make_digits(horizon=10, host_lr=1e6, seed_lr=1e6)
    observation, _ = env.reset(seed=0)
    for choice in [*script(), action()]:
        observation, reward, terminated, *_ = env.step(choice)
        assert observation in env.observation_space
        assert np.isfinite(reward)
        if terminated:  # after the governor's last rollback
            env.reset()


def test_deep_copy_continues_like_the_original(make_digits, action):
    env = make_digits()
    env.reset(seed=3, options={"topology": {"r0c0": "conv_light", "r0c1": "norm"}})
    env.step(action(Op.WAIT))
    twin = copy.deepcopy(env)
    for _ in range(2):
        left, right = env.step(action(Op.WAIT)), twin.step(action(Op.WAIT))
        assert (left[0]["features"] == right[0]["features"]).all()
        assert left[1] == right[1]
