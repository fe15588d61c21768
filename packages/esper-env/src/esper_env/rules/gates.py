"""Gates: the checks that a seed must pass before it enters a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.checks import NON_NEGATIVE, SHARE, OneOf, check_value
from esper_env.checks import check as check_settings
from esper_env.rules.slot_table import HOLD, BoolArray, IntArray, SlotTable
from esper_env.rules.stages import STAGE_VALUES, Stage

#: Marks "no gate" in arrays of gate values.
NO_GATE = -1


class Gate(IntEnum):
    """Gate in front of a stage. There is no G4, because its stage value is reserved."""

    G0 = 0  # into GERMINATED
    G1 = 1  # into TRAINING
    G2 = 2  # into BLENDING, from TRAINING
    G3 = 3  # into HOLDING
    G5 = 5  # into FOSSILIZED


class Check(IntEnum):
    """Condition on a slot. The masks guarantee its stage, so no gate checks that again."""

    TRAINED_LONG_ENOUGH = 0
    GRADIENT_MEASURED = 1
    GRADIENT_NOT_EXPLODING = 2
    GRADIENT_HEALTHY = 3
    PROSPECTIVE_CONTRIBUTION = 4
    GRADIENT_RATIO = 5
    SCHEDULE_ON_HOLD = 6
    FULL_ALPHA = 7
    BLENDED_LONG_ENOUGH = 8
    CONTRIBUTION_MEASURED = 9
    CONTRIBUTION_AT_FULL_ALPHA = 10
    CONTRIBUTION = 11


@dataclass(frozen=True)
class GateConfig:
    """Numbers that the checks compare with; None turns a check off.

    Epochs are completed epochs in the present stage. Contributions are accuracy points (0..100 scale).

    Raises:
        ValueError: a number is out of range.
    """

    min_training_epochs: Annotated[int, NON_NEGATIVE] = 3
    min_gradient_health: Annotated[float, SHARE] = 0.7
    full_alpha: Annotated[float, SHARE] = 1.0
    #: A contribution older than this counts as missing. Every epoch measures, so its age is normally 0; one epoch
    #: that did not is tolerated.
    max_contribution_age: Annotated[int, NON_NEGATIVE] = 1
    min_prospective_contribution: float | None = None
    min_gradient_ratio: float | None = None
    min_blending_epochs: Annotated[int, NON_NEGATIVE] | None = None
    min_contribution: float | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def permissive(cls) -> GateConfig:
        """Return the default: enough training, healthy gradients and a measured contribution."""
        return cls()

    @classmethod
    def strict(cls) -> GateConfig:
        """Return a configuration that also requires a contribution before blending and before fossilizing."""
        return cls(
            min_prospective_contribution=0.5,
            min_gradient_ratio=0.10,
            min_blending_epochs=3,
            min_contribution=1.0,
        )


_CONFIGS: dict[str, Callable[[], GateConfig]] = {
    "permissive": GateConfig.permissive,
    "strict": GateConfig.strict,
}
#: Names of the configurations.
GATE_CONFIGS = tuple(_CONFIGS)


def gate_config(name: str) -> GateConfig:
    """Return the gate configuration called ``name``.

    Raises:
        ValueError: the name is unknown.
    """
    check_value("gates", name, Annotated[str, OneOf(GATE_CONFIGS)])
    return _CONFIGS[name]()


def _stage_gates() -> NDArray[np.int64]:
    table = np.full(STAGE_VALUES, NO_GATE, dtype=np.int64)
    table[Stage.GERMINATED] = Gate.G0
    table[Stage.TRAINING] = Gate.G1
    table[Stage.BLENDING] = Gate.G2
    table[Stage.HOLDING] = Gate.G3
    table[Stage.FOSSILIZED] = Gate.G5
    table.flags.writeable = False
    return table


#: ``GATE_INTO[stage]`` is the gate in front of a stage, or ``NO_GATE``.
GATE_INTO = _stage_gates()

#: Checks of each gate. G0 and G1 have none: the masks guard their transitions.
_CHECKS: dict[Gate, tuple[Check, ...]] = {
    Gate.G0: (),
    Gate.G1: (),
    Gate.G2: (
        Check.TRAINED_LONG_ENOUGH,
        Check.GRADIENT_MEASURED,
        Check.GRADIENT_NOT_EXPLODING,
        Check.GRADIENT_HEALTHY,
        Check.PROSPECTIVE_CONTRIBUTION,
        Check.GRADIENT_RATIO,
    ),
    Gate.G3: (Check.SCHEDULE_ON_HOLD, Check.FULL_ALPHA, Check.BLENDED_LONG_ENOUGH),
    Gate.G5: (
        Check.CONTRIBUTION_MEASURED,
        Check.CONTRIBUTION_AT_FULL_ALPHA,
        Check.CONTRIBUTION,
        Check.GRADIENT_MEASURED,
        Check.GRADIENT_NOT_EXPLODING,
        Check.GRADIENT_HEALTHY,
    ),
}

#: Checks that apply only if the configuration has a number for them.
_OPTIONAL: dict[Check, str] = {
    Check.PROSPECTIVE_CONTRIBUTION: "min_prospective_contribution",
    Check.GRADIENT_RATIO: "min_gradient_ratio",
    Check.BLENDED_LONG_ENOUGH: "min_blending_epochs",
    Check.CONTRIBUTION: "min_contribution",
}


def _at_least(values: NDArray[np.number], minimum: float | None) -> BoolArray:
    """Comparison in which NaN is never enough."""
    enough: BoolArray = values >= (-np.inf if minimum is None else minimum)
    return enough


def _answers(table: SlotTable, slot: IntArray, config: GateConfig) -> BoolArray:
    """(N, checks) answers of every check for one slot (N,) per environment; False without the measurement it needs."""
    rows = np.arange(len(slot))

    def chosen(column: NDArray[Any]) -> NDArray[Any]:
        return column[rows, slot]

    epochs, contribution, age = map(chosen, (table.epochs_in_stage, table.contribution, table.contribution_age))
    fresh = (age >= 0) & (age <= config.max_contribution_age)
    measured = fresh & np.isfinite(contribution)
    gradient = chosen(table.gradient_measured)
    answers = {
        Check.TRAINED_LONG_ENOUGH: _at_least(epochs, config.min_training_epochs),
        Check.GRADIENT_MEASURED: gradient,
        Check.GRADIENT_NOT_EXPLODING: gradient & ~chosen(table.gradient_exploding),
        Check.GRADIENT_HEALTHY: gradient & _at_least(chosen(table.gradient_health), config.min_gradient_health),
        Check.PROSPECTIVE_CONTRIBUTION: measured & _at_least(contribution, config.min_prospective_contribution),
        Check.GRADIENT_RATIO: gradient & _at_least(chosen(table.gradient_ratio), config.min_gradient_ratio),
        Check.SCHEDULE_ON_HOLD: chosen(table.alpha_mode) == HOLD,
        Check.FULL_ALPHA: chosen(table.alpha) == config.full_alpha,
        Check.BLENDED_LONG_ENOUGH: _at_least(epochs, config.min_blending_epochs),
        Check.CONTRIBUTION_MEASURED: measured,
        Check.CONTRIBUTION_AT_FULL_ALPHA: measured & (chosen(table.contribution_alpha) == config.full_alpha),
        Check.CONTRIBUTION: measured & _at_least(contribution, config.min_contribution),
    }
    return np.stack([answers[check] for check in Check], axis=1)


@cache
def _asked_by(config: GateConfig) -> NDArray[np.bool_]:
    """(gates + 1, checks) checks of each gate; the last row, which ``NO_GATE`` indexes, has none."""
    asked = np.zeros((max(Gate) + 2, len(Check)), dtype=np.bool_)
    for gate, checks in _CHECKS.items():
        asked[gate, [c for c in checks if c not in _OPTIONAL or getattr(config, _OPTIONAL[c]) is not None]] = True
    return asked


class GateVerdict(NamedTuple):
    """Verdict of one gate on one slot."""

    gate: Gate
    passed: bool
    score: float  # share of the gate's checks that passed, 0..1; 1 for a gate without checks
    checks_passed: tuple[str, ...]
    checks_failed: tuple[str, ...]
    message: str


class GateResults(NamedTuple):
    """Results of at most one gate in each of N environments."""

    gate: IntArray  # (N,) a ``Gate``, or NO_GATE
    passed: BoolArray  # (N,) False where there is no gate
    asked: BoolArray  # (N, checks) the gate has this check
    answers: BoolArray  # (N, checks) the check holds, asked or not

    def verdict(self, env: int) -> GateVerdict | None:
        """Return the verdict in environment ``env``, or None where there is no gate."""
        if self.gate[env] == NO_GATE:
            return None
        return _verdict(int(self.gate[env]), tuple(self.asked[env].tolist()), tuple(self.answers[env].tolist()))


@lru_cache(maxsize=1024)  # telemetry asks for many, and few differ
def _verdict(gate: int, asked: tuple[bool, ...], answers: tuple[bool, ...]) -> GateVerdict:
    checked = [(check.name.lower(), answers[check]) for check in Check if asked[check]]
    good = tuple(name for name, answer in checked if answer)
    bad = tuple(name for name, answer in checked if not answer)
    score = len(good) / len(checked) if checked else 1.0
    outcome = f"failed: {', '.join(bad)}" if bad else "passed"
    return GateVerdict(Gate(gate), not bad, score, good, bad, f"{Gate(gate).name} {outcome}")


def evaluate(table: SlotTable, slot: IntArray, gate: IntArray, config: GateConfig) -> GateResults:
    """Evaluate the gates in front of one slot per environment. The table does not change.

    Args:
        table: slots of N environments.
        slot: (N,) chosen slots.
        gate: (N,) values of ``Gate``, or ``NO_GATE``.
        config: numbers that the checks compare with.
    """
    answers = _answers(table, slot, config)
    asked = _asked_by(config)[gate]
    return GateResults(gate, (gate != NO_GATE) & ~(asked & ~answers).any(axis=1), asked, answers)
