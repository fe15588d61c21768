"""Advantages of a rollout under the critic Q(s, op): pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


class Rollout(NamedTuple):
    """T steps of N environments, and the values that follow their last steps.

    ``final_values`` matters only where ``ends``: 0 after a termination, the bootstrap value of the final
    observation after a truncation. ``last_values`` is the bootstrap of the observation after step T - 1.
    """

    rewards: FloatArray  # (T, N)
    op_values: FloatArray  # (T, N) Q(s, op) of the op taken
    state_values: FloatArray  # (T, N) V(s) = sum over ops of pi(op|s) Q(s, op), under the behaviour policy
    ends: NDArray[np.bool_]  # (T, N) the episode ended with this step
    final_values: FloatArray  # (T, N)
    last_values: FloatArray  # (N,)


class Advantages(NamedTuple):
    """One advantage per decision, and the target of Q(s, op); all (T, N)."""

    op: FloatArray
    arguments: FloatArray
    returns: FloatArray


def _successors(values: FloatArray, rollout: Rollout) -> FloatArray:
    following = np.concatenate([values[1:], rollout.last_values[None]])
    return np.where(rollout.ends, rollout.final_values, following)


def _trace(deltas: FloatArray, ends: NDArray[np.bool_], decay: float) -> FloatArray:
    """The sum of this and later deltas of the same episode, discounted by ``decay`` per step."""
    trace = np.zeros_like(deltas)
    carried = np.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        carried = deltas[step] + decay * np.where(ends[step], 0.0, carried)
        trace[step] = carried
    return trace


def two_step(rollout: Rollout, gamma: float, gae_lambda: float) -> Advantages:
    """Estimate advantages of two decisions, the op and its arguments; each baseline depends on earlier decisions only.

    The op is compared with V(s), the arguments with Q(s, op)::

        delta_t = r_t + gamma V(s_t+1) - Q(s_t, op_t)
        A_args  = sum over k of (gamma lambda)^k delta_t+k
        A_op    = A_args + Q(s_t, op_t) - V(s_t)

    The target of Q(s, op) is A_args + Q(s, op). Neither baseline depends on its own decision, so both policy gradients
    are unbiased.
    """
    deltas = rollout.rewards + gamma * _successors(rollout.state_values, rollout) - rollout.op_values
    arguments = _trace(deltas, rollout.ends, gamma * gae_lambda)
    returns = arguments + rollout.op_values
    return Advantages(op=returns - rollout.state_values, arguments=arguments, returns=returns)


def sampled_op(rollout: Rollout, gamma: float, gae_lambda: float) -> Advantages:
    """Estimate one advantage for the op and its arguments: GAE with Q(s, sampled op) as the value everywhere.

    This estimator serves as a comparison. Its baseline depends on the sampled op, so it cancels the signal of the op
    head: with an exact critic the expected gradient of the op logits is zero at every lambda.
    """
    deltas = rollout.rewards + gamma * _successors(rollout.op_values, rollout) - rollout.op_values
    advantage = _trace(deltas, rollout.ends, gamma * gae_lambda)
    return Advantages(op=advantage, arguments=advantage, returns=advantage + rollout.op_values)


def expected_value(op_values: th.Tensor, op_probs: th.Tensor) -> th.Tensor:
    """Return V(s) = sum over ops of pi(op|s) Q(s, op): (B, ops), (B, ops) -> (B,)."""
    return (op_values * op_probs).sum(dim=1)


def sampled_value(op_values: th.Tensor, op_probs: th.Tensor) -> th.Tensor:
    """Return Q(s, op) of one op sampled from pi(op|s): (B, ops), (B, ops) -> (B,)."""
    return op_values.gather(1, th.multinomial(op_probs, 1)).squeeze(1)


class AdvantageEstimator(NamedTuple):
    """Function that estimates advantages, and the bootstrap value of a truncated future that matches it."""

    estimate: Callable[[Rollout, float, float], Advantages]
    bootstrap: Callable[[th.Tensor, th.Tensor], th.Tensor]


ESTIMATORS: dict[str, AdvantageEstimator] = {
    "two_step": AdvantageEstimator(two_step, expected_value),
    "sampled_op": AdvantageEstimator(sampled_op, sampled_value),
}
