"""Action heads: order, sizes, values, defaults and relevance."""

import numpy as np
import pytest
from esper_env.rules import heads
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_NAMES, HEAD_RELEVANCE, HEAD_VALUES, Head, Op, Operator, head_sizes
from plain_rules import READS

VALUES = {
    "blueprint": "NOOP CONV_LIGHT ATTENTION NORM DEPTHWISE BOTTLENECK CONV_SMALL CONV_HEAVY LORA LORA_LARGE MLP_SMALL "
    "MLP FLEX_ATTENTION",
    "style": "LINEAR_ADD LINEAR_MULTIPLY SIGMOID_ADD GATED_GATE",
    "tempo": "FAST STANDARD SLOW",
    "alpha_target": "HALF SEVENTY FULL",
    "alpha_speed": "INSTANT FAST MEDIUM SLOW",
    "alpha_curve": "LINEAR COSINE SIGMOID_GENTLE SIGMOID SIGMOID_SHARP",
    "op": "WAIT GERMINATE SET_ALPHA_TARGET PRUNE FOSSILIZE ADVANCE",
}


def test_heads_and_their_values_have_a_fixed_order():
    assert ("slot", *VALUES) == HEAD_NAMES
    assert {HEAD_NAMES[head]: {v.name: v.value for v in values} for head, values in HEAD_VALUES.items()} == {
        name: {value: number for number, value in enumerate(values.split())} for name, values in VALUES.items()
    }
    assert head_sizes(6) == (6, 13, 4, 3, 3, 4, 5, 6)


def test_head_defaults_have_documented_values():
    named = {HEAD_NAMES[head]: values(HEAD_DEFAULTS[head]).name for head, values in HEAD_VALUES.items()}
    assert list(named.values()) == ["NORM", "SIGMOID_ADD", "STANDARD", "FULL", "INSTANT", "LINEAR", "WAIT"]
    assert HEAD_DEFAULTS[Head.SLOT] == 0


def test_head_values_have_documented_quantities():
    assert heads.TEMPO_TICKS.tolist() == [3, 5, 8]
    assert heads.ALPHA_TARGETS.tolist() == [0.5, 0.7, 1.0]
    assert heads.SPEED_TICKS.tolist() == [0, 3, 5, 8]
    assert heads.CURVE_STEEPNESS.tolist() == [0, 0, 6, 12, 24]
    assert [Operator(value).name for value in heads.STYLE_OPERATOR] == ["ADD", "MULTIPLY", "ADD", "GATE"]
    assert [heads.Curve(value).name for value in heads.STYLE_CURVE] == ["LINEAR", "LINEAR", "SIGMOID", "SIGMOID"]
    tables = [value for value in vars(heads).values() if isinstance(value, np.ndarray)]
    assert not any(table.flags.writeable for table in tables)


@pytest.mark.parametrize("op", list(Op))
def test_ops_read_the_documented_heads(op):
    assert {name for name, relevant in zip(HEAD_NAMES, HEAD_RELEVANCE[op], strict=True) if relevant} == {
        "op",
        *READS[op],
    }
