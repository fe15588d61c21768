"""Reads a feature vector back into named quantities in their own units, for agents that decide by rules."""

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
    """Named, unscaled quantities of ``features``, shape (..., 31 + 30 S): one observation or a batch of them.

    Quantities of the network have the leading shape, those of slots the leading shape + (S,). What a scale cut off
    stays cut off: a plateau of 25 epochs reads 20, a gradient norm of 50 reads 10.
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
        """(...) a field of ``BASE_FIELDS`` as it stands in the features."""
        return self._features[..., base_index(name)]

    def slot(self, name: str) -> FloatArray:
        """(..., S) a field of ``SLOT_FIELDS`` as it stands in the features."""
        return self._slots[..., slot_index(name, 0) - NUM_BASE]

    @property
    def epoch(self) -> IntArray:
        """Epochs done."""
        return _whole(self.base("epoch") * self.horizon)

    @property
    def val_loss(self) -> FloatArray:
        """Nats, at most 120."""
        return np.expm1(self.base("val_loss") * LOSS_LOG)

    @property
    def loss_delta(self) -> FloatArray:
        """Previous minus now, in nats, within +-2."""
        return self.base("loss_delta") * MAX_LOSS_DELTA

    @property
    def val_accuracy(self) -> FloatArray:
        """0..100."""
        return self.base("val_accuracy") * 100.0

    @property
    def accuracy_delta(self) -> FloatArray:
        """Now minus previous, in points, within +-10."""
        return self.base("accuracy_delta") * MAX_ACCURACY_DELTA

    @property
    def best_val_accuracy(self) -> FloatArray:
        """Best of the episode, 0..100."""
        return self.base("best_val_accuracy") * 100.0

    @property
    def plateau_epochs(self) -> IntArray:
        """Epochs without progress, at most 20."""
        return _whole(self.base("plateau_epochs") * MAX_PLATEAU)

    @property
    def host_stabilised(self) -> BoolArray:
        """The host has stabilised in this episode."""
        return self.base("host_stabilised") > 0.5

    @property
    def last_action_succeeded(self) -> BoolArray:
        """The last action did what it asked for."""
        return self.base("last_action_succeeded") > 0.5

    @property
    def last_op(self) -> IntArray:
        """The op carried out last, as an ``Op`` value."""
        first, last = base_index("last_op_wait"), base_index("last_op_advance")
        op: IntArray = np.argmax(self._features[..., first : last + 1], axis=-1)
        return op

    @property
    def stage(self) -> IntArray:
        """(..., S) ``Stage`` values; an empty slot is DORMANT."""
        first, last = slot_index("stage_unknown", 0) - NUM_BASE, slot_index("stage_resetting", 0) - NUM_BASE
        one_hot = self._slots[..., first : last + 1]
        stage: IntArray = np.where(one_hot.any(axis=-1), _STAGE_VALUES[np.argmax(one_hot, axis=-1)], int(Stage.DORMANT))
        return stage

    @property
    def active(self) -> BoolArray:
        """(..., S) the slot holds a seed."""
        return self.slot("active") > 0.5

    @property
    def alpha(self) -> FloatArray:
        """(..., S) blend weight, 0..1."""
        return self.slot("alpha")

    @property
    def alpha_target(self) -> FloatArray:
        """(..., S) where the running or last ramp ends, 0..1."""
        return self.slot("alpha_target")

    @property
    def alpha_mode(self) -> IntArray:
        """(..., S) HOLD 0, UP 1, DOWN 2."""
        return _whole(self.slot("alpha_mode") * 2)

    @property
    def alpha_ticks_left(self) -> IntArray:
        """(..., S) ticks until the ramp ends; 0 on HOLD."""
        return _whole(self.slot("alpha_ticks_left") * self.horizon)

    @property
    def operator(self) -> IntArray:
        """(..., S) ``Operator`` value of the seed; 0 also for an empty slot."""
        return _whole(self.slot("operator") * 2)

    @property
    def contribution(self) -> FloatArray:
        """(..., S) points, prospective while TRAINING; 0 where ``contribution_measured`` is False."""
        return _points(self.slot("contribution"))

    @property
    def contribution_velocity(self) -> FloatArray:
        """(..., S) smoothed change of the contribution, points per epoch."""
        return _points(self.slot("contribution_velocity"))

    @property
    def contribution_measured(self) -> BoolArray:
        """(..., S) the contribution has been measured at least once."""
        return self.slot("counterfactual_freshness") > 0.0

    @property
    def contribution_age(self) -> IntArray:
        """(..., S) epochs since the contribution was measured; -1 = never."""
        freshness = self.slot("counterfactual_freshness")
        measured = freshness > 0.0
        age = np.log(np.where(measured, freshness, 1.0)) / np.log(FRESHNESS)
        return np.where(measured, _whole(age), -1)

    @property
    def epochs_in_stage(self) -> IntArray:
        """(..., S) epochs (or cooldown ticks) completed in the present stage, at most the horizon."""
        return _whole(self.slot("epochs_in_stage") * self.horizon)

    @property
    def gradient_norm(self) -> FloatArray:
        """(..., S) mean gradient norm before clipping, at most 10."""
        return self.slot("gradient_norm") * MAX_GRADIENT_NORM

    @property
    def gradient_health(self) -> FloatArray:
        """(..., S) 0..1; 0 without a measurement."""
        return self.slot("gradient_health")

    @property
    def gradient_exploding(self) -> BoolArray:
        """(..., S) some tensor's gradient exploded in the last epoch."""
        return self.slot("gradient_exploding") > 0.5

    @property
    def gradient_vanishing(self) -> BoolArray:
        """(..., S) some tensor's gradient vanished in the last epoch."""
        return self.slot("gradient_vanishing") > 0.5

    @property
    def interaction_sum(self) -> FloatArray:
        """(..., S) sum of the pair interactions, points within +-10."""
        return self.slot("interaction_sum") * MAX_INTERACTION

    @property
    def boost_received(self) -> FloatArray:
        """(..., S) sum of the positive pair interactions, points up to 5."""
        return self.slot("boost_received") * MAX_BOOST


def _whole(values: FloatArray) -> IntArray:
    return np.rint(values).astype(np.int64)


def _points(scaled: FloatArray) -> FloatArray:
    """Inverse of the signed logarithm of the contribution features."""
    points: FloatArray = np.copysign(np.expm1(np.abs(scaled) * CONTRIBUTION_LOG), scaled)
    return points
