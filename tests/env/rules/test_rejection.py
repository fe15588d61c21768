"""Rejections: the reason why a command had no effect, as a number."""

import re
from pathlib import Path

import numpy as np
import pytest
from esper_env.rules import lifecycle
from esper_env.rules.gates import NO_GATE, Gate, evaluate, gate_config
from esper_env.rules.heads import Op
from esper_env.rules.masks import ActionRules
from esper_env.rules.rejection import Rejection, rejections
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from gate_cases import FLIPS, JUST_ENOUGH, STRICT, slot_with
from hypothesis import given
from hypothesis import strategies as st
from plain_rules import action

CODES = {
    "NONE": 0,
    "ILLEGAL": 1,
    "ROLLED_BACK": 2,
    "G2_TRAINED_LONG_ENOUGH": 201,
    "G2_GRADIENT_MEASURED": 202,
    "G2_GRADIENT_NOT_EXPLODING": 203,
    "G2_GRADIENT_HEALTHY": 204,
    "G2_PROSPECTIVE_CONTRIBUTION": 205,
    "G2_GRADIENT_RATIO": 206,
    "G3_SCHEDULE_ON_HOLD": 301,
    "G3_FULL_ALPHA": 302,
    "G3_BLENDED_LONG_ENOUGH": 303,
    "G5_GRADIENT_MEASURED": 501,
    "G5_GRADIENT_NOT_EXPLODING": 502,
    "G5_GRADIENT_HEALTHY": 503,
    "G5_CONTRIBUTION_MEASURED": 504,
    "G5_CONTRIBUTION_AT_FULL_ALPHA": 505,
    "G5_CONTRIBUTION": 506,
}


def rejection_of(gate, values, valid=True):
    results = evaluate(slot_with(values), np.array([0]), np.array([int(gate)]), STRICT)
    (code,) = rejections(np.array([valid]), results)
    return Rejection(code)


def test_codes_never_change():
    assert {member.name: member.value for member in Rejection} == CODES


@pytest.mark.parametrize(("gate", "difference", "failing"), [flip[:3] for flip in FLIPS])
def test_code_names_the_gate_and_its_first_check_that_fails(gate, difference, failing):
    first = min(failing, key=lambda check: CODES[f"{gate.name}_{check.upper()}"])
    assert rejection_of(gate, JUST_ENOUGH[gate] | difference).name == f"{gate.name}_{first.upper()}"


def test_command_that_passes_or_needs_no_gate_is_not_rejected():
    for gate in Gate:
        assert rejection_of(gate, JUST_ENOUGH[gate]) is Rejection.NONE
    assert rejection_of(NO_GATE, JUST_ENOUGH[Gate.G3]) is Rejection.NONE


def test_illegal_command_is_illegal_whatever_its_gate_says():
    for gate in (NO_GATE, *Gate):
        assert rejection_of(gate, JUST_ENOUGH[Gate.G1], valid=False) is Rejection.ILLEGAL


@st.composite
def measured_tables(draw):
    """Slot tables in any stage whose measurements just pass or fail the gates."""
    table = SlotTable.empty(2, 3)
    for env, slot in np.ndindex(table.shape):
        table.stage[env, slot] = draw(st.sampled_from([stage for stage in Stage if stage != Stage.UNKNOWN]))
        values = {name: value for known in JUST_ENOUGH.values() for name, value in known.items() if name != "stage"}
        _, difference, *_ = draw(st.sampled_from([(Gate.G0, {}), *FLIPS]))
        for name, value in (values | difference).items():
            getattr(table, name)[env, slot] = value
        table.age[env, slot] = draw(st.integers(0, 2))
    table.alpha_mode[table.stage != Stage.BLENDING] = 0
    return table


@given(measured_tables(), st.sampled_from(["strict", "permissive"]))
def test_masked_gates_exclude_exactly_the_commands_that_a_gate_would_stop(table, name):
    config = gate_config(name)
    slots = table.shape[1]
    plain, masked = ActionRules(slots, [1], slots), ActionRules(slots, [1], slots, config)
    legal, allowed = plain.legal(table), masked.legal(table)
    assert not (allowed & ~legal).any()
    assert allowed[:, Op.WAIT].all()
    for op, slot in np.ndindex(len(Op), slots):
        command = plain.decode(np.stack([action(Op(op), slot, blueprint=1)] * 2), table)
        rejected = lifecycle.apply(table.copy(), command, config).rejection
        np.testing.assert_array_equal(allowed[:, op, slot], rejected == Rejection.NONE)


def test_page_lists_every_code():
    page = (Path(__file__).parents[3] / "docs" / "actions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([A-Z0-9_]+) \|", page, flags=re.MULTILINE)
    assert {name: int(code) for code, name in rows} == CODES
