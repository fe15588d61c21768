"""Rollbacks undo the command, prune seeds that no snapshot holds, and advance the clock once."""

from dataclasses import fields

import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS
from esper_env.rules import lifecycle
from esper_env.rules.gates import GateConfig
from esper_env.rules.heads import HEAD_DEFAULTS, Head, Op, Tempo
from esper_env.rules.masks import ActionRules, sample_valid_actions
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import HAS_SEED, IN_COOLDOWN, Stage
from hypothesis import given
from hypothesis import strategies as st
from stage_moves import CAN_MOVE

SLOTS = 3
RULES = ActionRules(SLOTS, CNN_BLUEPRINTS, SLOTS)
NAMES = [column.name for column in fields(SlotTable)]
EMPTY = SlotTable.empty(1, 1)
#: Clock ticks of a cooldown stage, and the stage that follows.
COOLDOWN = {
    Stage.PRUNED: (1, Stage.EMBARGOED),
    Stage.EMBARGOED: (5, Stage.RESETTING),
    Stage.RESETTING: (1, Stage.DORMANT),
}


def step(table, actions):
    """Run one step of healthy networks up to the end of training."""
    changes = lifecycle.apply(table, RULES.decode(actions, table), GateConfig.permissive())
    lifecycle.tick(table, changes)
    return changes


def measure(table):
    """Fill every measured column."""
    seeds = table.has_seed
    table.contribution_age[table.contribution_age >= 0] += 1
    for name in ("gradient_health", "gradient_ratio", "contribution", "interaction_sum", "gradient_norm"):
        getattr(table, name)[seeds] = 0.75
    table.gradient_measured[:] = seeds
    table.contribution_age[seeds] = 0
    table.contribution_alpha[seeds] = np.where(table.stage == Stage.TRAINING, 1.0, table.alpha)[seeds]
    lifecycle.finish_epoch(table)


def lived(rng, rows, steps):
    """Return a table after random valid actions, most of which advance a seed."""
    table = SlotTable.empty(rows, SLOTS)
    for _ in range(steps):
        step(table, random_actions(rng, table))
        measure(table)
    return table


def random_actions(rng, table):
    legal = RULES.legal(table)
    on = legal.copy()
    on[:, [Op.WAIT, Op.SET_ALPHA_TARGET, Op.PRUNE]] = False
    preferred = on.any(axis=(1, 2)) & (rng.random(len(legal)) < 0.6)
    chosen = np.where(preferred[:, None, None], on, legal)
    return sample_valid_actions(chosen, rng, CNN_BLUEPRINTS)


def action(op, slot=0, **heads):
    values = np.array(HEAD_DEFAULTS, dtype=np.int64)
    values[Head.OP], values[Head.SLOT] = op, slot
    for name, value in heads.items():
        values[Head[name.upper()]] = value
    return values[None]


def values_at(table, row, slot):
    return {name: getattr(table, name)[row, slot].item() for name in NAMES}


def expected_at(before, row, slot, kept):
    """Return the expected columns of one slot after the rollback."""
    empty, own = values_at(EMPTY, 0, 0), values_at(before, row, slot)
    stage = Stage(own["stage"])
    if HAS_SEED[stage]:
        return own | {"alpha_velocity": 0.0} if kept else empty | {"stage": Stage.PRUNED}
    if not IN_COOLDOWN[stage]:
        return empty
    ticks, following = COOLDOWN[stage]
    spent = own["epochs_in_stage"] + 1
    return empty | ({"stage": stage, "epochs_in_stage": spent} if spent < ticks else {"stage": following})


def check(table, before, rows, kept):
    """Roll back, and compare every column of every slot."""
    after = table.copy()
    lifecycle.roll_back(table, before, rows, kept)
    for row, slot in np.ndindex(table.shape):
        wanted = expected_at(before, row, slot, kept[row, slot]) if rows[row] else values_at(after, row, slot)
        assert values_at(table, row, slot) == wanted, (row, slot, Stage(before.stage[row, slot]))
    table.validate()


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(0, 45),
    rows=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_roll_back_restores_every_slot_after_any_life(seed, steps, rows):
    rng = np.random.default_rng(seed)
    table = lived(rng, 4, steps)
    before = table.copy()
    step(table, random_actions(rng, table))
    kept = (before.stage == Stage.FOSSILIZED) & (rng.random(before.shape) < 0.7)
    check(table, before, np.array(rows), kept)


def test_lives_of_these_tests_reach_every_stage():
    stages = np.unique(np.concatenate([lived(np.random.default_rng(k), 4, 15 + k).stage.ravel() for k in range(30)]))
    assert set(stages.tolist()) == set(Stage) - {Stage.UNKNOWN}


def at_stage(stage):
    """Return one network whose first slot is in a stage after a step."""
    table = SlotTable.empty(1, SLOTS)
    way = [
        action(Op.GERMINATE, tempo=Tempo.FAST),
        action(Op.ADVANCE),
        *[action(Op.WAIT)] * 2,
        action(Op.ADVANCE),
        *[action(Op.WAIT)] * 2,
        action(Op.ADVANCE),
        action(Op.FOSSILIZE),
    ]
    if IN_COOLDOWN[stage]:
        way = [*way[:2], action(Op.PRUNE), *[action(Op.WAIT)] * 6]
    for actions in way:
        if table.stage[0, 0] == stage:
            break
        step(table, actions)
        measure(table)
    assert table.stage[0, 0] == stage
    return table


@pytest.mark.parametrize("stage", [stage for stage in Stage if CAN_MOVE[stage, Stage.PRUNED]])
def test_slot_is_free_seven_ticks_after_a_rollback(stage):
    before = at_stage(stage)
    table = before.copy()
    step(table, action(Op.WAIT))
    lifecycle.roll_back(table, before, np.array([True]), np.zeros((1, SLOTS), dtype=bool))
    measure(table)
    ticks = 0
    while table.stage[0, 0] != Stage.DORMANT:
        step(table, action(Op.WAIT))
        measure(table)
        ticks += 1
    assert ticks == 7


def test_roll_back_prunes_fossils_missing_from_the_snapshot():
    before = at_stage(Stage.FOSSILIZED)
    table = before.copy()
    step(table, action(Op.GERMINATE, 1))
    lifecycle.roll_back(table, before, np.array([True]), np.zeros((1, SLOTS), dtype=bool))
    assert table.stage.tolist() == [[Stage.PRUNED, Stage.DORMANT, Stage.DORMANT]]
    table.validate()
