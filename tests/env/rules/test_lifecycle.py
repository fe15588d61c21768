"""Life of a seed: the effect of each op, and the clock."""

from dataclasses import dataclass, field, fields

import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS
from esper_env.rules import lifecycle
from esper_env.rules.gates import NO_GATE, Gate, GateConfig
from esper_env.rules.heads import (
    HEAD_DEFAULTS,
    NO_BLUEPRINT,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    Curve,
    Op,
    Operator,
    Style,
    Tempo,
)
from esper_env.rules.masks import ActionRules
from esper_env.rules.slot_table import DOWN, SlotTable
from esper_env.rules.stages import Stage

HEADS = ["slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve", "op"]
PERMISSIVE, STRICT = GateConfig.permissive(), GateConfig.strict()


def action(op=Op.WAIT, **heads):
    values = dict(zip(HEADS, HEAD_DEFAULTS, strict=True)) | heads | {"op": op}
    return [int(values[name]) for name in HEADS]


def columns(table):
    return {f.name: getattr(table, f.name) for f in fields(table)}


@dataclass
class World:
    """One network whose measurements are always healthy, driven one action at a time."""

    slots: int = 1
    gates: GateConfig = PERMISSIVE
    table: SlotTable = field(init=False)
    rules: ActionRules = field(init=False)

    def __post_init__(self):
        self.table = SlotTable.empty(1, self.slots)
        self.rules = ActionRules(self.slots, CNN_BLUEPRINTS, self.slots)

    def step(self, op=Op.WAIT, **heads):
        table = self.table
        command = self.rules.decode([action(op, **heads)], table)
        changes = lifecycle.apply(table, command, self.gates)
        lifecycle.tick(table, changes)
        table.contribution_age[table.contribution_age >= 0] += 1
        seeds = table.has_seed
        table.gradient_measured[:] = seeds
        table.gradient_health[seeds] = table.gradient_ratio[seeds] = 1.0
        table.contribution[seeds] = 2.0
        table.contribution_age[seeds] = 0
        table.contribution_alpha[seeds] = np.where(table.stage == Stage.TRAINING, 1.0, table.alpha)[seeds]
        lifecycle.finish_epoch(table)
        return changes

    def wait(self, steps):
        for _ in range(steps):
            self.step()
        return self

    def grow(self, to, slot=0, **germination):
        """Take a slot from empty to a stage by the shortest path; blending ends with its ramp."""
        self.step(Op.GERMINATE, slot=slot, **({"tempo": Tempo.FAST} | germination))
        for stage, before in ((Stage.TRAINING, 0), (Stage.BLENDING, 2), (Stage.HOLDING, 2)):
            if self.stage(slot) == to:
                return self
            self.wait(before).step(Op.ADVANCE, slot=slot)
            assert self.stage(slot) == stage
        return self

    def stage(self, slot=0):
        return Stage(self.table.stage[0, slot])

    def alpha(self, slot=0):
        return self.table.alpha[0, slot].item()


# One op at a time


def test_germinate_attaches_the_chosen_seed():
    world = World(slots=2)
    changes = world.step(
        Op.GERMINATE,
        slot=1,
        blueprint=Blueprint.CONV_LIGHT,
        style=Style.GATED_GATE,
        tempo=Tempo.SLOW,
        alpha_target=AlphaTarget.SEVENTY,
    )
    assert changes.attached.tolist() == [[False, True]]
    assert changes.succeeded.tolist() == [True]
    assert changes.gates.gate.tolist() == [Gate.G0]
    assert world.table.stage.tolist() == [[Stage.DORMANT, Stage.GERMINATED]]
    assert world.table.blueprint.tolist() == [[NO_BLUEPRINT, Blueprint.CONV_LIGHT]]
    assert world.table.operator[0, 1] == Operator.GATE
    assert world.alpha(1) == 0.0
    world.step(Op.ADVANCE, slot=1)
    world.wait(2).step(Op.ADVANCE, slot=1)
    assert world.table.alpha_target[0, 1] == 0.7
    assert world.table.alpha_ticks_total[0, 1] == 8
    assert world.table.alpha_curve[0, 1] == Curve.SIGMOID


def test_germinate_clears_the_columns_of_the_empty_slot():
    world, clean = World(), World()
    for column in (world.table.contribution_age, world.table.contribution, world.table.gradient_measured):
        column[:] = 1
    for each in (world, clean):
        command = each.rules.decode([action(Op.GERMINATE)], each.table)
        lifecycle.apply(each.table, command, PERMISSIVE)
    for name, column in columns(world.table).items():
        np.testing.assert_array_equal(column, columns(clean.table)[name], err_msg=name)


def test_advance_to_blending_needs_three_epochs_of_training():
    world = World()
    world.step(Op.GERMINATE)
    world.step(Op.ADVANCE)
    early = world.wait(1).step(Op.ADVANCE)
    assert early.succeeded.tolist() == [False]
    assert early.gates.gate.tolist() == [Gate.G2]
    assert 0 < early.gates.verdict(0).score < 1
    assert early.gates.verdict(0).checks_failed == ("trained_long_enough",)
    assert world.stage() == Stage.TRAINING
    assert world.step(Op.ADVANCE).succeeded.tolist() == [True]
    assert world.stage() == Stage.BLENDING


def test_fossilized_seed_never_changes():
    world = World().grow(Stage.HOLDING)
    changes = world.step(Op.FOSSILIZE)
    assert changes.fossilized.tolist() == [[True]]
    assert changes.gates.gate.tolist() == [Gate.G5]
    for op in Op:
        world.step(op, alpha_target=AlphaTarget.HALF)
        assert world.stage() == Stage.FOSSILIZED
        assert world.alpha() == 1.0


def test_target_below_full_returns_a_holding_seed_to_blending():
    world = World().grow(Stage.HOLDING, style=Style.SIGMOID_ADD)
    changes = world.step(
        Op.SET_ALPHA_TARGET,
        alpha_target=AlphaTarget.HALF,
        alpha_speed=AlphaSpeed.MEDIUM,
        alpha_curve=Curve.LINEAR,
        style=Style.LINEAR_MULTIPLY,
    )
    assert changes.operator_changed.tolist() == [[True]]
    assert changes.gates.gate.tolist() == [NO_GATE]
    assert changes.gates.verdict(0) is None
    assert world.stage() == Stage.BLENDING
    assert world.table.operator.item() == Operator.MULTIPLY
    assert world.alpha() == pytest.approx(0.9)
    assert world.table.alpha_mode.item() == DOWN
    assert world.table.epochs_in_stage.item() == 1


@pytest.mark.parametrize(
    ("heads", "forgotten"),
    [
        ({"style": Style.GATED_GATE}, True),
        ({"alpha_target": AlphaTarget.HALF}, True),
        ({"alpha_target": AlphaTarget.HALF, "alpha_speed": AlphaSpeed.SLOW}, False),
        ({"style": Style.LINEAR_ADD}, False),
    ],
)
def test_new_operator_or_jump_makes_the_contribution_unmeasured(heads, forgotten):
    world = World().grow(Stage.HOLDING, style=Style.SIGMOID_ADD)
    command = world.rules.decode([action(Op.SET_ALPHA_TARGET, **heads)], world.table)
    lifecycle.apply(world.table, command, PERMISSIVE)
    assert world.table.contribution_age.item() == (-1 if forgotten else 0)


@pytest.mark.parametrize("stage", [Stage.BLENDING, Stage.HOLDING])
def test_instant_prune_clears_the_slot(stage):
    world = World().grow(stage).wait(2)
    changes = world.step(Op.PRUNE, alpha_speed=AlphaSpeed.INSTANT)
    assert changes.detached.tolist() == [[True]]
    assert not changes.operator_changed.any()
    empty = columns(SlotTable.empty(1, 1))
    for name, column in columns(world.table).items():
        assert column == empty[name] or name == "stage", name
    assert world.stage() == Stage.PRUNED


def test_slow_prune_ramps_alpha_to_zero_first():
    world = World(slots=2).grow(Stage.HOLDING, slot=1)
    changes = world.step(Op.PRUNE, slot=1, alpha_speed=AlphaSpeed.MEDIUM, alpha_curve=Curve.SIGMOID_GENTLE)
    assert changes.succeeded.tolist() == [True]
    assert not changes.detached.any()
    alphas = [world.alpha(1)]
    for _ in range(3):
        assert world.stage(1) == Stage.BLENDING
        assert world.table.pruning[0, 1]
        assert not world.step(Op.ADVANCE, slot=1).succeeded.item()
        alphas.append(world.alpha(1))
    np.testing.assert_allclose(alphas, [0.896, 0.661, 0.339, 0.104], atol=5e-4)
    last = world.step()
    assert last.detached.tolist() == [[False, True]]
    assert world.stage(1) == Stage.PRUNED
    assert world.alpha(1) == 0.0
    assert not world.table.pruning.any()


@pytest.mark.parametrize("speed", [AlphaSpeed.INSTANT, AlphaSpeed.FAST])
def test_slot_is_free_seven_ticks_after_its_prune(speed):
    world = World().grow(Stage.HOLDING)
    world.step(Op.PRUNE, alpha_speed=speed)
    while world.stage() != Stage.PRUNED:
        world.step()
    stages = []
    for _ in range(7):
        assert not world.step(Op.GERMINATE).succeeded.item()
        stages.append(world.stage().name)
        if len(stages) < 7:
            world.table.contribution_age[:] = 0
    assert stages == ["EMBARGOED"] * 5 + ["RESETTING", "DORMANT"]
    empty = columns(SlotTable.empty(1, 1))
    assert all(column == empty[name] for name, column in columns(world.table).items())
    assert world.step(Op.GERMINATE).succeeded.item()


def test_only_the_clock_counts_the_cooldown():
    world = World().grow(Stage.TRAINING)
    world.step(Op.PRUNE)
    wait = world.rules.decode([action()], world.table)
    for tick in range(1, 8):
        changes = lifecycle.apply(world.table, wait, PERMISSIVE)
        lifecycle.tick(world.table, changes)
        for _ in range(3):
            lifecycle.finish_epoch(world.table)
        assert (world.stage() == Stage.DORMANT) == (tick == 7)


def test_discard_prunes_during_a_ramp():
    world = World(slots=2).grow(Stage.HOLDING, slot=0)
    world.step(Op.PRUNE, slot=0, alpha_speed=AlphaSpeed.SLOW)
    lifecycle.discard(world.table, world.table.is_live)
    assert world.table.stage.tolist() == [[Stage.PRUNED, Stage.DORMANT]]
    assert world.wait(6).stage() == Stage.RESETTING
    assert world.wait(1).stage() == Stage.DORMANT


def test_wait_changes_only_epochs_and_age():
    world = World(slots=3).grow(Stage.HOLDING, slot=0).grow(Stage.TRAINING, slot=1)
    before = {name: column.copy() for name, column in columns(world.table).items()}
    changes = world.step()
    assert changes.succeeded.tolist() == [True]
    assert changes.gates.gate.tolist() == [NO_GATE]
    differing = {name for name, column in columns(world.table).items() if (column != before[name]).any()}
    assert differing == {"epochs_in_stage", "age"}


def test_strict_gate_stops_a_seed():
    world = World(gates=STRICT).grow(Stage.TRAINING).wait(2)
    world.table.contribution[:] = 0.1
    assert world.step(Op.ADVANCE).gates.verdict(0).checks_failed == ("prospective_contribution",)
    assert world.step(Op.ADVANCE).succeeded.item()
