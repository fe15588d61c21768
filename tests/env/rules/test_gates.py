"""Gates: every check can stop a seed, and a missing measurement never passes."""

from typing import NamedTuple

import numpy as np
import pytest
from esper_env.rules.gates import CHECKS, NO_GATE, Gate, GateConfig, evaluate, gate_config
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from gate_cases import FLIPS, JUST_ENOUGH, PERMISSIVE, STRICT, slot_with


class Verdict(NamedTuple):
    passed: bool
    good: set[str]
    bad: set[str]


def verdict_of(result, env):
    checks = list(zip(CHECKS, result.asked[env].tolist(), result.answers[env].tolist(), strict=True))
    good, bad = ({name for name, asked, holds in checks if asked and holds is wanted} for wanted in (True, False))
    return Verdict(bool(result.passed[env]), good, bad)


def verdict(gate, values, config=STRICT):
    return verdict_of(evaluate(slot_with(values), np.array([0]), np.array([int(gate)]), config), 0)


@pytest.mark.parametrize("config", [STRICT, PERMISSIVE])
@pytest.mark.parametrize("gate", list(Gate))
def test_gate_passes_if_every_check_is_only_just_met(gate, config):
    result = verdict(gate, JUST_ENOUGH[gate], config)
    assert (result.passed, result.bad) == (True, set())
    assert bool(result.good) == (gate not in (Gate.G0, Gate.G1))


@pytest.mark.parametrize(("gate", "difference", "failing", "permissive_too"), FLIPS)
def test_each_check_alone_fails_its_gate(gate, difference, failing, permissive_too):
    values = JUST_ENOUGH[gate] | difference
    result = verdict(gate, values)
    assert not result.passed
    assert result.bad == failing
    assert verdict(gate, values, PERMISSIVE).passed is not permissive_too


def test_cases_above_fail_every_check_of_every_strict_gate():
    failing = {(gate, check) for gate, _, checks, _ in FLIPS for check in checks}
    asked = {(gate, check) for gate in Gate for check in verdict(gate, JUST_ENOUGH[gate]).good}
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
    assert [len(verdict_of(result, env).bad) for env in range(4)] == [0, 4, 3, 0]
    assert verdict_of(result, 2).good == {"trained_long_enough"}
    assert result.gate[3] == NO_GATE


def test_gate_config_finds_configurations_by_name():
    assert gate_config("permissive") == GateConfig()
    assert gate_config("strict") == GateConfig(0.5, 0.1, 3, 1.0)
    with pytest.raises(ValueError, match=r"`gates` is 'lenient'; expected one of 'permissive', 'strict'"):
        gate_config("lenient")


def test_gate_config_rejects_numbers_out_of_range():
    with pytest.raises(ValueError, match="`min_blending_epochs` is -2; expected a non-negative integer or None"):
        GateConfig(min_blending_epochs=-2)
