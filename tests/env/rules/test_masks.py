"""Actions: legality, masks, decoding and sampling."""

import itertools
from dataclasses import fields

import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS, TRANSFORMER_BLUEPRINTS
from esper_env.rules.heads import HEAD_DEFAULTS, NO_BLUEPRINT, Blueprint, Head, Op, head_sizes
from esper_env.rules.masks import ActionRules, conditional_masks, sample_valid_actions, split_mask
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from esper_env.rules.stages import Stage
from gymnasium.spaces import MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st

READS = {
    Op.WAIT: set(),
    Op.GERMINATE: {"slot", "blueprint", "style", "tempo", "alpha_target"},
    Op.SET_ALPHA_TARGET: {"slot", "style", "alpha_target", "alpha_speed", "alpha_curve"},
    Op.PRUNE: {"slot", "alpha_speed", "alpha_curve"},
    Op.FOSSILIZE: {"slot"},
    Op.ADVANCE: {"slot"},
}
HEADS = ["slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve", "op"]
STAGES = [stage for stage in Stage if stage != Stage.UNKNOWN]


def naive_legal(table, env, slot, op, max_seeds):
    """Return the legality of one (op, slot) by the rules in prose."""
    stage = Stage(table.stage[env, slot]).name
    on_hold = table.alpha_mode[env, slot] == HOLD
    seeds = 0
    for other in range(table.shape[1]):
        if Stage(table.stage[env, other]).name in ("GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED"):
            seeds += 1
    if op == Op.WAIT:
        return True
    if op == Op.GERMINATE:
        return stage == "DORMANT" and seeds < max_seeds
    if op == Op.ADVANCE:
        return stage in ("GERMINATED", "TRAINING", "BLENDING")
    if op == Op.FOSSILIZE:
        return stage == "HOLDING"
    if op == Op.PRUNE:
        alive = stage in ("GERMINATED", "TRAINING", "BLENDING", "HOLDING")
        return alive and table.age[env, slot] >= 1 and on_hold
    assert op == Op.SET_ALPHA_TARGET
    return stage in ("BLENDING", "HOLDING") and on_hold


@st.composite
def tables(draw, max_envs=3, max_slots=4):
    """Slot tables with any stages, of which only BLENDING ramps."""
    num_envs, num_slots = draw(st.integers(1, max_envs)), draw(st.integers(1, max_slots))
    table = SlotTable.empty(num_envs, num_slots)
    for env, slot in np.ndindex(num_envs, num_slots):
        stage = draw(st.sampled_from(STAGES))
        table.stage[env, slot] = stage
        table.age[env, slot] = draw(st.integers(0, 2))
        if stage == Stage.BLENDING:
            table.alpha_mode[env, slot] = draw(st.sampled_from([HOLD, UP, DOWN]))
    return table


def rules_for(table, max_seeds=None, offered=CNN_BLUEPRINTS):
    slots = table.shape[1]
    return ActionRules(slots, offered, slots if max_seeds is None else max_seeds)


def slots_in(*stages):
    table = SlotTable.empty(1, len(stages))
    table.stage[0] = stages
    table.age[0] = 1
    return table


def action(op=Op.WAIT, **heads):
    values = dict(zip(HEADS, HEAD_DEFAULTS, strict=True)) | heads | {"op": op}
    return [[int(values[name]) for name in HEADS]]


# Legality


@given(tables(), st.data())
def test_legality_equals_the_rules_in_prose(table, data):
    max_seeds = data.draw(st.integers(1, table.shape[1]))
    legal = rules_for(table, max_seeds).legal(table)
    assert legal.shape == (table.shape[0], 6, table.shape[1])
    for env, op, slot in np.ndindex(legal.shape):
        assert legal[env, op, slot] == naive_legal(table, env, slot, op, max_seeds), (env, Op(op).name, slot)


def test_committed_seed_counts_towards_max_seeds_and_cooldown_does_not():
    table = slots_in(Stage.FOSSILIZED, Stage.EMBARGOED, Stage.DORMANT)
    assert not rules_for(table, max_seeds=1).legal(table)[0, Op.GERMINATE].any()
    assert rules_for(table, max_seeds=2).legal(table)[0, Op.GERMINATE].tolist() == [False, False, True]


def test_legality_rejects_a_table_with_other_slots():
    with pytest.raises(ValueError, match="table has 2 slots; expected 3"):
        ActionRules(3, CNN_BLUEPRINTS, 3).legal(SlotTable.empty(1, 2))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ((0, CNN_BLUEPRINTS, 1), "num_slots is 0"),
        ((3, CNN_BLUEPRINTS, 0), "max_seeds is 0"),
        ((3, CNN_BLUEPRINTS, 4), "max_seeds is 4; expected 1 to 3, the number of slots"),
        ((3, (), 3), "one or more"),
        ((3, (Blueprint.NOOP, Blueprint.NORM), 3), "distinct values from 1 to 12"),
        ((3, (Blueprint.NORM, Blueprint.NORM), 3), "distinct values"),
        ((3, (13,), 3), "13"),
    ],
)
def test_action_rules_reject_invalid_settings(settings_, message):
    with pytest.raises(ValueError, match=message):
        ActionRules(*settings_)


# Masks


def brute_force_marginal(table, env, offered):
    """Return the marginal mask of one environment from every joint action."""
    slots = table.shape[1]
    sizes = dict(zip(HEADS, head_sizes(slots), strict=True))
    on = {name: [0] * sizes[name] for name in HEADS}
    read = dict.fromkeys(HEADS, False)
    for op, slot, blueprint in itertools.product(Op, range(slots), Blueprint):
        if not naive_legal(table, env, slot, op, slots) or (op == Op.GERMINATE and blueprint not in offered):
            continue
        on["op"][op], read["op"] = 1, True
        for name in READS[op]:
            read[name] = True
            values = {"slot": [slot], "blueprint": [blueprint]}.get(name, range(sizes[name]))
            for value in values:
                on[name][value] = 1
    for name, default in zip(HEADS, HEAD_DEFAULTS, strict=True):
        if not read[name]:
            on[name][default] = 1
    return [value for name in HEADS for value in on[name]]


@settings(max_examples=60)
@given(tables(max_envs=2, max_slots=3), st.sampled_from([CNN_BLUEPRINTS, TRANSFORMER_BLUEPRINTS]))
def test_marginal_mask_is_the_union_of_legal_joint_actions(table, offered):
    rules = rules_for(table, offered=offered)
    mask = rules.marginal(rules.legal(table))
    assert mask.shape == (table.shape[0], sum(rules.nvec))
    assert mask.dtype == np.int8
    for env in range(table.shape[0]):
        assert mask[env].tolist() == brute_force_marginal(table, env, offered)


@given(tables())
def test_op_slot_mask_is_the_flattened_legality(table):
    rules = rules_for(table)
    legal = rules.legal(table)
    mask = rules.op_slot(legal)
    assert mask.shape == (table.shape[0], 6 * table.shape[1])
    assert mask.dtype == np.int8
    for env, op, slot in np.ndindex(legal.shape):
        assert mask[env, op * table.shape[1] + slot] == legal[env, op, slot]
    assert mask[:, : table.shape[1]].all()


def test_masks_are_new_arrays():
    table = SlotTable.empty(1, 2)
    rules = rules_for(table)
    for face in (rules.legal, lambda t: rules.marginal(rules.legal(t)), lambda t: rules.op_slot(rules.legal(t))):
        first = face(table)
        kept = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(face(table), kept)


@settings(max_examples=40)
@given(tables(max_envs=1), st.integers(0, 2**32 - 1))
def test_split_mask_works_with_gymnasium_sampling(table, seed):
    rules = rules_for(table)
    mask = rules.marginal(rules.legal(table))[0]
    parts = split_mask(mask, rules.nvec)
    assert isinstance(parts, tuple)
    assert [len(part) for part in parts] == list(rules.nvec)
    space = MultiDiscrete(list(rules.nvec), seed=seed)
    sample = space.sample(mask=parts)
    assert sample in space
    assert all(part[value] == 1 for part, value in zip(parts, sample, strict=True))


def test_split_mask_returns_int8_and_rejects_a_wrong_length():
    assert [part.dtype for part in split_mask(np.ones(5, dtype=bool), (2, 3))] == [np.dtype(np.int8)] * 2
    with pytest.raises(ValueError, match=r"shape \(4,\); expected \(5,\)"):
        split_mask(np.ones(4, dtype=np.int8), (2, 3))


@settings(max_examples=60)
@given(tables(max_envs=1), st.data())
def test_every_combination_of_conditional_masks_is_legal(table, data):
    rules = rules_for(table)
    legal = rules.legal(table)[0]
    op = data.draw(st.sampled_from([op for op in Op if legal[op].any()]))
    masks = conditional_masks(legal, op, CNN_BLUEPRINTS)
    assert all(mask.dtype == np.int8 for mask in masks)
    assert [len(mask) for mask in masks] == list(rules.nvec)
    chosen = [data.draw(st.sampled_from(np.flatnonzero(mask).tolist())) for mask in masks]
    command = rules.decode([chosen], table)
    assert command.valid.item()
    assert command.op.item() == op
    for name, mask, default in zip(HEADS, masks, HEAD_DEFAULTS, strict=True):
        if name == "op":
            expected = [op]
        elif name not in READS[op]:
            expected = [default]
        elif name == "slot":
            expected = np.flatnonzero(legal[op]).tolist()
        else:
            expected = sorted(CNN_BLUEPRINTS) if name == "blueprint" else list(range(len(mask)))
        assert np.flatnonzero(mask).tolist() == expected, name


def test_conditional_masks_reject_an_illegal_op():
    table = SlotTable.empty(1, 2)
    legal = rules_for(table).legal(table)[0]
    with pytest.raises(ValueError, match="PRUNE is not legal in any slot now; legal ops are WAIT, GERMINATE"):
        conditional_masks(legal, Op.PRUNE, CNN_BLUEPRINTS)


# Sampling


@given(tables(), st.integers(0, 2**32 - 1))
def test_sampled_actions_are_legal_with_defaults_in_unread_heads(table, seed):
    rules = rules_for(table)
    actions = sample_valid_actions(rules.legal(table), np.random.default_rng(seed), CNN_BLUEPRINTS)
    assert actions.shape == (table.shape[0], 8)
    assert rules.decode(actions, table).valid.all()
    for env, row in enumerate(actions):
        op = Op(row[Head.OP])
        assert op == Op.WAIT or naive_legal(table, env, row[Head.SLOT], op, table.shape[1])
        for name, value, default in zip(HEADS, row, HEAD_DEFAULTS, strict=True):
            assert name == "op" or name in READS[op] or value == default


def test_sampling_is_uniform_over_ops_then_slots_then_arguments():
    stages = [Stage.DORMANT, Stage.DORMANT, Stage.GERMINATED, Stage.HOLDING]
    table = SlotTable.empty(30_000, 4)
    table.stage[:] = stages
    table.age[:] = 1
    rules = rules_for(table)
    actions = sample_valid_actions(rules.legal(table), np.random.default_rng(0), CNN_BLUEPRINTS)
    ops = actions[:, Head.OP]
    np.testing.assert_allclose(np.bincount(ops, minlength=6) / len(ops), [1 / 6] * 6, atol=0.012)
    germinated = actions[ops == Op.GERMINATE]
    shares = np.bincount(germinated[:, Head.SLOT], minlength=4) / len(germinated)
    np.testing.assert_allclose(shares, [0.5, 0.5, 0, 0], atol=0.03)
    blueprints = np.bincount(germinated[:, Head.BLUEPRINT], minlength=13) / len(germinated)
    np.testing.assert_allclose(blueprints, [(b in CNN_BLUEPRINTS) / 7 for b in range(13)], atol=0.03)
    for head, size in ((Head.STYLE, 4), (Head.TEMPO, 3), (Head.ALPHA_TARGET, 3)):
        shares = np.bincount(germinated[:, head], minlength=size) / len(germinated)
        np.testing.assert_allclose(shares, [1 / size] * size, atol=0.03)
    pruned = actions[ops == Op.PRUNE]
    shares = np.bincount(pruned[:, Head.SLOT], minlength=4) / len(pruned)
    np.testing.assert_allclose(shares, [0, 0, 0.5, 0.5], atol=0.03)


def test_sampling_depends_only_on_the_generator():
    legal = ActionRules(3, CNN_BLUEPRINTS, 3).legal(SlotTable.empty(50, 3))
    draw = [sample_valid_actions(legal, np.random.default_rng(seed), CNN_BLUEPRINTS) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert (draw[0] != draw[2]).any()


# Decoding


def test_decode_keeps_the_arguments_of_a_legal_action():
    rules = ActionRules(2, CNN_BLUEPRINTS, 2)
    requested = action(Op.GERMINATE, slot=1, blueprint=Blueprint.CONV_LIGHT, style=3, tempo=2, alpha_target=0)
    command = rules.decode(requested, SlotTable.empty(1, 2))
    assert command.valid.tolist() == [True]
    assert command.op.tolist() == command.requested_op.tolist() == [Op.GERMINATE]
    assert [command.slot[0], command.blueprint[0], command.style[0]] == [1, Blueprint.CONV_LIGHT, 3]
    assert [command.tempo[0], command.alpha_target[0]] == [2, 0]


@given(tables(max_envs=1), st.data())
def test_decode_ignores_unread_heads(table, data):
    rules = rules_for(table)
    op = data.draw(st.sampled_from(list(Op)))
    wanted = [data.draw(st.integers(0, size - 1)) for size in rules.nvec[:-1]] + [op]
    other = list(wanted)
    for head, name in enumerate(HEADS[:-1]):
        if name not in READS[op]:
            other[head] = data.draw(st.integers(0, rules.nvec[head] - 1))
    first, second = rules.decode([wanted], table), rules.decode([other], table)
    for field in fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)


@given(tables(), st.integers(0, 2**32 - 1))
def test_decode_turns_illegal_actions_into_invalid_waits(table, seed):
    rules = rules_for(table)
    actions = np.random.default_rng(seed).integers(0, rules.nvec, size=(table.shape[0], 8))
    command = rules.decode(actions, table)
    for env, row in enumerate(actions):
        op = Op(row[Head.OP])
        possible = naive_legal(table, env, row[Head.SLOT], op, table.shape[1])
        if op == Op.GERMINATE:
            possible = possible and Blueprint(row[Head.BLUEPRINT]) in CNN_BLUEPRINTS
        assert command.valid[env] == possible
        assert command.requested_op[env] == op
        assert command.op[env] == (op if possible else Op.WAIT)
        if not possible:
            effective = [getattr(command, name)[env] for name in HEADS]
            assert effective == list(HEAD_DEFAULTS)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, None])
def test_decode_accepts_any_integer_type(dtype):
    rules = ActionRules(2, CNN_BLUEPRINTS, 2)
    assert rules.decode(np.array(action(Op.GERMINATE), dtype=dtype), SlotTable.empty(1, 2)).valid.all()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(8, dtype=np.int64), r"shape \(8,\); expected \(1, 8\)"),
        (np.zeros((2, 8), dtype=np.int64), r"shape \(2, 8\); expected \(1, 8\)"),
        (np.zeros((1, 7), dtype=np.int64), r"shape \(1, 7\)"),
        (np.zeros((1, 8)), "dtype float64; expected integers"),
        (np.zeros((1, 8), dtype=bool), "dtype bool; expected integers"),
        (action(slot=2), "has 2 for head slot; expected 0 to 1"),
        (action(slot=-1), "has -1 for head slot"),
        (action(blueprint=NO_BLUEPRINT), "has 13 for head blueprint; expected 0 to 12"),
        (action(op=6), "has 6 for head op; expected 0 to 5"),
        (action(alpha_curve=5), "has 5 for head alpha_curve"),
    ],
)
def test_decode_rejects_malformed_actions(actions, message):
    with pytest.raises(ValueError, match=message):
        ActionRules(2, CNN_BLUEPRINTS, 2).decode(actions, SlotTable.empty(1, 2))


def test_command_does_not_share_memory_with_the_action():
    actions = np.array(action(Op.GERMINATE, slot=1))
    command = ActionRules(2, CNN_BLUEPRINTS, 2).decode(actions, SlotTable.empty(1, 2))
    actions[:] = 0
    assert command.slot.tolist() == [1]
    assert command.requested_op.tolist() == [Op.GERMINATE]
