"""Recorder of the events of N environments; it builds no payload while no sink is attached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from esper_env import telemetry as events
from esper_env.infos import Mask, Values
from esper_env.persistence.state import ArrayState
from esper_env.recording.step import Emission, StepEvents, StepRecord, snapshots
from esper_env.rules.actions import ActionNames
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
        slot_ids: names of the slots, in action order.
        blueprint_names: names by value of the blueprint head.
        accelerators: memory to watch besides that of the process; see ``MemoryWatch``.
        workers: ids of the worker processes.
    """

    STATE = ("episode", "returns", "length", "commands", "rejected", "_epoch")

    def __init__(
        self,
        hub: events.Telemetry,
        num_envs: int,
        slot_ids: Sequence[str],
        blueprint_names: Mapping[int, str],
        accelerators: Accelerators | None = None,
        workers: Sequence[int] = (),
    ) -> None:
        self.hub = hub
        self._names = ActionNames(slot_ids, blueprint_names)
        self._memory = events.MemoryWatch(accelerators=accelerators, workers=workers)
        self._recorded = 0  # steps
        self._inspected: set[tuple[int, int]] = set()  # slot and blueprint
        self.episode = np.full(num_envs, -1, dtype=np.int64)  # number of the current one, -1 before the first
        self.returns = np.zeros(num_envs)
        self.length, self.commands, self.rejected = (np.zeros(num_envs, dtype=np.int64) for _ in range(3))
        self._epoch = np.zeros(num_envs, dtype=np.int64)

    def record_starts(self, rows: Mask, signals: Signals, fossilized: Mask) -> None:
        """Record that episodes started in ``rows`` (N,), with a measurement and a snapshot of each network."""
        self.episode[rows] += 1
        for column in (self.returns, self.length, self.commands, self.rejected, self._epoch):
            column[rows] = 0
        self._emit(snapshots(rows, signals, fossilized, self._names))

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

    def count(
        self, idle: Mask, epoch: NDArray[np.int64], rewards: NDArray[np.float64], command: Mask, rejected: Mask
    ) -> None:
        """Count a step of every environment except the ``idle`` (N,) ones.

        Args:
            idle: environments that did not step.
            epoch: number of epochs (N,) after the step.
            rewards: rewards (N,).
            command: environments (N,) whose action was not WAIT.
            rejected: environments (N,) whose action was rejected.
        """
        running = ~idle
        np.add(self.returns, rewards, out=self.returns, where=running)
        self.length += running
        self.commands += running & command
        self.rejected += running & command & rejected
        np.copyto(self._epoch, epoch, where=running)

    def record_step(self, step: StepRecord) -> None:
        """Emit the events of the step that was just counted. Call it only if the hub is active."""
        alarm = self._emit(StepEvents(step, self._names, full=self.hub.wants(events.CounterfactualComputed)))
        self._recorded += 1
        if self._recorded % MEMORY_STEPS == 1 and (crossed := self._memory.check()) is not None:
            self.hub.emit(crossed)
            alarm = True
        self.hub.epoch_passed()
        if alarm:
            self.hub.escalate()

    def record_ends(self, rows: Mask, terminated: Mask, values: Values) -> None:
        """Record that episodes ended in ``rows`` (N,), with the infos' values; those that ``terminated`` (N,) count."""
        self._emit(
            (env, None, self._end_of(env, bool(terminated[env]), values)) for env in np.flatnonzero(rows).tolist()
        )

    def _end_of(self, env: int, terminated: bool, values: Values) -> events.EpisodeCompleted:
        return events.EpisodeCompleted(
            episode_return=float(self.returns[env]),
            length=int(self.length[env]),
            truncated=not terminated,
            val_accuracy=float(values["val_accuracy"][env]),
            committed_val_accuracy=float(values["committed_val_accuracy"][env]) if terminated else None,
            test_accuracy=float(values["test_accuracy"][env]) if terminated else None,
            parameters_added=int(values["committed_parameters_added"][env]) if terminated else None,
            fossilized=int((values["slot_stage"][env] == Stage.FOSSILIZED).sum()),
            commands=int(self.commands[env]),
            rejected=int(self.rejected[env]),
            rollbacks=int(values["rollbacks"][env]),
        )

    def _emit(self, emissions: Iterable[Emission]) -> bool:
        """Emit events if a sink is attached; return True if one of them is a warning or an error."""
        if not self.hub.active:
            return False
        slot_id, episodes, epochs = self._names.slot, self.episode.tolist(), self._epoch.tolist()
        occurrences = [
            (payload, env, episodes[env], epochs[env], None if slot is None else slot_id(slot))
            for env, slot, payload in emissions
        ]
        self.hub.emit_all(occurrences)
        return any(payload.SEVERITY is not events.Severity.INFO for payload, *_ in occurrences)
