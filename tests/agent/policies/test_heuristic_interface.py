"""Interface of the heuristic: batches, state, records, settings and whole episodes."""

import gymnasium
import numpy as np
import pytest
from esper_agent.evaluation.play import run_episodes
from esper_agent.policies.baselines import POLICIES
from esper_agent.policies.heuristic import HeuristicConfig, HeuristicPolicy
from esper_env import action, register_blueprint, unregister_blueprint
from esper_env.rules.heads import Tempo
from esper_env.rules.stages import Stage
from heuristic_moments import HORIZON, READY, Moment, Seed, policy_with
from torch import nn

pytestmark = pytest.mark.numeric


def test_predict_on_a_batch_equals_single_predictions():
    moments = [Moment(), Moment(epoch=2), Moment(seeds={0: READY[Stage.TRAINING]}), Moment(plateau=0)]
    stacked = {key: np.stack([m.observation()[key] for m in moments]) for key in moments[0].observation()}
    actions, _ = policy_with().predict(stacked)
    assert actions.shape == (4, 8)
    for row, moment in enumerate(moments):
        single, _ = policy_with().predict(moment.observation())
        np.testing.assert_array_equal(actions[row], single)


def test_predict_does_not_change_the_state_it_receives():
    policy = policy_with()
    _, state = policy.predict(Moment(seeds={0: Seed(Stage.HOLDING, 1, contribution=4.0)}).observation())
    kept = [column.copy() for column in state]
    later = Moment(epoch=21, seeds={0: Seed(Stage.HOLDING, 2, contribution=4.0)}).observation()
    first, after_first = policy.predict(later, state)
    again, after_again = policy.predict(later, state)
    np.testing.assert_array_equal(first, again)
    for before, column, one, other in zip(kept, state, after_first, after_again, strict=True):
        np.testing.assert_array_equal(column, before)
        np.testing.assert_array_equal(one, other)


def test_predict_rejects_a_state_of_other_environments():
    one = Moment().observation()
    two = {key: np.stack([value] * 2) for key, value in one.items()}
    _, state_of_one = policy_with().predict(one)
    fresh = policy_with()
    with pytest.raises(ValueError, match="decisions of 0 environments, and the observation has 1; pass the state that"):
        fresh.predict(one, state_of_one)
    fresh.predict(two)
    with pytest.raises(ValueError, match=r"the state is .* an array \(1, 3\) .*; expected .* an array \(2, 3\)"):
        fresh.predict(two, state_of_one)
    assert [len(decisions) for decisions in fresh.decisions] == [1, 1], "rejected calls leave no record"


def test_episode_start_resets_its_row_only():
    policy, seeds = policy_with(), {0: Seed(Stage.HOLDING, 1, contribution=4.0)}
    rows = {key: np.stack([value] * 2) for key, value in Moment(seeds=seeds).observation().items()}
    _, state = policy.predict(rows)
    _, state = policy.predict(rows, state, np.array([True, False]))
    assert state.holding_count[:, 0].tolist() == [1, 2]
    assert [len(decisions) for decisions in policy.decisions] == [1, 2]


def test_decisions_are_limited_to_one_episode():
    policy, state = policy_with(), None
    for step in range(2 * HORIZON):
        _, state = policy.predict(Moment(epoch=step % HORIZON).observation(), state, np.array([step == 0]))
    assert len(policy.decisions[0]) == HORIZON
    assert policy.decisions[0][-1].env == 0
    assert all(0.0 <= decision.confidence <= 1.0 for decision in policy.decisions[0])


CHEAP, DIGITS = {"batches_per_step": 1, "device": "cpu"}, "Esper-Digits-v0"


@pytest.mark.usefixtures("own_tables")
def test_policy_uses_the_names_of_its_environment():
    """Also of a blueprint that was unregistered after the environment was made."""
    register_blueprint("mixer", "cnn", lambda channels: nn.Conv2d(channels, channels, 1))
    env = gymnasium.make(DIGITS, slots=["r0c0", "r0c2"], **CHEAP)
    unregister_blueprint("mixer", "cnn")
    policy = HeuristicPolicy.for_env(env, HeuristicConfig(wait_for_stability=False, min_epoch=0, min_plateau=0))
    env.reset(seed=0)
    observation, *_ = env.step(action("germinate", "r0c0", "mixer", env=env))
    policy.predict(observation)
    assert policy.decisions[0][-1].sentence().startswith("epoch 1: ADVANCE r0c0; ")
    assert policy.decisions[0][-1].blueprint == "mixer"
    observation, _ = env.reset(options={"topology": {"r0c0": "mixer"}})
    policy.predict(observation)
    assert policy.decisions[0][-1].action.startswith("GERMINATE conv_light in r0c2: ")
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize(("spare", "committed"), [(0, 1), (-1, 0)])
@pytest.mark.parametrize("tempo", list(Tempo))
def test_seed_needs_exactly_epochs_to_commit_on_a_real_task(spare, committed, tempo):
    """It is planted at once and kept in any case: with just enough epochs in time, with one less not at all."""
    config = HeuristicConfig(
        tempo=tempo,
        wait_for_stability=False,
        min_epoch=0,
        min_plateau=0,
        min_contribution=-200.0,
        dependence=200.0,
        max_loss=200.0,
        commit_epochs=0,
    )
    needed = HeuristicPolicy(1, "cnn", config=config).epochs_to_commit
    settings = CHEAP | {"horizon": needed + spare, "max_seeds": 1}
    (record,) = run_episodes(lambda env: HeuristicPolicy.for_env(env, config), DIGITS, 1, env_kwargs=settings)
    assert record.fossilized == record.germinated == committed
    assert record.invalid_actions == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "env_id"),
    [(name, DIGITS) for name in sorted(POLICIES.keys() - {"mlp"})]
    + [(name, "Esper-Text-v0") for name in ("heuristic", "mlp")],
)
def test_episodes_on_a_real_task_are_legal_and_independent_of_num_envs(name, env_id):
    def run(num_envs):
        settings = CHEAP | {"horizon": 16, "shard_size": 1}
        return run_episodes(
            lambda env: POLICIES[name](env, 0), env_id, 2, seed=5, num_envs=num_envs, env_kwargs=settings
        )

    records = run(2)
    assert records == run(1)
    assert all(record.invalid_actions == 0 for record in records)
    if name.startswith("conv") or name == "mlp":
        assert all(record.fossilized == 1 for record in records)
