"""Gates: every check can stop a seed, and what was not measured never passes."""

import dataclasses

import numpy as np
import pytest
from esper_env.rules.gates import GATE_INTO, NO_GATE, Gate, GateConfig, evaluate, gate_config
from esper_env.rules.heads import NO_BLUEPRINT, Blueprint
from esper_env.rules.slot_table import DOWN, UP, SlotTable
from esper_env.rules.stages import Stage

STRICT, PERMISSIVE = GateConfig.strict(), GateConfig.permissive()

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


def verdict(gate, values, config=STRICT, **kwargs):
    return evaluate(slot_with(values), gate, config, **kwargs).verdict(0, 0)


@pytest.mark.parametrize("config", [STRICT, PERMISSIVE])
@pytest.mark.parametrize("gate", list(Gate))
def test_a_slot_that_only_just_meets_every_check_passes(gate, config):
    result = verdict(gate, JUST_ENOUGH[gate], config)
    assert result.gate is gate
    assert result.passed is True
    assert result.score == 1.0
    assert result.checks_failed == ()
    assert len(result.checks_passed) >= 1
    assert result.message == f"{gate.name} passed"


#: (gate, what is different, the checks that must fail, also under the permissive configuration?)
FLIPS = [
    (Gate.G0, {"stage": Stage.GERMINATED}, {"slot_empty"}, True),
    (Gate.G0, {"stage": Stage.RESETTING}, {"slot_empty"}, True),
    (Gate.G1, {"stage": Stage.TRAINING}, {"from_germinated"}, True),
    (Gate.G2, {"stage": Stage.GERMINATED}, {"from_training"}, True),
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
    (Gate.G3, {"stage": Stage.HOLDING}, {"from_blending"}, True),
    (Gate.G3, {"alpha_mode": UP}, {"schedule_on_hold"}, True),
    (Gate.G3, {"alpha_mode": DOWN}, {"schedule_on_hold"}, True),
    (Gate.G3, {"alpha": 0.7}, {"full_alpha"}, True),
    (Gate.G3, {"alpha": np.nextafter(1.0, 0.0)}, {"full_alpha"}, True),
    (Gate.G3, {"epochs_in_stage": 2}, {"blended_long_enough"}, False),
    (Gate.G5, {"stage": Stage.BLENDING}, {"from_holding"}, True),
    (
        Gate.G5,
        {"contribution_age": -1},
        {"contribution_measured", "contribution_at_full_alpha", "contribution"},
        True,
    ),
    (
        Gate.G5,
        {"contribution_age": 2},
        {"contribution_measured", "contribution_at_full_alpha", "contribution"},
        True,
    ),
    (
        Gate.G5,
        {"contribution": np.nan},
        {"contribution_measured", "contribution_at_full_alpha", "contribution"},
        True,
    ),
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
def test_each_check_alone_stops_a_seed(gate, difference, failing, permissive_too):
    values = JUST_ENOUGH[gate] | difference
    result = verdict(gate, values)
    assert not result.passed
    assert set(result.checks_failed) == failing
    asked = len(result.checks_failed) + len(result.checks_passed)
    assert result.score == pytest.approx(1 - len(failing) / asked)
    assert all(name in result.message for name in failing)
    assert verdict(gate, values, PERMISSIVE).passed is not permissive_too


def test_every_check_of_every_strict_gate_is_stopped_by_some_case_above():
    flipped = {(gate, check) for gate, _, failing, _ in FLIPS for check in failing} | {(Gate.G0, "blueprint_fits")}
    asked = {(gate, check) for gate in Gate for check in verdict(gate, JUST_ENOUGH[gate]).checks_passed}
    assert flipped == asked


@pytest.mark.parametrize("blueprint", [Blueprint.NOOP, NO_BLUEPRINT, -1])
def test_g0_refuses_a_blueprint_that_is_no_module(blueprint):
    assert verdict(Gate.G0, JUST_ENOUGH[Gate.G0], blueprint=blueprint).checks_failed == ("blueprint_fits",)


def test_a_contribution_of_one_epoch_ago_is_fresh_enough():
    assert verdict(Gate.G5, JUST_ENOUGH[Gate.G5] | {"contribution_age": 1}).passed


def test_a_new_seed_passes_no_gate_that_needs_a_measurement():
    for gate, stage in ((Gate.G2, Stage.TRAINING), (Gate.G5, Stage.HOLDING)):
        assert not verdict(gate, {"stage": stage, "epochs_in_stage": 20, "alpha": 1.0}, PERMISSIVE).passed


def test_a_harmful_contribution_passes_the_permissive_gate_once_it_was_measured():
    assert verdict(Gate.G5, JUST_ENOUGH[Gate.G5] | {"contribution": -3.0}, PERMISSIVE).passed


def test_many_slots_are_judged_at_once_each_by_its_own_gate():
    table = SlotTable.empty(2, 3)
    table.stage[:] = [
        [Stage.GERMINATED, Stage.DORMANT, Stage.TRAINING],
        [Stage.TRAINING, Stage.FOSSILIZED, Stage.GERMINATED],
    ]
    asked = np.array([[Gate.G1, Gate.G0, Gate.G2], [Gate.G1, NO_GATE, NO_GATE]])
    result = evaluate(table, asked, PERMISSIVE)
    assert result.passed.tolist() == [[True, True, False], [False, False, False]]
    assert result.score.shape == (2, 3)
    np.testing.assert_allclose(result.score, [[1, 1, 1 / 5], [0, 0, 0]])
    assert result.verdict(1, 1) is None
    assert result.verdict(1, 0).checks_failed == ("from_germinated",)


def test_evaluating_changes_nothing():
    table = slot_with(JUST_ENOUGH[Gate.G2])
    before = {f.name: getattr(table, f.name).copy() for f in dataclasses.fields(table)}
    evaluate(table, Gate.G2, STRICT)
    for name, column in before.items():
        np.testing.assert_array_equal(getattr(table, name), column, err_msg=name)


def test_which_gate_is_in_front_of_which_stage():
    gates = {stage.name: int(GATE_INTO[stage]) for stage in Stage if GATE_INTO[stage] != NO_GATE}
    assert gates == {"GERMINATED": 0, "TRAINING": 1, "BLENDING": 2, "HOLDING": 3, "FOSSILIZED": 5}


def test_configurations_are_found_by_name():
    assert gate_config("permissive") == GateConfig()
    assert gate_config("strict") == GateConfig(
        min_training_epochs=3,
        min_gradient_health=0.7,
        full_alpha=1.0,
        min_prospective_contribution=0.5,
        min_gradient_ratio=0.1,
        min_blending_epochs=3,
        min_contribution=1.0,
    )


def test_an_unknown_configuration_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"gates is 'lenient'; expected one of 'permissive', 'strict'"):
        gate_config("lenient")


@pytest.mark.parametrize(
    "setting",
    [
        {"min_training_epochs": -1},
        {"min_blending_epochs": -2},
        {"max_contribution_age": -1},
        {"min_gradient_health": 1.1},
        {"full_alpha": -0.5},
        {"min_gradient_health": float("nan")},
    ],
)
def test_impossible_numbers_are_errors(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        GateConfig(**setting)
