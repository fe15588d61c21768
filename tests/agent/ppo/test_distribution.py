"""The factored distribution against sums and loops over single values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch as th
from esper_agent.ppo.distribution import FactoredDistribution, HeadTables, masked_log_softmax
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_RELEVANCE, Head, Op, head_sizes
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.numeric

SLOTS = 3
NVEC = head_sizes(SLOTS)
STARTS = np.concatenate([[0], np.cumsum(NVEC)])


def distribution_of(observation, logits):
    return FactoredDistribution(HeadTables(NVEC), logits, observation["action_mask"], observation["op_slot_mask"])


def random_logits(count, seed=0, scale=2.0):
    return th.randn(count, sum(NVEC), generator=th.Generator().manual_seed(seed)) * scale


def naive_head(logits, observation, row, head, op):
    """{value: probability} of one head given the op, by exponentials and a sum in float64."""
    section = slice(STARTS[head], STARTS[head + 1])
    valid = observation["action_mask"][row, section].tolist()
    if head == Head.SLOT:
        valid = observation["op_slot_mask"][row].reshape(len(Op), SLOTS)[op].tolist()
    weights = {v: math.exp(logits[row, STARTS[head] + v].item()) for v in range(NVEC[head]) if valid[v]}
    return {value: weight / sum(weights.values()) for value, weight in weights.items()}


def naive_log_prob(logits, observation, row, action):
    op = Op(int(action[Head.OP]))
    return sum(
        math.log(naive_head(logits, observation, row, head, op)[int(action[head])])
        for head in Head
        if HEAD_RELEVANCE[op, head]
    )


def legal_actions(observation, row, op):
    """Every joint action of one op, irrelevant heads at their defaults."""
    choices = []
    for head in Head:
        if head == Head.OP:
            choices.append([op])
        elif HEAD_RELEVANCE[op, head]:
            choices.append(list(naive_head(th.zeros(row + 1, sum(NVEC)), observation, row, head, op)))
        else:
            choices.append([HEAD_DEFAULTS[head]])
    return th.tensor(list(itertools.product(*choices)))


def test_log_prob_equals_a_naive_computation(observations):
    observation, logits = observations(64), random_logits(64)
    distribution = distribution_of(observation, logits)
    actions = distribution.get_actions()
    by_hand = [naive_log_prob(logits, observation, row, action) for row, action in enumerate(actions)]
    assert distribution.evaluate(actions).log_probs.sum(dim=1).tolist() == pytest.approx(by_hand, abs=1e-5)


def test_probabilities_of_all_legal_joint_actions_sum_to_one(observations):
    observation, logits = observations(4, density=0.7), random_logits(4)
    for row in range(4):
        single = {key: value[row : row + 1] for key, value in observation.items()}
        ops = [op for op in Op if single["action_mask"][0, STARTS[Head.OP] + op]]
        actions = th.cat([legal_actions(single, 0, op) for op in ops])
        repeated = {key: value.expand(len(actions), -1) for key, value in single.items()}
        distribution = distribution_of(repeated, logits[row : row + 1].expand(len(actions), -1))
        assert distribution.evaluate(actions).log_probs.sum(dim=1).exp().sum().item() == pytest.approx(1.0, abs=1e-4)


@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0, 1), scale=st.floats(0, 50))
@settings(max_examples=60, deadline=None)
def test_masked_actions_are_never_sampled_and_unread_heads_hold_their_default(observations, seed, density, scale):
    observation, logits = observations(32, seed, density), random_logits(32, seed, scale)
    distribution = distribution_of(observation, logits)
    for actions in (distribution.get_actions(), distribution.get_actions(deterministic=True)):
        for row, action in enumerate(actions.tolist()):
            op = action[Head.OP]
            assert observation["op_slot_mask"][row].reshape(len(Op), SLOTS)[op, action[Head.SLOT]]
            assert observation["action_mask"][row, STARTS[Head.OP] + op]
            for head in set(Head) - {Head.OP, Head.SLOT}:
                if HEAD_RELEVANCE[op, head]:
                    assert observation["action_mask"][row, STARTS[head] + action[head]]
            unread = [head for head in Head if not HEAD_RELEVANCE[op, head]]
            assert [action[head] for head in unread] == [HEAD_DEFAULTS[head] for head in unread]
        log_probs = distribution.evaluate(actions).log_probs
        assert log_probs.isfinite().all()
        assert (log_probs[~distribution.evaluate(actions).relevance] == 0).all()


def test_sampling_frequencies_follow_the_probabilities(observations):
    count = 40_000
    single = observations(1, seed=3, density=0.8)
    observation = {key: value.expand(count, -1) for key, value in single.items()}
    logits = random_logits(1, seed=1, scale=1.0)
    th.manual_seed(0)
    actions = distribution_of(observation, logits.expand(count, -1)).get_actions()
    op_probs = naive_head(logits, single, 0, Head.OP, Op.WAIT)
    for op, probability in op_probs.items():
        rows = actions[actions[:, Head.OP] == op]
        assert len(rows) / count == pytest.approx(probability, abs=0.01)
        for head in Head:
            if head == Head.OP or not HEAD_RELEVANCE[op, head] or len(rows) < 4000:
                continue
            for value, share in naive_head(logits, single, 0, head, op).items():
                assert (rows[:, head] == value).float().mean().item() == pytest.approx(share, abs=0.035)


def test_mode_takes_the_most_likely_op_and_then_its_most_likely_arguments(observations):
    observation, logits = observations(64), random_logits(64)
    for row, action in enumerate(distribution_of(observation, logits).get_actions(deterministic=True).tolist()):
        for head in Head:
            if HEAD_RELEVANCE[action[Head.OP], head]:
                probabilities = naive_head(logits, observation, row, head, action[Head.OP])
                assert action[head] == max(probabilities, key=probabilities.get)


def test_head_entropies_are_relative_to_the_number_of_valid_values(observations):
    observation, logits = observations(64), random_logits(64)
    distribution = distribution_of(observation, logits)
    actions = distribution.get_actions()
    _, entropies, _, choices = distribution.evaluate(actions)
    for row, action in enumerate(actions.tolist()):
        for head in Head:
            expected, probabilities = 0.0, []
            if HEAD_RELEVANCE[action[Head.OP], head]:
                probabilities = list(naive_head(logits, observation, row, head, action[Head.OP]).values())
                if len(probabilities) > 1:
                    expected = -sum(p * math.log(p) for p in probabilities) / math.log(len(probabilities))
            assert entropies[row, head].item() == pytest.approx(expected, abs=1e-5)
            assert choices[row, head].item() == (len(probabilities) > 1)
    assert not choices.all()


def test_changing_an_unread_head_changes_nothing(observations):
    observation, logits = observations(128), random_logits(128).requires_grad_()
    distribution = distribution_of(observation, logits)
    actions = distribution.get_actions()
    scrambled = th.stack([th.randint(0, size, (128,)) for size in NVEC], dim=1)
    relevance = th.tensor(HEAD_RELEVANCE.copy())[actions[:, Head.OP]]
    changed = th.where(relevance, actions, scrambled)
    assert not th.equal(changed, actions)
    for before, after in zip(distribution.evaluate(actions), distribution.evaluate(changed), strict=True):
        assert th.equal(before, after)

    distribution.evaluate(changed).log_probs.sum(dim=1).sum().backward()
    for head in Head:
        unread = ~relevance[:, head]
        assert (logits.grad[unread, STARTS[head] : STARTS[head + 1]] == 0).all()


def test_gradients_stay_finite_under_extreme_logits_and_single_values(observations):
    observation = observations(32, density=0.0)
    logits = random_logits(32, scale=1e4).requires_grad_()
    distribution = distribution_of(observation, logits)
    evaluation = distribution.evaluate(distribution.get_actions())
    (evaluation.log_probs.sum() + evaluation.entropies.sum()).backward()
    assert logits.grad.isfinite().all()
    assert (evaluation.log_probs == 0).all(), "only WAIT was possible"


def test_half_precision_logits_give_float32_probabilities(observations):
    distribution = distribution_of(observations(4), random_logits(4).half())
    assert distribution.evaluate(distribution.get_actions()).log_probs.sum(dim=1).dtype == th.float32


@pytest.mark.parametrize("size", [-1e7, -1e9, -1e20, -1e38])
def test_invalid_values_have_no_probability_however_low_the_valid_logits_are(size):
    """Logits of a diverged policy; before, the invalid value had all of the probability."""
    valid = th.tensor([True, True, False])
    probabilities = masked_log_softmax(th.tensor([size, size, 5.0]), valid).exp()
    assert probabilities.tolist() == [0.5, 0.5, 0.0]
