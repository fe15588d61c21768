"""Rewards of the environment, recomputed from its infos."""

import gymnasium
import numpy as np
import pytest
from esper_env.rules.heads import Blueprint, Op

#: float64 networks play the same episode on every CPU, within 1e-6.
pytestmark = [pytest.mark.usefixtures("float64_networks"), pytest.mark.numeric]

HOST = 390
RENT, OP_COST, GAMMA = 0.05, 0.002, 0.98
#: Enough training for a seed in the first slot to be worth something.
REAL = {"batches_per_step": 17, "batch_size": 64}


def episode(actions, options=None, seed=0, **kwargs):
    """Return rewards and infos of one episode; the first info is that of the reset."""
    env = gymnasium.make("Esper-Digits-v0", **kwargs)
    _, info = env.reset(seed=seed, options=options)
    infos, rewards = [info], []
    for action in actions:
        _, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
        infos.append(info)
    env.close()
    assert terminated
    return np.array(rewards), infos


def expected_return(infos, horizon):
    """Return the gain of the committed network less rent and op costs."""
    gain = (infos[-1]["committed_val_accuracy"] - infos[0]["val_accuracy"]) / 100
    rents = sum(RENT * np.log(1 + info["parameters_added"] / HOST) / horizon for info in infos[1:])
    return gain - rents - sum(OP_COST for info in infos[1:] if info["op"] != Op.WAIT)


def random_episode(seed, horizon, **kwargs):
    """Play an episode of random valid actions."""
    rng = np.random.default_rng(seed)
    env = gymnasium.make("Esper-Digits-v0", horizon=horizon, **kwargs)
    _, info = env.reset(seed=seed)
    infos, rewards = [info], []
    for _ in range(horizon):
        _, reward, _, _, info = env.step(env.unwrapped.sample_valid_actions(rng))
        rewards.append(reward)
        infos.append(info)
    env.close()
    return np.array(rewards), infos


@pytest.mark.parametrize("seed", range(3))
def test_return_is_the_committed_gain_less_costs(seed):
    rewards, infos = random_episode(seed, 12, batches_per_step=4, batch_size=32)
    assert rewards.sum() == pytest.approx(expected_return(infos, 12), abs=1e-9)
    assert len({info["op"] for info in infos[1:]}) >= 3


def test_planted_seeds_pay_rent_and_count(action):
    rewards, infos = episode(
        [action()] * 3, {"topology": {"r0c0": "conv_heavy"}}, horizon=3, batches_per_step=4, batch_size=32
    )
    assert [info["parameters_added"] for info in infos] == [18 * 16 + 5 * 4] * 4
    assert rewards.sum() == pytest.approx(expected_return(infos, 3), abs=1e-9)


def test_fossilizing_in_time_returns_more(script, action):
    """The episodes are equal up to their last action, and the networks to the end."""
    life = script(0)
    kept, kept_infos = episode(life, horizon=len(life), **REAL)
    lost, lost_infos = episode([*life[:-1], action()], horizon=len(life), **REAL)
    np.testing.assert_array_equal(kept[:-1], lost[:-1])
    for key in ("val_accuracy", "val_loss", "train_loss", "parameters_added"):
        assert kept_infos[-1][key] == lost_infos[-1][key]
    assert kept_infos[-1]["committed_val_accuracy"] == kept_infos[-1]["val_accuracy"]
    assert kept_infos[-1]["committed_parameters_added"] == kept_infos[-1]["parameters_added"]
    assert lost_infos[-1]["committed_parameters_added"] == 0
    assert lost_infos[-1]["committed_val_accuracy"] < kept_infos[-1]["committed_val_accuracy"] - 2.0
    difference = (kept_infos[-1]["committed_val_accuracy"] - lost_infos[-1]["committed_val_accuracy"]) / 100 - OP_COST
    assert difference > 0
    assert kept[-1] - lost[-1] == pytest.approx(difference, abs=1e-9)


def test_returns_of_different_networks_equal_the_formula(script, action):
    horizon = 14
    returns = {}
    for name, actions in {
        "wait": [],
        "first slot": script(0),
        "last slot": script(2),
        "small": script(0, Blueprint.NORM),
    }.items():
        rewards, infos = episode(actions + [action()] * (horizon - len(actions)), horizon=horizon, **REAL)
        assert rewards.sum() == pytest.approx(expected_return(infos, horizon), abs=1e-9)
        returns[name] = rewards.sum()
    assert len({round(value, 3) for value in returns.values()}) == 4
    assert returns["first slot"] > returns["wait"] + 0.05


def test_sparse_pays_only_at_the_end():
    rewards, infos = random_episode(1, 10, batches_per_step=3, batch_size=32, reward_mode="sparse")
    assert not rewards[:-1].any()
    rents = sum(RENT * np.log(1 + info["parameters_added"] / HOST) / 10 for info in infos[1:])
    assert rewards[-1] == pytest.approx(infos[-1]["committed_val_accuracy"] / 100 - rents, abs=1e-9)
    assert set(infos[-1]["reward_components"]) == {"commitment", "rent", "governor"}


def test_contributions_and_stages_telescope_to_zero(script, action):
    """In contribution mode they vanish under the learner's discount, apart from the commitment."""
    life = [*script(0), *script(1), action(Op.GERMINATE, 2)]
    rewards, infos = episode(life, horizon=len(life), reward_mode="contribution", batches_per_step=6, batch_size=64)
    discounts = GAMMA ** np.arange(len(life))
    components = [info["reward_components"] for info in infos[1:]]
    assert set(components[0]) == {"contribution", "commitment", "scaffold", "shock", "rent", "stages", "governor"}
    for name in ("contribution", "stages"):
        paid = np.array([part[name] for part in components])
        assert np.abs(paid).max() > 0.005
        assert (discounts * paid).sum() == pytest.approx(0.0, abs=1e-9)
    alphas = [0, 0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1]
    jumps = np.diff([0, *alphas, *[1] * 10]) ** 2 + np.diff([0] * 10 + [*alphas, 1])[: len(life)] ** 2
    assert [part["shock"] for part in components] == pytest.approx((-0.01 * jumps).tolist(), abs=1e-12)
    assert [part["commitment"] for part in components[:-1]] == [0.0] * (len(life) - 1)
    assert components[-1]["commitment"] > 0.0
    for reward, part in zip(rewards, components, strict=True):
        assert sum(part.values()) == pytest.approx(reward, abs=1e-12)


def test_reward_weights_are_used(action):
    weights = {"rent_weight": 0.2, "op_cost": 0.03, "scale": 10.0}
    rewards, infos = episode(
        [action(Op.GERMINATE, 0), action(), action()],
        horizon=3,
        batches_per_step=2,
        batch_size=16,
        reward_weights=weights,
    )
    assert infos[1]["reward_components"]["op_cost"] == pytest.approx(-0.03)
    rent = 0.2 * np.log(1 + infos[1]["parameters_added"] / HOST) / 3
    assert infos[1]["reward_components"]["rent"] == pytest.approx(-rent)
    gain = (infos[-1]["committed_val_accuracy"] - infos[0]["val_accuracy"]) / 10
    assert rewards.sum() == pytest.approx(gain - 0.03 - 3 * rent, abs=1e-9)


def test_illegal_action_costs_the_same_as_wait(action):
    refused, infos = episode([action(Op.FOSSILIZE, 0)] * 2, horizon=2, batches_per_step=2, batch_size=16)
    waited, _ = episode([action()] * 2, horizon=2, batches_per_step=2, batch_size=16)
    assert infos[1]["action_valid"] is False
    np.testing.assert_array_equal(refused, waited)
