"""The rollout buffer stores decisions, their values, and bootstraps of truncated episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from esper_agent.ppo.advantages import Rollout, two_step
from esper_env.rules.heads import Blueprint, Head, Op
from stable_baselines3.common.callbacks import BaseCallback

pytestmark = pytest.mark.numeric


class Tape(BaseCallback):
    """Keeps what each step handed to the callbacks."""

    def __init__(self):
        super().__init__()
        self.actions, self.decisions = [], []

    def _on_step(self):
        self.actions.append(self.locals["actions"].copy())
        self.decisions.append(self.locals["decision"])
        return True


def test_stored_op_is_the_valued_and_executed_op(mask_world, make_model, collect, roughen):
    env = mask_world(num_envs=4)
    tape = Tape()
    model = roughen(make_model(env, n_steps=64))
    buffer = collect(model, tape)
    executed = np.stack([single.unwrapped.executed for single in env.envs], axis=1)
    np.testing.assert_array_equal(buffer.actions, executed)
    np.testing.assert_array_equal(buffer.actions, np.stack(tape.actions))
    assert set(buffer.actions[..., Head.OP].ravel()) == set(Op)
    for step, decision in enumerate(tape.decisions):
        lstm = tuple(th.tensor(part[step]) for part in (buffer.hidden_states_pi, buffer.cell_states_pi))
        obs = {key: th.tensor(value[step]) for key, value in buffer.observations.items()}
        with th.no_grad():
            q, probabilities = model.policy.op_values(obs, lstm, th.tensor(buffer.episode_starts[step]))
        taken = q[th.arange(4), th.tensor(executed[step, :, Head.OP])]
        np.testing.assert_allclose(buffer.values[step], taken, atol=1e-6)
        np.testing.assert_allclose(buffer.state_values[step], (q * probabilities).sum(dim=1), atol=1e-6)
        np.testing.assert_array_equal(buffer.values[step], decision.op_values)


def test_ratios_of_the_first_epoch_are_one_for_every_head(mask_world, make_model, collect, roughen):
    """Over a rollout with every op, in shuffled padded minibatches that cut across episodes and environments."""
    model = roughen(make_model(mask_world(num_envs=5, horizon=7), n_steps=64, batch_size=23))
    model.learn(320)
    buffer = collect(model)
    assert set(buffer.actions[..., Head.OP].ravel()) == set(Op)
    relevant, real = np.zeros(len(Head)), 0
    for samples in buffer.get(model.batch_size):
        evaluation = model.policy.evaluate_heads(
            samples.observations, samples.actions, samples.lstm_states, samples.episode_starts
        )
        rows = samples.mask > 0.5
        ratio = (evaluation.heads.log_probs - samples.head_log_probs)[rows].exp()
        assert (ratio - 1).abs().max().item() < 1e-4
        assert (evaluation.op_values - samples.old_values)[rows].abs().max().item() < 1e-4
        relevant += evaluation.heads.relevance[rows].sum(dim=0).numpy()
        real += int(rows.sum())
    assert real == 5 * 64, "every transition once"
    assert (relevant > 0).all()


@pytest.mark.parametrize("estimator", ["two_step", "sampled_op"])
def test_truncation_bootstraps_and_termination_does_not(mask_world, estimator, make_model, collect):
    cut = collect(make_model(mask_world(num_envs=2, horizon=8, cut=5), advantage_estimator=estimator))
    assert cut.ends.sum() == 6
    assert (cut.final_values[cut.ends] != 0).all()
    assert (cut.final_values[~cut.ends] == 0).all()
    whole = collect(make_model(mask_world(num_envs=2, horizon=5), advantage_estimator=estimator))
    assert whole.ends.sum() == 6
    assert (whole.final_values == 0).all()


def test_advantages_of_a_truncated_rollout_equal_a_recomputation(mask_world, make_model, collect):
    """Final observations, states and values are read back from outside the algorithm."""
    seen = []

    class Ends(Tape):
        def _on_step(self):
            for env in np.flatnonzero(self.locals["dones"]):
                state = tuple(part[:, env : env + 1].clone() for part in self.locals["lstm_states"].pi)
                seen.append((len(self.actions), env, self.locals["infos"][env]["terminal_observation"], state))
            self.last = self.locals["new_obs"], self.locals["lstm_states"].pi, self.locals["dones"].copy()
            return super()._on_step()

    tape = Ends()
    model = make_model(mask_world(num_envs=3, horizon=8, cut=5), n_steps=14)
    buffer = collect(model, tape)

    def value(obs, state, start):
        with th.no_grad():
            tensors = {key: th.as_tensor(part) for key, part in obs.items()}
            return model.policy.predict_values(tensors, state, th.as_tensor(start, dtype=th.float32)).numpy()[:, 0]

    final_values = np.zeros((14, 3), dtype=np.float32)
    for step, env, obs, state in seen:
        final_values[step, env] = value({key: part[None] for key, part in obs.items()}, state, [0.0])[0]
    assert len(seen) == 6
    rollout = Rollout(buffer.rewards, buffer.values, buffer.state_values, buffer.ends, final_values, value(*tape.last))
    expected = two_step(rollout, 0.98, 0.95)
    np.testing.assert_allclose(buffer.op_advantages, expected.op, atol=1e-5)
    np.testing.assert_allclose(buffer.advantages, expected.arguments, atol=1e-5)
    np.testing.assert_allclose(buffer.returns, expected.returns, atol=1e-5)


def test_rewards_in_the_buffer_are_those_of_the_environments(mask_world, make_model, collect):
    buffer = collect(make_model(mask_world(num_envs=2, horizon=8, cut=3)))
    hits = (buffer.actions[..., Head.OP] == Op.GERMINATE) & (
        buffer.actions[..., Head.BLUEPRINT] == Blueprint.CONV_LIGHT
    )
    np.testing.assert_array_equal(buffer.rewards, hits)
