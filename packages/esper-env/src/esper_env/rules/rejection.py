"""Codes of the reasons why an action had no effect."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from esper_env.rules.gates import CHECKS, NO_GATE, Gate, GateResults
from esper_env.rules.slot_table import BoolArray, IntArray


class Rejection(IntEnum):
    """Reason why an action had no effect, the value of ``info["rejection"]``.

    NONE: the action had its effect. ILLEGAL: the masks exclude the action. ROLLED_BACK: the governor rolled the
    network back. The others name a gate and the first of its checks that failed. Never renumber them.
    """

    NONE = 0
    ILLEGAL = 1
    ROLLED_BACK = 2
    G2_TRAINED_LONG_ENOUGH = 201
    G2_GRADIENT_MEASURED = 202
    G2_GRADIENT_NOT_EXPLODING = 203
    G2_GRADIENT_HEALTHY = 204
    G2_PROSPECTIVE_CONTRIBUTION = 205
    G2_GRADIENT_RATIO = 206
    G3_SCHEDULE_ON_HOLD = 301
    G3_FULL_ALPHA = 302
    G3_BLENDED_LONG_ENOUGH = 303
    G5_GRADIENT_MEASURED = 501
    G5_GRADIENT_NOT_EXPLODING = 502
    G5_GRADIENT_HEALTHY = 503
    G5_CONTRIBUTION_MEASURED = 504
    G5_CONTRIBUTION_AT_FULL_ALPHA = 505
    G5_CONTRIBUTION = 506


#: ``_CODES[gate, check]`` is the code of a failed check.
_CODES = np.zeros((max(Gate) + 1, len(CHECKS)), dtype=np.int64)
for _position, (_check, (_gates, _)) in enumerate(CHECKS.items()):
    for _gate in _gates:
        _CODES[_gate, _position] = Rejection[f"{_gate.name}_{_check.upper()}"]


def rejections(valid: BoolArray, results: GateResults) -> IntArray:
    """Return the ``Rejection`` (N,) of actions from ``valid`` (N,), True where legal, and their gates' results."""
    failed = results.asked & ~results.answers
    stopped = (results.gate != NO_GATE) & failed.any(axis=1)
    codes = np.where(stopped, _CODES[results.gate, failed.argmax(axis=1)], Rejection.NONE)
    rejected: IntArray = np.where(valid, codes, Rejection.ILLEGAL)
    return rejected
