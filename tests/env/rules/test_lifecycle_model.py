"""Lifecycle against a naive model of one slot, written from the rules in prose."""

import math
from dataclasses import fields

import numpy as np
import pytest
from blueprints import CNN_BLUEPRINTS
from esper_env.rules import lifecycle
from esper_env.rules.gates import GateConfig
from esper_env.rules.heads import (
    HEAD_DEFAULTS,
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
from esper_env.rules.masks import ActionRules, sample_valid_actions
from esper_env.rules.slot_table import DOWN, HOLD, UP, SlotTable
from esper_env.rules.stages import Stage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from stage_moves import CAN_MOVE

PERMISSIVE, STRICT = GateConfig.permissive(), GateConfig.strict()


def columns(table):
    return {f.name: getattr(table, f.name) for f in fields(table)}


def naive_ramp(start, end, ticks, curve):
    """Alphas after each tick, by the textbook formulas."""

    def shape(t):
        if curve == "LINEAR":
            return t
        if curve == "COSINE":
            return (1 - math.cos(math.pi * t)) / 2
        k = {"SIGMOID_GENTLE": 6, "SIGMOID": 12, "SIGMOID_SHARP": 24}[curve]
        low, high, here = (1 / (1 + math.exp(-k * (x - 0.5))) for x in (0, 1, t))
        return (here - low) / (high - low)

    return [start + (end - start) * shape(i / ticks) for i in range(1, ticks)] + [end]


class NaiveSlot:
    """One slot by the rules in prose."""

    def __init__(self):
        self.stage, self.alpha, self.ramp, self.pruning = "DORMANT", 0.0, [], False
        self.blueprint = self.operator = self.first = None
        self.epochs = self.age = self.cooldown = 0
        self.contribution_age, self.healthy = -1, False
        self.just_pruned = False

    def enter(self, stage):
        self.stage, self.epochs = stage, 0

    def remove(self):
        self.__init__()
        self.stage, self.just_pruned = "PRUNED", True

    def legal(self, op, room):
        live = self.stage in ("GERMINATED", "TRAINING", "BLENDING", "HOLDING")
        return {
            "WAIT": True,
            "GERMINATE": self.stage == "DORMANT" and room,
            "ADVANCE": self.stage in ("GERMINATED", "TRAINING", "BLENDING"),
            "FOSSILIZE": self.stage == "HOLDING",
            "PRUNE": live and self.age >= 1 and not self.ramp,
            "SET_ALPHA_TARGET": self.stage in ("BLENDING", "HOLDING") and not self.ramp,
        }[op]

    def act(self, op, blueprint, style, tempo, target, speed, curve):
        """Return True if the action took effect."""
        operator = {"LINEAR_ADD": "ADD", "LINEAR_MULTIPLY": "MULTIPLY", "SIGMOID_ADD": "ADD", "GATED_GATE": "GATE"}
        goal = {"HALF": 0.5, "SEVENTY": 0.7, "FULL": 1.0}[target]
        ticks = {"INSTANT": 0, "FAST": 3, "MEDIUM": 5, "SLOW": 8}[speed]
        if op == "GERMINATE":
            self.enter("GERMINATED")
            self.blueprint, self.operator = blueprint, operator[style]
            length = {"FAST": 3, "STANDARD": 5, "SLOW": 8}[tempo]
            self.first = (goal, length, "LINEAR" if style.startswith("LINEAR") else "SIGMOID")
        elif op == "ADVANCE" and self.stage == "GERMINATED":
            self.enter("TRAINING")
        elif op == "ADVANCE" and self.stage == "TRAINING":
            if self.epochs < 3 or not self.healthy:
                return False
            self.enter("BLENDING")
            self.contribution_age = -1
            self.ramp = naive_ramp(0.0, *self.first)
        elif op == "ADVANCE":
            if self.ramp or self.alpha != 1.0:
                return False
            self.enter("HOLDING")
        elif op == "FOSSILIZE":
            if not self.healthy or self.contribution_age not in (0, 1):
                return False
            self.enter("FOSSILIZED")
        elif op == "SET_ALPHA_TARGET":
            if self.stage == "HOLDING" and goal < 1.0:
                self.enter("BLENDING")
            if operator[style] != self.operator or (ticks == 0 and goal != self.alpha):
                self.contribution_age = -1
            self.operator = operator[style]
            self.move_alpha(goal, ticks, curve)
        elif op == "PRUNE":
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
            self.ramp = naive_ramp(self.alpha, goal, ticks, curve)

    def tick(self):
        if self.stage == "BLENDING" and self.ramp:
            self.alpha = self.ramp.pop(0)
            if self.pruning and not self.ramp:
                self.remove()
        if self.just_pruned:
            self.just_pruned = False
        elif self.stage in ("PRUNED", "EMBARGOED", "RESETTING"):
            self.cooldown += 1
            if self.cooldown == 7:
                self.__init__()
            else:
                self.stage = "RESETTING" if self.cooldown == 6 else "EMBARGOED"

    def finish_epoch(self, measured, healthy):
        if self.has_seed:
            self.epochs += 1
            self.age += 1
            self.healthy = healthy
            if measured:
                self.contribution_age = 0
            elif self.contribution_age >= 0:
                self.contribution_age += 1

    @property
    def has_seed(self):
        return self.stage in ("GERMINATED", "TRAINING", "BLENDING", "HOLDING", "FOSSILIZED")


SLOTS, MAX_SEEDS = 3, 2
ARGUMENTS = st.tuples(*(st.integers(0, size - 1) for size in head_sizes(SLOTS)[1:-1]))


class LifecycleMachine(RuleBasedStateMachine):
    """Any sequence of actions, legal or not, with and without measurements."""

    def __init__(self):
        super().__init__()
        self.table = SlotTable.empty(1, SLOTS)
        self.rules = ActionRules(SLOTS, CNN_BLUEPRINTS, MAX_SEEDS)
        self.model = [NaiveSlot() for _ in range(SLOTS)]

    @rule(op=st.sampled_from(list(Op)), slot=st.integers(0, SLOTS - 1), arguments=ARGUMENTS)
    def any_action(self, op, slot, arguments):
        self.step(op, slot, arguments)

    @rule(choice=st.integers(0, 1000), arguments=ARGUMENTS, measured=st.booleans(), healthy=st.booleans())
    def possible_action(self, choice, arguments, measured, healthy):
        room = sum(slot.has_seed for slot in self.model) < MAX_SEEDS
        options = [(op, i) for i, s in enumerate(self.model) for op in list(Op)[1:] if s.legal(op.name, room)]
        if options:
            self.step(*options[choice % len(options)], arguments, measured, healthy)

    @rule(slot=st.integers(0, SLOTS - 1), forwards=st.integers(1, 12), arguments=ARGUMENTS)
    def push_one_seed(self, slot, forwards, arguments):
        """Advance one slot, so that late stages are reached often."""
        for _ in range(forwards):
            stage = self.model[slot].stage
            op = {"DORMANT": Op.GERMINATE, "HOLDING": Op.SET_ALPHA_TARGET}.get(stage, Op.ADVANCE)
            self.step(op, slot, arguments)

    @rule(steps=st.integers(1, 8))
    def wait(self, steps):
        for _ in range(steps):
            self.step(Op.WAIT, 0, HEAD_DEFAULTS[1:-1])

    def step(self, op, slot, arguments, measured=True, healthy=True):
        blueprint, style, tempo, target, speed, curve = arguments
        before = {name: column.copy() for name, column in columns(self.table).items()}
        room = sum(s.has_seed for s in self.model) < MAX_SEEDS
        valid = self.model[slot].legal(op.name, room) and (op != Op.GERMINATE or blueprint in CNN_BLUEPRINTS)
        succeeded = valid and self.model[slot].act(
            op.name,
            Blueprint(blueprint).name,
            Style(style).name,
            Tempo(tempo).name,
            AlphaTarget(target).name,
            AlphaSpeed(speed).name,
            Curve(curve).name,
        )
        for model in self.model:
            model.tick()

        command = self.rules.decode([[slot, *arguments, op]], self.table)
        changes = lifecycle.apply(self.table, command, PERMISSIVE)
        applied = self.table.stage.copy()
        lifecycle.tick(self.table, changes)
        assert command.valid.item() == valid
        assert changes.succeeded.item() == succeeded
        self.check_changes(before, applied, changes)

        seeds = self.table.has_seed
        self.table.contribution_age[self.table.contribution_age >= 0] += 1
        self.table.gradient_measured[seeds] = healthy
        self.table.gradient_health[seeds] = 1.0
        if measured:
            self.table.contribution_age[seeds] = 0
            self.table.contribution_alpha[seeds] = self.table.alpha[seeds]
        lifecycle.finish_epoch(self.table)
        for model in self.model:
            model.finish_epoch(measured, healthy)

    def check_changes(self, before, applied, changes):
        table = self.table
        for old, middle, new in zip(before["stage"][0], applied[0], table.stage[0], strict=True):
            assert middle == old or CAN_MOVE[old, middle]
            assert new == middle or CAN_MOVE[middle, new]
            assert old != Stage.FOSSILIZED or new == Stage.FOSSILIZED
        had, has = before["blueprint"] != NO_BLUEPRINT, table.blueprint != NO_BLUEPRINT
        np.testing.assert_array_equal(changes.attached, has & ~had)
        np.testing.assert_array_equal(changes.detached, had & ~has)
        np.testing.assert_array_equal(changes.operator_changed, had & has & (table.operator != before["operator"]))
        np.testing.assert_array_equal(
            changes.fossilized, (table.stage == Stage.FOSSILIZED) & (before["stage"] != Stage.FOSSILIZED)
        )
        moved = table.alpha - before["alpha"]
        np.testing.assert_allclose(table.alpha_velocity[has], moved[has], atol=1e-15)
        going_up, going_down = before["alpha_mode"] == UP, before["alpha_mode"] == DOWN
        assert (moved[going_up & has] >= 0).all()
        assert (moved[going_down & has] <= 0).all()

    @invariant()
    def agrees_with_the_naive_model(self):
        for slot, model in enumerate(self.model):
            row = {name: column[0, slot] for name, column in columns(self.table).items()}
            assert Stage(row["stage"]).name == model.stage
            assert row["alpha"] == pytest.approx(model.alpha, abs=1e-12)
            assert (row["alpha_mode"] != HOLD) == bool(model.ramp)
            assert row["pruning"] == model.pruning
            assert row["contribution_age"] == model.contribution_age
            assert row["age"] == model.age
            if model.has_seed:
                assert Blueprint(row["blueprint"]).name == model.blueprint
                assert Operator(row["operator"]).name == model.operator
                assert row["epochs_in_stage"] == model.epochs

    @invariant()
    def the_table_is_sound(self):
        self.table.validate()
        table = self.table
        settled = (table.stage == Stage.HOLDING) | (table.stage == Stage.FOSSILIZED)
        assert (table.alpha[settled] == 1.0).all()
        assert (table.alpha[~table.is_blended] == 0.0).all()
        assert table.has_seed.sum() <= MAX_SEEDS

    @invariant()
    def legality_agrees_with_the_naive_model(self):
        legal = self.rules.legal(self.table)[0]
        room = sum(slot.has_seed for slot in self.model) < MAX_SEEDS
        for slot, model in enumerate(self.model):
            for op in Op:
                assert legal[op, slot] == model.legal(op.name, room)


TestLifecycle = LifecycleMachine.TestCase
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# Many environments


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([PERMISSIVE, STRICT]))
def test_environments_of_a_vector_are_independent(seed, gates):
    num_envs, num_slots = 5, 3
    rng = np.random.default_rng(seed)
    rules = ActionRules(num_slots, CNN_BLUEPRINTS, 2)
    together = SlotTable.empty(num_envs, num_slots)
    alone = [SlotTable.empty(1, num_slots) for _ in range(num_envs)]

    def step(table, actions, health):
        changes = lifecycle.apply(table, rules.decode(actions, table), gates)
        lifecycle.tick(table, changes)
        table.gradient_measured[:], table.gradient_health[:] = True, health
        table.gradient_ratio[:], table.contribution[:] = health, 3 * health
        table.contribution_age[:], table.contribution_alpha[:] = 0, 1.0
        lifecycle.finish_epoch(table)
        return changes

    for _ in range(40):
        actions = sample_valid_actions(rules.legal(together), rng, CNN_BLUEPRINTS)
        actions = np.where(rng.random((num_envs, 1)) < 0.2, rng.integers(0, rules.nvec, (num_envs, 8)), actions)
        health = rng.random((num_envs, num_slots))
        changes = step(together, actions, health)
        for env, table in enumerate(alone):
            own = step(table, actions[env : env + 1], health[env : env + 1])
            for name, column in columns(table).items():
                np.testing.assert_array_equal(column[0], columns(together)[name][env], err_msg=name)
            assert own.succeeded[0] == changes.succeeded[env]
            assert own.gates.gate[0] == changes.gates.gate[env]
            assert own.gates.verdict(0) == changes.gates.verdict(env)
            np.testing.assert_array_equal(own.attached[0], changes.attached[env])
            np.testing.assert_array_equal(own.detached[0], changes.detached[env])


def test_random_lives_reach_every_op_and_stage():
    rng = np.random.default_rng(3)
    rules = ActionRules(3, CNN_BLUEPRINTS, 3)
    table = SlotTable.empty(64, 3)
    ops, stages = set(), set()
    for _ in range(60):
        actions = sample_valid_actions(rules.legal(table), rng, CNN_BLUEPRINTS)
        changes = lifecycle.apply(table, rules.decode(actions, table), PERMISSIVE)
        lifecycle.tick(table, changes)
        table.gradient_measured[:], table.gradient_health[:] = True, 1.0
        table.contribution_age[:], table.contribution_alpha[:] = 0, table.alpha
        lifecycle.finish_epoch(table)
        ops |= set(actions[changes.succeeded, Head.OP].tolist())
        stages |= set(np.unique(table.stage).tolist())
    assert ops == set(Op)
    assert stages == set(Stage) - {Stage.UNKNOWN}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_illegal_action_acts_as_wait(seed):
    rng = np.random.default_rng(seed)
    rules = ActionRules(3, CNN_BLUEPRINTS, 2)
    acting, waiting = SlotTable.empty(8, 3), SlotTable.empty(8, 3)
    wait = np.tile(HEAD_DEFAULTS, (8, 1))
    for _ in range(20):
        command = rules.decode(rng.integers(0, rules.nvec, size=(8, 8)), acting)
        for table, commands in ((acting, command), (waiting, rules.decode(wait, waiting))):
            changes = lifecycle.apply(table, commands, PERMISSIVE)
            lifecycle.tick(table, changes)
            lifecycle.finish_epoch(table)
        illegal = ~command.valid
        for field in fields(SlotTable):
            ours, theirs = getattr(acting, field.name), getattr(waiting, field.name)
            np.testing.assert_array_equal(ours[illegal], theirs[illegal], err_msg=field.name)
            theirs[:] = ours
        legal = rules.legal(acting)
        progress = rules.decode(sample_valid_actions(legal, rng, CNN_BLUEPRINTS), acting)
        for table in (acting, waiting):
            changes = lifecycle.apply(table, progress, PERMISSIVE)
            lifecycle.tick(table, changes)
            table.gradient_measured[:], table.gradient_health[:] = table.has_seed, 1.0
            lifecycle.finish_epoch(table)
