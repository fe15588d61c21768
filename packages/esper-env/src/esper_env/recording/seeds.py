"""Events of the seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np

from esper_env import telemetry as events
from esper_env.recording.step import Emissions, Names, StepRecord
from esper_env.rules.gates import NO_GATE, GateVerdict
from esper_env.rules.heads import Operator
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage

_OPERATORS = {operator.value: operator.name for operator in Operator}
_STAGES = {stage.value: stage.name for stage in Stage}


def gates(step: StepRecord) -> Emissions:
    """Events of the gates' decisions."""
    for env in step.where(step.changes.gates.gate != NO_GATE):
        verdict = step.changes.gates.verdict(env)
        assert verdict is not None
        yield env, int(step.changes.slot[env]), _gate_evaluated(verdict)


def stages(step: StepRecord, names: Names) -> Emissions:
    """Events of slots that changed their stage, and of their seeds.

    A rollback that undoes a commitment is one change, from FOSSILIZED to PRUNED.
    """
    for env, slot in step.places(step.before.stage != step.table.stage):
        source, target = int(step.before.stage[env, slot]), int(step.table.stage[env, slot])
        yield env, slot, _stage_changed(source, target)
        if target in _ARRIVALS:
            yield env, slot, _ARRIVALS[target](step, env, slot, names)


@lru_cache(maxsize=1024)  # many payloads are equal
def _gate_evaluated(verdict: GateVerdict) -> events.Payload:
    return events.SeedGateEvaluated(**{**verdict._asdict(), "gate": verdict.gate.name})


@cache
def _stage_changed(source: int, target: int) -> events.Payload:
    return events.SeedStageChanged(from_stage=_STAGES[source], to_stage=_STAGES[target])


def counterfactuals(step: StepRecord, names: Names) -> Emissions:
    """Events of measured contributions."""
    fresh = step.table.contribution_age == 0
    measured = step.epoch.measured
    for env in step.where(fresh.any(axis=1)):
        pairs = np.argwhere(np.triu(measured.interaction_measured[env], 1)).tolist()
        payload = events.CounterfactualComputed(
            contributions={
                names.slots[slot]: float(step.table.contribution[env, slot])
                for slot in np.flatnonzero(fresh[env]).tolist()
            },
            interactions={
                f"{names.slots[i]}+{names.slots[j]}": float(measured.interaction[env, i, j]) for i, j in pairs
            },
        )
        yield env, None, payload


def _germinated(step: StepRecord, env: int, slot: int, names: Names) -> events.Payload:
    table = step.table
    return events.SeedGerminated(
        blueprint=names.blueprints[int(table.blueprint[env, slot])],
        operator=_OPERATORS[int(table.operator[env, slot])],
        alpha_target=float(table.first_target[env, slot]),
    )


def _fossilized(step: StepRecord, env: int, slot: int, names: Names) -> events.Payload:
    return events.SeedFossilized(**_seed(step.before, env, slot, names))


def _pruned(step: StepRecord, env: int, slot: int, names: Names) -> events.Payload:
    return events.SeedPruned(
        **_seed(step.before, env, slot, names),
        stage=_STAGES[int(step.before.stage[env, slot])],
        initiator="governor" if step.epoch.judgement.roll_back[env] else "agent",
    )


def _seed(table: SlotTable, env: int, slot: int, names: Names) -> dict[str, Any]:
    measured = table.contribution_age[env, slot] >= 0
    return {
        "blueprint": names.blueprints[int(table.blueprint[env, slot])],
        "age": int(table.age[env, slot]),
        "contribution": float(table.contribution[env, slot]) if measured else None,
    }


#: Stage that a slot has entered -> payload about its seed.
_ARRIVALS: dict[int, Callable[[StepRecord, int, int, Names], events.Payload]] = {
    Stage.GERMINATED: _germinated,
    Stage.FOSSILIZED: _fossilized,
    Stage.PRUNED: _pruned,
}
