"""Tells the events of N environments.

Everything is told after it happened: a success is never announced before the action was carried out. Nothing is built
while no sink is attached.
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
from esper_env.recording.step import Mask, Names, StepRecord, Told
from esper_env.rules.signals import Signals
from esper_env.rules.stages import Stage
from esper_env.telemetry.memory import Accelerators

#: Steps from one look at the memory to the next: where calls of the system are slow, one takes as long as many events.
MEMORY_STEPS = 10


class Recorder(ArrayState):
    """Counts the episodes and returns of N environments, and emits their events.

    Numbers are counted whether somebody listens or not, so that a sink may come at any time. An episode that is given
    up by a reset has a number and no EPISODE_COMPLETED.

    Args:
        hub: where the events go.
        slot_ids: names of the slots, in action order.
        blueprint_names: by value of the blueprint head.
        accelerators: what memory to watch besides that of the process; see ``MemoryWatch``.
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
        self._memory: events.MemoryWatch | None = None  # made by the first step that is told
        self._told = 0  # steps
        self.episode = np.full(num_envs, -1, dtype=np.int64)  # number of the present one, -1 before the first
        self.returns = np.zeros(num_envs)
        self.length = np.zeros(num_envs, dtype=np.int64)
        self._epoch = np.zeros(num_envs, dtype=np.int64)

    def began(self, rows: Mask, signals: Signals, fossilized: Mask) -> None:
        """Episodes began in ``rows`` (N,): the networks were measured and put aside."""
        self.episode[rows] += 1
        for column in (self.returns, self.length, self._epoch):
            column[rows] = 0
        if self.hub.wants(events.GovernorSnapshot):
            envs = np.flatnonzero(rows).tolist()
            self._emit(networks.snapshots(envs, signals, fossilized, self._names))

    def count(self, idle: Mask, epoch: NDArray[np.int64], rewards: NDArray[np.float64]) -> None:
        """A step of every environment but the ``idle`` (N,) ones is over, after which the epochs (N,) are these."""
        running = ~idle
        np.add(self.returns, rewards, out=self.returns, where=running)
        self.length += running
        np.copyto(self._epoch, epoch, where=running)

    def tell(self, step: StepRecord) -> None:
        """Emit the events of the step that was just counted; worth calling only when the hub is active."""
        names, asked = self._names, commands.asked(step, self._names)
        alarm = self._emit(
            commands.issued(asked) if self.hub.wants(events.CommandIssued) else (),
            seeds.gates(step),
            networks.isolation(step, names),
            networks.governor(step, names),
            seeds.moves(step, names),
            networks.epochs(step),
            *self._details(step),
            commands.outcomes(asked, step),
        )
        alarm |= self._watch_memory()
        self.hub.epoch_passed()
        if alarm:
            self.hub.escalate()

    def ended(self, rows: Mask, terminated: Mask, values: Mapping[str, Any], final: Mapping[str, Any]) -> None:
        """Episodes are over in ``rows`` (N,): cut where not ``terminated`` (N,), the others with ``final`` values."""
        if rows.any() and self.hub.wants(events.EpisodeCompleted):
            self._emit(
                (env, None, self._episode_of(env, terminated, values, final)) for env in np.flatnonzero(rows).tolist()
            )

    def _episode_of(
        self, env: int, terminated: Mask, values: Mapping[str, Any], final: Mapping[str, Any]
    ) -> events.EpisodeCompleted:
        known = bool(terminated[env])
        return events.EpisodeCompleted(
            episode_return=float(self.returns[env]),
            length=int(self.length[env]),
            truncated=not known,
            val_accuracy=float(values["val_accuracy"][env]),
            committed_val_accuracy=float(final["committed_val_accuracy"][env]) if known else None,
            test_accuracy=float(final["test_accuracy"][env]) if known else None,
            parameters_added=int(final["committed_parameters_added"][env]) if known else None,
            fossilized=int((values["slot_stage"][env] == Stage.FOSSILIZED).sum()),
            rollbacks=int(values["rollbacks"][env]),
        )

    def _details(self, step: StepRecord) -> list[Told]:
        """What is only told in full detail, as it takes time to put together."""
        told = []
        if self.hub.wants(events.CounterfactualComputed):
            told.append(seeds.counterfactuals(step, self._names))
        if self.hub.wants(events.GovernorSnapshot):
            fossilized = step.epoch.structure.fossilized
            told.append(networks.snapshots(step.where(step.put_aside), step.signals, fossilized, self._names))
        return told

    def _emit(self, *told: Told) -> bool:
        """Emit events; whether one of them is more than information."""
        slots, episodes, epochs = self._names.slots, self.episode.tolist(), self._epoch.tolist()
        occurrences = [
            (payload, env, episodes[env], epochs[env], None if slot is None else slots[slot])
            for env, slot, payload in chain.from_iterable(told)
        ]
        self.hub.emit_all(occurrences)
        return any(payload.SEVERITY is not events.Severity.INFO for payload, *_ in occurrences)

    def _watch_memory(self) -> bool:
        """Look at the memory now and then; whether it has passed a limit."""
        self._told += 1
        if self._told % MEMORY_STEPS != 1:
            return False
        if self._memory is None:
            self._memory = events.MemoryWatch(accelerators=self._accelerators)
        crossed = self._memory.check()
        if crossed is not None:
            self.hub.emit(crossed)
        return crossed is not None
