"""What the validation curve says: deltas, plateau, stabilisation and history, for every environment at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from esper_env.persistence.state import ArrayState
from esper_env.rules.slot_table import BoolArray, FloatArray, IntArray

LN_2 = math.log(2.0)


@dataclass(frozen=True)
class SignalConfig:
    """Thresholds of the signals; a task carries its own.

    Plateau and stabilisation read values averaged over ``smoothing`` epochs, because the raw noise from one epoch to
    the next can be ten times the threshold.
    """

    window: int = 10  # epochs kept
    history: int = 5  # epochs shown
    smoothing: int = 3  # epochs averaged before plateau and stabilisation are judged
    plateau_points: float = 0.5  # a smaller smoothed gain counts as standing still
    stable_low: float = -0.05  # open interval of the relative loss improvement that counts as stable
    stable_high: float = 0.03
    stable_epochs: int = 3  # stable epochs in a row that latch "stabilised"

    def __post_init__(self) -> None:
        for name in ("history", "smoothing", "stable_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        needed = max(self.history, self.smoothing + 1)
        if self.window < needed:
            raise ValueError(f"window is {self.window}; history and smoothing + 1 need at least {needed} epochs")
        if not self.stable_low < self.stable_high:
            raise ValueError(f"stable_low {self.stable_low} must be below stable_high {self.stable_high}")
        if not math.isfinite(self.plateau_points):
            raise ValueError(f"plateau_points is {self.plateau_points}; expected a finite number of points")


@dataclass(frozen=True)
class Signals:
    """One reading of the validation curve of N environments. Every array is a copy, shape (N,) unless noted.

    Losses are raw: a diverged network shows NaN or inf here, and only the observation maps it into its range.
    """

    epoch: IntArray  # 0 = the untrained network
    val_loss: FloatArray
    loss_delta: FloatArray  # previous minus now: positive is better
    val_accuracy: FloatArray  # 0..100
    accuracy_delta: FloatArray  # now minus previous: positive is better
    plateau_epochs: IntArray  # epochs in a row without a smoothed gain of ``plateau_points``
    host_stabilised: BoolArray  # latched for the episode
    just_stabilised: BoolArray  # True in the one epoch that latched it
    loss_history: FloatArray  # (N, history) oldest first, left-padded with 0
    accuracy_history: FloatArray  # (N, history) oldest first, left-padded with 0
    best_val_accuracy: FloatArray  # of the whole episode
    window_best_val_loss: FloatArray  # of the last ``window`` epochs, NaN only if all of them are


class SignalTracker(ArrayState):
    """Keeps the validation curve of ``num_envs`` environments.

    ``reset`` records the untrained network as epoch 0, ``update`` one trained epoch of every environment. ``peek``
    returns what the last of the two left behind and changes nothing.

    A value on the 0..1 scale is an error. Give ``samples``, the size of the validation set, to have it noticed at
    once: a percentage of n samples is a whole multiple of 100/n, and a share k/n taken for a percentage is not,
    unless 100 divides k. Without ``samples`` it is noticed as soon as the loss rules the percentage out: every
    wrong answer costs at least ln 2 nats, so an accuracy of a percent needs a mean loss of at least 0.99 ln 2.
    Neither test can misfire on a real percentage, however low.
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

    def __init__(self, num_envs: int, config: SignalConfig | None = None, samples: int | None = None) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; expected at least 1")
        if samples is not None and samples < 1:
            raise ValueError(f"samples is {samples}; expected the size of the validation set, at least 1")
        self.config = config if config is not None else SignalConfig()
        self.samples = samples
        self.num_envs = num_envs
        # Newest value last; the first window - 1 - epoch entries of a row are padding.
        self._losses = np.zeros((num_envs, self.config.window))
        self._accuracies = np.zeros((num_envs, self.config.window))
        self._epoch = np.full(num_envs, -1, dtype=np.int64)  # -1 = never reset
        self._plateau = np.zeros(num_envs, dtype=np.int64)
        self._stable = np.zeros(num_envs, dtype=np.int64)
        self._stabilised = np.zeros(num_envs, dtype=np.bool_)
        self._just_stabilised = np.zeros(num_envs, dtype=np.bool_)
        self._best_accuracy = np.zeros(num_envs)

    def reset(self, rows: ArrayLike, val_loss: ArrayLike, val_accuracy: ArrayLike) -> None:
        """Start an episode in the environments of ``rows`` (N,) bool with the measurement of the untrained network.

        ``val_loss`` and ``val_accuracy`` have shape (N,); only the given rows are read. Raises ``ValueError`` on a
        wrong shape, or an accuracy that is no percentage.
        """
        mask = np.asarray(rows)
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(
                f"rows has dtype {mask.dtype}, shape {mask.shape}; expected a mask of {self.num_envs} bools"
            )
        loss, accuracy = self._checked(val_loss, val_accuracy, mask)
        self._losses[mask] = 0.0
        self._accuracies[mask] = 0.0
        self._losses[mask, -1] = loss[mask]
        self._accuracies[mask, -1] = accuracy[mask]
        self._best_accuracy[mask] = accuracy[mask]
        for counter in (self._epoch, self._plateau, self._stable, self._stabilised, self._just_stabilised):
            counter[mask] = 0

    def update(self, val_loss: ArrayLike, val_accuracy: ArrayLike) -> Signals:
        """Record one more epoch of every environment, ``val_loss`` and ``val_accuracy`` of shape (N,).

        Raises ``ValueError`` on a wrong shape or an accuracy that is no percentage, and ``RuntimeError`` before the
        first reset of every environment; nothing has changed then.
        """
        self._require_reset()
        loss, accuracy = self._checked(val_loss, val_accuracy, np.ones(self.num_envs, dtype=np.bool_))
        previous_loss, previous_accuracy = self._smoothed(self._losses), self._smoothed(self._accuracies)
        for window, newest in ((self._losses, loss), (self._accuracies, accuracy)):
            window[:, :-1] = window[:, 1:]
            window[:, -1] = newest
        self._epoch += 1
        self._best_accuracy = np.maximum(self._best_accuracy, accuracy)

        gain = self._smoothed(self._accuracies) - previous_accuracy
        self._plateau = np.where(gain < self.config.plateau_points, self._plateau + 1, 0)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # NaN compares as "not stable"
            improvement = (previous_loss - self._smoothed(self._losses)) / previous_loss
        stable = (improvement > self.config.stable_low) & (improvement < self.config.stable_high)
        self._stable = np.where(stable, self._stable + 1, 0)
        reached = self._stable >= self.config.stable_epochs
        self._just_stabilised = reached & ~self._stabilised
        self._stabilised = self._stabilised | reached
        return self._build()

    def peek(self) -> Signals:
        """The record of the last ``update`` or ``reset``; nothing changes."""
        self._require_reset()
        return self._build()

    def _build(self) -> Signals:
        history = self.config.history
        started = self._epoch > 0
        with np.errstate(invalid="ignore"):  # inf - inf
            loss_delta = np.where(started, self._losses[:, -2] - self._losses[:, -1], 0.0)
        recorded = self._recorded(self.config.window)
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
            loss_history=self._losses[:, -history:].copy(),
            accuracy_history=self._accuracies[:, -history:].copy(),
            best_val_accuracy=self._best_accuracy.copy(),
            window_best_val_loss=best_loss,
        )

    def _recorded(self, length: int) -> BoolArray:
        """(N, length) which of the last ``length`` epochs of the window exist."""
        ages: BoolArray = np.arange(length - 1, -1, -1) <= self._epoch[:, None]
        return ages

    def _smoothed(self, window: FloatArray) -> FloatArray:
        """(N,) mean over the last ``smoothing`` epochs, or over those there are."""
        recorded = self._recorded(self.config.smoothing)
        recent = np.where(recorded, window[:, -self.config.smoothing :], 0.0)
        mean: FloatArray = recent.sum(axis=1) / recorded.sum(axis=1)
        return mean

    def _require_reset(self) -> None:
        if (self._epoch < 0).any():
            missing = np.flatnonzero(self._epoch < 0).tolist()
            raise RuntimeError(f"environments {missing} have no measurement yet; call reset() for them first")

    def _checked(self, val_loss: ArrayLike, val_accuracy: ArrayLike, rows: BoolArray) -> tuple[FloatArray, FloatArray]:
        loss, accuracy = np.asarray(val_loss, dtype=np.float64), np.asarray(val_accuracy, dtype=np.float64)
        for name, values in (("val_loss", loss), ("val_accuracy", accuracy)):
            if values.shape != (self.num_envs,):
                raise ValueError(f"{name} has shape {values.shape}; expected ({self.num_envs},)")
        _check_percent(loss[rows], accuracy[rows], self.samples)
        return loss, accuracy


def _check_percent(loss: FloatArray, accuracy: FloatArray, samples: int | None) -> None:
    """Raise ``ValueError`` unless every accuracy can be a percentage."""
    outside = ~((accuracy >= 0.0) & (accuracy <= 100.0))
    if outside.any():
        raise ValueError(f"accuracy {accuracy[outside][0]} is outside 0..100; accuracies are percentages")
    small = (accuracy > 0.0) & (accuracy <= 1.0)
    impossible = small & (loss < (1.0 - accuracy / 100.0) * LN_2)
    if samples is not None:
        correct = accuracy * samples / 100.0
        # A share on the 0..1 scale is off by at least 0.01; rounding in float32 by far less.
        impossible |= small & (np.abs(correct - np.rint(correct)) > 0.005)
    if impossible.any():
        raise ValueError(
            f"accuracy {accuracy[impossible][0]} is on the 0..1 scale, expected a percentage 0..100; multiply it by 100"
        )
