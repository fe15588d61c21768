"""Both estimators against hand-computed values, and their gradients against a small process's exact policy gradient.

The process: three steps, two states, three ops of which the first takes no argument, the second one of three and the
third one of two. Every trajectory is enumerated, so expectations are exact; float64 throughout.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch as th
from esper_agent.ppo.advantages import ESTIMATORS, Rollout, expected_value, sampled_op, sampled_value, two_step

pytestmark = pytest.mark.numeric

HORIZON, STATES, GAMMA = 3, 2, 0.9
ARGUMENTS = (1, 3, 2)
DECISIONS = [(op, argument) for op, count in enumerate(ARGUMENTS) for argument in range(count)]
LAMBDAS = (0.0, 0.5, 0.95, 1.0)


class Process:
    """Rewards (S, op, argument), chances of going to state 1, and policy logits, drawn from one seed."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        shape = (STATES, len(ARGUMENTS), max(ARGUMENTS))
        self.rewards = th.tensor(rng.normal(size=shape))
        self.to_one = th.tensor(rng.uniform(0.1, 0.9, size=shape))
        self.op_logits = th.tensor(rng.normal(size=shape[:2]), requires_grad=True)
        self.argument_logits = th.tensor(rng.normal(size=shape), requires_grad=True)

    def log_policies(self):
        exists = th.tensor([[argument < count for argument in range(max(ARGUMENTS))] for count in ARGUMENTS])
        arguments = self.argument_logits.masked_fill(~exists, -1e30).log_softmax(dim=-1)
        return self.op_logits.log_softmax(dim=-1), arguments

    def values(self):
        """Exact Q(t, s, op) and V(t, s), with V = 0 at the horizon, by backward induction."""
        log_op, log_argument = self.log_policies()
        q, v = [], [th.zeros(STATES, dtype=th.float64)]
        for _ in range(HORIZON):
            following = self.to_one * v[0][1] + (1 - self.to_one) * v[0][0]
            q.insert(0, (log_argument.exp() * (self.rewards + GAMMA * following)).sum(dim=-1))
            v.insert(0, (log_op.exp() * q[0]).sum(dim=-1))
        return th.stack(q), th.stack(v)

    def true_gradient(self):
        """Gradient of the discounted return from state 0."""
        return th.autograd.grad(self.values()[1][0, 0], [self.op_logits, self.argument_logits])

    def trajectories(self):
        """All of them: states (T + 1, N), ops and arguments (T, N), probabilities (N,)."""
        log_op, log_argument = (log.detach() for log in self.log_policies())
        rows, probabilities = [], []
        for steps in itertools.product(itertools.product(DECISIONS, range(STATES)), repeat=HORIZON):
            state, states, probability = 0, [0], 1.0
            for (op, argument), following in steps:
                chance = self.to_one[state, op, argument]
                probability *= (log_op[state, op] + log_argument[state, op, argument]).exp()
                probability *= chance if following else 1 - chance
                state = following
                states.append(state)
            rows.append((states, [step[0][0] for step in steps], [step[0][1] for step in steps]))
            probabilities.append(float(probability))
        states, ops, arguments = (np.array(column).T for column in zip(*rows, strict=True))
        return states, ops, arguments, th.tensor(probabilities, dtype=th.float64)

    def expected_gradient(self, estimator, gae_lambda, q, v, steps=HORIZON, truncated=False, decisions=HORIZON):
        """The expectation of the estimated policy gradient over the first steps of every trajectory.

        ``steps`` are in the rollout, ``decisions`` are in the gradient.
        """
        states, ops, arguments, probabilities = self.trajectories()
        times = np.arange(steps)[:, None]
        here, ops, arguments = states[:steps], ops[:steps], arguments[:steps]
        ends = np.zeros(here.shape, dtype=bool)
        ends[-1] = truncated or steps == HORIZON
        bootstrap = v[steps, states[steps]]
        rollout = Rollout(
            rewards=self.rewards.numpy()[here, ops, arguments],
            op_values=q[times, here, ops],
            state_values=v[times, here],
            ends=ends,
            final_values=np.where(ends, bootstrap, np.nan if truncated else 0.0),
            last_values=np.full_like(bootstrap, np.nan) if ends[-1, 0] else bootstrap,
        )
        advantages = ESTIMATORS[estimator].estimate(rollout, GAMMA, gae_lambda)
        log_op, log_argument = self.log_policies()
        weights = probabilities * th.tensor(GAMMA**times)
        surrogate = log_op[here, ops] * th.tensor(advantages.op)
        surrogate = surrogate + log_argument[here, ops, arguments] * th.tensor(advantages.arguments)
        return th.autograd.grad((weights * surrogate)[:decisions].sum(), [self.op_logits, self.argument_logits])


@pytest.fixture(scope="module")
def process():
    process = Process()
    assert process.trajectories()[3].sum().item() == pytest.approx(1.0, abs=1e-12), "the enumeration is complete"
    return process


@pytest.fixture(scope="module")
def exact(process):
    q, v = process.values()
    return q.detach().numpy(), v.detach().numpy()


def distance(left, right):
    return (left - right).abs().max().item()


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
def test_two_step_is_the_true_gradient_with_an_exact_critic(process, exact, gae_lambda):
    op_gradient, argument_gradient = process.expected_gradient("two_step", gae_lambda, *exact)
    true_op, true_argument = process.true_gradient()
    assert true_op.abs().max() > 0.05
    assert true_argument.abs().max() > 0.05
    assert distance(op_gradient, true_op) < 1e-6
    assert distance(argument_gradient, true_argument) < 1e-6


def test_two_step_is_unbiased_with_any_critic_at_lambda_one(process, exact):
    wrong_q = exact[0] + np.random.default_rng(1).normal(size=exact[0].shape)
    op_probs = process.log_policies()[0].detach().exp().numpy()
    wrong_v = np.concatenate([(op_probs * wrong_q).sum(axis=-1), np.zeros((1, STATES))])
    op_gradient, argument_gradient = process.expected_gradient("two_step", 1.0, wrong_q, wrong_v)
    true_op, true_argument = process.true_gradient()
    assert distance(op_gradient, true_op) < 1e-6
    assert distance(argument_gradient, true_argument) < 1e-6
    biased, _ = process.expected_gradient("two_step", 0.5, wrong_q, wrong_v)
    assert distance(biased, true_op) > 1e-3


@pytest.mark.parametrize("gae_lambda", LAMBDAS)
def test_sampled_op_leaves_the_op_head_without_a_gradient(process, exact, gae_lambda):
    op_gradient, argument_gradient = process.expected_gradient("sampled_op", gae_lambda, *exact)
    true_op, true_argument = process.true_gradient()
    assert op_gradient.abs().max() < 1e-9
    assert distance(op_gradient, true_op) > 0.05
    assert distance(argument_gradient, true_argument) < 1e-6


@pytest.mark.parametrize("truncated", [True, False])
@pytest.mark.parametrize("gae_lambda", LAMBDAS)
def test_truncated_future_is_worth_its_bootstrap(process, exact, gae_lambda, truncated):
    """Decisions before the cut get the gradient they would get without one, be it a truncation or a rollout's end."""
    cut = process.expected_gradient("two_step", gae_lambda, *exact, steps=2, truncated=truncated)
    whole = process.expected_gradient("two_step", gae_lambda, *exact, decisions=2)
    assert all(distance(before, after) < 1e-9 for before, after in zip(cut, whole, strict=True))


def test_two_step_equals_hand_computed_advantages():
    """Two environments; the first terminates after its second step, the second is truncated after its first."""
    rollout = Rollout(
        rewards=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        op_values=np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]),
        state_values=np.array([[1.1, 1.2], [1.3, 1.4], [1.5, 1.6]]),
        ends=np.array([[False, True], [True, False], [False, False]]),
        final_values=np.array([[0.0, 7.0], [0.0, 0.0], [0.0, 0.0]]),
        last_values=np.array([10.0, 20.0]),
    )
    advantages = two_step(rollout, 0.5, 0.5)
    env0 = [None, 3.0 - 0.3, 5.0 + 0.5 * 10.0 - 0.5]
    env0[0] = 1.0 + 0.5 * 1.3 - 0.1 + 0.25 * env0[1]
    env1 = [2.0 + 0.5 * 7.0 - 0.2, None, 6.0 + 0.5 * 20.0 - 0.6]
    env1[1] = 4.0 + 0.5 * 1.6 - 0.4 + 0.25 * env1[2]
    expected = np.array([env0, env1]).T
    np.testing.assert_allclose(advantages.arguments, expected)
    np.testing.assert_allclose(advantages.returns, expected + rollout.op_values)
    np.testing.assert_allclose(advantages.op, expected + rollout.op_values - rollout.state_values)


def test_sampled_op_equals_hand_computed_advantages():
    rollout = Rollout(
        rewards=np.array([[1.0], [2.0]]),
        op_values=np.array([[0.1], [0.2]]),
        state_values=np.array([[np.nan], [np.nan]]),
        ends=np.array([[False], [False]]),
        final_values=np.zeros((2, 1)),
        last_values=np.array([4.0]),
    )
    advantages = sampled_op(rollout, 0.5, 0.5)
    second = 2.0 + 0.5 * 4.0 - 0.2
    first = 1.0 + 0.5 * 0.2 - 0.1 + 0.25 * second
    np.testing.assert_allclose(advantages.op[:, 0], [first, second])
    np.testing.assert_array_equal(advantages.op, advantages.arguments)
    np.testing.assert_allclose(advantages.returns, advantages.op + rollout.op_values)


def test_bootstraps_read_the_critic_as_their_estimator_does():
    op_values = th.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]])
    op_probs = th.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    assert ESTIMATORS["two_step"].bootstrap is expected_value
    assert expected_value(op_values, op_probs).tolist() == [2.0, 5.0]
    assert ESTIMATORS["sampled_op"].bootstrap is sampled_value
    th.manual_seed(0)
    draws = th.stack([sampled_value(op_values, op_probs) for _ in range(4000)])
    assert (draws[:, 1] == 5.0).all()
    assert set(draws[:, 0].tolist()) == {1.0, 2.0, 4.0}
    assert draws[:, 0].mean().item() == pytest.approx(2.0, abs=0.1)
