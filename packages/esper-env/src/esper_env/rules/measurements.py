"""Gradient statistics and contributions in the slot table."""

from __future__ import annotations

import numpy as np

from esper_env.rules.slot_table import BoolArray, FloatArray, SlotTable
from esper_env.rules.stages import Stage

#: Weights of the past and the new value in moving averages.
EMA_OLD, EMA_NEW = 0.7, 0.3
#: Loss of gradient health, which is 1 at best, per share of bad tensors.
VANISHING_COST, EXPLODING_COST = 0.5, 0.8


def record_gradients(
    table: SlotTable, norm: FloatArray, vanishing: FloatArray, exploding: FloatArray, sizes: FloatArray
) -> None:
    """Store an epoch's gradient statistics (N, 1 + S), host first. Slots that did not train keep their previous ones.

    ``norm`` is before clipping. ``vanishing`` and ``exploding`` are shares of the tensors. ``sizes`` counts trainable
    scalars, 0 where nothing trained: the ratio compares root mean square gradients of seed and host.
    """
    trained = (sizes[:, 1:] > 0) & table.has_seed
    health = np.clip(1.0 - VANISHING_COST * vanishing[:, 1:] - EXPLODING_COST * exploding[:, 1:], 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_scalar = norm / np.sqrt(np.maximum(sizes, 1.0))
        ratio = per_scalar[:, 1:] / per_scalar[:, :1]
    ratio = np.where(np.isfinite(ratio), ratio, 0.0)
    known = table.gradient_measured
    previous = np.where(known, table.gradient_health, 1.0)
    averaged = np.where(known, EMA_OLD * table.gradient_ratio + EMA_NEW * ratio, ratio)
    for column, values in (
        (table.previous_gradient_health, previous),
        (table.gradient_norm, norm[:, 1:]),
        (table.gradient_health, health),
        (table.gradient_vanishing, vanishing[:, 1:] > 0),
        (table.gradient_exploding, exploding[:, 1:] > 0),
        (table.gradient_ratio, averaged),
        (table.gradient_measured, trained),
    ):
        np.copyto(column, values, where=trained)


def record_contributions(
    table: SlotTable,
    rows: BoolArray,
    contribution: FloatArray,
    measured: BoolArray,
    interaction: FloatArray,
    pairs: BoolArray,
) -> None:
    """Store an epoch's contributions (N, S) and interactions (N, S, S), in accuracy points, in ``rows`` (N,) only.

    ``measured`` (N, S) and ``pairs`` (N, S, S) are True where a number is a measurement. Unmeasured contributions age.
    """
    known = table.contribution_age >= 0
    change = np.where(known, contribution - table.contribution, 0.0)
    age = np.where(measured, 0, table.contribution_age + known)
    known_pairs = np.where(pairs, interaction, 0.0)
    mask = rows[:, None]
    for column, values, where in (
        (table.contribution_velocity, EMA_OLD * table.contribution_velocity + EMA_NEW * change, mask & measured),
        (table.contribution, contribution, mask & measured),
        (table.contribution_alpha, np.where(table.stage == Stage.TRAINING, 1.0, table.alpha), mask & measured),
        (table.contribution_age, age, mask),
        (table.interaction_sum, known_pairs.sum(axis=2), mask),
        (table.boost_received, np.maximum(known_pairs, 0.0).sum(axis=2), mask),
    ):
        np.copyto(column, values, where=where)
