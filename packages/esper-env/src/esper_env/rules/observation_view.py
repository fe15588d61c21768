"""Features as named quantities in their own units."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from esper_env.rules.observation import (
    CONTRIBUTION_LOG,
    FRESHNESS,
    LOSS_LOG,
    MAX_ACCURACY_DELTA,
    MAX_BOOST,
    MAX_GRADIENT_NORM,
    MAX_INTERACTION,
    MAX_LOSS_DELTA,
    MAX_PLATEAU,
    NUM_BASE,
    NUM_SLOT,
    base_index,
    feature_count,
    slot_index,
)
from esper_env.rules.slot_table import BoolArray, FloatArray, IntArray
from esper_env.rules.stages import Stage

_STAGE_VALUES: IntArray = np.array(list(Stage), dtype=np.int64)


class ObservationView:
    """Unscaled quantities of features (..., 31 + 30 S), single or batched.

    Quantities of the network have the leading shape, those of slots the leading shape + (S,). Clamped values stay
    clamped: a plateau of 25 epochs reads 20, and a gradient norm of 50 reads 10.

    Args:
        features: (..., 31 + 30 S) features of observations.
        num_slots: S.
        horizon: epochs of an episode.

    Raises:
        ValueError: the shape is wrong, or the horizon is below 1.
    """

    def __init__(self, features: ArrayLike, num_slots: int, horizon: int) -> None:
        values = np.asarray(features, dtype=np.float64)
        if values.ndim < 1 or values.shape[-1] != feature_count(num_slots):
            raise ValueError(
                f"features of shape {values.shape}; expected {feature_count(num_slots)} for {num_slots} slots"
            )
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; expected at least 1 epoch")
        self.num_slots = num_slots
        self.horizon = horizon
        self._features = values
        self._slots = values[..., NUM_BASE:].reshape(*values.shape[:-1], num_slots, NUM_SLOT)

    def base(self, name: str) -> FloatArray:
        """Return a scaled field (...) of ``BASE_FIELDS``."""
        return self._features[..., base_index(name)]

    def slot(self, name: str) -> FloatArray:
        """Return a scaled field (..., S) of ``SLOT_FIELDS``."""
        return self._slots[..., slot_index(name, 0) - NUM_BASE]

    @property
    def epoch(self) -> IntArray:
        """Completed epochs."""
        return _whole(self.base("epoch") * self.horizon)

    @property
    def val_loss(self) -> FloatArray:
        """Validation loss in nats, at most 120."""
        return np.expm1(self.base("val_loss") * LOSS_LOG)

    @property
    def loss_delta(self) -> FloatArray:
        """Previous minus current loss in nats, within +-2."""
        return self.base("loss_delta") * MAX_LOSS_DELTA

    @property
    def val_accuracy(self) -> FloatArray:
        """Validation accuracy, 0..100."""
        return self.base("val_accuracy") * 100.0

    @property
    def accuracy_delta(self) -> FloatArray:
        """Current minus previous accuracy in points, within +-10."""
        return self.base("accuracy_delta") * MAX_ACCURACY_DELTA

    @property
    def best_val_accuracy(self) -> FloatArray:
        """Best accuracy of the episode, 0..100."""
        return self.base("best_val_accuracy") * 100.0

    @property
    def plateau_epochs(self) -> IntArray:
        """Consecutive epochs without progress, at most 20."""
        return _whole(self.base("plateau_epochs") * MAX_PLATEAU)

    @property
    def host_stabilised(self) -> BoolArray:
        """True if the host has stabilised in this episode."""
        return self.base("host_stabilised") > 0.5

    @property
    def last_action_succeeded(self) -> BoolArray:
        """True if the last action succeeded."""
        return self.base("last_action_succeeded") > 0.5

    @property
    def last_op(self) -> IntArray:
        """Value of the op that was executed last."""
        first, last = base_index("last_op_wait"), base_index("last_op_advance")
        op: IntArray = np.argmax(self._features[..., first : last + 1], axis=-1)
        return op

    @property
    def stage(self) -> IntArray:
        """Values of ``Stage``; an empty slot is DORMANT."""
        first, last = slot_index("stage_unknown", 0) - NUM_BASE, slot_index("stage_resetting", 0) - NUM_BASE
        one_hot = self._slots[..., first : last + 1]
        stage: IntArray = np.where(one_hot.any(axis=-1), _STAGE_VALUES[np.argmax(one_hot, axis=-1)], int(Stage.DORMANT))
        return stage

    @property
    def active(self) -> BoolArray:
        """True if the slot holds a seed."""
        return self.slot("active") > 0.5

    @property
    def alpha(self) -> FloatArray:
        """Blend weight, 0..1."""
        return self.slot("alpha")

    @property
    def alpha_target(self) -> FloatArray:
        """Alpha at the end of the current or last ramp, 0..1."""
        return self.slot("alpha_target")

    @property
    def alpha_mode(self) -> IntArray:
        """Mode of the alpha schedule: HOLD 0, UP 1, DOWN 2."""
        return _whole(self.slot("alpha_mode") * 2)

    @property
    def alpha_ticks_left(self) -> IntArray:
        """Clock ticks until the ramp ends; 0 on HOLD."""
        return _whole(self.slot("alpha_ticks_left") * self.horizon)

    @property
    def operator(self) -> IntArray:
        """Value of the seed's ``Operator``; 0 also for an empty slot."""
        return _whole(self.slot("operator") * 2)

    @property
    def contribution(self) -> FloatArray:
        """Contribution in points, prospective in TRAINING; 0 where ``contribution_measured`` is False."""
        return _points(self.slot("contribution"))

    @property
    def contribution_velocity(self) -> FloatArray:
        """Smoothed change of the contribution, in points per epoch."""
        return _points(self.slot("contribution_velocity"))

    @property
    def contribution_measured(self) -> BoolArray:
        """True if the contribution was measured at least once."""
        return self.slot("counterfactual_freshness") > 0.0

    @property
    def contribution_age(self) -> IntArray:
        """Epochs since the contribution was measured; -1 = never."""
        freshness = self.slot("counterfactual_freshness")
        measured = freshness > 0.0
        age = np.log(np.where(measured, freshness, 1.0)) / np.log(FRESHNESS)
        return np.where(measured, _whole(age), -1)

    @property
    def epochs_in_stage(self) -> IntArray:
        """Completed epochs (or cooldown ticks) in the stage, at most the horizon."""
        return _whole(self.slot("epochs_in_stage") * self.horizon)

    @property
    def gradient_norm(self) -> FloatArray:
        """Mean gradient norm before clipping, at most 10."""
        return self.slot("gradient_norm") * MAX_GRADIENT_NORM

    @property
    def gradient_health(self) -> FloatArray:
        """Gradient health, 0..1; 0 without a measurement."""
        return self.slot("gradient_health")

    @property
    def gradient_exploding(self) -> BoolArray:
        """True if a tensor's gradient exploded in the last epoch."""
        return self.slot("gradient_exploding") > 0.5

    @property
    def gradient_vanishing(self) -> BoolArray:
        """True if a tensor's gradient vanished in the last epoch."""
        return self.slot("gradient_vanishing") > 0.5

    @property
    def interaction_sum(self) -> FloatArray:
        """Sum of the pair interactions in points, within +-10."""
        return self.slot("interaction_sum") * MAX_INTERACTION

    @property
    def boost_received(self) -> FloatArray:
        """Sum of the positive pair interactions in points, at most 5."""
        return self.slot("boost_received") * MAX_BOOST


def _whole(values: FloatArray) -> IntArray:
    return np.rint(values).astype(np.int64)


def _points(scaled: FloatArray) -> FloatArray:
    """Return points from the signed logarithm of the contribution features."""
    points: FloatArray = np.copysign(np.expm1(np.abs(scaled) * CONTRIBUTION_LOG), scaled)
    return points
