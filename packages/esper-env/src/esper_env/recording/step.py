"""What is known of a step of N networks once it is over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.population import Measurement, Mismatch, Structure, TrainStats
from esper_env.rules.governor import Judgement
from esper_env.rules.lifecycle import Changes, Command
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import SlotTable
from esper_env.telemetry import Payload

Mask = NDArray[np.bool_]


class TrainedEpoch(NamedTuple):
    """An epoch of N networks, which were trained, measured and judged, and put back where the governor saw to it."""

    structure: Structure  # of the networks as they are now
    isolated: Mask  # (N, S) seeds that trained in isolation
    stats: TrainStats
    measured: Measurement  # of the networks as they are now
    judgement: Judgement
    judged_loss: NDArray[np.float64]  # (N,) validation, of the networks as they were judged
    rescues: Mapping[int, Mismatch]  # by environment that was put back
    snapshot_epoch: NDArray[np.int64]  # (N,) of the snapshots that were there to go back to


class StepRecord(NamedTuple):
    """One step of N networks, as it turned out. Arrays are (N, ...)."""

    idle: Mask  # environments whose episode was over before it: nothing is told of them
    before: SlotTable
    table: SlotTable
    asked: Command
    changes: Changes
    succeeded: Mask
    epoch: TrainedEpoch
    rollbacks: NDArray[np.int64]
    put_aside: Mask
    signals: Signals
    parameters_added: NDArray[np.int64]
    rewards: NDArray[np.float64]

    def where(self, mask: Mask) -> list[int]:
        """Environments in which ``mask`` (N,) holds, the idle ones left out."""
        envs: list[int] = np.flatnonzero(mask & ~self.idle).tolist()
        return envs

    def places(self, mask: Mask) -> list[tuple[int, int]]:
        """(environment, slot) where ``mask`` (N, S) holds, idle environments left out."""
        return [(env, slot) for env, slot in np.argwhere(mask & ~self.idle[:, None]).tolist()]


class Names(NamedTuple):
    """What events call things."""

    slots: tuple[str, ...]  # in action order
    blueprints: Mapping[int, str]  # by value of the blueprint head

    def of(self, mask: Mask) -> tuple[str, ...]:
        """The slots in which ``mask`` (S,) holds."""
        return tuple(self.slots[slot] for slot in np.flatnonzero(mask).tolist())


#: Events of a step: environment, slot where the event is about one, and what it says.
Told = Iterable[tuple[int, int | None, Payload]]
