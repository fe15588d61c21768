"""Settings of ``FactoredRecurrentPPO``, shared by its constructor, ``esper train`` and configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from esper_env.checks import NON_NEGATIVE, POSITIVE, SEED, Interval, check, check_value, field_hints, is_finite
from esper_env.rules import GAMMA, HEAD_NAMES, HEAD_VALUES

from esper_agent.settings.named_values import ConfigError, NamedValues, named_values

#: Default factors of the entropy coefficient by head.
ENTROPY_MULTIPLIERS: Mapping[str, float] = {
    "op": 1.0,
    "slot": 1.0,
    "blueprint": 1.5,
    "style": 1.2,
    "tempo": 1.5,
    "alpha_target": 1.2,
    "alpha_speed": 1.3,
    "alpha_curve": 1.3,
}


@dataclass(frozen=True)
class PPOSettings:
    """Hyper-parameters of the policy's updates."""

    learning_rate: Annotated[float, POSITIVE] = 7e-4
    """Learning rate of Adam."""
    n_steps: Annotated[int, POSITIVE] = 40
    """Steps of every environment in one rollout; a rollout holds n_steps x num_envs transitions."""
    batch_size: Annotated[int, Interval(2)] = 640
    """Transitions in one minibatch."""
    n_epochs: Annotated[int, POSITIVE] = 8
    """Passes over a rollout."""
    gamma: Annotated[float, Interval(0, 1, "(]")] = GAMMA
    """Discount factor, also for the normalisation of returns and for the potentials in the environment's reward."""
    gae_lambda: Annotated[float, Interval(0, 1)] = 0.95
    """Lambda of generalised advantage estimation."""
    clip_range: Annotated[float, POSITIVE] = 0.2
    """Clip range of the probability ratios."""
    clip_range_vf: Annotated[float | None, POSITIVE] = None
    """Clip range of the value function; None for no clipping."""
    normalize_advantage: bool = True
    """Normalise the advantages of each minibatch."""
    ent_coef: Annotated[float, NON_NEGATIVE] = 0.03
    """Entropy coefficient at the start of training."""
    final_ent_coef: Annotated[float, NON_NEGATIVE] = 0.0
    """Entropy coefficient at the end of training; it changes linearly in between."""
    vf_coef: Annotated[float, NON_NEGATIVE] = 1.0
    """Weight of the value loss."""
    max_grad_norm: Annotated[float, POSITIVE] = 10.0
    """Maximum norm of the gradients."""
    target_kl: Annotated[float | None, POSITIVE] = 0.04
    """Skip the rest of a round of updates once the KL divergence exceeds 1.5 times this value; None for no limit."""
    advantage_estimator: Literal["two_step", "sampled_op"] = "two_step"
    """two_step is unbiased; sampled_op cancels the signal of the op head and serves as a comparison."""
    logit_bias: NamedValues = field(default_factory=dict)
    """Initial bias of the logits as HEAD.VALUE=BIAS, for example op.WAIT=-1 alpha_target.FULL=2; empty for the policy's
    default."""
    normalize_returns: bool = True
    """Divide rewards by the running standard deviation of the discounted return (VecNormalize)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", named_values("logit_bias", self.logit_bias))
        check(self)
        self.biases()

    def biases(self) -> dict[str, dict[str, float]]:
        """Return ``logit_bias`` by head and value: ``{"op.WAIT": -1}`` becomes ``{"op": {"WAIT": -1.0}}``."""
        biases: dict[str, dict[str, float]] = {}
        for name, bias in self.logit_bias.items():
            head, dot, value = name.partition(".")
            if not dot or not is_finite(bias):
                raise ConfigError(f"`logit_bias` has {name}={bias}; expected HEAD.VALUE=BIAS, such as op.WAIT=-1")
            biases.setdefault(head, {})[value] = float(bias)
        check_logit_bias(biases)
        return biases


#: Settings that are arguments of ``FactoredRecurrentPPO``; the others shape its arguments or the environment.
ARGUMENTS = tuple(
    name for name in PPOSettings.__annotations__ if name not in ("final_ent_coef", "logit_bias", "normalize_returns")
)
#: Arguments that may be schedules.
_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "ent_coef")


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check arguments of ``FactoredRecurrentPPO``, ``seed`` included; NumPy scalars count as Python numbers.

    Raises ``ValueError`` for a value of another type or outside its range.
    """
    hints = field_hints(PPOSettings) | {"seed": Annotated[int | None, SEED]}
    for name, value in given.items():
        if not (name in _SCHEDULES and callable(value)):
            check_value(name, value.item() if isinstance(value, np.generic) else value, hints[name])


def entropy_factors(given: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of the entropy coefficient of every head; ``given`` replaces defaults.

    Raises:
        ValueError: an unknown head, or a factor that is not a non-negative number.
    """
    for head, factor in given.items():
        if head not in HEAD_NAMES:
            raise ValueError(f"`entropy_multipliers` has the head {head!r}; expected one of {', '.join(HEAD_NAMES)}")
        check_value(f"entropy_multipliers[{head!r}]", factor, Annotated[float, NON_NEGATIVE])
    return {**ENTROPY_MULTIPLIERS, **given}


def check_logit_bias(logit_bias: Mapping[str, Mapping[str, float]]) -> None:
    """Check the names and values of biases.

    Raises:
        ValueError: an unknown head or value, or a bias that is not a finite number.
    """
    check_value("logit_bias", logit_bias, Mapping)
    known = {head.name.lower(): list(values.__members__) for head, values in HEAD_VALUES.items()}
    for head, biases in logit_bias.items():
        if head not in known:
            raise ValueError(f"`logit_bias` has the head {head!r}; expected one of {', '.join(known)}")
        check_value(f"logit_bias[{head!r}]", biases, Mapping)
        for name, bias in biases.items():
            if name not in known[head]:
                raise ValueError(
                    f"`logit_bias` has the value {name!r} of head {head!r}; expected one of {', '.join(known[head])}"
                )
            check_value(f"logit_bias[{head!r}][{name!r}]", bias, float)
