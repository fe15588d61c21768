"""Which reward, and the weight of each of its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from esper_env.checks import is_finite

#: The discount, of the potentials and of whoever learns from the reward: growing now is worth more than growing later.
GAMMA = 0.98

#: Stage of a slot -> its potential, by stage name; every other stage has 0.
STAGE_POTENTIALS: dict[str, float] = {
    "GERMINATED": 1.0,
    "TRAINING": 2.0,
    "BLENDING": 3.5,
    "HOLDING": 5.5,
    "FOSSILIZED": 6.0,
}


class RewardMode(StrEnum):
    """What the agent is paid for; the classes of ``reward.py`` give the formulas."""

    ACCURACY = "accuracy"
    SPARSE = "sparse"
    CONTRIBUTION = "contribution"


#: The weights each mode reads, with their defaults.
MODE_WEIGHTS: dict[RewardMode, dict[str, float]] = {
    RewardMode.ACCURACY: {
        "gamma": GAMMA,
        "scale": 1.0,
        "rent_weight": 0.05,
        "op_cost": 0.002,
        "potential_weight": 0.0,
    },
    RewardMode.SPARSE: {
        "gamma": GAMMA,
        "scale": 1.0,
        "rent_weight": 0.05,
    },
    RewardMode.CONTRIBUTION: {
        "gamma": GAMMA,
        "scale": 1.0,
        "rent_weight": 0.05,
        "potential_weight": 0.01,
        "shock_weight": 0.01,
        "scaffold_weight": 0.5,
        "scaffold_cap": 5.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Made by :func:`reward_config`. A weight that the mode does not read is 0."""

    mode: RewardMode
    gamma: float  # the discount under which the potentials telescope: the one that the learner uses
    scale: float  # worth of 100 points of accuracy
    rent_weight: float
    op_cost: float = 0.0  # per step with an op other than WAIT
    potential_weight: float = 0.0  # worth of one unit of stage potential
    shock_weight: float = 0.0  # per squared jump of an alpha
    scaffold_weight: float = 0.0  # share of a boost that is paid
    scaffold_cap: float = 0.0  # points of boost one fossilized seed can be credited with

    def __post_init__(self) -> None:
        for name in ("scale", "rent_weight", "op_cost", "potential_weight", "shock_weight", "scaffold_weight"):
            _require_weight(name, getattr(self, name))
        _require_weight("scaffold_cap", self.scaffold_cap)
        _require_weight("gamma", self.gamma)
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"reward weight 'gamma' is {self.gamma}; a discount lies in (0, 1]")
        if self.scale == 0.0:
            raise ValueError("reward weight 'scale' is 0; without it the reward says nothing about the network")


def _require_weight(name: str, value: object) -> None:
    if not is_finite(value) or value < 0:
        raise ValueError(f"reward weight {name!r} is {value!r}; expected a finite number, 0 or greater")


def reward_config(mode: str = "accuracy", weights: Mapping[str, float] | None = None) -> RewardConfig:
    """The configuration of a mode, with some of its weights replaced.

    Raises ``ValueError`` for an unknown mode, for a weight the mode does not read, and for one that is not a finite
    number of at least 0.
    """
    known_modes = [known.value for known in RewardMode]
    if mode not in known_modes:
        raise ValueError(f"reward_mode is {mode!r}; expected one of {', '.join(known_modes)}")
    chosen = RewardMode(mode)
    given = dict(weights) if weights is not None else {}
    defaults = MODE_WEIGHTS[chosen]
    unknown = [name for name in given if name not in defaults]
    if unknown:
        raise ValueError(f"reward weights {unknown} are not read in mode {mode!r}; it reads {', '.join(defaults)}")
    for name, value in given.items():
        _require_weight(name, value)
    return RewardConfig(mode=chosen, **{name: float(value) for name, value in (defaults | given).items()})
