"""The alpha schedule: ramps of the blend weight, and the only functions that start or advance one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esper_env.rules.heads import CURVE_STEEPNESS, Curve
from esper_env.rules.slot_table import DOWN, HOLD, UP, BoolArray, FloatArray, IntArray, SlotTable

_IS_LOGISTIC = np.asarray(CURVE_STEEPNESS, dtype=np.float64) > 0


def ramp(progress: ArrayLike, curve: ArrayLike, steepness: ArrayLike) -> FloatArray:
    """How far a ramp has come, 0..1, when the fraction ``progress`` of its ticks is done.

    Linear: t. Cosine: (1 - cos(pi t)) / 2. Sigmoids: the logistic of k (t - 1/2), rescaled to run exactly from
    0 to 1. ``curve`` holds ``heads.Curve`` values and ``steepness`` k (not read by linear and cosine). The three
    arguments broadcast; ``progress`` is in [0, 1].
    """
    t, shape_of, k = np.broadcast_arrays(
        np.asarray(progress, dtype=np.float64), np.asarray(curve), np.asarray(steepness, dtype=np.float64)
    )
    logistic = _IS_LOGISTIC[shape_of]
    if (logistic & ~(k > 0)).any():
        raise ValueError("the steepness of a sigmoid ramp must be positive; take it from heads.CURVE_STEEPNESS")
    # The rescaled logistic is a ratio of tanh, which is exact at both ends: no 0.0025 to subtract first.
    safe_k = np.where(logistic, k, 1.0)
    sigmoid = 0.5 * (1.0 + np.tanh(safe_k * (t - 0.5) / 2.0) / np.tanh(safe_k / 4.0))
    cosine = 0.5 * (1.0 - np.cos(np.pi * t))
    result: FloatArray = np.where(logistic, sigmoid, np.where(shape_of == Curve.COSINE, cosine, t))
    return result


def retarget(table: SlotTable, mask: BoolArray, target: ArrayLike, ticks: ArrayLike, curve: ArrayLike) -> None:
    """Start a ramp to ``target`` over ``ticks`` clock ticks along ``curve`` in the slots of ``mask`` (N, S).

    The other arguments broadcast to (N, S). With 0 ticks alpha jumps now and ``alpha_velocity`` is the size of the
    jump; a target that equals alpha leaves the schedule on HOLD. ``ValueError`` before anything changes when a slot
    of the mask is not on HOLD, or for a target outside [0, 1], negative ticks or an unknown curve.
    """
    busy = mask & (table.alpha_mode != HOLD)
    if busy.any():
        env, slot = np.argwhere(busy)[0]
        raise ValueError(
            f"slot {slot} of environment {env} is still ramping to alpha {table.alpha_target[env, slot]}; "
            "retarget it once its schedule is on HOLD"
        )
    goal = np.broadcast_to(np.asarray(target, dtype=np.float64), mask.shape)[mask]
    length = np.broadcast_to(np.asarray(ticks), mask.shape)[mask]
    kind = np.broadcast_to(np.asarray(curve), mask.shape)[mask]
    _check_request(goal, length, kind)

    before = table.alpha[mask]
    starts_ramp = (length > 0) & (goal != before)
    table.alpha_start[mask] = before
    table.alpha_target[mask] = goal
    table.alpha_mode[mask] = np.where(starts_ramp, np.where(goal > before, UP, DOWN), HOLD)
    table.alpha_curve[mask] = kind
    table.alpha_steepness[mask] = CURVE_STEEPNESS[kind]
    table.alpha_ticks_total[mask] = np.where(starts_ramp, length, 0)
    table.alpha_ticks_done[mask] = 0
    table.alpha[mask] = np.where(starts_ramp, before, goal)
    table.alpha_velocity[mask] = np.where(starts_ramp, 0.0, goal - before)


def _check_request(goal: FloatArray, length: IntArray, kind: NDArray[np.integer]) -> None:
    for name, values, legal, expected in (
        ("target", goal, (goal >= 0) & (goal <= 1), "inside [0, 1]"),
        ("ticks", length, length >= 0, "0 or more"),
        ("curve", kind, (kind >= 0) & (kind < len(Curve)), f"a heads.Curve, 0 to {len(Curve) - 1}"),
    ):
        if not legal.all():
            raise ValueError(f"alpha {name} is {values[~legal][0]}; it must be {expected}")


def tick(table: SlotTable, mask: BoolArray) -> None:
    """Advance the ramps that run in the slots of ``mask`` (N, S) by one tick.

    Alpha stays inside [0, 1] and never turns back; the last tick lands exactly on the target and the schedule is on
    HOLD again. ``alpha_velocity`` of the ramping slots is what alpha changed by; other slots are not touched.
    """
    running = mask & (table.alpha_mode != HOLD)
    if not running.any():
        return
    done = table.alpha_ticks_done[running] + 1
    total = table.alpha_ticks_total[running]
    start, target = table.alpha_start[running], table.alpha_target[running]
    before = table.alpha[running]

    risen = ramp(np.minimum(done / total, 1.0), table.alpha_curve[running], table.alpha_steepness[running])
    # Rounding may overshoot the target by one unit in the last place just before the end of a steep ramp.
    after = np.clip(start + (target - start) * risen, np.minimum(start, target), np.maximum(start, target))
    finished = done >= total
    after = np.where(finished, target, after)

    table.alpha[running] = after
    table.alpha_velocity[running] = after - before
    table.alpha_ticks_done[running] = done
    table.alpha_mode[running] = np.where(finished, HOLD, table.alpha_mode[running])


def begin_step(table: SlotTable) -> None:
    """Forget the velocities of the step before: from here on a non-zero one belongs to this step."""
    table.alpha_velocity.fill(0.0)
