"""Slots that only just pass a gate, and differences that make one of its checks fail."""

import numpy as np
from esper_env.rules.gates import Gate, gate_config
from esper_env.rules.slot_table import DOWN, UP, SlotTable
from esper_env.rules.stages import Stage

STRICT, PERMISSIVE = gate_config("strict"), gate_config("permissive")

HEALTHY = {"gradient_measured": True, "gradient_health": 0.7, "gradient_exploding": False}
#: A slot that only just passes each gate under the strict configuration.
JUST_ENOUGH = {
    Gate.G0: {"stage": Stage.DORMANT},
    Gate.G1: {"stage": Stage.GERMINATED},
    Gate.G2: {
        "stage": Stage.TRAINING,
        "epochs_in_stage": 3,
        **HEALTHY,
        "gradient_ratio": 0.1,
        "contribution": 0.5,
        "contribution_age": 0,
        "contribution_alpha": 1.0,
    },
    Gate.G3: {"stage": Stage.BLENDING, "alpha": 1.0, "alpha_target": 1.0, "epochs_in_stage": 3},
    Gate.G5: {
        "stage": Stage.HOLDING,
        "alpha": 1.0,
        "alpha_target": 1.0,
        **HEALTHY,
        "contribution": 1.0,
        "contribution_age": 0,
        "contribution_alpha": 1.0,
    },
}


def slot_with(values):
    table = SlotTable.empty(1, 1)
    for name, value in values.items():
        getattr(table, name)[:] = value
    return table


#: (gate, difference from a slot that passes, checks that must fail, fails under the permissive configuration too)
UNMEASURED = {"contribution_measured", "contribution_at_full_alpha", "contribution"}
FLIPS = [
    (Gate.G2, {"epochs_in_stage": 2}, {"trained_long_enough"}, True),
    (
        Gate.G2,
        {"gradient_measured": False},
        {"gradient_measured", "gradient_not_exploding", "gradient_healthy", "gradient_ratio"},
        True,
    ),
    (Gate.G2, {"gradient_exploding": True}, {"gradient_not_exploding"}, True),
    (Gate.G2, {"gradient_health": 0.69}, {"gradient_healthy"}, True),
    (Gate.G2, {"gradient_health": np.nan}, {"gradient_healthy"}, True),
    (Gate.G2, {"contribution": 0.49}, {"prospective_contribution"}, False),
    (Gate.G2, {"contribution": np.nan}, {"prospective_contribution"}, False),
    (Gate.G2, {"contribution_age": -1}, {"prospective_contribution"}, False),
    (Gate.G2, {"contribution_age": 2}, {"prospective_contribution"}, False),
    (Gate.G2, {"gradient_ratio": 0.099}, {"gradient_ratio"}, False),
    (Gate.G3, {"alpha_mode": UP}, {"schedule_on_hold"}, True),
    (Gate.G3, {"alpha_mode": DOWN}, {"schedule_on_hold"}, True),
    (Gate.G3, {"alpha": 0.7}, {"full_alpha"}, True),
    (Gate.G3, {"alpha": np.nextafter(1.0, 0.0)}, {"full_alpha"}, True),
    (Gate.G3, {"epochs_in_stage": 2}, {"blended_long_enough"}, False),
    (Gate.G5, {"contribution_age": -1}, UNMEASURED, True),
    (Gate.G5, {"contribution_age": 2}, UNMEASURED, True),
    (Gate.G5, {"contribution": np.nan}, UNMEASURED, True),
    (Gate.G5, {"contribution_alpha": 0.99}, {"contribution_at_full_alpha"}, True),
    (Gate.G5, {"contribution": 0.99}, {"contribution"}, False),
    (
        Gate.G5,
        {"gradient_measured": False},
        {"gradient_measured", "gradient_not_exploding", "gradient_healthy"},
        True,
    ),
    (Gate.G5, {"gradient_exploding": True}, {"gradient_not_exploding"}, True),
    (Gate.G5, {"gradient_health": 0.69}, {"gradient_healthy"}, True),
]
