"""Losses and statistics of one minibatch against plain loops over its rows and heads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th
from esper_agent.ppo.buffers import FactoredSamples
from esper_agent.ppo.distribution import HeadEvaluation
from esper_agent.ppo.losses import LossSettings, UpdateStatistics, loss_terms, normalise
from esper_agent.ppo.policy import Evaluation
from esper_env.rules.heads import HEAD_NAMES, HEAD_RELEVANCE, NUM_HEADS, NUM_OPS, Head, Op

pytestmark = pytest.mark.numeric

PADDING = 4


def minibatch(count=30, seed=0, spread=0.3):
    """Samples and an evaluation of ``count`` real rows, every op among them, and some rows of padding."""
    generator = th.Generator().manual_seed(seed)

    def noise(*shape):
        return th.randn(*shape, generator=generator)

    total = count + PADDING
    actions = th.zeros(total, NUM_HEADS, dtype=th.long)
    actions[:, Head.OP] = th.arange(total) % NUM_OPS
    relevance = th.tensor(HEAD_RELEVANCE.copy())[actions[:, Head.OP]]
    old = th.where(relevance, -noise(total, NUM_HEADS).abs(), 0.0)
    mask = (th.arange(total) < count).float()
    samples = FactoredSamples(
        observations={},
        actions=actions,
        old_values=noise(total),
        old_log_prob=old.sum(dim=1),
        advantages=noise(total) - 2,
        returns=noise(total),
        lstm_states=None,
        episode_starts=th.zeros(total),
        mask=mask,
        head_log_probs=old,
        op_advantages=noise(total) * 3 + 1,
    )
    evaluation = Evaluation(
        op_values=noise(total).requires_grad_(),
        state_values=noise(total),
        op_probs=noise(total, NUM_OPS).softmax(dim=1),
        heads=HeadEvaluation(
            log_probs=th.where(relevance, old + spread * noise(total, NUM_HEADS), 0.0).requires_grad_(),
            entropies=th.where(relevance, noise(total, NUM_HEADS).abs(), 0.0),
            relevance=relevance,
            choices=relevance & (noise(total, NUM_HEADS) > -0.5),
        ),
    )
    # Padding must not matter, however wild.
    padding = mask == 0
    samples.returns[padding] = 1e6
    samples.op_advantages[padding] = -1e6
    with th.no_grad():
        evaluation.heads.log_probs[padding] = 50.0
    return samples, evaluation


def settings_with(**changes):
    defaults = {
        "clip_range": 0.2,
        "clip_range_vf": None,
        "ent_coef": 0.05,
        "entropy_weights": th.ones(NUM_HEADS),
        "vf_coef": 1.0,
        "normalize_advantage": False,
    }
    return LossSettings(**(defaults | changes))


def read_heads(samples):
    """(row, head, advantage) wherever a real row's op reads a head."""
    for row in range(int(samples.mask.sum())):
        for head in Head:
            if HEAD_RELEVANCE[samples.actions[row, Head.OP], head]:
                column = samples.op_advantages if head == Head.OP else samples.advantages
                yield row, head, column[row].item()


@pytest.mark.parametrize("clip_range", [0.1, 0.3])
def test_each_head_has_its_own_clipped_surrogate(clip_range):
    samples, evaluation = minibatch()
    total, clipped_rows = 0.0, 0
    for row, head, advantage in read_heads(samples):
        ratio = math.exp((evaluation.heads.log_probs - samples.head_log_probs)[row, head].item())
        clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
        clipped_rows += ratio != clipped
        total += min(ratio * advantage, clipped * advantage)
    assert clipped_rows > 10
    terms = loss_terms(samples, evaluation, settings_with(clip_range=clip_range))
    assert terms.policy.item() == pytest.approx(-total / 30, rel=1e-4)


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient():
    samples, evaluation = minibatch(spread=0.0)
    loss_terms(samples, evaluation, settings_with(ent_coef=0.0, vf_coef=0.0)).total.backward()
    expected = th.zeros_like(evaluation.heads.log_probs)
    for row, head, advantage in read_heads(samples):
        expected[row, head] = -advantage / 30
    assert th.allclose(evaluation.heads.log_probs.grad, expected, atol=1e-6)


def test_advantages_of_op_and_arguments_are_normalised_separately_over_real_rows():
    samples, evaluation = minibatch()
    rows = samples.mask > 0
    by_hand = samples._replace(
        **{
            name: (values - values[rows].mean()) / values[rows].std(correction=0)
            for name in ("op_advantages", "advantages")
            for values in [getattr(samples, name)]
        }
    )
    expected = loss_terms(by_hand, evaluation, settings_with()).policy
    actual = loss_terms(samples, evaluation, settings_with(normalize_advantage=True)).policy
    assert actual.item() == pytest.approx(expected.item(), rel=1e-4)


def test_single_row_is_normalised_to_zero():
    rows = th.tensor([True, False])
    assert normalise(th.tensor([3.0, 1e6]), rows)[0].item() == 0.0


def test_value_loss_is_the_squared_error_of_the_value_of_the_stored_op():
    samples, evaluation = minibatch()
    errors = [(samples.returns[row] - evaluation.op_values[row]).item() ** 2 for row in range(30)]
    assert loss_terms(samples, evaluation, settings_with()).value.item() == pytest.approx(np.mean(errors), rel=1e-5)
    clipped = []
    for row in range(30):
        old = samples.old_values[row].item()
        value = min(max(evaluation.op_values[row].item(), old - 0.1), old + 0.1)
        clipped.append((samples.returns[row].item() - value) ** 2)
    terms = loss_terms(samples, evaluation, settings_with(clip_range_vf=0.1))
    assert terms.value.item() == pytest.approx(np.mean(clipped), rel=1e-5)


def test_entropy_is_weighted_per_head_and_summed_over_relevant_heads():
    samples, evaluation = minibatch()
    weights = th.arange(1.0, NUM_HEADS + 1)
    total = sum(
        weights[head].item() * evaluation.heads.entropies[row, head].item() for row, head, _ in read_heads(samples)
    )
    terms = loss_terms(samples, evaluation, settings_with(entropy_weights=weights))
    assert terms.entropy.item() == pytest.approx(-total / 30, rel=1e-5)


def test_total_adds_the_terms_with_their_coefficients():
    terms = loss_terms(*minibatch(), settings_with(ent_coef=0.25, vf_coef=0.5))
    expected = terms.policy + 0.25 * terms.entropy + 0.5 * terms.value
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_kl_is_the_kl_of_the_joint_action():
    samples, evaluation = minibatch()
    log_ratios = dict.fromkeys(range(30), 0.0)
    for row, head, _ in read_heads(samples):
        log_ratios[row] += (evaluation.heads.log_probs - samples.head_log_probs)[row, head].item()
    expected = np.mean([math.exp(value) - 1 - value for value in log_ratios.values()])
    terms = loss_terms(samples, evaluation, settings_with())
    assert terms.approx_kl.item() == pytest.approx(expected, rel=1e-4)


def test_head_statistics_average_over_relevant_rows():
    batches = [minibatch(30, seed=0), minibatch(18, seed=1)]
    statistics = UpdateStatistics(0.2)
    seen = {head: [] for head in Head}
    for samples, evaluation in batches:
        statistics.add(loss_terms(samples, evaluation, settings_with()), evaluation, samples.mask)
        for row, head, _ in read_heads(samples):
            ratio = math.exp((evaluation.heads.log_probs - samples.head_log_probs)[row, head].item())
            entropy, choice = evaluation.heads.entropies[row, head].item(), evaluation.heads.choices[row, head].item()
            seen[head].append((ratio, entropy, choice))
    numbers = statistics.per_head()
    assert numbers.keys() == set(HEAD_NAMES)
    for head, rows in seen.items():
        ratios, entropies, choices = np.array(rows).T
        beyond = math.ceil(0.05 * (len(rows) - 1))  # rows at either end that do not count
        expected = {
            "ratio_mean": ratios.mean(),
            "ratio_max": ratios.max(),
            "ratio_min": ratios.min(),
            "approx_kl": (ratios - 1 - np.log(ratios)).mean(),
            "clip_fraction": (np.abs(ratios - 1) > 0.2).mean(),
            "entropy": entropies.mean(),
            "choice_entropy": entropies[choices == 1].mean(),
            "ratio_low": np.sort(ratios)[beyond],
            "ratio_high": np.sort(ratios)[-1 - beyond],
        }
        assert 0 < choices.sum() < len(rows)
        assert numbers[HEAD_NAMES[head]] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    wait = [evaluation.op_probs[: int(samples.mask.sum()), Op.WAIT].mean().item() for samples, evaluation in batches]
    assert statistics.summary(1.0)["op_wait_probability"] == pytest.approx(np.mean(wait), rel=1e-5)


def test_choice_entropy_is_absent_without_a_choice_and_infinite_ratios_stay_infinite():
    samples, evaluation = minibatch(12)
    heads = evaluation.heads._replace(
        choices=evaluation.heads.choices & (th.arange(NUM_HEADS) != Head.SLOT),
        log_probs=evaluation.heads.log_probs + th.where(th.arange(NUM_HEADS) == Head.OP, 200.0, 0.0),
    )
    evaluation = evaluation._replace(heads=heads)
    statistics = UpdateStatistics(0.2)
    statistics.add(loss_terms(samples, evaluation, settings_with()), evaluation, samples.mask)
    numbers = statistics.per_head()
    assert "choice_entropy" not in numbers["slot"]
    assert "entropy" in numbers["slot"]
    assert numbers["op"]["ratio_low"] == numbers["op"]["ratio_high"] == math.inf
