"""The life of the seeds: what each op does to the slot table, and the clock that moves it on by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.rules import alpha, gates
from esper_env.rules.gates import NO_GATE, GateConfig, GateResults, GateVerdict
from esper_env.rules.heads import (
    ALPHA_TARGETS,
    NUM_OPS,
    SPEED_TICKS,
    STYLE_CURVE,
    STYLE_OPERATOR,
    TEMPO_TICKS,
    AlphaTarget,
    Op,
    Operator,
)
from esper_env.rules.slot_table import HOLD, BoolArray, FloatArray, IntArray, SlotTable
from esper_env.rules.stages import (
    CAN_MOVE,
    EMBARGO_TICKS,
    RESETTING_TICKS,
    STAGE_VALUES,
    Stage,
)

#: The stage an op asks for, by the stage it finds; each of these moves has a gate.
GATED_MOVES: dict[tuple[Op, Stage], Stage] = {
    (Op.GERMINATE, Stage.DORMANT): Stage.GERMINATED,
    (Op.ADVANCE, Stage.GERMINATED): Stage.TRAINING,
    (Op.ADVANCE, Stage.TRAINING): Stage.BLENDING,
    (Op.ADVANCE, Stage.BLENDING): Stage.HOLDING,
    (Op.FOSSILIZE, Stage.HOLDING): Stage.FOSSILIZED,
}


def _gated_targets() -> NDArray[np.int64]:
    table = np.full((NUM_OPS, STAGE_VALUES), Stage.UNKNOWN, dtype=np.int64)
    for (op, stage), target in GATED_MOVES.items():
        table[op, stage] = target
    table.flags.writeable = False
    return table


def _legal_from() -> NDArray[np.bool_]:
    table: NDArray[np.bool_] = np.not_equal(_gated_targets(), Stage.UNKNOWN)
    table[Op.WAIT] = True
    table[Op.PRUNE] = CAN_MOVE[:, Stage.PRUNED]
    table[Op.SET_ALPHA_TARGET, [Stage.BLENDING, Stage.HOLDING]] = True
    table.flags.writeable = False
    return table


#: ``GATED_TARGET[op, stage]``: stage the op asks a gate for; UNKNOWN where it asks none.
GATED_TARGET = _gated_targets()
#: ``LEGAL_FROM[op, stage]``: the stages in which an op makes sense at all.
LEGAL_FROM = _legal_from()

#: Clock ticks a cooldown stage lasts, and what follows it.
_COOLDOWN: dict[Stage, tuple[int, Stage]] = {
    Stage.PRUNED: (1, Stage.EMBARGOED),
    Stage.EMBARGOED: (EMBARGO_TICKS, Stage.RESETTING),
    Stage.RESETTING: (RESETTING_TICKS, Stage.DORMANT),
}
#: Path of a seed from nothing to committed.
_GROWTH = (Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED)


@dataclass(frozen=True)
class Command:
    """What each of N environments really does this step; every field has shape (N,).

    The fields named after heads hold head values; a head that the op does not read is at its default.
    """

    op: IntArray
    slot: IntArray
    blueprint: IntArray
    style: IntArray
    tempo: IntArray
    alpha_target: IntArray
    alpha_speed: IntArray
    alpha_curve: IntArray
    valid: BoolArray  # False: the requested action was illegal, and op is WAIT
    requested_op: IntArray  # what the agent asked for


@dataclass(frozen=True)
class Changes:
    """What a step did to the structure of the networks: (N, S) masks, and (N,) outcomes of the commands."""

    attached: BoolArray  # (N, S) a new seed is in the slot
    detached: BoolArray  # (N, S) the seed is gone; the clock adds the ramps to 0 that end
    operator_changed: BoolArray  # (N, S) a seed that stays got another blend operator
    fossilized: BoolArray  # (N, S) the seed became permanent
    succeeded: BoolArray  # (N,) the action took effect; a legal WAIT does, a failed gate does not
    gate: IntArray  # (N,) gate attempted, NO_GATE where none was
    gate_score: FloatArray  # (N,) its score, 0 where none was
    slot: IntArray  # (N,) slot the command was about
    gate_results: GateResults  # the details, taken before anything moved

    def verdict(self, env: int) -> GateVerdict | None:
        """The verdict of the gate environment ``env`` attempted, or None."""
        return self.gate_results.verdict(env, int(self.slot[env]))


def _move(table: SlotTable, mask: BoolArray, target: Stage) -> None:
    """Enter ``target`` in the slots of ``mask`` (N, S). Every change of stage goes through here."""
    illegal = mask & ~CAN_MOVE[table.stage, target]
    if illegal.any():
        env, slot = np.argwhere(illegal)[0]
        source = Stage(table.stage[env, slot]).name
        raise RuntimeError(
            f"slot {slot} of environment {env} cannot move from {source} to {target.name}; "
            "decode the actions with ActionRules, which turns illegal ones into WAIT"
        )
    table.stage[mask] = target
    table.epochs_in_stage[mask] = 0


def apply(table: SlotTable, command: Command, gate_config: GateConfig) -> Changes:
    """Carry out one command per environment on the table.

    Returns what changed. ``RuntimeError`` before anything changes for an op that the slot's stage does not allow:
    decoding turns those into WAIT.
    """
    rows = np.arange(table.shape[0])
    stage = table.stage[rows, command.slot]
    allowed = LEGAL_FROM[command.op, stage]
    if not allowed.all():
        env = int(np.flatnonzero(~allowed)[0])
        raise RuntimeError(
            f"{Op(command.op[env]).name} is not possible for slot {command.slot[env]} of environment {env} "
            f"in stage {Stage(stage[env]).name}; decode the actions with ActionRules"
        )
    alpha.begin_step(table)
    chosen = np.arange(table.shape[1]) == command.slot[:, None]  # (N, S)
    target = GATED_TARGET[command.op, stage]
    gated = target != Stage.UNKNOWN
    results = gates.evaluate(
        table,
        np.where(chosen, gates.GATE_INTO[target][:, None], NO_GATE),
        gate_config,
        command.blueprint[:, None],
    )
    passed = results.passed[rows, command.slot]

    def slots_of(selected: BoolArray) -> BoolArray:
        mask: BoolArray = chosen & selected[:, None]
        return mask

    operator_before = table.operator.copy()
    attached = slots_of(passed & (target == Stage.GERMINATED))
    fossilized = slots_of(passed & (target == Stage.FOSSILIZED))
    _germinate(table, attached, command)
    _move(table, slots_of(passed & (target == Stage.TRAINING)), Stage.TRAINING)
    _begin_blending(table, slots_of(passed & (target == Stage.BLENDING)))
    _move(table, slots_of(passed & (target == Stage.HOLDING)), Stage.HOLDING)
    _move(table, fossilized, Stage.FOSSILIZED)
    _set_alpha_target(table, slots_of(command.op == Op.SET_ALPHA_TARGET), command)
    detached = _prune(table, slots_of(command.op == Op.PRUNE), command)
    return Changes(
        attached=attached,
        detached=detached,
        operator_changed=(table.operator != operator_before) & ~attached & ~detached,
        fossilized=fossilized,
        succeeded=command.valid & (passed | ~gated),
        gate=results.gate[rows, command.slot],
        gate_score=results.score[rows, command.slot],
        slot=command.slot,
        gate_results=results,
    )


def _germinate(table: SlotTable, mask: BoolArray, command: Command) -> None:
    if not mask.any():
        return
    table.clear(mask)  # a new seed inherits no measurement, whoever wrote into the empty slot
    _move(table, mask, Stage.GERMINATED)
    for column, values in (
        (table.blueprint, command.blueprint),
        (table.operator, STYLE_OPERATOR[command.style]),
        (table.first_target, ALPHA_TARGETS[command.alpha_target]),
        (table.first_curve, STYLE_CURVE[command.style]),
        (table.first_ticks, TEMPO_TICKS[command.tempo]),
    ):
        np.copyto(column, values[:, None], where=mask)


def _begin_blending(table: SlotTable, mask: BoolArray) -> None:
    _move(table, mask, Stage.BLENDING)
    # The prospective contribution answered another question than the leave-one-out that now follows.
    table.contribution_age[mask] = -1
    alpha.retarget(table, mask, table.first_target, table.first_ticks, table.first_curve)


def _set_alpha_target(table: SlotTable, mask: BoolArray, command: Command) -> None:
    """New target, ramp and operator. A seed that leaves alpha 1 is no longer held: it blends again."""
    below_full = (command.alpha_target != AlphaTarget.FULL)[:, None]
    _move(table, mask & below_full & (table.stage == Stage.HOLDING), Stage.BLENDING)
    operator = STYLE_OPERATOR[command.style][:, None]
    changed = mask & (table.operator != operator)
    np.copyto(table.operator, operator, where=mask)
    alpha.retarget(
        table,
        mask,
        ALPHA_TARGETS[command.alpha_target][:, None],
        SPEED_TICKS[command.alpha_speed][:, None],
        command.alpha_curve[:, None],
    )
    # What was measured belongs to another operator or another alpha.
    table.contribution_age[changed | (mask & (table.alpha_velocity != 0))] = -1


def _prune(table: SlotTable, mask: BoolArray, command: Command) -> BoolArray:
    """Remove a seed now, or start the ramp to 0 that ends in its removal. Returns the slots emptied now."""
    ticks = SPEED_TICKS[command.alpha_speed][:, None]
    ramped: BoolArray = mask & np.greater(ticks, 0) & table.is_blended
    _move(table, ramped & (table.stage == Stage.HOLDING), Stage.BLENDING)
    alpha.retarget(table, ramped, 0.0, ticks, command.alpha_curve[:, None])
    table.pruning[ramped] = True
    now: BoolArray = mask & ~ramped
    discard(table, now)
    return now


def discard(table: SlotTable, mask: BoolArray) -> None:
    """Prune the seeds in the slots of ``mask`` (N, S) at once, whatever their schedule does.

    ``RuntimeError`` for a slot that holds no live seed: a fossilized one stays.
    """
    if mask.any():
        _move(table, mask, Stage.PRUNED)
        table.clear_seed(mask)


def roll_back(table: SlotTable, before: SlotTable, rows: BoolArray, kept: BoolArray) -> BoolArray:
    """Undo this step's command in the environments of ``rows`` (N,) and prune every seed but those ``kept`` (N, S).

    ``before`` is the table as it was before the command. The clock ticks all the same. Returns the slots (N, S) whose
    seeds are gone: the live ones, and those fossilized since the kept ones were put aside.
    """
    table.take(before, rows)
    table.alpha_velocity[rows] = 0.0
    cooling = table.in_cooldown & rows[:, None]
    gone: BoolArray = table.has_seed & ~kept & rows[:, None]
    # A fossil is never pruned. One that no snapshot holds was committed while the network was no longer healthy: that
    # commitment is undone with the rest.
    table.stage[gone & (table.stage == Stage.FOSSILIZED)] = Stage.HOLDING
    discard(table, gone)
    _tick_cooldown(table, cooling)
    return gone


def tick(table: SlotTable, changes: Changes) -> None:
    """The clock of one step, after the actions: alpha ramps and cooldown stages entered before this step.

    A ramp to 0 that ends completes its prune, which is added to ``changes.detached``.
    """
    cooling = table.in_cooldown & ~changes.detached
    alpha.tick(table, table.stage == Stage.BLENDING)
    ended = table.pruning & (table.alpha_mode == HOLD)
    discard(table, ended)
    changes.detached[ended] = True
    if cooling.any():
        _tick_cooldown(table, cooling)


def _tick_cooldown(table: SlotTable, cooling: BoolArray) -> None:
    table.epochs_in_stage[cooling] += 1
    over = {
        stage: cooling & (table.stage == stage) & (table.epochs_in_stage >= ticks)
        for stage, (ticks, _) in _COOLDOWN.items()
    }
    for stage, mask in over.items():
        _move(table, mask, _COOLDOWN[stage][1])
    table.clear(over[Stage.RESETTING])  # a free slot is empty in every column


def finish_epoch(table: SlotTable) -> None:
    """Count the epoch just trained: epochs in stage and age of every seed.

    Cooldown stages are counted by the clock, so that a prune is over after exactly 7 ticks.
    """
    table.epochs_in_stage[table.has_seed] += 1
    table.age[table.has_seed] += 1


def age_measurements(table: SlotTable) -> None:
    """Make every measured contribution one epoch older. Call it before the new measurements are written (age 0)."""
    table.contribution_age[table.contribution_age >= 0] += 1


def plant(table: SlotTable, mask: BoolArray, blueprint: ArrayLike) -> None:
    """Put committed seeds (FOSSILIZED, alpha 1, ADD) into the empty slots of ``mask`` (N, S).

    ``blueprint`` broadcasts to (N, S). No gate is asked and nothing is measured yet. ``RuntimeError`` for a slot
    that is not empty.
    """
    for stage in _GROWTH:
        _move(table, mask, stage)
    np.copyto(table.blueprint, np.asarray(blueprint, dtype=np.int64), where=mask)
    table.operator[mask] = Operator.ADD
    for column in (table.alpha, table.alpha_start, table.alpha_target, table.first_target):
        column[mask] = 1.0
