"""Joint actions: their table, exact masks, and the numbers of factored actions."""

import itertools

import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS, TRANSFORMER_BLUEPRINTS
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_NAMES, Head, Op, head_sizes
from esper_env.rules.joint_actions import JointActions
from esper_env.rules.masks import ActionRules
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from esper_env.rules.stages import Stage
from hypothesis import given
from hypothesis import strategies as st
from plain_rules import READS

STAGES = [stage for stage in Stage if stage != Stage.UNKNOWN]


def canonical(action):
    """The action with defaults in the heads that its op does not read."""
    kept = {"op", *READS[Op(action[Head.OP])]}
    triples = zip(HEAD_NAMES, action, HEAD_DEFAULTS, strict=True)
    return tuple(int(value if name in kept else default) for name, value, default in triples)


@pytest.mark.parametrize(("slots", "offered"), [(1, (3,)), (2, (1, 3, 12)), (3, TRANSFORMER_BLUEPRINTS)])
def test_joint_actions_are_the_distinct_actions_in_order(slots, offered):
    sizes = head_sizes(slots)
    everything = {canonical(action) for action in itertools.product(*map(range, sizes))}
    expected = [action for action in everything if action[Head.OP] != Op.GERMINATE or action[Head.BLUEPRINT] in offered]
    joint = JointActions(slots, offered)
    assert joint.actions.dtype == np.int64
    assert joint.actions.tolist() == [list(action) for action in sorted(expected, key=lambda a: (a[-1], *a))]
    assert len(joint) == 1 + slots * (len(offered) * 36 + 240 + 20 + 2)
    assert joint.actions[0].tolist() == list(HEAD_DEFAULTS), "action 0 is WAIT"
    assert not joint.actions.flags.writeable


def test_digits_has_1543_joint_actions():
    assert len(JointActions(3, CNN_BLUEPRINTS)) == 1543


@st.composite
def tables(draw):
    table = SlotTable.empty(2, draw(st.integers(1, 3)))
    for at in np.ndindex(table.shape):
        table.stage[at], table.age[at] = draw(st.sampled_from(STAGES)), draw(st.integers(0, 1))
        if table.stage[at] == Stage.BLENDING:
            table.alpha_mode[at] = draw(st.sampled_from([HOLD, UP, DOWN]))
    return table


@given(tables(), st.sets(st.integers(1, 12), min_size=1, max_size=3), st.data())
def test_mask_is_exact_and_every_legal_action_has_one_number(table, offered, data):
    slots = table.shape[1]
    rules, joint = (
        ActionRules(slots, sorted(offered), data.draw(st.integers(1, slots))),
        JointActions(slots, [*offered]),
    )
    masks = joint.mask(rules.op_slot(rules.legal(table)))
    assert (masks.dtype, masks.shape) == (np.int8, (2, len(joint)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for number in rng.choice(len(joint), 60, replace=False):
        action = joint.actions[number]
        assert rules.decode([action, action], table).valid.tolist() == masks[:, number].tolist()
    drawn = rng.integers(0, rules.nvec, size=(2, 8))
    command = rules.decode(drawn, table)
    for row in np.flatnonzero(command.valid):
        number = joint.index(drawn[row])
        assert masks[row, number] == 1
        assert tuple(joint.actions[number]) == canonical(drawn[row])
        assert [int(getattr(command, name)[row]) for name in HEAD_NAMES] == joint.actions[number].tolist()


def test_index_inverts_the_table_for_any_batch():
    joint = JointActions(2, (1, 3))
    assert joint.index(joint.actions).tolist() == list(range(len(joint)))
    assert joint.index(joint.actions.reshape(1, -1, 8)).shape == (1, len(joint))
    assert joint.index([1, 12, 3, 2, 1, 3, 4, 0]) == 0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0] * 7, "expected 8 integers .slot, blueprint"),
        ([0.0] * 8, "expected 8 integers"),
        ([0, 2, 0, 0, 0, 0, 0, 1], r"action is \[0, 2, 0, 0, 0, 0, 0, 1\]; expected .* a blueprint that is offered"),
        ([2, 1, 0, 0, 0, 0, 0, 1], r"action is \[2, .*; expected values below \[2, 13, 4, 3, 3, 4, 5, 6\]"),
        ([0, 1, 0, 0, 0, 0, 0, 6], r"action is \[0, .*; expected values below"),
        ([-1, 1, 0, 0, 0, 0, 0, 0], r"action is \[-1, .*; expected values below"),
        ([[0] * 8, [9] * 8], r"action is \[9, 9.*; expected values below"),
    ],
)
def test_index_rejects_actions_that_do_not_exist(action, message):
    with pytest.raises(ValueError, match=message):
        JointActions(2, (1, 3)).index(action)
