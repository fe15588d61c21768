"""Action heads: their values, the heads that each op reads, and the quantities that values stand for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Blueprint(IntEnum):
    """Values of the blueprint head that belong to the standard blueprints.

    ``esper_env.seeds`` has the blueprints of a topology, custom ones included, with their names and values. NOOP is
    never offered, and ``NO_BLUEPRINT`` marks an empty slot in observations.
    """

    NOOP = 0
    CONV_LIGHT = 1
    ATTENTION = 2
    NORM = 3
    DEPTHWISE = 4
    BOTTLENECK = 5
    CONV_SMALL = 6
    CONV_HEAVY = 7
    LORA = 8
    LORA_LARGE = 9
    MLP_SMALL = 10
    MLP = 11
    FLEX_ATTENTION = 12


#: Values of the blueprint head: NOOP, and 12 for the blueprints of a topology. Seven of the 12 belong to the standard
#: blueprints of a standard topology, and five are free for custom ones. The number is fixed: it is part of the action
#: space, of saved states and of trained policies, so a new standard blueprint must not change it.
NUM_BLUEPRINTS = 13
NO_BLUEPRINT = NUM_BLUEPRINTS


class Operator(IntEnum):
    """Operator that blends a seed's output into the host's features."""

    ADD = 0
    MULTIPLY = 1
    GATE = 2


class Curve(IntEnum):
    """Shape of an alpha ramp."""

    LINEAR = 0
    COSINE = 1
    SIGMOID_GENTLE = 2
    SIGMOID = 3
    SIGMOID_SHARP = 4


class Style(IntEnum):
    """Curve of the first ramp together with the blend operator."""

    LINEAR_ADD = 0
    LINEAR_MULTIPLY = 1
    SIGMOID_ADD = 2
    GATED_GATE = 3


class Tempo(IntEnum):
    """Length of the first ramp."""

    FAST = 0
    STANDARD = 1
    SLOW = 2


class AlphaTarget(IntEnum):
    """Alpha at the end of a ramp."""

    HALF = 0
    SEVENTY = 1
    FULL = 2


class AlphaSpeed(IntEnum):
    """Length of the ramp of SET_ALPHA_TARGET or PRUNE."""

    INSTANT = 0
    FAST = 1
    MEDIUM = 2
    SLOW = 3


class Op(IntEnum):
    """Operation of the agent in one step."""

    WAIT = 0
    GERMINATE = 1
    SET_ALPHA_TARGET = 2
    PRUNE = 3
    FOSSILIZE = 4
    ADVANCE = 5


NUM_OPS = len(Op)


class Head(IntEnum):
    """Position of each head in the ``MultiDiscrete`` action."""

    SLOT = 0
    BLUEPRINT = 1
    STYLE = 2
    TEMPO = 3
    ALPHA_TARGET = 4
    ALPHA_SPEED = 5
    ALPHA_CURVE = 6
    OP = 7


HEAD_NAMES: tuple[str, ...] = tuple(head.name.lower() for head in Head)
NUM_HEADS = len(Head)

#: Values of every head except the slot head, whose values are a task's slots.
HEAD_VALUES: dict[Head, type[IntEnum]] = {
    Head.BLUEPRINT: Blueprint,
    Head.STYLE: Style,
    Head.TEMPO: Tempo,
    Head.ALPHA_TARGET: AlphaTarget,
    Head.ALPHA_SPEED: AlphaSpeed,
    Head.ALPHA_CURVE: Curve,
    Head.OP: Op,
}

#: Value of a head that the op does not read. Both standard topologies offer NORM.
HEAD_DEFAULTS: tuple[int, ...] = (
    0,
    Blueprint.NORM,
    Style.SIGMOID_ADD,
    Tempo.STANDARD,
    AlphaTarget.FULL,
    AlphaSpeed.INSTANT,
    Curve.LINEAR,
    Op.WAIT,
)

_READS: dict[Op, tuple[Head, ...]] = {
    Op.WAIT: (),
    Op.GERMINATE: (Head.SLOT, Head.BLUEPRINT, Head.STYLE, Head.TEMPO, Head.ALPHA_TARGET),
    Op.SET_ALPHA_TARGET: (Head.SLOT, Head.STYLE, Head.ALPHA_TARGET, Head.ALPHA_SPEED, Head.ALPHA_CURVE),
    Op.PRUNE: (Head.SLOT, Head.ALPHA_SPEED, Head.ALPHA_CURVE),
    Op.FOSSILIZE: (Head.SLOT,),
    Op.ADVANCE: (Head.SLOT,),
}


def _constant(values: Sequence[Any], dtype: type) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(values, dtype=dtype)
    array.flags.writeable = False
    return array


#: ``HEAD_RELEVANCE[op, head]`` is True if the op reads the head.
HEAD_RELEVANCE = _constant([[head in (*_READS[op], Head.OP) for head in Head] for op in Op], np.bool_)

#: Value tables, indexed by the head's value.
TEMPO_TICKS = _constant([3, 5, 8], np.int64)
ALPHA_TARGETS = _constant([0.5, 0.7, 1.0], np.float64)
SPEED_TICKS = _constant([0, 3, 5, 8], np.int64)
STYLE_OPERATOR = _constant([Operator.ADD, Operator.MULTIPLY, Operator.ADD, Operator.GATE], np.int64)
STYLE_CURVE = _constant([Curve.LINEAR, Curve.LINEAR, Curve.SIGMOID, Curve.SIGMOID], np.int64)
#: Steepness k of each curve's logistic; 0 for other curves.
CURVE_STEEPNESS = _constant([0.0, 0.0, 6.0, 12.0, 24.0], np.float64)


#: Quantities of a head's values, in their order, for heads whose names do not show them.
_MEANINGS: dict[Head, list[str]] = {
    Head.TEMPO: [f"{ticks} epochs" for ticks in TEMPO_TICKS],
    Head.ALPHA_TARGET: [f"{target:g}" for target in ALPHA_TARGETS],
    Head.ALPHA_SPEED: [f"{ticks} epochs" for ticks in SPEED_TICKS],
}


def meaning(value: IntEnum) -> str:
    """Return the quantity of a value in parentheses, such as " (5 epochs)", or "" if its name includes the quantity."""
    for head, meanings in _MEANINGS.items():
        if isinstance(value, HEAD_VALUES[head]):
            return f" ({meanings[value]})"
    return ""


def describe_head(head: Head) -> str:
    """Return the values of a head with the integers that go into an action, such as "FAST 0 (3 epochs), ..."."""
    if head is Head.SLOT:
        return "the task's slots, row by row"
    return ", ".join(f"{value.name} {value.value}{meaning(value)}" for value in HEAD_VALUES[head])


def head_sizes(num_slots: int) -> tuple[int, ...]:
    """Return the number of values of each head, in action order: the ``nvec`` of the action space."""
    sizes = {head: len(values) for head, values in HEAD_VALUES.items()}
    return tuple({**sizes, Head.SLOT: num_slots, Head.BLUEPRINT: NUM_BLUEPRINTS}[head] for head in Head)
