"""Losses of FactoredRecurrentPPO, and statistics of its updates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch as th
from esper_env.rules import HEAD_NAMES, NUM_HEADS, Head, Op

from esper_agent.ppo.buffers import FactoredSamples
from esper_agent.ppo.policy import Evaluation


class LossSettings(NamedTuple):
    """Coefficients of the losses of one round of updates."""

    clip_range: float
    clip_range_vf: float | None
    ent_coef: float
    entropy_weights: th.Tensor  # (heads,)
    vf_coef: float
    normalize_advantage: bool


class LossTerms(NamedTuple):
    """Scalars of one minibatch, and its per-head details."""

    total: th.Tensor
    policy: th.Tensor
    value: th.Tensor
    entropy: th.Tensor
    approx_kl: th.Tensor  # of the joint action
    log_ratio: th.Tensor  # (B, heads), 0 where not in rows
    rows: th.Tensor  # (B, heads) bool: a real row whose op reads the head


def row_mean(values: th.Tensor, rows: th.Tensor) -> th.Tensor:
    """Return the mean of values (B,) over the rows (B,) that are True, which excludes padding."""
    return th.where(rows, values, 0.0).sum() / rows.sum()


def normalise(advantages: th.Tensor, rows: th.Tensor) -> th.Tensor:
    """Return advantages with zero mean and unit variance over the rows that are True; a single row becomes 0."""
    centred = advantages - row_mean(advantages, rows)
    return centred / (row_mean(centred**2, rows).sqrt() + 1e-8)


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    """Return Schulman's k3 estimate of KL(old || new) per element: (ratio - 1) - log ratio, never negative."""
    return th.expm1(log_ratio) - log_ratio


def loss_terms(samples: FactoredSamples, evaluation: Evaluation, settings: LossSettings) -> LossTerms:
    """Compute the losses of one minibatch.

    Policy: each head has its own ratio and its own clipped surrogate, with the op's advantage for the op head and the
    arguments' advantage for the others. A row contributes the heads its op reads; the sum is divided by the number
    of rows, so at ratio 1 the gradient is the policy gradient of the joint action. Entropy: the same sum, weighted per
    head. Value: squared error of Q(s, op) of the stored op.
    """
    real = samples.mask > 0.5
    rows = evaluation.heads.relevance & real.unsqueeze(1)
    log_ratio = th.where(rows, evaluation.heads.log_probs - samples.head_log_probs, 0.0)
    ratio = log_ratio.exp()

    op_advantages, argument_advantages = samples.op_advantages, samples.advantages
    if settings.normalize_advantage:
        op_advantages, argument_advantages = normalise(op_advantages, real), normalise(argument_advantages, real)
    is_op = th.arange(NUM_HEADS, device=ratio.device) == Head.OP
    advantages = th.where(is_op, op_advantages.unsqueeze(1), argument_advantages.unsqueeze(1))  # (B, heads)
    clipped = ratio.clamp(1.0 - settings.clip_range, 1.0 + settings.clip_range)
    surrogate = th.min(advantages * ratio, advantages * clipped)
    policy = -row_mean(th.where(rows, surrogate, 0.0).sum(dim=1), real)

    values = evaluation.op_values
    if settings.clip_range_vf is not None:
        change = values - samples.old_values
        values = samples.old_values + change.clamp(-settings.clip_range_vf, settings.clip_range_vf)
    value = row_mean((samples.returns - values) ** 2, real)

    entropy = -row_mean((evaluation.heads.entropies * settings.entropy_weights).sum(dim=1), real)
    return LossTerms(
        total=policy + settings.ent_coef * entropy + settings.vf_coef * value,
        policy=policy.detach(),
        value=value.detach(),
        entropy=entropy.detach(),
        approx_kl=row_mean(approximate_kl(log_ratio.sum(dim=1)), real).detach(),
        log_ratio=log_ratio.detach(),
        rows=rows,
    )


#: Share of a head's ratios that lie below ``ratio_low``, and above ``ratio_high``.
TAIL = 0.05


class UpdateStatistics:
    """Statistics of one round of updates. Per-minibatch values stay on the device until they are summarised."""

    def __init__(self, clip_range: float) -> None:
        self.clip_range = clip_range
        self.skipped = 0
        self.gradient_norms: list[float] = []  # before clipping, of the steps made
        self._scalars: dict[str, list[th.Tensor]] = {}
        self._sums: dict[str, th.Tensor] = {}  # (heads,) by statistic
        self._counts: dict[str, th.Tensor] = {}  # (heads,) by statistic: rows in the sums
        self._ratios: list[tuple[th.Tensor, th.Tensor]] = []  # (B, heads) each: ratios, and rows that are relevant

    def add(self, terms: LossTerms, evaluation: Evaluation, mask: th.Tensor) -> None:
        """Add one minibatch."""
        ratio, rows, entropies = terms.log_ratio.exp(), terms.rows, evaluation.heads.entropies.detach()
        self._ratios.append((ratio, rows))
        per_head = {
            "ratio_mean": (ratio, rows),
            "approx_kl": (approximate_kl(terms.log_ratio), rows),
            "clip_fraction": (((ratio - 1.0).abs() > self.clip_range).float(), rows),
            "entropy": (entropies, rows),
            "choice_entropy": (entropies, evaluation.heads.choices & rows),
        }
        for name, (values, counted) in per_head.items():
            self._sums[name] = self._sums.get(name, 0.0) + th.where(counted, values, 0.0).sum(dim=0)
            self._counts[name] = self._counts.get(name, 0) + counted.sum(dim=0)
        scalars = {
            "policy_gradient_loss": terms.policy,
            "value_loss": terms.value,
            "entropy_loss": terms.entropy,
            "loss": terms.total.detach(),
            "approx_kl": terms.approx_kl,
            "op_wait_probability": row_mean(evaluation.op_probs[:, Op.WAIT].detach(), mask > 0.5),
        }
        for name, scalar in scalars.items():
            self._scalars.setdefault(name, []).append(scalar)

    def summary(self, max_grad_norm: float) -> dict[str, float]:
        """Return means over the minibatches by name, without entries that were never measured."""
        result = {name: float(th.stack(values).mean()) for name, values in self._scalars.items()}
        result["skipped_updates"] = float(self.skipped)
        if self._scalars:
            result["clip_fraction"] = float(self._sums["clip_fraction"].sum() / self._counts["clip_fraction"].sum())
        if self.gradient_norms:
            norms = np.asarray(self.gradient_norms)
            result["grad_norm"] = float(norms.mean())
            result["grad_norm_max"] = float(norms.max())
            result["clipped_update_fraction"] = float((norms > max_grad_norm).mean())
        return result

    def per_head(self) -> dict[str, dict[str, float]]:
        """Return statistics by head over the rows in which it is relevant, without heads that no row reads.

        ``entropy`` averages over all of these rows, ``choice_entropy`` over rows with more than one valid value.
        """
        if not self._ratios:
            return {}
        means = {name: (sums / self._counts[name]).tolist() for name, sums in self._sums.items()}
        counts = {name: count.tolist() for name, count in self._counts.items()}
        ratios, rows = (th.cat(parts).cpu().numpy() for parts in zip(*self._ratios, strict=True))
        numbers: dict[str, dict[str, float]] = {}
        for head in np.flatnonzero(rows.any(axis=0)):
            own = ratios[rows[:, head], head]
            averages = {name: values[head] for name, values in means.items() if counts[name][head] > 0}
            numbers[HEAD_NAMES[head]] = averages | {
                "ratio_max": float(own.max()),
                "ratio_min": float(own.min()),
                # Interpolation would fail on infinite ratios.
                "ratio_low": float(np.quantile(own, TAIL, method="higher")),
                "ratio_high": float(np.quantile(own, 1.0 - TAIL, method="lower")),
            }
        return numbers
