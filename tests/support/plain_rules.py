"""The rules of a slot stated independently of the package, and a builder of actions."""

import math

import numpy as np
from esper_env.rules.heads import HEAD_DEFAULTS, Curve, Head, Op
from esper_env.rules.observation import BASE_FIELDS, SLOT_FIELDS

LIVE = ("GERMINATED", "TRAINING", "BLENDING", "HOLDING")
WITH_SEED = (*LIVE, "FOSSILIZED")

#: ``CAN_MOVE[source, target]`` is True for a legal transition between stages.
CAN_MOVE = np.zeros((11, 11), dtype=np.bool_)
for _source, _targets in {1: [2], 2: [3, 8], 3: [4, 8], 4: [6, 8], 6: [4, 7, 8], 8: [9], 9: [10], 10: [1]}.items():
    CAN_MOVE[_source, _targets] = True

#: Heads that each op reads besides its own.
READS = {
    Op.WAIT: set(),
    Op.GERMINATE: {"slot", "blueprint", "style", "tempo", "alpha_target"},
    Op.SET_ALPHA_TARGET: {"slot", "style", "alpha_target", "alpha_speed", "alpha_curve"},
    Op.PRUNE: {"slot", "alpha_speed", "alpha_curve"},
    Op.FOSSILIZE: {"slot"},
    Op.ADVANCE: {"slot"},
}


def action(op=Op.WAIT, slot=0, **heads):
    """Return one action (8,); other heads have their defaults."""
    values = np.array(HEAD_DEFAULTS, dtype=np.int64)
    values[Head.OP], values[Head.SLOT] = op, slot
    for name, value in heads.items():
        values[Head[name.upper()]] = value
    return values


def base_index(name):
    """Return the position of a field of the network in the features."""
    return BASE_FIELDS.index(name)


def slot_index(name, slot):
    """Return the position of a field of a slot in the features."""
    return 31 + 30 * slot + SLOT_FIELDS.index(name)


def naive_ramp(t, curve):
    """Textbook formulas, with a logistic that is rescaled to run from 0 to 1."""
    if curve == Curve.LINEAR:
        return t
    if curve == Curve.COSINE:
        return (1 - math.cos(math.pi * t)) / 2
    k = {Curve.SIGMOID_GENTLE: 6, Curve.SIGMOID: 12, Curve.SIGMOID_SHARP: 24}[curve]
    low, high, here = (1 / (1 + math.exp(-k * (x - 0.5))) for x in (0, 1, t))
    return (here - low) / (high - low)


def naive_legal(op, stage, *, room, ramping, age):
    """Return the legality of an op in a slot with a stage (its name); ``room``: fewer than ``max_seeds`` seeds."""
    return {
        Op.WAIT: True,
        Op.GERMINATE: stage == "DORMANT" and room,
        Op.ADVANCE: stage in ("GERMINATED", "TRAINING", "BLENDING"),
        Op.FOSSILIZE: stage == "HOLDING",
        Op.PRUNE: stage in LIVE and age >= 1 and not ramping,
        Op.SET_ALPHA_TARGET: stage in ("BLENDING", "HOLDING") and not ramping,
    }[op]
