"""Gates: the checks that a seed must pass before it enters a stage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.checks import NON_NEGATIVE, OneOf, check, check_value
from esper_env.rules.slot_table import HOLD, BoolArray, IntArray, SlotTable
from esper_env.rules.stages import Stage, lookup

#: Marks "no gate" in arrays of gate values.
NO_GATE = -1


class Gate(IntEnum):
    """Gate in front of a stage. There is no G4, because its stage value is reserved."""

    G0 = 0  # into GERMINATED
    G1 = 1  # into TRAINING
    G2 = 2  # into BLENDING, from TRAINING
    G3 = 3  # into HOLDING
    G5 = 5  # into FOSSILIZED


#: ``GATE_INTO[stage]`` is the gate in front of a stage, or ``NO_GATE``.
GATE_INTO = lookup(
    {
        Stage.GERMINATED: Gate.G0,
        Stage.TRAINING: Gate.G1,
        Stage.BLENDING: Gate.G2,
        Stage.HOLDING: Gate.G3,
        Stage.FOSSILIZED: Gate.G5,
    },
    NO_GATE,
)


MIN_TRAINING_EPOCHS = 3
MIN_GRADIENT_HEALTH = 0.7
FULL_ALPHA = 1.0
#: A contribution older than this counts as missing. Every epoch measures, so its age is normally 0; one epoch that did
#: not is tolerated.
MAX_CONTRIBUTION_AGE = 1


@dataclass(frozen=True)
class GateConfig:
    """Thresholds that differ between configurations; None turns a check off. The defaults are those of "permissive".

    Epochs are completed epochs in the present stage. Contributions are accuracy points (0..100 scale).

    Raises:
        ValueError: a number is out of range.
    """

    min_prospective_contribution: float | None = None
    min_gradient_ratio: float | None = None
    min_blending_epochs: Annotated[int, NON_NEGATIVE] | None = None
    min_contribution: float | None = None

    def __post_init__(self) -> None:
        check(self)


_CONFIGS = {
    "permissive": GateConfig(),
    "strict": GateConfig(
        min_prospective_contribution=0.5, min_gradient_ratio=0.10, min_blending_epochs=3, min_contribution=1.0
    ),
}
#: Names of the configurations.
GATE_CONFIGS = tuple(_CONFIGS)


def gate_config(name: str) -> GateConfig:
    """Return the gate configuration "permissive" or "strict"; raise ``ValueError`` for another name."""
    check_value("gates", name, Annotated[str, OneOf(GATE_CONFIGS)])
    return _CONFIGS[name]


#: Each check with the gates that have it, and the setting without which they don't. G0 and G1 have no checks: the masks
#: guard their transitions, and every seed's stage.
CHECKS: dict[str, tuple[tuple[Gate, ...], str | None]] = {
    "trained_long_enough": ((Gate.G2,), None),
    "gradient_measured": ((Gate.G2, Gate.G5), None),
    "gradient_not_exploding": ((Gate.G2, Gate.G5), None),
    "gradient_healthy": ((Gate.G2, Gate.G5), None),
    "prospective_contribution": ((Gate.G2,), "min_prospective_contribution"),
    "gradient_ratio": ((Gate.G2,), "min_gradient_ratio"),
    "schedule_on_hold": ((Gate.G3,), None),
    "full_alpha": ((Gate.G3,), None),
    "blended_long_enough": ((Gate.G3,), "min_blending_epochs"),
    "contribution_measured": ((Gate.G5,), None),
    "contribution_at_full_alpha": ((Gate.G5,), None),
    "contribution": ((Gate.G5,), "min_contribution"),
}


@cache
def _asked_by(config: GateConfig) -> NDArray[np.bool_]:
    """(gates + 1, checks) checks of each gate; the last row, which ``NO_GATE`` indexes, has none."""
    asked = np.zeros((max(Gate) + 2, len(CHECKS)), dtype=np.bool_)
    for position, (gates, setting) in enumerate(CHECKS.values()):
        asked[list(gates), position] = setting is None or getattr(config, setting) is not None
    return asked


def _at_least(values: NDArray[np.number], minimum: float | None) -> BoolArray:
    """Comparison in which NaN is never enough."""
    enough: BoolArray = values >= (-np.inf if minimum is None else minimum)
    return enough


def _answers(table: SlotTable, config: GateConfig) -> BoolArray:
    """(N, S, checks) answers of every check for every slot; False without the measurement it needs."""
    contribution, age = table.contribution, table.contribution_age
    measured = (age >= 0) & (age <= MAX_CONTRIBUTION_AGE) & np.isfinite(contribution)
    gradient = table.gradient_measured
    answers = {
        "trained_long_enough": _at_least(table.epochs_in_stage, MIN_TRAINING_EPOCHS),
        "gradient_measured": gradient,
        "gradient_not_exploding": gradient & ~table.gradient_exploding,
        "gradient_healthy": gradient & _at_least(table.gradient_health, MIN_GRADIENT_HEALTH),
        "prospective_contribution": measured & _at_least(contribution, config.min_prospective_contribution),
        "gradient_ratio": gradient & _at_least(table.gradient_ratio, config.min_gradient_ratio),
        "schedule_on_hold": table.alpha_mode == HOLD,
        "full_alpha": table.alpha == FULL_ALPHA,
        "blended_long_enough": _at_least(table.epochs_in_stage, config.min_blending_epochs),
        "contribution_measured": measured,
        "contribution_at_full_alpha": measured & (table.contribution_alpha == FULL_ALPHA),
        "contribution": measured & _at_least(contribution, config.min_contribution),
    }
    return np.stack([answers[name] for name in CHECKS], axis=2)


class GateResults(NamedTuple):
    """Results of at most one gate in each of N environments."""

    gate: IntArray  # (N,) a ``Gate``, or NO_GATE
    passed: BoolArray  # (N,) False where there is no gate
    asked: BoolArray  # (N, checks) the gate has this check
    answers: BoolArray  # (N, checks) the check holds, asked or not


def evaluate(table: SlotTable, slot: IntArray, gate: IntArray, config: GateConfig) -> GateResults:
    """Evaluate the gates (N,), values of ``Gate`` or ``NO_GATE``, in front of one slot (N,) per environment."""
    answers = _answers(table, config)[np.arange(len(slot)), slot]
    asked = _asked_by(config)[gate]
    return GateResults(gate, (gate != NO_GATE) & ~(asked & ~answers).any(axis=1), asked, answers)


def fails(table: SlotTable, gate: IntArray, config: GateConfig) -> BoolArray:
    """Return True (N, K, S) where a gate (N, K, S), a ``Gate`` or ``NO_GATE``, would fail in its slot now."""
    failing: BoolArray = np.any(_asked_by(config)[gate] & ~_answers(table, config)[:, None], axis=3)
    return failing
