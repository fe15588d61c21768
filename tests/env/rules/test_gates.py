"""Gates: every check can stop a seed, and a missing measurement never passes."""

import numpy as np
import pytest
from esper_env.rules.gates import NO_GATE, Gate, GateConfig, evaluate, gate_config
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


def verdict(gate, values, config=STRICT):
    return evaluate(slot_with(values), np.array([0]), np.array([int(gate)]), config).verdict(0)


@pytest.mark.parametrize("config", [STRICT, PERMISSIVE])
@pytest.mark.parametrize("gate", list(Gate))
def test_gate_passes_if_every_check_is_only_just_met(gate, config):
    result = verdict(gate, JUST_ENOUGH[gate], config)
    assert result == (gate, True, 1.0, result.checks_passed, (), f"{gate.name} passed")
    assert bool(result.checks_passed) == (gate not in (Gate.G0, Gate.G1))


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


@pytest.mark.parametrize(("gate", "difference", "failing", "permissive_too"), FLIPS)
def test_each_check_alone_fails_its_gate(gate, difference, failing, permissive_too):
    values = JUST_ENOUGH[gate] | difference
    result = verdict(gate, values)
    assert not result.passed
    assert set(result.checks_failed) == failing
    asked = len(result.checks_failed) + len(result.checks_passed)
    assert result.score == pytest.approx(1 - len(failing) / asked)
    assert all(name in result.message for name in failing)
    assert verdict(gate, values, PERMISSIVE).passed is not permissive_too


def test_cases_above_fail_every_check_of_every_strict_gate():
    failing = {(gate, check) for gate, _, checks, _ in FLIPS for check in checks}
    asked = {(gate, check) for gate in Gate for check in verdict(gate, JUST_ENOUGH[gate]).checks_passed}
    assert failing == asked


@pytest.mark.parametrize(
    ("difference", "config"), [({"contribution_age": 1}, STRICT), ({"contribution": -3.0}, PERMISSIVE)]
)
def test_g5_accepts_a_contribution_of_the_previous_epoch_and_a_negative_one_if_permissive(difference, config):
    assert verdict(Gate.G5, JUST_ENOUGH[Gate.G5] | difference, config).passed


def test_each_environment_evaluates_its_own_gate_on_its_chosen_slot():
    table = SlotTable.empty(4, 2)
    table.stage[:, 1] = [Stage.GERMINATED, Stage.TRAINING, Stage.TRAINING, Stage.FOSSILIZED]
    table.epochs_in_stage[2] = [0, 3]
    result = evaluate(table, np.array([1, 1, 1, 0]), np.array([Gate.G1, Gate.G2, Gate.G2, NO_GATE]), PERMISSIVE)
    assert result.passed.tolist() == [True, False, False, False]
    assert [result.verdict(env).score for env in range(3)] == [1.0, 0.0, 0.25]
    assert result.verdict(2).checks_passed == ("trained_long_enough",)
    assert result.verdict(3) is None


def test_gate_config_finds_configurations_by_name():
    assert gate_config("permissive") == GateConfig()
    assert gate_config("strict") == GateConfig(3, 0.7, 1.0, 1, 0.5, 0.1, 3, 1.0)
    with pytest.raises(ValueError, match=r"`gates` is 'lenient'; expected one of 'permissive', 'strict'"):
        gate_config("lenient")


def test_gate_config_rejects_numbers_out_of_range():
    with pytest.raises(ValueError, match="`min_blending_epochs` is -2; expected a non-negative integer or None"):
        GateConfig(min_blending_epochs=-2)
