"""Actions: legality, masks, decoding and sampling. ``test_malformed_inputs.py`` tests malformed actions."""

import itertools

import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS, TRANSFORMER_BLUEPRINTS
from esper_env.rules.heads import HEAD_DEFAULTS, HEAD_NAMES, Blueprint, Head, Op, head_sizes
from esper_env.rules.masks import ActionRules, sample_valid_actions
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from esper_env.rules.stages import Stage
from gymnasium.spaces import MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_rules import READS, WITH_SEED, naive_legal

STAGES = [stage for stage in Stage if stage != Stage.UNKNOWN]


def legal_at(table, env, slot, op, max_seeds):
    """Return the legality of one (op, slot) by the rules in prose."""
    return naive_legal(
        op,
        Stage(table.stage[env, slot]).name,
        room=sum(Stage(stage).name in WITH_SEED for stage in table.stage[env]) < max_seeds,
        ramping=table.alpha_mode[env, slot] != HOLD,
        age=table.age[env, slot],
    )


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


# Legality


@given(tables(), st.data())
def test_legality_equals_the_rules_in_prose(table, data):
    max_seeds = data.draw(st.integers(1, table.shape[1]))
    rules = rules_for(table, max_seeds)
    legal = rules.legal(table)
    assert legal.shape == (table.shape[0], 6, table.shape[1])
    for env, op, slot in np.ndindex(legal.shape):
        assert legal[env, op, slot] == legal_at(table, env, slot, Op(op), max_seeds), (env, Op(op).name, slot)
    mask = rules.op_slot(legal)
    assert mask.dtype == np.int8
    assert mask.tolist() == legal.reshape(len(legal), -1).astype(int).tolist()


def test_committed_seed_counts_towards_max_seeds_and_cooldown_does_not():
    table = SlotTable.empty(1, 3)
    table.stage[0] = [Stage.FOSSILIZED, Stage.EMBARGOED, Stage.DORMANT]
    assert not rules_for(table, max_seeds=1).legal(table)[0, Op.GERMINATE].any()
    assert rules_for(table, max_seeds=2).legal(table)[0, Op.GERMINATE].tolist() == [False, False, True]


# Masks


def brute_force_marginal(table, env, offered):
    """Return the marginal mask of one environment from every joint action."""
    slots = table.shape[1]
    sizes = dict(zip(HEAD_NAMES, head_sizes(slots), strict=True))
    on = {name: [0] * sizes[name] for name in HEAD_NAMES}
    for op, slot, blueprint in itertools.product(Op, range(slots), Blueprint):
        if not legal_at(table, env, slot, op, slots) or (op == Op.GERMINATE and blueprint not in offered):
            continue
        on["op"][op] = 1
        for name in READS[op]:
            for value in {"slot": [slot], "blueprint": [blueprint]}.get(name, range(sizes[name])):
                on[name][value] = 1
    for name, default in zip(HEAD_NAMES, HEAD_DEFAULTS, strict=True):
        if not any(on[name]):
            on[name][default] = 1
    return [value for name in HEAD_NAMES for value in on[name]]


@settings(max_examples=60)
@given(tables(max_envs=2, max_slots=3), st.sampled_from([CNN_BLUEPRINTS, TRANSFORMER_BLUEPRINTS]))
def test_marginal_mask_is_the_union_of_legal_joint_actions(table, offered):
    rules = rules_for(table, offered=offered)
    mask = rules.marginal(rules.legal(table))
    assert mask.dtype == np.int8
    assert mask.tolist() == [brute_force_marginal(table, env, offered) for env in range(table.shape[0])]
    parts = rules.split(mask[0])
    assert [len(part) for part in parts] == list(rules.nvec)
    sample = MultiDiscrete(list(rules.nvec), seed=0).sample(mask=parts)
    assert all(part[value] == 1 for part, value in zip(parts, sample, strict=True))


@settings(max_examples=60)
@given(tables(max_envs=1), st.data())
def test_every_combination_of_conditional_masks_is_legal(table, data):
    rules = rules_for(table)
    legal = rules.legal(table)
    op = data.draw(st.sampled_from([op for op in Op if legal[0, op].any()]))
    masks = rules.split(rules.conditional(legal, op)[0])
    chosen = [data.draw(st.sampled_from(np.flatnonzero(mask).tolist())) for mask in masks]
    command = rules.decode([chosen], table)
    assert command.valid.item()
    assert command.op.item() == op
    for name, mask, default in zip(HEAD_NAMES, masks, HEAD_DEFAULTS, strict=True):
        if name == "op":
            expected = [op]
        elif name not in READS[op]:
            expected = [default]
        elif name == "slot":
            expected = np.flatnonzero(legal[0, op]).tolist()
        else:
            expected = sorted(CNN_BLUEPRINTS) if name == "blueprint" else list(range(len(mask)))
        assert np.flatnonzero(mask).tolist() == expected, name


# Sampling


@given(tables(), st.integers(0, 2**32 - 1))
def test_sampled_actions_are_legal_with_defaults_in_unread_heads(table, seed):
    rules = rules_for(table)
    legal = rules.legal(table)
    actions = sample_valid_actions(legal, np.random.default_rng(seed), CNN_BLUEPRINTS)
    np.testing.assert_array_equal(actions, sample_valid_actions(legal, np.random.default_rng(seed), CNN_BLUEPRINTS))
    assert actions.shape == (table.shape[0], 8)
    assert rules.decode(actions, table).valid.all()
    for row in actions:
        for name, value, default in zip(HEAD_NAMES, row, HEAD_DEFAULTS, strict=True):
            assert name == "op" or name in READS[Op(row[Head.OP])] or value == default


def test_sampling_is_uniform_over_ops_then_slots_then_arguments():
    table = SlotTable.empty(30_000, 4)
    table.stage[:] = [Stage.DORMANT, Stage.DORMANT, Stage.GERMINATED, Stage.HOLDING]
    table.age[:] = 1
    actions = sample_valid_actions(rules_for(table).legal(table), np.random.default_rng(0), CNN_BLUEPRINTS)
    ops = actions[:, Head.OP]
    germinated, pruned = actions[ops == Op.GERMINATE], actions[ops == Op.PRUNE]
    offered = [(value in CNN_BLUEPRINTS) / 7 for value in range(13)]
    for drawn, shares in (
        (ops, [1 / 6] * 6),
        (germinated[:, Head.SLOT], [0.5, 0.5, 0, 0]),
        (germinated[:, Head.BLUEPRINT], offered),
        (germinated[:, Head.STYLE], [1 / 4] * 4),
        (germinated[:, Head.TEMPO], [1 / 3] * 3),
        (pruned[:, Head.SLOT], [0, 0, 0.5, 0.5]),
    ):
        np.testing.assert_allclose(np.bincount(drawn, minlength=len(shares)) / len(drawn), shares, atol=0.03)


# Decoding


@given(tables(), st.integers(0, 2**32 - 1), st.sampled_from([np.int64, np.int32, np.uint8]))
def test_decode_keeps_what_a_legal_op_reads_and_turns_illegal_actions_into_waits(table, seed, dtype):
    rules = rules_for(table)
    actions = np.random.default_rng(seed).integers(0, rules.nvec, size=(table.shape[0], 8)).astype(dtype)
    requested = actions.copy()
    command = rules.decode(actions, table)
    actions[:] = 0  # the command has copies
    for env, row in enumerate(requested):
        op = Op(row[Head.OP])
        offered = op != Op.GERMINATE or Blueprint(row[Head.BLUEPRINT]) in CNN_BLUEPRINTS
        legal = legal_at(table, env, row[Head.SLOT], op, table.shape[1]) and offered
        assert command.valid[env] == legal
        assert command.requested_op[env] == op
        for name, value, default in zip(HEAD_NAMES, row, HEAD_DEFAULTS, strict=True):
            read = legal and (name == "op" or name in READS[op])
            assert getattr(command, name)[env] == (value if read else default)


@pytest.mark.parametrize("max_seeds", [0, 4])
def test_action_rules_reject_more_or_fewer_seeds_than_slots(max_seeds):
    with pytest.raises(ValueError, match=f"max_seeds is {max_seeds}; expected 1 to 3, the number of slots"):
        ActionRules(3, CNN_BLUEPRINTS, max_seeds)
