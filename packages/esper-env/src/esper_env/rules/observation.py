"""Features of the observation: 31 numbers per network and 30 per slot, all inside [-2, 2].

``base_scales`` and ``slot_scales`` declare the fields in their order. ``ObservationBuilder`` applies the scales,
``ObservationView`` undoes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.rules.heads import Op
from esper_env.rules.signals import HISTORY, Signals
from esper_env.rules.slot_table import HOLD, BoolArray, FloatArray, IntArray, SlotTable
from esper_env.rules.stages import HAS_SEED, STAGE_INDEX, STAGE_VALUES, Stage

Features = NDArray[np.float32]

BOUND = 2.0  # every feature lies inside [-BOUND, BOUND]
FRESHNESS = 0.995  # per epoch since the contribution was measured


@dataclass(frozen=True)
class Scale:
    """Scale of a field: values are clamped to [low, high] and divided by ``high``. NaN stays NaN.

    With a ``log_unit``, the clamped values x become sign(x) ln(1 + |x|) / ln(1 + log_unit) instead.
    """

    high: float = 1.0
    low: float = 0.0
    kind: type = np.float64  # of the quantity
    nan_is_high: bool = False  # NaN counts as ``high``
    log_unit: float | None = None

    def encode(self, values: NDArray[Any]) -> FloatArray:
        """Return the features of quantities."""
        clamped: FloatArray = np.clip(np.fmin(values, self.high) if self.nan_is_high else values, self.low, self.high)
        if self.log_unit is None:
            return clamped / self.high
        return np.copysign(np.log1p(np.abs(clamped)) / math.log(1.0 + self.log_unit), clamped)

    def decode(self, features: FloatArray) -> NDArray[Any]:
        """Return the quantities of features; clamped ones stay clamped."""
        if self.log_unit is not None:
            return np.copysign(np.expm1(np.abs(features) * math.log(1.0 + self.log_unit)), features)
        values = features * self.high
        return values if self.kind is np.float64 else np.rint(values).astype(self.kind)


LOSS = Scale(11.0**BOUND - 1.0, log_unit=10.0, nan_is_high=True)  # losses of 120 nats and above become 2.0
CONTRIBUTION = Scale(51.0**BOUND - 1.0, 1.0 - 51.0**BOUND, log_unit=50.0)
_PERCENT, _SHARE, _FLAG = Scale(100.0), Scale(), Scale(kind=np.bool_)


@cache
def base_scales(horizon: int) -> dict[str, Scale]:
    """Return the scale of each field of a network by name, in the order of the features.

    The scales of stages, ops and parameters are only descriptive.
    """
    return {
        "epoch": Scale(horizon, kind=np.int64),
        "val_loss": LOSS,
        "loss_delta": Scale(2.0, -2.0),
        "val_accuracy": _PERCENT,
        "accuracy_delta": Scale(10.0, -10.0),
        "plateau_epochs": Scale(20, kind=np.int64),
        "host_stabilised": _FLAG,
        **{f"loss_history_{i}": LOSS for i in range(HISTORY)},  # 0 is the oldest
        **{f"accuracy_history_{i}": _PERCENT for i in range(HISTORY)},
        "best_val_accuracy": _PERCENT,
        "window_best_val_loss": LOSS,
        "parameters_added": _SHARE,
        "active_slots": _SHARE,
        "slots_training": _SHARE,
        "slots_blending": _SHARE,
        "slots_holding": _SHARE,
        "last_action_succeeded": _FLAG,
        **{f"last_op_{op.name.lower()}": _FLAG for op in Op},
    }


@cache
def slot_scales(horizon: int) -> dict[str, Scale]:
    """Return the scale of each field of a slot by name, in the order of the features."""
    return {
        "active": _FLAG,
        **{f"stage_{stage.name.lower()}": _FLAG for stage in Stage},
        "alpha": _SHARE,
        "alpha_target": _SHARE,
        "alpha_mode": Scale(2, kind=np.int64),
        "alpha_velocity": Scale(1.0, -1.0),
        "alpha_ticks_left": Scale(horizon, kind=np.int64),
        "operator": Scale(2, kind=np.int64),
        "contribution": CONTRIBUTION,
        "contribution_velocity": CONTRIBUTION,
        "epochs_in_stage": Scale(horizon, kind=np.int64),
        "gradient_norm": Scale(10.0, nan_is_high=True),
        "gradient_health": _SHARE,
        "previous_gradient_health": _SHARE,
        "gradient_vanishing": _FLAG,
        "gradient_exploding": _FLAG,
        "interaction_sum": Scale(10.0, -10.0),
        "boost_received": Scale(5.0),
        "alpha_upstream": _SHARE,
        "alpha_downstream": _SHARE,
        "counterfactual_freshness": _SHARE,
    }


BASE_FIELDS: tuple[str, ...] = tuple(base_scales(1))
SLOT_FIELDS: tuple[str, ...] = tuple(slot_scales(1))
NUM_BASE = len(BASE_FIELDS)
NUM_SLOT = len(SLOT_FIELDS)
_BASE = {name: position for position, name in enumerate(BASE_FIELDS)}
_SLOT = {name: position for position, name in enumerate(SLOT_FIELDS)}
#: Fields that show the signal or the column of the same name.
_SIGNALS = [field.name for field in fields(Signals) if field.name in _BASE]
_COLUMNS = [field.name for field in fields(SlotTable) if field.name in _SLOT]
_LOSS_HISTORY = slice(_BASE["loss_history_0"], _BASE["loss_history_0"] + HISTORY)
_ACCURACY_HISTORY = slice(_BASE["accuracy_history_0"], _BASE["accuracy_history_0"] + HISTORY)
_LAST_OP = slice(_BASE["last_op_wait"], _BASE["last_op_wait"] + len(Op))
_STAGE = slice(_SLOT["stage_unknown"], _SLOT["stage_unknown"] + len(Stage))
_CONTRIBUTIONS = [_SLOT["contribution"], _SLOT["contribution_velocity"]]
_GRADIENTS = [_SLOT["gradient_norm"], _SLOT["gradient_health"]]
_STAGES: IntArray = np.array(list(Stage), dtype=np.int64)


def _stage_one_hot() -> FloatArray:
    """Return one-hot rows (stage value, 10); the row of DORMANT is all zeros."""
    rows = np.zeros((STAGE_VALUES, len(Stage)))
    rows[_STAGES, STAGE_INDEX[_STAGES]] = 1.0
    rows[Stage.DORMANT] = 0.0
    return rows


_STAGE_ONE_HOT = _stage_one_hot()


def feature_count(num_slots: int) -> int:
    """Return the length of the feature vector of a network with ``num_slots`` slots."""
    return NUM_BASE + NUM_SLOT * num_slots


class ObservationBuilder:
    """Builder of float32 features (N, 31 + 30 S) from the slot table and the signals of N environments.

    A NaN loss becomes the worst loss (2.0), a NaN gradient norm the largest (1.0), and any other NaN 0. Infinities and
    values beyond a scale become the end of the scale. An empty slot is all zeros. A slot in its cooldown has its stage
    and the ticks spent there, and zeros otherwise.

    Args:
        horizon: epochs of an episode.
        param_budget: trainable scalars at which ``parameters_added`` is 1.
        execution_order: action indices of all slots in the order of the forward pass.
    """

    def __init__(self, horizon: int, param_budget: float, execution_order: Sequence[int]) -> None:
        self.param_budget = param_budget
        self._base_scales, self._slot_scales = base_scales(horizon), slot_scales(horizon)
        place = np.argsort(np.asarray(execution_order, dtype=np.int64))
        # alpha @ _upstream sums, for each slot, over the slots that come before it
        self._upstream: FloatArray = (place[:, None] < place[None, :]).astype(np.float64) / len(place)

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
        """
        rows, slots = table.shape
        # Built in float64, where every clip is exact, and rounded once.
        out = np.zeros((rows, feature_count(slots)))
        base = out[:, :NUM_BASE]
        self._signals(base, signals)
        params = np.clip(np.asarray(params_total, dtype=np.float64), 0.0, np.finfo(np.float64).max)
        base[:, _BASE["parameters_added"]] = np.log1p(params) / math.log1p(self.param_budget)
        base[:, _BASE["active_slots"]] = table.has_seed.mean(axis=1)
        for stage in (Stage.TRAINING, Stage.BLENDING, Stage.HOLDING):
            base[:, _BASE[f"slots_{stage.name.lower()}"]] = (table.stage == stage).mean(axis=1)
        base[:, _BASE["last_action_succeeded"]] = np.asarray(last_success, dtype=np.bool_)
        base[np.arange(rows), _LAST_OP.start + np.asarray(last_op, dtype=np.int64)] = 1.0
        self._slots(out[:, NUM_BASE:].reshape(rows, slots, NUM_SLOT), table)
        np.clip(out, -BOUND, BOUND, out=out)
        out[np.isnan(out)] = 0.0
        return out.astype(np.float32)

    def _signals(self, out: FloatArray, signals: Signals) -> None:
        for name in _SIGNALS:
            out[:, _BASE[name]] = self._base_scales[name].encode(getattr(signals, name))
        out[:, _LOSS_HISTORY] = LOSS.encode(signals.loss_history)
        out[:, _ACCURACY_HISTORY] = _PERCENT.encode(signals.accuracy_history)

    def _slots(self, out: FloatArray, table: SlotTable) -> None:
        stage, scales = table.stage, self._slot_scales
        for name in _COLUMNS:
            out[..., _SLOT[name]] = scales[name].encode(getattr(table, name))
        # What was not measured is 0.
        measured = table.contribution_age >= 0
        out[..., _CONTRIBUTIONS] = np.where(measured[..., None], out[..., _CONTRIBUTIONS], 0.0)
        out[..., _GRADIENTS] *= table.gradient_measured[..., None]
        freshness = FRESHNESS ** np.maximum(table.contribution_age, 0)
        out[..., _SLOT["counterfactual_freshness"]] = np.where(measured, freshness, 0.0)
        out[..., _SLOT["active"]] = 1.0
        left = np.where(table.alpha_mode == HOLD, 0, table.alpha_ticks_total - table.alpha_ticks_done)
        out[..., _SLOT["alpha_ticks_left"]] = scales["alpha_ticks_left"].encode(left)
        alpha = out[..., _SLOT["alpha"]]
        alpha = np.where(HAS_SEED[stage] & ~np.isnan(alpha), alpha, 0.0)
        out[..., _SLOT["alpha_upstream"]] = alpha @ self._upstream
        out[..., _SLOT["alpha_downstream"]] = alpha @ self._upstream.T
        out[~HAS_SEED[stage]] = 0.0
        out[..., _STAGE] = _STAGE_ONE_HOT[stage]
        epochs = scales["epochs_in_stage"].encode(table.epochs_in_stage)
        out[..., _SLOT["epochs_in_stage"]] = np.where(stage == Stage.DORMANT, 0.0, epochs)


Quantity = TypeVar("Quantity", BoolArray, IntArray, FloatArray)


class _Field(Generic[Quantity]):
    """Attribute of a view: the field of the same name, in its original unit."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, view: ObservationView, owner: type) -> Quantity:
        of_network = self.name in _BASE
        scale = (base_scales if of_network else slot_scales)(view.horizon)[self.name]
        values: Quantity = scale.decode(view.base(self.name) if of_network else view.slot(self.name))
        return values


class ObservationView:
    """Unscaled quantities of features (..., 31 + 30 S), single or batched.

    Quantities of the network have the leading shape, those of slots the leading shape + (S,). Clamped values stay
    clamped: a plateau of 25 epochs reads 20, and a gradient norm of 50 reads 10.

    Args:
        features: (..., 31 + 30 S) features of observations.
        num_slots: S.
        horizon: epochs of an episode.

    Raises:
        ValueError: the shape is wrong.
    """

    epoch = _Field[IntArray]()  # completed epochs
    val_loss = _Field[FloatArray]()  # nats, at most 120
    loss_delta = _Field[FloatArray]()  # previous minus current loss in nats, within +-2
    val_accuracy = _Field[FloatArray]()  # 0..100
    accuracy_delta = _Field[FloatArray]()  # current minus previous accuracy in points, within +-10
    best_val_accuracy = _Field[FloatArray]()  # of the episode, 0..100
    plateau_epochs = _Field[IntArray]()  # consecutive epochs without progress, at most 20
    host_stabilised = _Field[BoolArray]()  # latched for the episode
    last_action_succeeded = _Field[BoolArray]()

    active = _Field[BoolArray]()  # the slot holds a seed
    alpha = _Field[FloatArray]()  # blend weight, 0..1
    alpha_target = _Field[FloatArray]()  # alpha at the end of the current or last ramp, 0..1
    alpha_mode = _Field[IntArray]()  # HOLD 0, UP 1, DOWN 2
    alpha_ticks_left = _Field[IntArray]()  # clock ticks until the ramp ends; 0 on HOLD
    operator = _Field[IntArray]()  # value of the seed's ``Operator``; 0 also for an empty slot
    contribution = _Field[FloatArray]()  # points, prospective in TRAINING; 0 where ``contribution_measured`` is False
    contribution_velocity = _Field[FloatArray]()  # its smoothed change, in points per epoch
    epochs_in_stage = _Field[IntArray]()  # completed epochs (or cooldown ticks), at most the horizon
    gradient_norm = _Field[FloatArray]()  # mean before clipping, at most 10
    gradient_health = _Field[FloatArray]()  # 0..1; 0 without a measurement
    gradient_exploding = _Field[BoolArray]()  # a tensor's gradient exploded in the last epoch
    gradient_vanishing = _Field[BoolArray]()
    interaction_sum = _Field[FloatArray]()  # of the pairs, in points, within +-10
    boost_received = _Field[FloatArray]()  # sum of the positive pair interactions in points, at most 5

    def __init__(self, features: ArrayLike, num_slots: int, horizon: int) -> None:
        values = np.asarray(features, dtype=np.float64)
        if values.ndim < 1 or values.shape[-1] != feature_count(num_slots):
            raise ValueError(
                f"features have shape {values.shape}; expected (..., {feature_count(num_slots)}) for {num_slots} slots"
            )
        self.num_slots = num_slots
        self.horizon = horizon
        self._features = values
        self._slots = values[..., NUM_BASE:].reshape(*values.shape[:-1], num_slots, NUM_SLOT)

    def base(self, name: str) -> FloatArray:
        """Return a scaled field (...) of ``BASE_FIELDS``."""
        return self._features[..., _BASE[name]]

    def slot(self, name: str) -> FloatArray:
        """Return a scaled field (..., S) of ``SLOT_FIELDS``."""
        return self._slots[..., _SLOT[name]]

    @property
    def last_op(self) -> IntArray:
        """Value of the op that was executed last."""
        op: IntArray = np.argmax(self._features[..., _LAST_OP], axis=-1)
        return op

    @property
    def stage(self) -> IntArray:
        """Values of ``Stage``; an empty slot is DORMANT."""
        one_hot = self._slots[..., _STAGE]
        return np.where(one_hot.any(axis=-1), _STAGES[np.argmax(one_hot, axis=-1)], int(Stage.DORMANT))

    @property
    def contribution_measured(self) -> BoolArray:
        """True if the contribution was measured at least once."""
        return self.slot("counterfactual_freshness") > 0.0

    @property
    def contribution_age(self) -> IntArray:
        """Epochs since the contribution was measured; -1 = never."""
        age = np.log(np.where(self.contribution_measured, self.slot("counterfactual_freshness"), 1.0))
        return np.where(self.contribution_measured, np.rint(age / np.log(FRESHNESS)).astype(np.int64), -1)
