"""Signals of the validation curves: deltas, plateau, stabilisation and history of N environments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from esper_env.persistence.state import ArrayState
from esper_env.rules.slot_table import BoolArray, FloatArray, IntArray

WINDOW = 10  # epochs kept
HISTORY = 5  # epochs shown
#: Epochs averaged before plateau and stabilisation are judged: noise between epochs can be ten times the threshold.
SMOOTHING = 3
STABLE = (-0.05, 0.03)  # open interval of the relative loss improvement that counts as stable
STABLE_EPOCHS = 3  # stable epochs in a row that latch "stabilised"


@dataclass(frozen=True)
class Signals:
    """Reading of the validation curves of N environments. Every array is a copy, shape (N,) unless noted.

    Losses are raw: a diverged network has NaN or inf here.
    """

    epoch: IntArray  # 0 = the untrained network
    val_loss: FloatArray
    loss_delta: FloatArray  # previous minus now: positive is better
    val_accuracy: FloatArray  # 0..100
    accuracy_delta: FloatArray  # now minus previous: positive is better
    plateau_epochs: IntArray  # consecutive epochs without a smoothed gain of ``plateau_points``
    host_stabilised: BoolArray  # latched for the episode
    just_stabilised: BoolArray  # True only in the epoch that latched it
    loss_history: FloatArray  # (N, HISTORY) oldest first, left-padded with 0
    accuracy_history: FloatArray  # (N, HISTORY) oldest first, left-padded with 0
    best_val_accuracy: FloatArray  # of the whole episode
    window_best_val_loss: FloatArray  # of the last ``WINDOW`` epochs, NaN only if all of them are


class SignalTracker(ArrayState):
    """Validation curves of ``num_envs`` environments.

    ``reset`` records the untrained network as epoch 0, and ``update`` one trained epoch of every environment. ``peek``
    returns the latest reading. A smoothed gain below ``plateau_points`` counts as a plateau.
    """

    STATE = (
        "_losses",
        "_accuracies",
        "_epoch",
        "_plateau",
        "_stable",
        "_stabilised",
        "_just_stabilised",
        "_best_accuracy",
    )

    def __init__(self, num_envs: int, plateau_points: float) -> None:
        self.plateau_points = plateau_points
        # Newest value last; the first WINDOW - 1 - epoch entries of a row are padding.
        self._losses = np.zeros((num_envs, WINDOW))
        self._accuracies = np.zeros((num_envs, WINDOW))
        self._epoch = np.full(num_envs, -1, dtype=np.int64)  # -1 before the first reset
        self._plateau = np.zeros(num_envs, dtype=np.int64)
        self._stable = np.zeros(num_envs, dtype=np.int64)
        self._stabilised = np.zeros(num_envs, dtype=np.bool_)
        self._just_stabilised = np.zeros(num_envs, dtype=np.bool_)
        self._best_accuracy = np.zeros(num_envs)

    def reset(self, rows: BoolArray, val_loss: FloatArray, val_accuracy: FloatArray) -> None:
        """Start episodes in ``rows`` (N,) with losses (N,) and accuracies (N,) of the untrained networks."""
        self._losses[rows] = 0.0
        self._accuracies[rows] = 0.0
        self._losses[rows, -1] = val_loss[rows]
        self._accuracies[rows, -1] = val_accuracy[rows]
        self._best_accuracy[rows] = val_accuracy[rows]
        for counter in (self._epoch, self._plateau, self._stable, self._stabilised, self._just_stabilised):
            counter[rows] = 0

    def update(self, val_loss: FloatArray, val_accuracy: FloatArray) -> Signals:
        """Record one more epoch of every environment, with losses (N,) and accuracies (N,)."""
        previous_loss, previous_accuracy = self._smoothed(self._losses), self._smoothed(self._accuracies)
        for window, newest in ((self._losses, val_loss), (self._accuracies, val_accuracy)):
            window[:, :-1] = window[:, 1:]
            window[:, -1] = newest
        self._epoch += 1
        self._best_accuracy = np.maximum(self._best_accuracy, val_accuracy)

        gain = self._smoothed(self._accuracies) - previous_accuracy
        self._plateau = np.where(gain < self.plateau_points, self._plateau + 1, 0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # NaN compares as "not stable"
            improvement = (previous_loss - self._smoothed(self._losses)) / previous_loss
        stable = (improvement > STABLE[0]) & (improvement < STABLE[1])
        self._stable = np.where(stable, self._stable + 1, 0)
        reached = self._stable >= STABLE_EPOCHS
        self._just_stabilised = reached & ~self._stabilised
        self._stabilised = self._stabilised | reached
        return self.peek()

    def peek(self) -> Signals:
        """Return the reading of the last ``update`` or ``reset``."""
        started = self._epoch > 0
        with np.errstate(invalid="ignore"):  # inf - inf
            loss_delta = np.where(started, self._losses[:, -2] - self._losses[:, -1], 0.0)
        recorded = self._recorded(WINDOW)
        best_loss = np.fmin.reduce(np.where(recorded, self._losses, np.nan), axis=1)
        return Signals(
            epoch=self._epoch.copy(),
            val_loss=self._losses[:, -1].copy(),
            loss_delta=loss_delta,
            val_accuracy=self._accuracies[:, -1].copy(),
            accuracy_delta=np.where(started, self._accuracies[:, -1] - self._accuracies[:, -2], 0.0),
            plateau_epochs=self._plateau.copy(),
            host_stabilised=self._stabilised.copy(),
            just_stabilised=self._just_stabilised.copy(),
            loss_history=self._losses[:, -HISTORY:].copy(),
            accuracy_history=self._accuracies[:, -HISTORY:].copy(),
            best_val_accuracy=self._best_accuracy.copy(),
            window_best_val_loss=best_loss,
        )

    def _recorded(self, length: int) -> BoolArray:
        """Return (N, length), True for those of the last ``length`` epochs that exist."""
        ages: BoolArray = np.arange(length - 1, -1, -1) <= self._epoch[:, None]
        return ages

    def _smoothed(self, window: FloatArray) -> FloatArray:
        """Return the means (N,) over the last ``SMOOTHING`` epochs, or over fewer while the episode is younger."""
        recorded = self._recorded(SMOOTHING)
        recent = np.where(recorded, window[:, -SMOOTHING:], 0.0)
        mean: FloatArray = recent.sum(axis=1) / recorded.sum(axis=1)
        return mean
