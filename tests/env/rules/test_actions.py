"""Actions by name, actions in words, and the errors for arguments that make no sense."""

import numpy as np
import pytest
from esper_env.rules.actions import ActionNames, describe_command
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_NAMES, AlphaTarget, Blueprint, Head, Op, Style, Tempo, head_sizes
from hypothesis import given
from hypothesis import strategies as st
from plain_rules import READS
from plain_rules import action as build_action

SURFACES = ("r0c0", "r0c1", "r1c0", "r1c1")
NAMES = ActionNames(SURFACES, {1: "conv_light", 12: "mixer"})


@pytest.mark.parametrize("names", [ActionNames(), NAMES], ids=["any environment", "one environment"])
@given(st.data())
def test_names_of_an_action_lead_back_to_it(names, data):
    blueprints = st.sampled_from(sorted(names.blueprints))
    values = [blueprints if head == 1 else st.integers(0, size - 1) for head, size in enumerate(head_sizes(4))]
    action = data.draw(st.tuples(*values))
    op = Op(action[Head.OP])
    arguments = names.arguments(action)
    assert set(arguments) == READS[op]
    canonical = [
        value if name in READS[op] or name == "op" else default
        for name, value, default in zip(HEAD_NAMES, action, HEAD_DEFAULTS, strict=True)
    ]
    for change in (str, str.upper, str.lower):
        built = names.action(change(op.name), **{head: change(value) for head, value in arguments.items()})
        assert (built.dtype, built.tolist()) == (np.int64, canonical)
    text = names.describe(action)
    assert text.startswith(op.name)
    assert all(value in text for value in arguments.values())
    assert text == describe_command(op.name, arguments) == names.describe(canonical)


def test_action_accepts_names_members_and_integers():
    expected = build_action(
        Op.GERMINATE, 2, blueprint=12, style=Style.GATED_GATE, tempo=Tempo.SLOW, alpha_target=AlphaTarget.HALF
    ).tolist()
    for values in (
        {"op": "germinate", "slot": "R1C0", "blueprint": "Mixer", "style": "gated_gate", "tempo": "Slow"},
        {"op": Op.GERMINATE, "slot": 2, "blueprint": 12, "style": Style.GATED_GATE, "tempo": Tempo.SLOW},
        {"op": 1, "slot": np.int64(2), "blueprint": np.int32(12), "style": 3, "tempo": 2},
    ):
        assert NAMES.action(**values, alpha_target="half").tolist() == expected


def test_arguments_have_the_defaults_of_their_heads():
    for op, given_arguments in (
        ("wait", {}),
        ("germinate", {"slot": "r0c1", "blueprint": "norm"}),
        ("prune", {"slot": "r0c1"}),
        ("set_alpha_target", {"slot": "r0c1", "style": "sigmoid_add", "alpha_target": "full"}),
    ):
        slot = 1 if "slot" in given_arguments else 0
        expected = build_action(Op[op.upper()], slot)
        assert ActionNames().action(op, **given_arguments).tolist() == expected.tolist()
        assert ActionNames().action(op, **given_arguments, tempo=None).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"op": "wait", "slot": "r0c0"}, TypeError, "WAIT got an unexpected argument 'slot'; it takes no arguments"),
        (
            {"op": "prune", "slot": 0, "tempo": "fast"},
            TypeError,
            "PRUNE got an unexpected argument 'tempo'; it takes slot, alpha_speed, alpha_curve",
        ),
        ({"op": "germinate", "slot": "r0c0"}, TypeError, "GERMINATE is missing 'blueprint'; it takes slot, blueprint,"),
        ({"op": "advance"}, TypeError, "ADVANCE is missing 'slot'; it takes slot"),
        ({"op": "set_alpha_target", "slot": 0}, TypeError, "SET_ALPHA_TARGET is missing 'style', 'alpha_target'"),
        ({"op": "germinat"}, ValueError, "`op` is 'germinat'; expected one of 'WAIT' 0, .*; did you mean 'GERMINATE'"),
        ({"op": None}, ValueError, "`op` is None; expected one of 'WAIT' 0"),
        ({"op": True}, ValueError, "`op` is True; expected one of"),
        ({"op": Tempo.STANDARD}, ValueError, "`op` is <Tempo.STANDARD: 1>; expected one of"),
        ({"op": 6}, ValueError, "`op` is 6; expected one of"),
        ({"op": "advance", "slot": "r0c2"}, ValueError, "`slot` is 'r0c2'; expected one of 'r0c0' 0, .*'r1c1' 3; did"),
        ({"op": "advance", "slot": 4}, ValueError, "`slot` is 4; expected one of 'r0c0' 0, 'r0c1' 1, 'r1c0' 2"),
        ({"op": "advance", "slot": -1}, ValueError, "`slot` is -1; expected one of"),
        (
            {"op": "germinate", "slot": 0, "blueprint": "norm"},
            ValueError,
            "`blueprint` is 'norm'; expected one of 'conv_light' 1, 'mixer' 12$",
        ),
        ({"op": "prune", "slot": 0, "alpha_speed": 0.5}, ValueError, "`alpha_speed` is 0.5; expected one of 'INSTANT'"),
        ({"op": "prune", "slot": 0, "alpha_curve": ["x"]}, ValueError, r"`alpha_curve` is \['x'\]; expected one of"),
    ],
)
def test_action_rejects_arguments_that_make_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        NAMES.action(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slot": "r1c0"}, "`slot` is 'r1c0'; expected 'r0c0', 'r0c1', ... or the number of a slot; pass env=..."),
        ({"slot": -1}, "`slot` is -1; expected 'r0c0'"),
        ({"slot": 0, "blueprint": "mixer"}, "`blueprint` is 'mixer'; expected one of .*; pass env=... for custom"),
        ({"slot": 0, "blueprint": "noop"}, "`blueprint` is 'noop'; expected one of 'conv_light' 1"),
        ({"slot": 0, "blueprint": Blueprint.NOOP}, "`blueprint` is <Blueprint.NOOP: 0>; expected one of"),
    ],
)
def test_action_without_an_environment_asks_for_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActionNames().action("germinate", **({"blueprint": "norm"} | arguments))


def test_description_names_values_and_quantities():
    ramp = build_action(Op.SET_ALPHA_TARGET, 2, alpha_target=AlphaTarget.SEVENTY, alpha_speed=1, alpha_curve=4)
    assert NAMES.describe(ramp) == (
        "SET_ALPHA_TARGET r1c0: style SIGMOID_ADD, alpha_target SEVENTY (0.7), alpha_speed FAST (3 epochs), "
        "alpha_curve SIGMOID_SHARP"
    )
    assert NAMES.describe([0, 0, 0, 0, 0, 0, 0, 0]) == "WAIT"
    assert NAMES.describe([1, 0, 0, 0, 0, 0, 0, 5]) == "ADVANCE r0c1"
    assert NAMES.describe([0, 12, 0, 0, 0, 0, 0, 1]).startswith("GERMINATE mixer in r0c0: style LINEAR_ADD, tempo FAST")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0] * 7, "expected 8 integers .slot, blueprint, "),
        (np.zeros(8), "expected 8 integers"),
        ([0, 0, 0, 0, 0, 0, 0, 6], "`op` is 6; expected one of 'WAIT' 0"),
        ([4, 0, 0, 0, 0, 0, 0, 5], "`slot` is 4; expected one of 'r0c0' 0"),
        ([0, 3, 0, 0, 0, 0, 0, 1], "`blueprint` is 3; expected one of 'conv_light' 1"),
    ],
)
def test_description_rejects_malformed_actions(action, message):
    with pytest.raises(ValueError, match=message):
        NAMES.describe(action)
