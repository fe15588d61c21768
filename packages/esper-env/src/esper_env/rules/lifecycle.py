"""Life of the seeds: the effect of each op on the slot table, and the clock of ramps and cooldowns.

Commands come from :meth:`esper_env.rules.masks.ActionRules.decode`, the only judge of legality. Nothing here checks it
again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from esper_env.rules import alpha, gates
from esper_env.rules.gates import GateConfig, GateResults
from esper_env.rules.heads import (
    ALPHA_TARGETS,
    HEAD_DEFAULTS,
    HEAD_NAMES,
    SPEED_TICKS,
    STYLE_CURVE,
    STYLE_OPERATOR,
    TEMPO_TICKS,
    AlphaTarget,
    Op,
    Operator,
)
from esper_env.rules.rejection import rejections
from esper_env.rules.slot_table import HOLD, BoolArray, IntArray, SlotTable
from esper_env.rules.stages import IN_COOLDOWN, Stage, lookup

_GATED: dict[Op, dict[Stage, Stage]] = {
    Op.GERMINATE: {Stage.DORMANT: Stage.GERMINATED},
    Op.ADVANCE: {
        Stage.GERMINATED: Stage.TRAINING,
        Stage.TRAINING: Stage.BLENDING,
        Stage.BLENDING: Stage.HOLDING,
    },
    Op.FOSSILIZE: {Stage.HOLDING: Stage.FOSSILIZED},
}
#: ``GATED_TARGET[op, stage]``: the stage that the op leads to through a gate; UNKNOWN where it needs none.
GATED_TARGET = np.stack([lookup(_GATED.get(op, {}), Stage.UNKNOWN) for op in Op])

#: Clock ticks that a cooldown stage lasts, and the stage that follows.
_COOLDOWN: dict[Stage, tuple[int, Stage]] = {
    Stage.PRUNED: (1, Stage.EMBARGOED),
    Stage.EMBARGOED: (5, Stage.RESETTING),
    Stage.RESETTING: (1, Stage.DORMANT),
}


@dataclass(frozen=True)
class CommandBatch:
    """One decoded command per environment; every field has shape (N,).

    Fields named after heads hold head values. A head that the op does not read is at its default.
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
    requested_op: IntArray  # as the agent sent it

    def waiting(self, rows: BoolArray) -> CommandBatch:
        """Return this command with WAIT in the environments of ``rows`` (N,)."""
        heads = zip(HEAD_NAMES, HEAD_DEFAULTS, strict=True)
        return replace(self, **{name: np.where(rows, default, getattr(self, name)) for name, default in heads})


@dataclass(frozen=True)
class Changes:
    """Changes of the networks' structure in one step, and the outcome of each command."""

    attached: BoolArray  # (N, S) a new seed is in the slot
    detached: BoolArray  # (N, S) the seed is gone; the clock adds the ramps to 0 that end
    operator_changed: BoolArray  # (N, S) a seed that stays got another blend operator
    rejection: IntArray  # (N,) reason why the command had no effect, a ``Rejection``
    slot: IntArray  # (N,) slot of the command
    gates: GateResults  # evaluated before anything moved


def _enter(table: SlotTable, mask: BoolArray, stage: Stage) -> None:
    table.stage[mask] = stage
    table.epochs_in_stage[mask] = 0


def apply(table: SlotTable, command: CommandBatch, gate_config: GateConfig) -> Changes:
    """Carry out one command per environment on the table, and return the changes."""
    target = GATED_TARGET[command.op, table.stage[np.arange(len(command.op)), command.slot]]
    results = gates.evaluate(table, command.slot, gates.GATE_INTO[target], gate_config)
    entered = np.where(results.passed, target, Stage.UNKNOWN)
    chosen = np.arange(table.shape[1]) == command.slot[:, None]  # (N, S)

    def slots_of(selected: BoolArray) -> BoolArray:
        mask: BoolArray = chosen & selected[:, None]
        return mask

    table.alpha_velocity.fill(0.0)
    operator_before = table.operator.copy()
    attached = slots_of(entered == Stage.GERMINATED)
    _germinate(table, attached, command)
    for stage in (Stage.TRAINING, Stage.HOLDING, Stage.FOSSILIZED):
        _enter(table, slots_of(entered == stage), stage)
    _begin_blending(table, slots_of(entered == Stage.BLENDING))
    _set_alpha_target(table, slots_of(command.op == Op.SET_ALPHA_TARGET), command)
    detached = _prune(table, slots_of(command.op == Op.PRUNE), command)
    return Changes(
        attached=attached,
        detached=detached,
        operator_changed=(table.operator != operator_before) & ~attached & ~detached,
        rejection=rejections(command.valid, results),
        slot=command.slot,
        gates=results,
    )


def _germinate(table: SlotTable, mask: BoolArray, command: CommandBatch) -> None:
    _enter(table, mask, Stage.GERMINATED)
    for column, values in (
        (table.blueprint, command.blueprint),
        (table.operator, STYLE_OPERATOR[command.style]),
        (table.first_target, ALPHA_TARGETS[command.alpha_target]),
        (table.first_curve, STYLE_CURVE[command.style]),
        (table.first_ticks, TEMPO_TICKS[command.tempo]),
    ):
        np.copyto(column, values[:, None], where=mask)


def _begin_blending(table: SlotTable, mask: BoolArray) -> None:
    _enter(table, mask, Stage.BLENDING)
    # The prospective contribution is not comparable with the leave-one-out contribution of a blended seed.
    table.contribution_age[mask] = -1
    alpha.retarget(table, mask, table.first_target, table.first_ticks, table.first_curve)


def _set_alpha_target(table: SlotTable, mask: BoolArray, command: CommandBatch) -> None:
    """Set target, ramp and operator. A HOLDING seed that leaves alpha 1 returns to BLENDING."""
    below_full = (command.alpha_target != AlphaTarget.FULL)[:, None]
    _enter(table, mask & below_full & (table.stage == Stage.HOLDING), Stage.BLENDING)
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
    # The measured contribution belongs to another operator or another alpha.
    table.contribution_age[changed | (mask & (table.alpha_velocity != 0))] = -1


def _prune(table: SlotTable, mask: BoolArray, command: CommandBatch) -> BoolArray:
    """Remove seeds now, or start the ramps to 0 that end in their removal. Return the slots emptied now."""
    ticks = SPEED_TICKS[command.alpha_speed][:, None]
    ramped: BoolArray = mask & np.greater(ticks, 0) & table.is_blended
    _enter(table, ramped & (table.stage == Stage.HOLDING), Stage.BLENDING)
    alpha.retarget(table, ramped, 0.0, ticks, command.alpha_curve[:, None])
    table.pruning[ramped] = True
    now: BoolArray = mask & ~ramped
    discard(table, now)
    return now


def discard(table: SlotTable, mask: BoolArray) -> None:
    """Prune the seeds in the slots of ``mask`` (N, S) at once, also during a ramp."""
    if mask.any():
        _enter(table, mask, Stage.PRUNED)
        table.clear_seed(mask)


def roll_back(table: SlotTable, before: SlotTable, rows: BoolArray, kept: BoolArray) -> None:
    """Return the environments of ``rows`` (N,) to the table ``before`` this step's command, with one clock tick.

    Only the seeds that their snapshots hold are ``kept`` (N, S). A seed that was fossilized later is pruned, too.
    """
    table.take(before, rows)
    cooling = IN_COOLDOWN[table.stage] & rows[:, None]
    discard(table, table.has_seed & ~kept & rows[:, None])
    _tick_cooldown(table, cooling)


def tick(table: SlotTable, changes: Changes) -> None:
    """Advance the clock by one step: alpha ramps, and cooldowns that began before this step.

    A pruning ramp that ends removes its seed and adds the slot to ``changes.detached``.
    """
    cooling = IN_COOLDOWN[table.stage] & ~changes.detached
    alpha.tick(table, table.stage == Stage.BLENDING)
    ended = table.pruning & (table.alpha_mode == HOLD)
    discard(table, ended)
    changes.detached[ended] = True
    _tick_cooldown(table, cooling)


def _tick_cooldown(table: SlotTable, cooling: BoolArray) -> None:
    table.epochs_in_stage[cooling] += 1
    over = {
        stage: cooling & (table.stage == stage) & (table.epochs_in_stage >= ticks)
        for stage, (ticks, _) in _COOLDOWN.items()
    }
    for stage, mask in over.items():
        _enter(table, mask, _COOLDOWN[stage][1])


def finish_epoch(table: SlotTable) -> None:
    """Count a trained epoch in the stage and age of every seed. The clock counts cooldown stages."""
    table.epochs_in_stage[table.has_seed] += 1
    table.age[table.has_seed] += 1


def place_committed(table: SlotTable, mask: BoolArray, blueprint: int) -> None:
    """Put committed seeds (FOSSILIZED, alpha 1, ADD) into the empty slots of ``mask`` (N, S), without any gate."""
    _enter(table, mask, Stage.FOSSILIZED)
    table.blueprint[mask], table.operator[mask] = blueprint, Operator.ADD
    for column in (table.alpha, table.alpha_start, table.alpha_target, table.first_target):
        column[mask] = 1.0
