"""Alpha schedule: ramps of the blend weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from esper_env.rules.heads import CURVE_STEEPNESS, Curve
from esper_env.rules.slot_table import DOWN, HOLD, UP, BoolArray, FloatArray, SlotTable


def ramp(progress: ArrayLike, curve: ArrayLike) -> FloatArray:
    """Return how far a ramp has come, 0..1, when a fraction t = ``progress`` of its ticks is done.

    Linear: t. Cosine: (1 - cos(pi t)) / 2. Sigmoids: the logistic of k (t - 1/2), rescaled to run exactly from 0 to 1.
    ``curve`` holds values of ``heads.Curve``. The arguments broadcast.
    """
    t, shape = np.asarray(progress, dtype=np.float64), np.asarray(curve)
    steepness = CURVE_STEEPNESS[shape]
    logistic = steepness > 0
    k = np.where(logistic, steepness, 1.0)
    # The rescaled logistic is a ratio of tanh, which is exact at both ends.
    sigmoid = 0.5 * (1.0 + np.tanh(k * (t - 0.5) / 2.0) / np.tanh(k / 4.0))
    cosine = 0.5 * (1.0 - np.cos(np.pi * t))
    result: FloatArray = np.where(logistic, sigmoid, np.where(shape == Curve.COSINE, cosine, t))
    return result


def retarget(table: SlotTable, mask: BoolArray, target: ArrayLike, ticks: ArrayLike, curve: ArrayLike) -> None:
    """Start a ramp in the slots of ``mask`` (N, S), whose schedules are on HOLD.

    ``target`` alphas in [0, 1], clock ``ticks`` and values of ``heads.Curve`` broadcast to (N, S). With 0 ticks alpha
    jumps, and ``alpha_velocity`` is the size of the jump. A target that equals alpha leaves the schedule on HOLD.
    """
    goal = np.broadcast_to(np.asarray(target, dtype=np.float64), mask.shape)[mask]
    length = np.broadcast_to(np.asarray(ticks), mask.shape)[mask]
    kind = np.broadcast_to(np.asarray(curve), mask.shape)[mask]
    before = table.alpha[mask]
    starts_ramp = (length > 0) & (goal != before)
    table.alpha_start[mask] = before
    table.alpha_target[mask] = goal
    table.alpha_mode[mask] = np.where(starts_ramp, np.where(goal > before, UP, DOWN), HOLD)
    table.alpha_curve[mask] = kind
    table.alpha_ticks_total[mask] = np.where(starts_ramp, length, 0)
    table.alpha_ticks_done[mask] = 0
    table.alpha[mask] = np.where(starts_ramp, before, goal)
    table.alpha_velocity[mask] = np.where(starts_ramp, 0.0, goal - before)


def tick(table: SlotTable, mask: BoolArray) -> None:
    """Advance the running ramps in the slots of ``mask`` (N, S) by one tick.

    Alpha stays inside [0, 1] and is monotone. The last tick reaches the target exactly and sets the schedule to HOLD.
    """
    running = mask & (table.alpha_mode != HOLD)
    if not running.any():
        return
    done = table.alpha_ticks_done[running] + 1
    total = table.alpha_ticks_total[running]
    start, target = table.alpha_start[running], table.alpha_target[running]
    before = table.alpha[running]

    risen = ramp(np.minimum(done / total, 1.0), table.alpha_curve[running])
    # Rounding may overshoot the target by one unit in the last place just before the end of a steep ramp.
    after = np.clip(start + (target - start) * risen, np.minimum(start, target), np.maximum(start, target))
    finished = done >= total
    after = np.where(finished, target, after)

    table.alpha[running] = after
    table.alpha_velocity[running] = after - before
    table.alpha_ticks_done[running] = done
    table.alpha_mode[running] = np.where(finished, HOLD, table.alpha_mode[running])
