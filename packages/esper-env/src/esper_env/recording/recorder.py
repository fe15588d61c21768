"""Recorder of the events of N environments.

It emits the events of a step after the step, and builds no payload while no sink is attached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env import telemetry as events
from esper_env.persistence.state import ArrayState
from esper_env.recording import commands, networks, seeds
from esper_env.recording.step import Emissions, Mask, Names, StepRecord
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from esper_env.telemetry.memory import Accelerators

#: Steps between two memory checks, each of which can take as long as many events.
MEMORY_STEPS = 10


class Recorder(ArrayState):
    """Counts the episodes and returns of N environments, and emits their events.

    It counts also while no sink is attached, so that a sink can be attached at any time. An episode that a reset ends
    early has a number but no EPISODE_COMPLETED.

    Args:
        hub: destination of the events.
        slot_ids: names of the slots, in action order.
        blueprint_names: names by value of the blueprint head.
        accelerators: memory to watch besides that of the process; see ``MemoryWatch``.
    """

    STATE = ("episode", "returns", "length", "_epoch")

    def __init__(
        self,
        hub: events.Telemetry,
        num_envs: int,
        slot_ids: Sequence[str],
        blueprint_names: Mapping[int, str],
        accelerators: Accelerators | None = None,
    ) -> None:
        self.hub = hub
        self._names = Names(tuple(slot_ids), blueprint_names)
        self._accelerators = accelerators
        self._memory: events.MemoryWatch | None = None  # created by the first step that is recorded
        self._recorded = 0  # steps
        self._inspected: set[tuple[int, int]] = set()  # slot and blueprint
        self.episode = np.full(num_envs, -1, dtype=np.int64)  # number of the current one, -1 before the first
        self.returns = np.zeros(num_envs)
        self.length = np.zeros(num_envs, dtype=np.int64)
        self._epoch = np.zeros(num_envs, dtype=np.int64)

    def record_starts(self, rows: Mask, signals: Signals, fossilized: Mask) -> None:
        """Record that episodes started in ``rows`` (N,), with a measurement and a snapshot of each network."""
        self.episode[rows] += 1
        for column in (self.returns, self.length, self._epoch):
            column[rows] = 0
        if self.hub.wants(events.GovernorSnapshot):
            envs = np.flatnonzero(rows).tolist()
            self._emit(networks.snapshots(envs, signals, fossilized, self._names))

    def inspection_due(self, table: SlotTable) -> bool:
        """Return True if the step that trains the networks of ``table`` should check the isolation of the seeds.

        It should if a blueprint trains in a slot for the first time, because most breaches come from the module itself.
        """
        if not self.hub.wants(events.IsolationViolation):
            return False
        envs, slots = np.nonzero(table.stage == Stage.TRAINING)
        training = set(zip(slots.tolist(), table.blueprint[envs, slots].tolist(), strict=True))
        due = not training <= self._inspected
        self._inspected |= training
        return due

    def count(self, idle: Mask, epoch: NDArray[np.int64], rewards: NDArray[np.float64]) -> None:
        """Count a step of every environment except the ``idle`` (N,) ones, with the epochs (N,) after it."""
        running = ~idle
        np.add(self.returns, rewards, out=self.returns, where=running)
        self.length += running
        np.copyto(self._epoch, epoch, where=running)

    def record_step(self, step: StepRecord) -> None:
        """Emit the events of the step that was just counted. Call it only if the hub is active."""
        names, requests = self._names, commands.requests(step, self._names)
        alarm = self._emit(
            commands.issued(requests) if self.hub.wants(events.CommandIssued) else (),
            seeds.gates(step),
            networks.isolation(step, names),
            networks.governor(step, names),
            seeds.stages(step, names),
            networks.epochs(step),
            *self._details(step),
            commands.outcomes(requests, step),
        )
        alarm |= self._watch_memory()
        self.hub.epoch_passed()
        if alarm:
            self.hub.escalate()

    def record_ends(self, rows: Mask, terminated: Mask, values: Mapping[str, Any], final: Mapping[str, Any]) -> None:
        """Record that episodes ended in ``rows`` (N,). Those that ``terminated`` (N,) have ``final`` values."""
        if rows.any() and self.hub.wants(events.EpisodeCompleted):
            self._emit(
                (env, None, self._episode_of(env, terminated, values, final)) for env in np.flatnonzero(rows).tolist()
            )

    def _episode_of(
        self, env: int, terminated: Mask, values: Mapping[str, Any], final: Mapping[str, Any]
    ) -> events.EpisodeCompleted:
        final_known = bool(terminated[env])
        return events.EpisodeCompleted(
            episode_return=float(self.returns[env]),
            length=int(self.length[env]),
            truncated=not final_known,
            val_accuracy=float(values["val_accuracy"][env]),
            committed_val_accuracy=float(final["committed_val_accuracy"][env]) if final_known else None,
            test_accuracy=float(final["test_accuracy"][env]) if final_known else None,
            parameters_added=int(final["committed_parameters_added"][env]) if final_known else None,
            fossilized=int((values["slot_stage"][env] == Stage.FOSSILIZED).sum()),
            rollbacks=int(values["rollbacks"][env]),
        )

    def _details(self, step: StepRecord) -> list[Emissions]:
        """Return the events of full detail, which take time to build."""
        details = []
        if self.hub.wants(events.CounterfactualComputed):
            details.append(seeds.counterfactuals(step, self._names))
        if self.hub.wants(events.GovernorSnapshot):
            fossilized = step.epoch.structure.fossilized
            details.append(networks.snapshots(step.where(step.snapshots), step.signals, fossilized, self._names))
        return details

    def _emit(self, *emissions: Emissions) -> bool:
        """Emit events; return True if one of them is a warning or an error."""
        slots, episodes, epochs = self._names.slots, self.episode.tolist(), self._epoch.tolist()
        occurrences = [
            (payload, env, episodes[env], epochs[env], None if slot is None else slots[slot])
            for env, slot, payload in chain.from_iterable(emissions)
        ]
        self.hub.emit_all(occurrences)
        return any(payload.SEVERITY is not events.Severity.INFO for payload, *_ in occurrences)

    def _watch_memory(self) -> bool:
        """Check the memory in some steps; return True if it has passed a limit."""
        self._recorded += 1
        if self._recorded % MEMORY_STEPS != 1:
            return False
        if self._memory is None:
            self._memory = events.MemoryWatch(accelerators=self._accelerators)
        crossed = self._memory.check()
        if crossed is not None:
            self.hub.emit(crossed)
        return crossed is not None
