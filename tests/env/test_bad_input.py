"""Mistakes are named before anything changes, with what was expected."""

import gymnasium
import numpy as np
import pytest
from esper_env import EsperEnv, EsperVectorEnv
from esper_env.rules.heads import Op

BAD_KWARGS = [
    ({"horizonn": 3}, TypeError, "no keyword argument 'horizonn'; did you mean 'horizon'"),
    ({"learning_rate": 0.1}, TypeError, "no keyword argument 'learning_rate'.*known: dataset"),
    ({"dataset": "mnist"}, ValueError, "dataset is 'mnist'.*'digits'"),
    ({"dataset": "grammar"}, ValueError, "dataset is 'grammar'.*'digits'"),
    ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ({"batch_size": 1}, ValueError, "batch_size is 1.*at least 2"),
    ({"batch_size": 2.0}, ValueError, "batch_size is 2.0"),
    ({"batch_size": "64"}, ValueError, "batch_size is '64'"),
    ({"batches_per_step": 0}, ValueError, "batches_per_step is 0"),
    ({"horizon": 0}, ValueError, "horizon is 0"),
    ({"horizon": True}, ValueError, "horizon is True"),
    ({"host_lr": 0.0}, ValueError, "host_lr is 0.0"),
    ({"host_lr": float("nan")}, ValueError, "host_lr is nan"),
    ({"seed_lr": -0.1}, ValueError, "seed_lr is -0.1"),
    ({"seed_lr": float("inf")}, ValueError, "seed_lr is inf"),
    ({"slots": "r0c0"}, ValueError, "slots is 'r0c0'; expected a list"),
    ({"slots": ["r0c7"]}, ValueError, r"\['r0c7'\] do not exist"),
    ({"slots": []}, ValueError, "slots is empty"),
    ({"slots": ["r0c0", "r0c0"]}, ValueError, "names a slot twice"),
    ({"slots": 5}, ValueError, "slots is 5; expected a list"),
    ({"slots": [["r0c0"]]}, ValueError, "expected a list of slot ids"),
    ({"shard_size": 1.5}, ValueError, "shard_size is 1.5"),
    ({"shard_size": None}, ValueError, "shard_size is None"),
    ({"gates": ["strict"]}, ValueError, r"gates is \['strict'\]; expected one of 'permissive', 'strict'"),
    ({"dataset": None}, ValueError, "dataset is None; expected one of 'auto', .*'digits'"),
    ({"data_dir": 5}, ValueError, "data_dir is 5; expected a path"),
    ({"reward_weights": [1.0]}, ValueError, r"reward_weights is \[1.0\]; expected weights by name"),
    ({"reward_weights": None}, ValueError, "reward_weights is None"),
    ({"max_seeds": 0}, ValueError, "max_seeds is 0"),
    ({"max_seeds": 4}, ValueError, "max_seeds is 4; expected 1 to 3, the number of slots"),
    ({"max_seeds": 1.0}, ValueError, "max_seeds is 1.0"),
    ({"max_seeds": "2"}, ValueError, "max_seeds is '2'"),
    ({"gates": "loose"}, ValueError, "gates is 'loose'; expected one of 'permissive', 'strict'"),
    ({"precision": "half"}, ValueError, "precision is .half.; expected one of"),
    ({"precision": 16}, ValueError, "precision is 16; expected one of 'float32', 'bfloat16'"),
    ({"capture": "always"}, ValueError, "capture is .always.; expected one of"),
    ({"isolation": "none"}, ValueError, "isolation is 'none'.*shadow"),
    ({"reward_mode": "loss"}, ValueError, "reward_mode is 'loss'; expected one of 'accuracy'"),
    ({"reward_weights": {"rent": 1.0}}, ValueError, r"\['rent'\] are not read in mode 'accuracy'; it reads"),
    ({"reward_weights": {"rent_weight": -1.0}}, ValueError, "'rent_weight' is -1.0"),
    ({"reward_weights": {"gamma": 1.5}}, ValueError, "'gamma' is 1.5"),
    ({"param_budget": 0}, ValueError, "param_budget is 0"),
    ({"device": "warp"}, ValueError, "device is 'warp', which is not usable here"),
    ({"device": "cuda:99"}, ValueError, "device is 'cuda:99', which is not usable here"),
    ({"shard_size": 0}, ValueError, "shard_size is 0"),
    ({"shard_size": "all"}, ValueError, "shard_size is 'all'; expected 'auto'"),
    ({"render_mode": "human"}, ValueError, r"render_mode is 'human'; expected None or one of \['ansi', 'rgb_array'\]"),
]
BAD_VECTOR_KWARGS = [
    ({"num_envs": 0}, ValueError, "num_envs is 0"),
    ({"num_envs": 2.0}, ValueError, "num_envs is 2.0"),
    ({"num_envs": True}, ValueError, "num_envs is True"),
    ({"autoreset_mode": "Sometimes"}, ValueError, "autoreset_mode is 'Sometimes'.*'NextStep', 'SameStep', 'Disabled'"),
    ({"autoreset_mode": None}, ValueError, "autoreset_mode is None"),
    ({"max_episode_steps": 0}, ValueError, "max_episode_steps is 0"),
    ({"max_episode_steps": 2.5}, ValueError, "max_episode_steps is 2.5"),
]


@pytest.mark.parametrize(("kwargs", "error", "message"), BAD_KWARGS)
def test_settings_of_a_task(kwargs, error, message):
    with pytest.raises(error, match=message):
        EsperVectorEnv("Esper-Digits-v0", 2, **kwargs)
    with pytest.raises(error, match=message):
        EsperEnv("Esper-Digits-v0", **kwargs)


@pytest.mark.parametrize(("kwargs", "error", "message"), BAD_VECTOR_KWARGS)
def test_settings_of_a_vector(kwargs, error, message):
    with pytest.raises(error, match=message):
        gymnasium.make_vec("Esper-Digits-v0", **kwargs)


@pytest.mark.parametrize("name", ["autoreset_mode", "num_envs", "max_episode_steps"])
def test_a_single_environment_has_no_setting_of_a_vector(name):
    with pytest.raises(TypeError, match=f"no keyword argument '{name}'"):
        EsperEnv("Esper-Digits-v0", **{name: 1})


def test_an_unknown_id_names_the_known_ones():
    for build in (EsperEnv, EsperVectorEnv):
        with pytest.raises(ValueError, match="'Esper-MNIST-v0' is not known; expected one of Esper-CIFAR-v0"):
            build("Esper-MNIST-v0")


def test_cifar_without_the_files_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 was requested by name"):
        gymnasium.make("Esper-CIFAR-v0", dataset="cifar10", data_dir=str(tmp_path))


BAD_ACTIONS = [
    (np.zeros(7, dtype=np.int64), r"shape \(1, 7\); expected \(1, 8\)"),
    (np.zeros((2, 8), dtype=np.int64), r"shape \(1, 2, 8\)"),
    (np.int64(0), r"shape \(1,\)"),
    (np.zeros(8), "dtype float64; expected integers"),
    (np.zeros(8, dtype=bool), "dtype bool; expected integers"),
    (["0"] * 8, "expected integers"),
    ([0, 0, 0, 0, 0, 0, 0, 6], "has 6 for head op; expected 0 to 5"),
    ([3, 0, 0, 0, 0, 0, 0, 0], "has 3 for head slot; expected 0 to 2"),
    ([0, -1, 0, 0, 0, 0, 0, 0], "has -1 for head blueprint; expected 0 to 12"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_ACTIONS)
def test_a_malformed_action_changes_nothing(make_digits, assert_same, action, bad, message):
    env, twin = make_digits(), make_digits()
    for each in (env, twin):
        each.reset(seed=0)
        each.step(action(Op.GERMINATE, 0))
    with pytest.raises(ValueError, match=message):
        env.unwrapped.step(bad)
    assert_same(env.step(action(Op.ADVANCE, 0)), twin.step(action(Op.ADVANCE, 0)))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_malformed_actions_of_a_vector_change_nothing(make_digits_vec, assert_same, action, mode):
    vector, twin = (make_digits_vec(2, autoreset_mode=mode) for _ in range(2))
    for each in (vector, twin):
        each.reset(seed=0)
    wait = np.array([action(), action()])
    wrong = wait.copy()
    wrong[1, 0] = 3
    for bad, message in (
        (wait[:1], r"shape \(1, 8\); expected \(2, 8\)"),
        (wait.astype(np.float64), "dtype float64"),
        (wrong, "environment 1 has 3 for head slot"),
    ):
        with pytest.raises(ValueError, match=message):
            vector.step(bad)
    assert_same(vector.step(wait), twin.step(wait))


BAD_RESETS = [
    ({"seed": -1}, ValueError, "0 or greater"),
    ({"seed": 1.5}, TypeError, "expected an integer"),
    ({"seed": 5, "options": {"topologie": {}}}, ValueError, "'topologie'"),
    ({"seed": 5, "options": 3}, TypeError, "expected a dict"),
    ({"seed": 5, "options": {"topology": {"r0c9": "norm"}}}, ValueError, "'r0c9'"),
    ({"seed": 5, "options": {"topology": {"r0c0": "norm", "r0c1": "norm"}}}, ValueError, "max_seeds is 1"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_RESETS)
def test_a_bad_reset_changes_nothing(make_digits, make_digits_vec, assert_same, action, arguments, error, message):
    for make, wait in (
        (lambda: make_digits(max_seeds=1), action()),
        (lambda: make_digits_vec(2, max_seeds=1), np.array([action(), action()])),
    ):
        env, twin = make(), make()
        for each in (env, twin):
            each.reset(seed=0)
        with pytest.raises(error, match=message):
            env.reset(**arguments)
        assert_same(env.step(wait), twin.step(wait))
        assert_same(env.reset(), twin.reset())


def test_a_single_environment_has_no_reset_mask(make_digits):
    with pytest.raises(ValueError, match=r"\['reset_mask'\] are not known; expected topology"):
        make_digits().reset(options={"reset_mask": np.array([True])})
