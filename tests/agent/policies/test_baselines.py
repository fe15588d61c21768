"""Baselines: legal, reproducible and true to their plans."""

import gymnasium
import numpy as np
import pytest
from esper_agent.policies.baselines import FixedPlanPolicy, Planting, RandomPolicy, WaitPolicy
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_RELEVANCE, Blueprint, Head, Op, Style, Tempo
from esper_env.rules.stages import Stage


def play(policy, env):
    """Return (op, slot, blueprint) of every step of an episode of one environment, and the infos."""
    taken, infos = [], []
    obs, _ = env.reset(seed=0)
    state, done = None, False
    while not done:
        action, state = policy.predict(obs, state, deterministic=True)
        assert action.shape == (8,)
        obs, _, done, _, info = env.step(action)
        taken.append(tuple(action[[Head.OP, Head.SLOT, Head.BLUEPRINT]].tolist()))
        infos.append(info)
    return taken, infos


def play_vector(policy, vector, steps):
    """Return the actions (steps, N, 8) in a vector environment."""
    obs, _ = vector.reset(seed=0)
    state, start, actions = None, np.ones(vector.num_envs, dtype=bool), []
    for _ in range(steps):
        action, state = policy.predict(obs, state, start)
        obs, _, terminated, truncated, infos = vector.step(action)
        assert infos["action_valid"].all()
        start = terminated | truncated
        actions.append(action)
    return np.array(actions)


def test_wait_policy_waits(toy_id):
    actions = play_vector(WaitPolicy(), gymnasium.make_vec(toy_id, num_envs=3), 12)
    assert (actions == np.array(HEAD_DEFAULTS)).all()


def test_random_policy_is_legal_and_covers_every_op(toy_id):
    vector = gymnasium.make_vec(toy_id, num_envs=10, horizon=40)
    actions = play_vector(RandomPolicy(seed=1), vector, 40).reshape(-1, 8)
    assert set(actions[:, Head.OP]) == set(Op)
    assert set(actions[:, Head.SLOT]) == {0, 1}
    planted = actions[actions[:, Head.OP] == Op.GERMINATE, Head.BLUEPRINT]
    assert set(planted) == set(vector.offered_blueprints)


def test_random_policy_is_uniform_over_legal_ops(toy_id):
    """At the start, only WAIT and GERMINATE are legal."""
    policy, (obs, _) = RandomPolicy(seed=3), gymnasium.make(toy_id).reset(seed=0)
    many = {key: np.repeat(value[None], 4000, axis=0) for key, value in obs.items()}
    actions, _ = policy.predict(many)
    share = np.bincount(actions[:, Head.OP], minlength=6) / 4000
    assert share[Op.WAIT] == pytest.approx(0.5, abs=0.03)
    assert share[Op.GERMINATE] == pytest.approx(0.5, abs=0.03)
    planted = actions[actions[:, Head.OP] == Op.GERMINATE]
    assert (np.bincount(planted[:, Head.SLOT]) / len(planted)).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    for head in (Head.STYLE, Head.TEMPO, Head.ALPHA_TARGET):
        assert len(np.unique(planted[:, head])) > 2
    for head in np.flatnonzero(~HEAD_RELEVANCE[Op.GERMINATE]):
        assert (planted[:, head] == HEAD_DEFAULTS[head]).all()


def test_random_policy_is_independent_of_num_envs(toy_id):
    one = gymnasium.make_vec(toy_id, num_envs=1, horizon=6)
    four = gymnasium.make_vec(toy_id, num_envs=4, horizon=6)
    alone = play_vector(RandomPolicy(seed=5), one, 4 * 6).reshape(4, 6, 8)
    together = play_vector(RandomPolicy(seed=5), four, 6)
    np.testing.assert_array_equal(alone, together.swapaxes(0, 1))
    assert not np.array_equal(together, play_vector(RandomPolicy(seed=6), four, 6))


def test_fixed_plan_is_carried_out_at_once_and_in_order(toy_id):
    policy = FixedPlanPolicy(Blueprint.CONV_HEAVY, horizon=12)
    env = gymnasium.make(toy_id)
    taken, infos = play(policy, env)
    assert taken[0] == (Op.GERMINATE, 0, Blueprint.CONV_HEAVY)
    # Three epochs of training come before the second gate; the toy blends in one step.
    expected = [Op.GERMINATE, Op.ADVANCE, Op.WAIT, Op.WAIT, Op.ADVANCE, Op.ADVANCE, Op.FOSSILIZE]
    assert [op for op, _, _ in taken[:7]] == expected
    assert {op for op, _, _ in taken[7:]} == {Op.WAIT}
    assert all(info["action_succeeded"] for info in infos)
    assert env.unwrapped.stage == [Stage.FOSSILIZED, Stage.DORMANT]


def test_fixed_plan_of_two_seeds_fossilizes_both(toy_id):
    plan = [Planting(Blueprint.NORM, slot=1, style=Style.GATED_GATE, tempo=Tempo.FAST), Planting(Blueprint.CONV_LIGHT)]
    env = gymnasium.make(toy_id)
    action, _ = FixedPlanPolicy(plan, horizon=12).predict(env.reset(seed=0)[0])
    assert (action[Head.STYLE], action[Head.TEMPO]) == (Style.GATED_GATE, Tempo.FAST)
    taken, _ = play(FixedPlanPolicy(plan, horizon=12), env)
    assert [entry for entry in taken if entry[0] == Op.GERMINATE] == [
        (Op.GERMINATE, 1, Blueprint.NORM),
        (Op.GERMINATE, 0, Blueprint.CONV_LIGHT),
    ]
    assert env.unwrapped.stage == [Stage.FOSSILIZED] * 2


@pytest.mark.parametrize("gates", ["permissive", "strict"])
@pytest.mark.parametrize("tempo", Tempo)
def test_fixed_plan_notes_a_horizon_too_short_to_commit(tempo, gates):
    needed = {Tempo.FAST: 9, Tempo.STANDARD: 11, Tempo.SLOW: 14}[tempo]
    plan = [Planting(Blueprint.NORM, tempo=Tempo.SLOW, slot=1), Planting(Blueprint.NORM, tempo=tempo)]
    assert FixedPlanPolicy(plan, needed, gates).note is None
    assert FixedPlanPolicy(plan, needed - 1, gates).note == (
        f"commits nothing with horizon={needed - 1}: it needs a horizon of at least {needed}"
    )


def test_fixed_plan_restarts_with_every_episode(toy_id):
    vector = gymnasium.make_vec(toy_id, num_envs=2, horizon=12)
    actions = play_vector(FixedPlanPolicy(Blueprint.NORM, horizon=12), vector, 24)
    assert (actions[[0, 12]][:, :, Head.OP] == Op.GERMINATE).all()
    assert (actions[:, :, Head.OP] == Op.GERMINATE).sum() == 4


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([Planting(Blueprint.NORM), Planting(Blueprint.MLP)], r"slots are \[0, 0\]"),
        ([Planting(Blueprint.NORM, slot=-1)], r"slots are \[-1\]"),
        (
            [Planting(Blueprint.NOOP)],
            r"blueprints are \[.*NOOP.*\]; expected values of the blueprint head, 1 to 12; `esper info` lists",
        ),
        ([Planting(Blueprint.NORM, slot=2)], "plants slot 2; the environment has slots 0 to 1"),
    ],
)
def test_fixed_plan_rejects_impossible_plans(toy_id, plan, message):
    with pytest.raises(ValueError, match=message):
        FixedPlanPolicy(plan, horizon=12).predict(gymnasium.make(toy_id).reset(seed=0)[0])
