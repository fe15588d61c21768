"""Features of the observation: 31 numbers per network and 30 per slot, all inside [-2, 2]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.rules.heads import Op
from esper_env.rules.signals import Signals
from esper_env.rules.slot_table import HOLD, FloatArray, IntArray, SlotTable
from esper_env.rules.stages import HAS_SEED, STAGE_INDEX, STAGE_VALUES, Stage

Features = NDArray[np.float32]

HISTORY = 5  # epochs of validation history shown
BOUND = 2.0  # every feature lies inside [-BOUND, BOUND]

#: Ends of the scales, shared by the builder and ``ObservationView``.
LOSS_LOG = math.log(11.0)
CONTRIBUTION_LOG = math.log(51.0)
MAX_LOSS = 11.0**BOUND - 1.0  # losses of 120 nats and above, infinite or NaN, become 2.0
MAX_CONTRIBUTION = 51.0**BOUND - 1.0
MAX_LOSS_DELTA = 2.0
MAX_ACCURACY_DELTA = 10.0
MAX_PLATEAU = 20
MAX_GRADIENT_NORM = 10.0
MAX_INTERACTION = 10.0
MAX_BOOST = 5.0
FRESHNESS = 0.995  # per epoch since the contribution was measured

BASE_FIELDS: tuple[str, ...] = (
    "epoch",
    "val_loss",
    "loss_delta",
    "val_accuracy",
    "accuracy_delta",
    "plateau_epochs",
    "host_stabilised",
    *(f"loss_history_{i}" for i in range(HISTORY)),  # 0 is the oldest
    *(f"accuracy_history_{i}" for i in range(HISTORY)),
    "best_val_accuracy",
    "window_best_val_loss",
    "parameters_added",
    "active_slots",
    "slots_training",
    "slots_blending",
    "slots_holding",
    "last_action_succeeded",
    *(f"last_op_{op.name.lower()}" for op in Op),
)
SLOT_FIELDS: tuple[str, ...] = (
    "active",
    *(f"stage_{stage.name.lower()}" for stage in Stage),
    "alpha",
    "alpha_target",
    "alpha_mode",
    "alpha_velocity",
    "alpha_ticks_left",
    "operator",
    "contribution",
    "contribution_velocity",
    "epochs_in_stage",
    "gradient_norm",
    "gradient_health",
    "previous_gradient_health",
    "gradient_vanishing",
    "gradient_exploding",
    "interaction_sum",
    "boost_received",
    "alpha_upstream",
    "alpha_downstream",
    "counterfactual_freshness",
)
NUM_BASE = len(BASE_FIELDS)
NUM_SLOT = len(SLOT_FIELDS)
_BASE = {name: position for position, name in enumerate(BASE_FIELDS)}
_SLOT = {name: position for position, name in enumerate(SLOT_FIELDS)}
_LOSS_HISTORY = slice(_BASE["loss_history_0"], _BASE["loss_history_0"] + HISTORY)
_ACCURACY_HISTORY = slice(_BASE["accuracy_history_0"], _BASE["accuracy_history_0"] + HISTORY)
_STAGE = slice(_SLOT["stage_unknown"], _SLOT["stage_unknown"] + len(Stage))
_MEASURED_GRADIENT = [_SLOT["gradient_norm"], _SLOT["gradient_health"]]
_STAGE_SHARES = (
    ("slots_training", Stage.TRAINING),
    ("slots_blending", Stage.BLENDING),
    ("slots_holding", Stage.HOLDING),
)


def feature_count(num_slots: int) -> int:
    """Return the length of the feature vector of a network with ``num_slots`` slots."""
    return NUM_BASE + NUM_SLOT * num_slots


def base_index(name: str) -> int:
    """Return the position of a field of ``BASE_FIELDS`` in the feature vector.

    Raises:
        KeyError: the name is unknown.
    """
    if name not in _BASE:
        raise KeyError(f"{name!r} is not a base field; expected one of {', '.join(BASE_FIELDS)}")
    return _BASE[name]


def slot_index(name: str, slot: int) -> int:
    """Return the position of a field of ``SLOT_FIELDS`` of one slot in the feature vector.

    Raises:
        KeyError: the name is unknown.
        IndexError: the slot is negative.
    """
    if name not in _SLOT:
        raise KeyError(f"{name!r} is not a slot field; expected one of {', '.join(SLOT_FIELDS)}")
    if slot < 0:
        raise IndexError(f"slot is {slot}; expected the action index of a slot, 0 or greater")
    return NUM_BASE + NUM_SLOT * slot + _SLOT[name]


class ObservationBuilder:
    """Builder of float32 features (N, 31 + 30 S) from the slot table and the signals of N environments.

    A NaN loss becomes the worst loss (2.0), a NaN gradient norm the largest (1.0), and any other NaN 0. Infinities and
    values beyond a scale become the end of the scale. An empty slot is all zeros. A slot in its cooldown has its stage
    and the ticks spent there, and zeros otherwise.

    Args:
        num_slots: number of slots.
        horizon: epochs of an episode.
        param_budget: trainable scalars at which ``parameters_added`` is 1.
        execution_order: action indices of the slots in the order of the forward pass.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, num_slots: int, horizon: int, param_budget: float, execution_order: Sequence[int]) -> None:
        if num_slots < 1 or horizon < 1:
            raise ValueError(f"num_slots is {num_slots} and horizon {horizon}; both must be at least 1")
        if not (math.isfinite(param_budget) and param_budget > 0):
            raise ValueError(f"param_budget is {param_budget}; expected a positive number of parameters")
        if sorted(execution_order) != list(range(num_slots)):
            raise ValueError(f"execution_order is {list(execution_order)}; expected each of 0..{num_slots - 1} once")
        self.num_slots = num_slots
        self.horizon = horizon
        self.param_budget = param_budget
        place = np.argsort(np.asarray(execution_order, dtype=np.int64))
        # alpha @ _upstream sums, for each slot, over the slots that come before it
        self._upstream: FloatArray = (place[:, None] < place[None, :]).astype(np.float64) / num_slots

    def features(
        self, table: SlotTable, signals: Signals, params_total: ArrayLike, last_success: ArrayLike, last_op: ArrayLike
    ) -> Features:
        """Return a new array (N, 31 + 30 S).

        Args:
            table: slots of N environments.
            signals: readings of their validation curves.
            params_total: (N,) trainable scalars of all seeds present.
            last_success: (N,) True if the last action succeeded, also at the start.
            last_op: (N,) op that was executed last, WAIT at the start.

        Raises:
            ValueError: the table or the history has a wrong shape.
        """
        rows, slots = table.shape
        if slots != self.num_slots or signals.loss_history.shape != (rows, HISTORY):
            raise ValueError(
                f"table of shape {table.shape} with a loss history of shape {signals.loss_history.shape}; "
                f"expected {self.num_slots} slots and {HISTORY} epochs of history"
            )
        # Built in float64, where every clip is exact, and rounded once.
        out = np.zeros((rows, feature_count(slots)))
        self._base(out[:, :NUM_BASE], table, signals, params_total, last_success, last_op)
        self._slots(out[:, NUM_BASE:].reshape(rows, slots, NUM_SLOT), table)
        np.clip(out, -BOUND, BOUND, out=out)
        out[np.isnan(out)] = 0.0
        return out.astype(np.float32)

    def _base(
        self,
        out: FloatArray,
        table: SlotTable,
        signals: Signals,
        params_total: ArrayLike,
        last_success: ArrayLike,
        last_op: ArrayLike,
    ) -> None:
        params = np.clip(np.asarray(params_total, dtype=np.float64), 0.0, np.finfo(np.float64).max)
        out[:, _BASE["epoch"]] = _share(signals.epoch, self.horizon)
        out[:, _BASE["val_loss"]] = scale_loss(signals.val_loss)
        out[:, _BASE["loss_delta"]] = _share(signals.loss_delta, MAX_LOSS_DELTA, low=-MAX_LOSS_DELTA)
        out[:, _BASE["val_accuracy"]] = _share(signals.val_accuracy, 100.0)
        out[:, _BASE["accuracy_delta"]] = _share(signals.accuracy_delta, MAX_ACCURACY_DELTA, low=-MAX_ACCURACY_DELTA)
        out[:, _BASE["plateau_epochs"]] = _share(signals.plateau_epochs, MAX_PLATEAU)
        out[:, _BASE["host_stabilised"]] = signals.host_stabilised
        out[:, _LOSS_HISTORY] = scale_loss(signals.loss_history)
        out[:, _ACCURACY_HISTORY] = _share(signals.accuracy_history, 100.0)
        out[:, _BASE["best_val_accuracy"]] = _share(signals.best_val_accuracy, 100.0)
        out[:, _BASE["window_best_val_loss"]] = scale_loss(signals.window_best_val_loss)
        out[:, _BASE["parameters_added"]] = np.log1p(params) / math.log1p(self.param_budget)
        out[:, _BASE["active_slots"]] = table.has_seed.mean(axis=1)
        for name, stage in _STAGE_SHARES:
            out[:, _BASE[name]] = (table.stage == stage).mean(axis=1)
        out[:, _BASE["last_action_succeeded"]] = np.asarray(last_success, dtype=np.bool_)
        out[np.arange(len(out)), _BASE["last_op_wait"] + np.asarray(last_op, dtype=np.int64)] = 1.0

    def _slots(self, out: FloatArray, table: SlotTable) -> None:
        stage = table.stage
        seed = HAS_SEED[stage]
        alpha = np.where(seed, _finite(_share(table.alpha, 1.0)), 0.0)
        measured = table.contribution_age >= 0
        left = np.where(table.alpha_mode == HOLD, 0, table.alpha_ticks_total - table.alpha_ticks_done)
        out[..., _SLOT["active"]] = 1.0
        out[..., _SLOT["alpha"]] = alpha
        out[..., _SLOT["alpha_target"]] = _share(table.alpha_target, 1.0)
        out[..., _SLOT["alpha_mode"]] = _share(table.alpha_mode, 2)
        out[..., _SLOT["alpha_velocity"]] = np.clip(table.alpha_velocity, -1.0, 1.0)
        out[..., _SLOT["alpha_ticks_left"]] = _share(left, self.horizon)
        out[..., _SLOT["operator"]] = _share(table.operator, 2)
        out[..., _SLOT["contribution"]] = np.where(measured, scale_contribution(table.contribution), 0.0)
        out[..., _SLOT["contribution_velocity"]] = np.where(
            measured, scale_contribution(table.contribution_velocity), 0.0
        )
        # fmin turns NaN into the largest norm
        out[..., _SLOT["gradient_norm"]] = _share(np.fmin(table.gradient_norm, MAX_GRADIENT_NORM), MAX_GRADIENT_NORM)
        out[..., _SLOT["gradient_health"]] = _share(table.gradient_health, 1.0)
        # Norm and health are 0 without a measurement.
        out[..., _MEASURED_GRADIENT] *= table.gradient_measured[..., None]
        out[..., _SLOT["previous_gradient_health"]] = _share(table.previous_gradient_health, 1.0)
        out[..., _SLOT["gradient_vanishing"]] = table.gradient_vanishing
        out[..., _SLOT["gradient_exploding"]] = table.gradient_exploding
        out[..., _SLOT["interaction_sum"]] = _share(table.interaction_sum, MAX_INTERACTION, low=-MAX_INTERACTION)
        out[..., _SLOT["boost_received"]] = _share(table.boost_received, MAX_BOOST)
        out[..., _SLOT["alpha_upstream"]] = alpha @ self._upstream
        out[..., _SLOT["alpha_downstream"]] = alpha @ self._upstream.T
        out[..., _SLOT["counterfactual_freshness"]] = np.where(
            measured, FRESHNESS ** np.maximum(table.contribution_age, 0), 0.0
        )
        out[~seed] = 0.0
        occupied = stage != Stage.DORMANT
        out[..., _STAGE] = _STAGE_ONE_HOT[stage]
        out[..., _SLOT["epochs_in_stage"]] = np.where(occupied, _share(table.epochs_in_stage, self.horizon), 0.0)


_STAGES: IntArray = np.array(sorted(Stage), dtype=np.int64)


def _stage_one_hot() -> FloatArray:
    """Return one-hot rows (stage value, 10); the row of DORMANT is all zeros."""
    rows = np.zeros((STAGE_VALUES, len(Stage)))
    rows[_STAGES, STAGE_INDEX[_STAGES]] = 1.0
    rows[Stage.DORMANT] = 0.0
    return rows


_STAGE_ONE_HOT = _stage_one_hot()


def _finite(values: FloatArray) -> FloatArray:
    """Replace NaN by 0."""
    return np.where(np.isnan(values), 0.0, values)


def _share(values: NDArray[Any], end: float, low: float = 0.0) -> FloatArray:
    """Return the values clamped to [low, end], divided by ``end``; NaN stays NaN."""
    share: FloatArray = np.clip(values, low, end) / end
    return share


def scale_loss(loss: FloatArray) -> FloatArray:
    """Return ln(1 + x) / ln 11, clamped to [0, 2]; NaN becomes 2, the worst."""
    scaled: FloatArray = np.log1p(np.fmax(np.fmin(loss, MAX_LOSS), 0.0)) / LOSS_LOG
    return scaled


def scale_contribution(points: FloatArray) -> FloatArray:
    """Return sign(c) ln(1 + |c|) / ln 51, clamped to [-2, 2]; NaN stays NaN."""
    bounded = np.clip(points, -MAX_CONTRIBUTION, MAX_CONTRIBUTION)
    scaled: FloatArray = np.copysign(np.log1p(np.abs(bounded)) / CONTRIBUTION_LOG, bounded)
    return scaled
