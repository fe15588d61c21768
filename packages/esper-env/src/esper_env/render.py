"""Networks as text."""

from __future__ import annotations

from collections.abc import Sequence

from esper_env.rules.heads import NO_BLUEPRINT, Blueprint, Operator
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage


def describe_networks(table: SlotTable, signals: Signals, slot_ids: Sequence[str], horizon: int) -> tuple[str, ...]:
    """One text per environment: the epoch, the validation accuracy, and a line for every slot."""
    return tuple(_describe(row, table, signals, slot_ids, horizon) for row in range(table.shape[0]))


def _describe(row: int, table: SlotTable, signals: Signals, slot_ids: Sequence[str], horizon: int) -> str:
    head = f"epoch {signals.epoch[row]}/{horizon}  accuracy {signals.val_accuracy[row]:.1f}%"
    return "\n".join([head, *(_slot_line(row, slot, table, name) for slot, name in enumerate(slot_ids))])


def _slot_line(row: int, slot: int, table: SlotTable, name: str) -> str:
    stage = Stage(table.stage[row, slot]).name.lower()
    if table.blueprint[row, slot] == NO_BLUEPRINT:
        return f"  {name:6s} {stage}"
    blueprint = Blueprint(table.blueprint[row, slot]).name.lower()
    operator = Operator(table.operator[row, slot]).name.lower()
    alpha, points = table.alpha[row, slot], table.contribution[row, slot]
    measured = f"{points:+.1f} points" if table.contribution_age[row, slot] >= 0 else "not measured"
    return f"  {name:6s} {stage:10s} {blueprint:15s} {operator:8s} alpha {alpha:.2f}  contribution {measured}"
