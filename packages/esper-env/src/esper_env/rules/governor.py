"""Governor: detects broken networks, and decides which healthy ones to snapshot.

It reads the validation loss of every epoch and looks for three faults, in this order. Losses, parameters or buffers
that are not finite are a fault at once. So is a collapse to guessing, in which a trained network has a loss close to
ln K again, that of guessing among K classes. Divergence, a loss far above the normal ones, is a fault once it persists.
Only healthy losses enter the history, and only healthy networks are snapshotted.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.persistence.state import ArrayState
from esper_env.rules.slot_table import BoolArray, FloatArray, IntArray


class Reason(IntEnum):
    """Fault of a network."""

    HEALTHY = 0
    NON_FINITE = 1
    COLLAPSE = 2
    DIVERGENCE = 3


WINDOW = 20  # healthy losses remembered
MIN_HISTORY = 10  # losses before a collapse is distinguishable from an untrained network
COLLAPSE_MEAN = 0.6  # mean loss of the history, in units of ln K, below which the network had learned
COLLAPSE_WIDTH = 0.065  # around the loss of guessing, in units of ln K
#: A divergent loss is this many standard deviations above the mean, and this many times the mean and ln K.
SIGMAS, MEAN_FACTOR, GUESSING_FACTOR = 6.0, 3.0, 2.0
PATIENCE = 3  # divergent epochs in a row
SNAPSHOT_EPOCHS = 5
MAX_ROLLBACKS = 3  # of an episode; the last one ends it


class Judgement(NamedTuple):
    """Judgement of N networks after an epoch; every field is (N,)."""

    reason: IntArray  # a ``Reason``
    threshold: FloatArray  # the loss limit, or the loss of guessing; NaN where there is none
    panics: IntArray  # consecutive unhealthy epochs, this one included
    roll_back: BoolArray  # roll the network back now


class Governor(ArrayState):
    """Governor of N environments of S slots, whose networks distinguish K classes.

    ``reset`` starts episodes. Every epoch then calls ``judge``, ``rolled_back`` for the networks that were restored,
    and ``snapshots_due`` and ``snapshots_taken`` for the others.
    """

    STATE = ("_history", "_count", "_panics", "rollbacks", "snapshot_epoch", "saved")

    def __init__(self, num_envs: int, num_slots: int, classes: int) -> None:
        self.guessing = math.log(classes)
        self._history = np.zeros((num_envs, WINDOW))  # newest last
        self._count = np.zeros(num_envs, dtype=np.int64)  # losses in the history
        self._panics = np.zeros(num_envs, dtype=np.int64)
        self.rollbacks = np.zeros(num_envs, dtype=np.int64)  # in the current episodes
        self.snapshot_epoch = np.zeros(num_envs, dtype=np.int64)  # of the episode
        self.saved = np.zeros((num_envs, num_slots), dtype=np.bool_)  # fossilized seeds that the snapshots hold

    @property
    def exhausted(self) -> BoolArray:
        """Environments (N,) whose episode ends because of too many rollbacks."""
        over: BoolArray = self.rollbacks >= MAX_ROLLBACKS
        return over

    def reset(self, rows: BoolArray, loss: FloatArray) -> None:
        """Start episodes in ``rows`` (N,) with the validation losses (N,) of the untrained networks."""
        for array in (self._history, self._count, self._panics, self.rollbacks, self.snapshot_epoch, self.saved):
            array[rows] = 0
        self._remember(rows & np.isfinite(loss), loss)

    def judge(self, finite: NDArray[np.bool_], loss: FloatArray) -> Judgement:
        """Judge an epoch by its validation losses (N,), which may be NaN.

        ``finite`` (N,) is True where training loss, parameters and buffers are finite.
        """
        mean, deviation = self._moments()
        with np.errstate(invalid="ignore", over="ignore"):
            broken = ~finite | ~np.isfinite(loss)
            learned = (self._count >= MIN_HISTORY) & (mean < COLLAPSE_MEAN * self.guessing)
            guessing = np.abs(loss - self.guessing) <= COLLAPSE_WIDTH * self.guessing
            ceiling = np.maximum(mean + SIGMAS * deviation, MEAN_FACTOR * mean)
            ceiling = np.maximum(ceiling, GUESSING_FACTOR * self.guessing)
            divergent = loss > ceiling
        reason = np.select(
            [broken, learned & guessing, divergent],
            [Reason.NON_FINITE, Reason.COLLAPSE, Reason.DIVERGENCE],
            Reason.HEALTHY,
        ).astype(np.int64)
        healthy = reason == Reason.HEALTHY
        self._panics = np.where(healthy, 0, self._panics + 1)
        self._remember(healthy, loss)
        at_once = (reason == Reason.NON_FINITE) | (reason == Reason.COLLAPSE)
        return Judgement(
            reason=reason,
            threshold=np.select(
                [reason == Reason.COLLAPSE, reason == Reason.DIVERGENCE], [self.guessing, ceiling], np.nan
            ),
            panics=self._panics.copy(),
            roll_back=at_once | (self._panics >= PATIENCE),
        )

    def rolled_back(self, rows: BoolArray, loss: FloatArray) -> None:
        """Record that networks of ``rows`` (N,) were restored, and now have validation losses (N,).

        Their histories restart, because a network that has just lost its live seeds may have to learn again. Otherwise
        one fault would cause rollbacks until the episode ends.
        """
        self._panics[rows] = 0
        self.rollbacks[rows] += 1
        self._history[rows] = 0
        self._count[rows] = 0
        # A host that depended on its seeds can be worse than guessing, which must not count as normal.
        self._remember(rows & np.isfinite(loss), np.minimum(loss, self.guessing))

    def snapshots_due(self, epoch: IntArray, fossilized: BoolArray) -> BoolArray:
        """Return networks (N,) to snapshot after ``epoch`` (N,): healthy, with a new fossil or an old snapshot."""
        old = epoch - self.snapshot_epoch >= SNAPSHOT_EPOCHS
        wanted: BoolArray = (self._panics == 0) & (old | (fossilized != self.saved).any(axis=1))
        return wanted

    def snapshots_taken(self, rows: BoolArray, epoch: IntArray, fossilized: BoolArray) -> None:
        """Record that ``rows`` (N,) were snapshotted after ``epoch`` (N,) with these seeds (N, S) fossilized."""
        self.snapshot_epoch[rows] = epoch[rows]
        self.saved[rows] = fossilized[rows]

    def _remember(self, rows: BoolArray, loss: FloatArray) -> None:
        self._history[rows, :-1] = self._history[rows, 1:]
        self._history[rows, -1] = loss[rows]
        self._count[rows] = np.minimum(self._count[rows] + 1, WINDOW)

    def _moments(self) -> tuple[FloatArray, FloatArray]:
        """Return means and standard deviations (N,) of the histories; NaN where one is empty."""
        known = np.arange(WINDOW - 1, -1, -1) < self._count[:, None]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            mean = np.where(known, self._history, 0.0).sum(axis=1) / self._count
            spread = np.where(known, self._history - mean[:, None], 0.0)
            deviation = np.sqrt(np.square(spread).sum(axis=1) / self._count)
        return mean, deviation
