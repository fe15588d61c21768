"""Record of a completed step of N networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.population import Measurement, Mismatch, Structure, TrainStats
from esper_env.rules.governor import Judgement
from esper_env.rules.lifecycle import Changes, CommandBatch
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import SlotTable
from esper_env.telemetry import Payload

Mask = NDArray[np.bool_]


class TrainedEpoch(NamedTuple):
    """An epoch of N networks, after training, measurement, judgement and rollbacks."""

    structure: Structure  # after rollbacks
    isolated: Mask  # (N, S) seeds that trained in isolation
    stats: TrainStats
    measured: Measurement  # after rollbacks
    judgement: Judgement
    judged_loss: NDArray[np.float64]  # (N,) validation, before rollbacks
    rescues: Mapping[int, Mismatch]  # by environment that was rolled back
    snapshot_epoch: NDArray[np.int64]  # (N,) of the snapshots before this epoch


class StepRecord(NamedTuple):
    """One completed step of N networks. Arrays are (N, ...)."""

    idle: Mask  # environments whose episode had ended before; they have no events
    before: SlotTable
    table: SlotTable
    command: CommandBatch
    changes: Changes
    succeeded: Mask
    epoch: TrainedEpoch
    rollbacks: NDArray[np.int64]
    snapshots: Mask  # networks whose snapshot was taken
    signals: Signals
    parameters_added: NDArray[np.int64]
    rewards: NDArray[np.float64]

    def where(self, mask: Mask) -> list[int]:
        """Return the environments, except idle ones, in which ``mask`` (N,) is True."""
        envs: list[int] = np.flatnonzero(mask & ~self.idle).tolist()
        return envs

    def places(self, mask: Mask) -> list[tuple[int, int]]:
        """Return each (environment, slot), except idle environments, in which ``mask`` (N, S) is True."""
        return [(env, slot) for env, slot in np.argwhere(mask & ~self.idle[:, None]).tolist()]


class Names(NamedTuple):
    """Names of slots and blueprints in events."""

    slots: tuple[str, ...]  # in action order
    blueprints: Mapping[int, str]  # by value of the blueprint head

    def of(self, mask: Mask) -> tuple[str, ...]:
        """Return the slots in which ``mask`` (S,) is True."""
        return tuple(self.slots[slot] for slot in np.flatnonzero(mask).tolist())


#: Events of a step: environment, slot if the event is about one, and payload.
Emissions = Iterable[tuple[int, int | None, Payload]]
