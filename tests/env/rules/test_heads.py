"""Action heads: order, sizes, values, defaults and relevance."""

import numpy as np
import pytest
from esper_env.rules import heads
from esper_env.rules.heads import (
    HEAD_DEFAULTS,
    HEAD_NAMES,
    HEAD_RELEVANCE,
    NO_BLUEPRINT,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    Curve,
    Op,
    Operator,
    Style,
    Tempo,
    head_sizes,
)


def test_heads_have_a_fixed_order():
    assert HEAD_NAMES == (
        "slot",
        "blueprint",
        "style",
        "tempo",
        "alpha_target",
        "alpha_speed",
        "alpha_curve",
        "op",
    )


@pytest.mark.parametrize("num_slots", [1, 3, 6])
def test_head_sizes_have_documented_values(num_slots):
    assert head_sizes(num_slots) == (num_slots, 13, 4, 3, 3, 4, 5, 6)


def test_head_sizes_rejects_zero_slots():
    with pytest.raises(ValueError, match="num_slots is 0"):
        head_sizes(0)


@pytest.mark.parametrize(
    ("enum", "names"),
    [
        (Op, "WAIT GERMINATE SET_ALPHA_TARGET PRUNE FOSSILIZE ADVANCE"),
        (Style, "LINEAR_ADD LINEAR_MULTIPLY SIGMOID_ADD GATED_GATE"),
        (Tempo, "FAST STANDARD SLOW"),
        (AlphaTarget, "HALF SEVENTY FULL"),
        (AlphaSpeed, "INSTANT FAST MEDIUM SLOW"),
        (Curve, "LINEAR COSINE SIGMOID_GENTLE SIGMOID SIGMOID_SHARP"),
        (Operator, "ADD MULTIPLY GATE"),
        (
            Blueprint,
            "NOOP CONV_LIGHT ATTENTION NORM DEPTHWISE BOTTLENECK CONV_SMALL CONV_HEAVY LORA LORA_LARGE MLP_SMALL MLP "
            "FLEX_ATTENTION",
        ),
    ],
)
def test_head_values_have_a_fixed_order(enum, names):
    assert [(member.name, member.value) for member in enum] == [(n, i) for i, n in enumerate(names.split())]


def test_head_values_have_documented_quantities():
    assert heads.TEMPO_TICKS.tolist() == [3, 5, 8]
    assert heads.ALPHA_TARGETS.tolist() == [0.5, 0.7, 1.0]
    assert heads.SPEED_TICKS.tolist() == [0, 3, 5, 8]
    assert heads.CURVE_STEEPNESS.tolist() == [0, 0, 6, 12, 24]
    assert heads.STYLE_OPERATOR.tolist() == [Operator.ADD, Operator.MULTIPLY, Operator.ADD, Operator.GATE]
    assert NO_BLUEPRINT == 13


def test_curves_of_styles():
    curves = {style.name: Curve(heads.STYLE_CURVE[style]).name for style in Style}
    assert curves["LINEAR_ADD"] == curves["LINEAR_MULTIPLY"] == "LINEAR"
    assert heads.CURVE_STEEPNESS[heads.STYLE_CURVE[Style.SIGMOID_ADD]] > 0


def test_head_defaults_have_documented_values():
    assert dict(zip(HEAD_NAMES, HEAD_DEFAULTS, strict=True)) == {
        "slot": 0,
        "blueprint": Blueprint.NORM,
        "style": Style.SIGMOID_ADD,
        "tempo": Tempo.STANDARD,
        "alpha_target": AlphaTarget.FULL,
        "alpha_speed": AlphaSpeed.INSTANT,
        "alpha_curve": Curve.LINEAR,
        "op": Op.WAIT,
    }


@pytest.mark.parametrize(
    ("op", "read"),
    [
        (Op.WAIT, "op"),
        (Op.GERMINATE, "op slot blueprint style tempo alpha_target"),
        (Op.SET_ALPHA_TARGET, "op slot style alpha_target alpha_speed alpha_curve"),
        (Op.PRUNE, "op slot alpha_speed alpha_curve"),
        (Op.FOSSILIZE, "op slot"),
        (Op.ADVANCE, "op slot"),
    ],
)
def test_ops_read_the_documented_heads(op, read):
    assert {name for name, relevant in zip(HEAD_NAMES, HEAD_RELEVANCE[op], strict=True) if relevant} == set(
        read.split()
    )
    assert HEAD_RELEVANCE.shape == (6, 8)


def test_tables_are_read_only():
    tables = [value for value in vars(heads).values() if isinstance(value, np.ndarray)]
    assert len(tables) >= 7
    assert not any(table.flags.writeable for table in tables)
