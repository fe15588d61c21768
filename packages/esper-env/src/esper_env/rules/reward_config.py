"""The reward mode, and the weight of each of its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from esper_env.checks import NON_NEGATIVE, POSITIVE, Interval, OneOf, check, check_value, field_hints

#: Default discount of the potentials and of learners: growing now is worth more than growing later.
GAMMA = 0.98


class RewardMode(StrEnum):
    """Names of the rewards; ``reward.py`` has the formulas."""

    ACCURACY = "accuracy"
    SPARSE = "sparse"
    CONTRIBUTION = "contribution"


REWARD_MODES = tuple(mode.value for mode in RewardMode)

_ALWAYS = {"gamma": GAMMA, "scale": 1.0, "rent_weight": 0.05}
#: The weights each mode reads, with their defaults.
MODE_WEIGHTS: dict[RewardMode, dict[str, float]] = {
    RewardMode.ACCURACY: _ALWAYS | {"op_cost": 0.002, "potential_weight": 0.0},
    RewardMode.SPARSE: _ALWAYS,
    RewardMode.CONTRIBUTION: {
        **_ALWAYS,
        "potential_weight": 0.01,
        "shock_weight": 0.01,
        "scaffold_weight": 0.5,
        "scaffold_cap": 5.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Weights of one mode, made by :func:`reward_config`. A weight that the mode does not read is 0.

    Args:
        mode: the reward mode.
        gamma: discount under which the potentials telescope; the learner's discount.
        scale: reward for 100 points of accuracy.
        rent_weight: weight of the parameters that growth has added.
        op_cost: cost of a step with an op other than WAIT.
        potential_weight: reward for one unit of stage potential.
        shock_weight: cost of a squared jump of an alpha.
        scaffold_weight: share of a boost that is paid.
        scaffold_cap: points of boost that one fossilized seed is credited with at most.
    """

    mode: RewardMode
    gamma: Annotated[float, Interval(0, 1, "(]")]
    scale: Annotated[float, POSITIVE]
    rent_weight: Annotated[float, NON_NEGATIVE]
    op_cost: Annotated[float, NON_NEGATIVE] = 0.0
    potential_weight: Annotated[float, NON_NEGATIVE] = 0.0
    shock_weight: Annotated[float, NON_NEGATIVE] = 0.0
    scaffold_weight: Annotated[float, NON_NEGATIVE] = 0.0
    scaffold_cap: Annotated[float, NON_NEGATIVE] = 0.0

    def __post_init__(self) -> None:
        check(self)


def reward_config(mode: str = "accuracy", weights: Mapping[str, float] | None = None) -> RewardConfig:
    """Return the configuration of a mode, with some of its weights replaced.

    Args:
        mode: a value of :class:`RewardMode`.
        weights: weights by name.

    Raises:
        ValueError: an unknown mode, a weight that the mode does not read, or a weight outside its range.
    """
    check_value("reward_mode", mode, Annotated[str, OneOf(REWARD_MODES)])
    chosen = RewardMode(mode)
    given = dict(weights) if weights is not None else {}
    defaults = MODE_WEIGHTS[chosen]
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise ValueError(f"`reward_weights` has {unknown}; mode {mode!r} reads {', '.join(defaults)}")
    hints = field_hints(RewardConfig)
    for name, value in given.items():
        check_value(f"reward_weights.{name}", value, hints[name])
    return RewardConfig(mode=chosen, **{name: float(value) for name, value in (defaults | given).items()})
