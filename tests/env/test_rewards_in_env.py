"""Rewards of the environment, recomputed from its infos."""

import gymnasium
import numpy as np
import pytest
from esper_env.rules.heads import Op
from stepping import reward_components

#: float64 networks play the same episode on every CPU, within 1e-6.
pytestmark = [pytest.mark.usefixtures("float64_networks"), pytest.mark.numeric]

HOST, GAMMA = 390, 0.98
#: Enough training for a seed in the first slot to be worth something.
REAL = {"batches_per_step": 17, "batch_size": 64}


def episode(actions, options=None, **kwargs):
    """Return rewards and infos of one episode; the first info is that of the reset. None is a random valid action."""
    env = gymnasium.make(
        "Esper-Digits-v0", **({"batches_per_step": 4, "batch_size": 32} | kwargs), horizon=len(actions)
    )
    _, info = env.reset(seed=0, options=options)
    infos, rewards, rng = [info], [], np.random.default_rng(0)
    for action in actions:
        _, reward, terminated, _, info = env.step(env.unwrapped.sample_valid_actions(rng) if action is None else action)
        rewards.append(reward)
        infos.append(info)
    env.close()
    assert terminated
    return np.array(rewards), infos


def costs(infos, rent_weight=0.05, op_cost=0.002):
    """Return rent and op costs of an episode."""
    rents = sum(rent_weight * np.log(1 + info["parameters_added"] / HOST) for info in infos[1:]) / (len(infos) - 1)
    return rents + sum(op_cost for info in infos[1:] if info["op"] != Op.WAIT)


def gain(infos):
    """Return the gain of the committed network."""
    return (infos[-1]["committed_val_accuracy"] - infos[0]["val_accuracy"]) / 100


def test_return_is_the_committed_gain_less_costs():
    rewards, infos = episode([None] * 12, {"topology": {"r0c0": "conv_heavy"}})
    assert infos[0]["parameters_added"] == 18 * 16 + 5 * 4
    assert rewards.sum() == pytest.approx(gain(infos) - costs(infos), abs=1e-9)
    assert len({info["op"] for info in infos[1:]}) >= 3
    weights = {"rent_weight": 0.2, "op_cost": 0.03, "scale": 10.0}
    rewards, infos = episode([None] * 6, reward_weights=weights)
    assert rewards.sum() == pytest.approx(10 * gain(infos) - costs(infos, 0.2, 0.03), abs=1e-9)


def test_fossilizing_in_time_returns_more(script, action):
    """The episodes are equal up to their last action, and the networks to the end."""
    life = script(0)
    kept, kept_infos = episode(life, **REAL)
    lost, lost_infos = episode([*life[:-1], action()], **REAL)
    np.testing.assert_array_equal(kept[:-1], lost[:-1])
    for key in ("val_accuracy", "val_loss", "train_loss", "parameters_added"):
        assert kept_infos[-1][key] == lost_infos[-1][key]
    assert kept_infos[-1]["committed_val_accuracy"] == kept_infos[-1]["val_accuracy"]
    assert kept_infos[-1]["committed_parameters_added"] == kept_infos[-1]["parameters_added"]
    assert lost_infos[-1]["committed_parameters_added"] == 0
    assert gain(kept_infos) > gain(lost_infos) + 0.02
    for rewards, infos in ((kept, kept_infos), (lost, lost_infos)):
        assert rewards.sum() == pytest.approx(gain(infos) - costs(infos), abs=1e-9)


def test_sparse_pays_only_at_the_end():
    rewards, infos = episode([None] * 10, reward_mode="sparse")
    assert not rewards[:-1].any()
    assert rewards[-1] == pytest.approx(infos[-1]["committed_val_accuracy"] / 100 - costs(infos, op_cost=0), abs=1e-9)
    assert set(reward_components(infos[-1])) == {"commitment", "rent", "governor"}


def test_contributions_and_stages_telescope_to_zero(script, action):
    """In contribution mode they vanish under the learner's discount, apart from the commitment."""
    life = [*script(0), *script(1), action(Op.GERMINATE, 2)]
    rewards, infos = episode(life, reward_mode="contribution", batches_per_step=6, batch_size=64)
    discounts = GAMMA ** np.arange(len(life))
    components = [reward_components(info) for info in infos[1:]]
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
