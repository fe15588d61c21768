"""The gates on the way into a stage: which checks each one asks, and verdicts for many slots at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.checks import is_finite, is_whole
from esper_env.rules.heads import NUM_BLUEPRINTS, Blueprint
from esper_env.rules.slot_table import HOLD, BoolArray, FloatArray, IntArray, SlotTable
from esper_env.rules.stages import STAGE_VALUES, Stage

#: Stands for "no gate" in arrays of gate values.
NO_GATE = -1


class Gate(IntEnum):
    """Gate in front of a stage. There is no G4: its stage value is reserved."""

    G0 = 0  # into GERMINATED
    G1 = 1  # into TRAINING
    G2 = 2  # into BLENDING, from TRAINING
    G3 = 3  # into HOLDING
    G5 = 5  # into FOSSILIZED


class Check(IntEnum):
    """One question a gate asks of a slot."""

    SLOT_EMPTY = 0
    BLUEPRINT_FITS = 1
    FROM_GERMINATED = 2
    FROM_TRAINING = 3
    TRAINED_LONG_ENOUGH = 4
    GRADIENT_MEASURED = 5
    GRADIENT_NOT_EXPLODING = 6
    GRADIENT_HEALTHY = 7
    PROSPECTIVE_CONTRIBUTION = 8
    GRADIENT_RATIO = 9
    FROM_BLENDING = 10
    SCHEDULE_ON_HOLD = 11
    FULL_ALPHA = 12
    BLENDED_LONG_ENOUGH = 13
    FROM_HOLDING = 14
    CONTRIBUTION_MEASURED = 15
    CONTRIBUTION_AT_FULL_ALPHA = 16
    CONTRIBUTION = 17


_CHECK_NAMES = [check.name.lower() for check in Check]


@dataclass(frozen=True)
class GateConfig:
    """Every number the gates compare with. ``None`` means that the gate does not ask that question.

    Epochs count completed ones in the present stage; contributions are accuracy points (0..100 scale).
    """

    min_training_epochs: int = 3
    min_gradient_health: float = 0.7
    full_alpha: float = 1.0
    #: A contribution older than this counts as missing. Every epoch measures, so its age is normally 0; one epoch
    #: that did not is tolerated.
    max_contribution_age: int = 1
    min_prospective_contribution: float | None = None
    min_gradient_ratio: float | None = None
    min_blending_epochs: int | None = None
    min_contribution: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_training_epochs", "max_contribution_age", "min_blending_epochs"):
            value = getattr(self, name)
            unasked = name == "min_blending_epochs" and value is None
            if not unasked and not is_whole(value):
                raise ValueError(f"gate setting {name} is {value!r}; it must be a whole number, 0 or more")
        for name in ("min_gradient_health", "full_alpha"):
            value = getattr(self, name)
            if not is_finite(value) or not 0.0 <= value <= 1.0:
                raise ValueError(f"gate setting {name} is {value!r}; it must be a number inside [0, 1]")
        for name in ("min_prospective_contribution", "min_gradient_ratio", "min_contribution"):
            value = getattr(self, name)
            if value is not None and not is_finite(value):
                raise ValueError(f"gate setting {name} is {value!r}; it must be a finite number or None")

    @classmethod
    def permissive(cls) -> GateConfig:
        """What growth cannot do without: enough training, healthy gradients, a measured contribution."""
        return cls()

    @classmethod
    def strict(cls) -> GateConfig:
        """Also asks that the seed pays: a contribution before blending and before it is made permanent."""
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


#: The names of the configurations.
GATE_CONFIGS = tuple(_CONFIGS)


def gate_config(name: str) -> GateConfig:
    """The gate configuration called ``name``; an unknown name is a ``ValueError`` that lists the known ones."""
    if name not in _CONFIGS:
        raise ValueError(f"gates is {name!r}; expected one of {', '.join(map(repr, _CONFIGS))}")
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

_ASKED: dict[Gate, tuple[Check, ...]] = {
    Gate.G0: (Check.SLOT_EMPTY, Check.BLUEPRINT_FITS),
    Gate.G1: (Check.FROM_GERMINATED,),
    Gate.G2: (
        Check.FROM_TRAINING,
        Check.TRAINED_LONG_ENOUGH,
        Check.GRADIENT_MEASURED,
        Check.GRADIENT_NOT_EXPLODING,
        Check.GRADIENT_HEALTHY,
        Check.PROSPECTIVE_CONTRIBUTION,
        Check.GRADIENT_RATIO,
    ),
    Gate.G3: (Check.FROM_BLENDING, Check.SCHEDULE_ON_HOLD, Check.FULL_ALPHA, Check.BLENDED_LONG_ENOUGH),
    Gate.G5: (
        Check.FROM_HOLDING,
        Check.CONTRIBUTION_MEASURED,
        Check.CONTRIBUTION_AT_FULL_ALPHA,
        Check.CONTRIBUTION,
        Check.GRADIENT_MEASURED,
        Check.GRADIENT_NOT_EXPLODING,
        Check.GRADIENT_HEALTHY,
    ),
}

#: Checks that are asked only when the configuration holds a number for them.
_OPTIONAL: dict[Check, str] = {
    Check.PROSPECTIVE_CONTRIBUTION: "min_prospective_contribution",
    Check.GRADIENT_RATIO: "min_gradient_ratio",
    Check.BLENDED_LONG_ENOUGH: "min_blending_epochs",
    Check.CONTRIBUTION: "min_contribution",
}


def _at_least(values: NDArray[np.number], minimum: float | None) -> BoolArray:
    """NaN is never enough."""
    enough: BoolArray = values >= (-np.inf if minimum is None else minimum)
    return enough


def _contribution_measured(table: SlotTable, config: GateConfig) -> BoolArray:
    fresh = (table.contribution_age >= 0) & (table.contribution_age <= config.max_contribution_age)
    measured: BoolArray = fresh & np.isfinite(table.contribution)
    return measured


def _answers(table: SlotTable, config: GateConfig, blueprint: ArrayLike) -> dict[Check, BoolArray]:
    """(N, S) per check. A check that needs a measurement is False where the measurement was not made."""
    stage, kind = table.stage, np.asarray(blueprint)
    gradient, contribution = table.gradient_measured, _contribution_measured(table, config)
    return {
        Check.SLOT_EMPTY: stage == Stage.DORMANT,
        Check.BLUEPRINT_FITS: (kind > Blueprint.NOOP) & (kind < NUM_BLUEPRINTS),
        Check.FROM_GERMINATED: stage == Stage.GERMINATED,
        Check.FROM_TRAINING: stage == Stage.TRAINING,
        Check.TRAINED_LONG_ENOUGH: _at_least(table.epochs_in_stage, config.min_training_epochs),
        Check.GRADIENT_MEASURED: gradient,
        Check.GRADIENT_NOT_EXPLODING: gradient & ~table.gradient_exploding,
        Check.GRADIENT_HEALTHY: gradient & _at_least(table.gradient_health, config.min_gradient_health),
        Check.PROSPECTIVE_CONTRIBUTION: contribution
        & _at_least(table.contribution, config.min_prospective_contribution),
        Check.GRADIENT_RATIO: gradient & _at_least(table.gradient_ratio, config.min_gradient_ratio),
        Check.FROM_BLENDING: stage == Stage.BLENDING,
        Check.SCHEDULE_ON_HOLD: table.alpha_mode == HOLD,
        Check.FULL_ALPHA: table.alpha == config.full_alpha,
        Check.BLENDED_LONG_ENOUGH: _at_least(table.epochs_in_stage, config.min_blending_epochs),
        Check.FROM_HOLDING: stage == Stage.HOLDING,
        Check.CONTRIBUTION_MEASURED: contribution,
        Check.CONTRIBUTION_AT_FULL_ALPHA: contribution & (table.contribution_alpha == config.full_alpha),
        Check.CONTRIBUTION: contribution & _at_least(table.contribution, config.min_contribution),
    }


@cache
def _asked_by(config: GateConfig) -> NDArray[np.bool_]:
    """(gates + 1, checks): row g has the questions of gate g; the last row, reached by ``NO_GATE``, has none."""
    asked = np.zeros((max(Gate) + 2, len(Check)), dtype=np.bool_)
    for gate, checks in _ASKED.items():
        wanted = [c for c in checks if c not in _OPTIONAL or getattr(config, _OPTIONAL[c]) is not None]
        asked[gate, wanted] = True
    return asked


class GateVerdict(NamedTuple):
    """What one gate said about one slot."""

    gate: Gate
    passed: bool
    score: float  # share of the gate's checks that passed, 0..1
    checks_passed: tuple[str, ...]
    checks_failed: tuple[str, ...]
    message: str


class GateResults(NamedTuple):
    """Answers of gates for slots of N environments; arrays are (N, S), or (N, S, checks) for the details."""

    gate: IntArray  # Gate value, NO_GATE where none was asked
    passed: BoolArray  # False where none was asked
    score: FloatArray  # share of the gate's checks that passed; 0 where none was asked
    asked: BoolArray  # (N, S, len(Check)): the gate asks this check
    answers: BoolArray  # (N, S, len(Check)): the check holds, asked or not

    def verdict(self, env: int, slot: int) -> GateVerdict | None:
        """The verdict for one slot in words, or None where no gate was asked."""
        if self.gate[env, slot] == NO_GATE:
            return None
        return _verdict(
            int(self.gate[env, slot]),
            float(self.score[env, slot]),
            tuple(self.asked[env, slot].tolist()),
            tuple(self.answers[env, slot].tolist()),
        )


@lru_cache(maxsize=1024)  # few differ, and telemetry asks for many
def _verdict(gate: int, score: float, asked: tuple[bool, ...], answers: tuple[bool, ...]) -> GateVerdict:
    told = [(name, answer) for name, was_asked, answer in zip(_CHECK_NAMES, asked, answers, strict=True) if was_asked]
    good = tuple(name for name, answer in told if answer)
    bad = tuple(name for name, answer in told if not answer)
    outcome = f"failed: {', '.join(bad)}" if bad else "passed"
    return GateVerdict(Gate(gate), not bad, score, good, bad, f"{Gate(gate).name} {outcome}")


def evaluate(
    table: SlotTable, gate: ArrayLike, config: GateConfig, blueprint: ArrayLike = Blueprint.NORM
) -> GateResults:
    """Ask ``gate`` (a ``Gate``, or ``Gate`` values and ``NO_GATE`` that broadcast to (N, S)) of every slot.

    ``blueprint`` (broadcasts to (N, S)) is what G0 is about to plant. Whether the host offers it is a question of
    legality, answered when the action is decoded; G0 itself refuses the values that name no module.
    Nothing in the table changes.
    """
    gates = np.broadcast_to(np.asarray(gate, dtype=np.int64), table.shape)
    shape = (*table.shape, len(Check))
    answers = np.empty(shape, dtype=np.bool_)
    for check, answer in _answers(table, config, blueprint).items():
        answers[..., check] = answer
    asked = _asked_by(config)[gates]
    counts = asked.sum(axis=2)
    score = (asked & answers).sum(axis=2) / np.maximum(counts, 1)
    passed = (gates != NO_GATE) & ~(asked & ~answers).any(axis=2)
    return GateResults(gates, passed, score, asked, answers)
