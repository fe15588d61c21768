"""Lifecycle against a naive model of one slot, written from the rules in prose."""

from copy import deepcopy
from dataclasses import fields

import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS
from esper_env.rules import lifecycle
from esper_env.rules.gates import GateConfig
from esper_env.rules.heads import (
    NO_BLUEPRINT,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    Curve,
    Head,
    Op,
    Operator,
    Style,
    Tempo,
    head_sizes,
)
from esper_env.rules.masks import ActionRules
from esper_env.rules.rejection import Rejection
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from esper_env.rules.stages import Stage
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from plain_rules import CAN_MOVE, WITH_SEED, action, naive_legal, naive_ramp

NAMES = [column.name for column in fields(SlotTable)]
EMPTY = SlotTable.empty(1, 1)
OPERATORS = {"LINEAR_ADD": "ADD", "LINEAR_MULTIPLY": "MULTIPLY", "SIGMOID_ADD": "ADD", "GATED_GATE": "GATE"}


def ramp(start, end, ticks, curve):
    """Return alphas after each tick."""
    return [start + (end - start) * naive_ramp(i / ticks, curve) for i in range(1, ticks)] + [end]


class NaiveSlot:
    """One slot by the rules in prose."""

    def __init__(self):
        self.stage, self.alpha, self.ramp, self.pruning = "DORMANT", 0.0, [], False
        self.blueprint = self.operator = self.first = None
        self.epochs = self.age = self.cooldown = 0
        self.contribution_age, self.healthy = -1, False
        self.just_pruned = False

    @property
    def has_seed(self):
        return self.stage in WITH_SEED

    def enter(self, stage):
        self.stage, self.epochs = stage, 0

    def remove(self):
        self.__init__()
        self.stage, self.just_pruned = "PRUNED", True

    def legal(self, op, room):
        return naive_legal(op, self.stage, room=room, ramping=bool(self.ramp), age=self.age)

    def act(self, op, blueprint, style, tempo, target, speed, curve):
        """Return True if the action took effect."""
        operator = OPERATORS[Style(style).name]
        goal = {"HALF": 0.5, "SEVENTY": 0.7, "FULL": 1.0}[AlphaTarget(target).name]
        ticks = {"INSTANT": 0, "FAST": 3, "MEDIUM": 5, "SLOW": 8}[AlphaSpeed(speed).name]
        if op == Op.GERMINATE:
            self.enter("GERMINATED")
            self.blueprint, self.operator = Blueprint(blueprint).name, operator
            length = {"FAST": 3, "STANDARD": 5, "SLOW": 8}[Tempo(tempo).name]
            self.first = (goal, length, Curve.LINEAR if Style(style).name.startswith("LINEAR") else Curve.SIGMOID)
        elif op == Op.ADVANCE and self.stage == "GERMINATED":
            self.enter("TRAINING")
        elif op == Op.ADVANCE and self.stage == "TRAINING":
            if self.epochs < 3 or not self.healthy:
                return False
            self.enter("BLENDING")
            self.contribution_age = -1
            self.ramp = ramp(0.0, *self.first)
        elif op == Op.ADVANCE:
            if self.ramp or self.alpha != 1.0:
                return False
            self.enter("HOLDING")
        elif op == Op.FOSSILIZE:
            if not self.healthy or self.contribution_age not in (0, 1):
                return False
            self.enter("FOSSILIZED")
        elif op == Op.SET_ALPHA_TARGET:
            if self.stage == "HOLDING" and goal < 1.0:
                self.enter("BLENDING")
            if operator != self.operator or (ticks == 0 and goal != self.alpha):
                self.contribution_age = -1
            self.operator = operator
            self.move_alpha(goal, ticks, curve)
        elif op == Op.PRUNE:
            if ticks == 0 or self.stage in ("GERMINATED", "TRAINING"):
                self.remove()
            else:
                if self.stage == "HOLDING":
                    self.enter("BLENDING")
                self.pruning = True
                self.move_alpha(0.0, ticks, curve)
        return True

    def move_alpha(self, goal, ticks, curve):
        if ticks == 0:
            self.alpha = goal
        elif goal != self.alpha:
            self.ramp = ramp(self.alpha, goal, ticks, curve)

    def tick(self):
        if self.stage == "BLENDING" and self.ramp:
            self.alpha = self.ramp.pop(0)
            if self.pruning and not self.ramp:
                self.remove()
        self.cool_down()

    def cool_down(self):
        if self.just_pruned:
            self.just_pruned = False
        elif self.stage in ("PRUNED", "EMBARGOED", "RESETTING"):
            self.cooldown += 1
            if self.cooldown == 7:
                self.__init__()
            else:
                self.stage = "RESETTING" if self.cooldown == 6 else "EMBARGOED"

    def roll_back(self, kept):
        """Apply a rollback to the slot as it was before the step."""
        if self.has_seed and not kept:
            self.remove()
        self.cool_down()

    def finish_epoch(self, measured, healthy):
        if self.has_seed:
            self.epochs += 1
            self.age += 1
            self.healthy = healthy
            if measured:
                self.contribution_age = 0
            elif self.contribution_age >= 0:
                self.contribution_age += 1


ROWS, SLOTS, MAX_SEEDS = 2, 3, 2
ARGUMENTS = st.tuples(st.integers(0, 8), *(st.integers(0, size - 1) for size in head_sizes(SLOTS)[2:-1]))
#: One of the possible actions, or (0) any action.
CHOICES = st.tuples(
    *[st.tuples(st.integers(0, 50), st.integers(0, SLOTS - 1), st.sampled_from(list(Op)), ARGUMENTS)] * 2
)
KEPT = st.lists(st.booleans(), min_size=ROWS * SLOTS, max_size=ROWS * SLOTS)


class LifecycleMachine(RuleBasedStateMachine):
    """Any actions of two environments, legal or not, with and without measurements and rollbacks."""

    def __init__(self):
        super().__init__()
        self.table = SlotTable.empty(ROWS, SLOTS)
        self.rules = ActionRules(SLOTS, CNN_BLUEPRINTS, MAX_SEEDS)
        self.models = [[NaiveSlot() for _ in range(SLOTS)] for _ in range(ROWS)]

    @initialize(planted=st.sampled_from([[], [(0, 1)], [(0, 2), (1, 0)]]), stage=st.sampled_from(WITH_SEED[-2:]))
    def plant(self, planted, stage):
        """Start with fossilized seeds, or with seeds in HOLDING."""
        mask = np.zeros(self.table.shape, dtype=bool)
        for row, slot in planted:
            mask[row, slot] = True
            model = self.models[row][slot]
            model.stage, model.alpha, model.blueprint, model.operator, model.age = stage, 1.0, "NORM", "ADD", 1
        lifecycle.place_committed(self.table, mask, Blueprint.NORM)
        for column in (self.table.alpha_start, self.table.alpha_target, self.table.first_target):
            np.testing.assert_array_equal(column, mask)
        assert (self.table.stage[mask] == Stage.FOSSILIZED).all()
        self.table.stage[mask], self.table.age[mask] = Stage[stage], 1

    def room(self, row):
        return sum(slot.has_seed for slot in self.models[row]) < MAX_SEEDS

    def fossils(self, kept):
        """Return the fossils that the snapshots hold."""
        return np.array(kept).reshape(ROWS, SLOTS) & (self.table.stage == Stage.FOSSILIZED)

    def chosen(self, row, choice):
        number, slot, op, arguments = choice
        legal = [(i, o) for i, s in enumerate(self.models[row]) for o in list(Op)[1:] if s.legal(o, self.room(row))]
        if number and legal:
            slot, op = legal[number % len(legal)]
        return [slot, *arguments, op]

    @rule(choices=CHOICES, measured=st.booleans(), healthy=st.booleans())
    def actions(self, choices, measured, healthy):
        self.step([self.chosen(row, choice) for row, choice in enumerate(choices)], measured, healthy)

    @rule(choices=CHOICES, rows=st.sampled_from([[True, False], [False, True], [True, True]]), kept=KEPT)
    def rolled_back_actions(self, choices, rows, kept):
        actions = [self.chosen(row, choice) for row, choice in enumerate(choices)]
        self.step(actions, rows=np.array(rows), kept=self.fossils(kept))

    @rule(slot=st.integers(0, SLOTS - 1), arguments=ARGUMENTS, forwards=st.sampled_from([1, 3, 9, 15, 15]), kept=KEPT)
    def push_one_seed(self, slot, arguments, forwards, kept):
        """Advance one slot as far as possible, and roll the last step back if the first flag of ``kept`` is set."""
        for forward in range(1, forwards + 1):
            actions = []
            for models in self.models:
                op = {"DORMANT": Op.GERMINATE, "HOLDING": Op.FOSSILIZE}.get(models[slot].stage, Op.ADVANCE)
                actions.append([slot, *arguments, op])
                if op == Op.FOSSILIZE and arguments[1] > 0:  # with most styles, alpha leaves 1 instead
                    actions[-1][Head.ALPHA_TARGET], actions[-1][Head.OP] = AlphaTarget.HALF, Op.SET_ALPHA_TARGET
            self.step(actions, rows=np.array([forward == forwards and kept[0]] * ROWS), kept=self.fossils(kept))

    @rule(steps=st.integers(1, 8))
    def wait(self, steps):
        for _ in range(steps):
            self.step([action()] * ROWS)

    def step(self, actions, measured=True, healthy=True, rows=None, kept=None):
        before, models_before = self.table.copy(), deepcopy(self.models)
        valid, succeeded = [], []
        for row, (slot, *arguments, op) in enumerate(actions):
            offered = op != Op.GERMINATE or arguments[0] in CNN_BLUEPRINTS
            valid.append(self.models[row][slot].legal(op, self.room(row)) and offered)
            succeeded.append(valid[row] and self.models[row][slot].act(op, *arguments))
            for model in self.models[row]:
                model.tick()
        command = self.rules.decode(actions, self.table)
        changes = lifecycle.apply(self.table, command, GateConfig())
        applied = self.table.stage.copy()
        lifecycle.tick(self.table, changes)
        assert command.valid.tolist() == valid
        assert (changes.rejection == Rejection.NONE).tolist() == succeeded
        assert self.table.contribution_age.tolist() == [[m.contribution_age for m in models] for models in self.models]
        self.check_changes(before, applied, changes)
        if rows is not None and rows.any():
            self.roll_back(before, models_before, rows, kept)
        self.measure(measured, healthy)

    def roll_back(self, before, models_before, rows, kept):
        lifecycle.roll_back(self.table, before, rows, kept)
        for row in np.flatnonzero(rows):
            self.models[row] = models_before[row]
            for slot, model in enumerate(self.models[row]):
                model.roll_back(kept[row, slot])
        unchanged = rows[:, None] & kept
        assert not self.table.alpha_velocity[rows].any()
        for name in NAMES:
            assert (getattr(self.table, name) == getattr(before, name))[unchanged].all(), name

    def measure(self, measured, healthy):
        table = self.table
        seeds = table.has_seed
        table.contribution_age[table.contribution_age >= 0] += 1
        table.gradient_measured[seeds] = healthy
        for name in ("gradient_health", "gradient_ratio", "contribution", "interaction_sum", "gradient_norm"):
            getattr(table, name)[seeds] = 1.0
        if measured:
            table.contribution_age[seeds] = 0
            table.contribution_alpha[seeds] = table.alpha[seeds]
        lifecycle.finish_epoch(table)
        for models in self.models:
            for model in models:
                model.finish_epoch(measured, healthy)

    def check_changes(self, before, applied, changes):
        table = self.table
        for old, new in ((before.stage, applied), (applied, table.stage)):
            assert ((old == new) | CAN_MOVE[old, new]).all()
        had, has = before.blueprint != NO_BLUEPRINT, table.blueprint != NO_BLUEPRINT
        np.testing.assert_array_equal(changes.attached, has & ~had)
        np.testing.assert_array_equal(changes.detached, had & ~has)
        np.testing.assert_array_equal(changes.operator_changed, had & has & (table.operator != before.operator))
        moved = table.alpha - before.alpha
        np.testing.assert_allclose(table.alpha_velocity[has], moved[has], atol=1e-15)
        assert (moved[has & (before.alpha_mode == UP)] >= 0).all()
        assert (moved[has & (before.alpha_mode == DOWN)] <= 0).all()

    @invariant()
    def agrees_with_the_naive_model(self):
        table, legal = self.table, self.rules.legal(self.table)
        for row, slot in np.ndindex(table.shape):
            model, place = self.models[row][slot], (row, slot)
            assert Stage(table.stage[place]).name == model.stage
            assert abs(table.alpha[place] - model.alpha) < 1e-12
            assert (table.alpha_mode[place] != HOLD) == bool(model.ramp)
            assert table.pruning[place] == model.pruning
            assert table.contribution_age[place] == model.contribution_age
            assert table.age[place] == model.age
            assert legal[row, :, slot].tolist() == [model.legal(op, self.room(row)) for op in Op]
            if model.has_seed:
                assert Blueprint(table.blueprint[place]).name == model.blueprint
                assert Operator(table.operator[place]).name == model.operator
                assert table.epochs_in_stage[place] == model.epochs

    @invariant()
    def the_table_is_sound(self):
        table = self.table
        table.validate()
        for name in set(NAMES) - {"stage", "epochs_in_stage"}:  # nothing of an earlier seed is left
            assert (getattr(table, name)[~table.has_seed] == getattr(EMPTY, name)).all(), name
        settled = (table.stage == Stage.HOLDING) | (table.stage == Stage.FOSSILIZED)
        assert (table.alpha[settled] == 1.0).all()
        assert (table.alpha[~table.is_blended] == 0.0).all()
        assert (table.has_seed.sum(axis=1) <= MAX_SEEDS).all()


TestLifecycle = LifecycleMachine.TestCase
TestLifecycle.settings = settings(  # a failure is readable as it is, and shrinking it takes minutes
    max_examples=60, stateful_step_count=20, deadline=None, phases=set(Phase) - {Phase.shrink, Phase.explain}
)


# Single rules


def play(table, actions):
    """Play actions of one environment, whose seeds are always healthy; return the stages of its first slot."""
    rules, stages = ActionRules(table.shape[1], CNN_BLUEPRINTS, table.shape[1]), []
    for one in actions:
        lifecycle.tick(table, lifecycle.apply(table, rules.decode([one], table), GateConfig()))
        table.gradient_measured[:] = table.has_seed
        table.gradient_health[:], table.contribution_alpha[:] = table.has_seed, table.alpha
        table.contribution_age[:] = np.where(table.has_seed, 0, -1)
        lifecycle.finish_epoch(table)
        stages.append(Stage(table.stage[0, 0]).name)
    return stages


@pytest.mark.parametrize("speed", [AlphaSpeed.INSTANT, AlphaSpeed.FAST])
def test_slot_is_free_seven_ticks_after_its_prune(speed, script):
    table = SlotTable.empty(1, 1)
    assert play(table, script()[:8])[-1] == "HOLDING"
    ramping = {AlphaSpeed.INSTANT: 0, AlphaSpeed.FAST: 2}[speed]
    stages = play(table, [action(Op.PRUNE, alpha_speed=speed)] + [action(Op.GERMINATE)] * (ramping + 8))
    assert stages == ["BLENDING"] * ramping + ["PRUNED"] + ["EMBARGOED"] * 5 + ["RESETTING", "DORMANT", "GERMINATED"]


def test_fossilized_seed_never_changes(script):
    table = SlotTable.empty(1, 1)
    assert play(table, script())[-1] == "FOSSILIZED"
    assert set(play(table, [action(op, alpha_target=AlphaTarget.HALF) for op in Op])) == {"FOSSILIZED"}
    assert table.alpha.item() == 1.0


@pytest.mark.parametrize(
    ("heads", "age"),
    [
        ({"style": Style.GATED_GATE}, -1),
        ({"style": Style.SIGMOID_ADD}, 0),
        ({"style": Style.LINEAR_ADD, "alpha_target": AlphaTarget.HALF}, -1),
        ({"style": Style.LINEAR_ADD, "alpha_target": AlphaTarget.HALF, "alpha_speed": AlphaSpeed.SLOW}, 0),
    ],
)
def test_new_operator_or_jump_makes_the_contribution_unmeasured(heads, age, script):
    table = SlotTable.empty(1, 1)
    assert play(table, script()[:8])[-1] == "HOLDING"
    command = ActionRules(1, CNN_BLUEPRINTS, 1).decode([action(Op.SET_ALPHA_TARGET, **heads)], table)
    lifecycle.apply(table, command, GateConfig())
    assert table.contribution_age.item() == age
