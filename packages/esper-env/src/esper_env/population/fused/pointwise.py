"""Kernels of activations, and of operations that combine two features; see ``compilation.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from esper_env.population.fused.compilation import kernel
from esper_env.population.fused.instructions import (
    BLEND_ADD,
    BLEND_MULTIPLY,
    EXCITE,
    MIX,
    RELU,
    RESIDUAL,
    SILU,
    STRAIGHT,
)


@kernel
def activate(op: int, factor: float, x: Any, y: Any) -> None:
    """RELU, SILU or SIGMOID of x."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    if op == RELU:
        for j in range(len(x)):
            y[j] = zero if x[j] <= zero else x[j]  # keeps NaN
    elif op == SILU:
        for j in range(len(x)):
            y[j] = x[j] / (one + np.exp(-x[j]))
    else:
        for j in range(len(x)):
            y[j] = factor / (one + np.exp(-x[j]))


@kernel
def activate_backward(op: int, factor: float, x: Any, y: Any, dy: Any, dx: Any) -> None:
    """Backward pass of :func:`activate`."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    if op == RELU:
        for j in range(len(x)):
            dx[j] += zero if y[j] <= zero else dy[j]
    elif op == SILU:
        for j in range(len(x)):
            s = one / (one + np.exp(-x[j]))
            dx[j] += dy[j] * s * (one + x[j] * (one - s))
    else:
        for j in range(len(x)):
            dx[j] += dy[j] * y[j] * (one - y[j] / factor)


@kernel
def combine(
    op: int, x: Any, z: Any, y: Any, vector: Any, alpha: float, gate: Any, channels: int, pixels: int, samples: int
) -> None:
    """Operations of x and z; ``vector`` (C) are parameters."""
    zero, n = x.dtype.type(0), pixels * samples
    for c in range(channels):
        if op == RESIDUAL:
            factor = vector[c]
            for j in range(c * n, (c + 1) * n):
                y[j] = x[j] + factor * z[j]
        elif op == MIX:
            factor = np.tanh(vector[c])
            for j in range(c * n, (c + 1) * n):
                y[j] = x[j] + factor * (z[j] - x[j])
        elif op == BLEND_ADD:
            factor = alpha
            for j in range(c * n, (c + 1) * n):
                y[j] = x[j] + factor * (z[j] - x[j])
        elif op == BLEND_MULTIPLY:
            factor = alpha
            for j in range(c * n, (c + 1) * n):
                y[j] = x[j] + factor * x[j] * np.tanh(z[j] - x[j])
        elif op == STRAIGHT:
            for j in range(c * n, (c + 1) * n):
                y[j] = x[j] + zero * z[j]  # not z - z, which the compiler would leave out
        else:
            factor = alpha
            for p in range(pixels):
                a = c * n + p * samples
                if op == EXCITE:
                    for b in range(samples):
                        y[a + b] = x[a + b] * z[c * samples + b]
                else:
                    for b in range(samples):
                        y[a + b] = x[a + b] + factor * gate[b] * (z[a + b] - x[a + b])


@kernel
def combine_backward(
    op: int,
    x: Any,
    z: Any,
    dy: Any,
    dx: Any,
    dz: Any,
    vector: Any,
    dvector: Any,
    alpha: float,
    gate: Any,
    dgate: Any,
    channels: int,
    pixels: int,
    samples: int,
    with_parameters: bool,
) -> None:
    """Backward pass of :func:`combine`."""
    zero, one, n = x.dtype.type(0), x.dtype.type(1), pixels * samples
    for c in range(channels):
        start, end = c * n, (c + 1) * n
        if op == RESIDUAL:
            factor, total = vector[c], zero
            for j in range(start, end):
                dx[j] += dy[j]
                dz[j] += factor * dy[j]
                total += dy[j] * z[j]
            if with_parameters:
                dvector[c] += total
        elif op == MIX:
            factor, total = np.tanh(vector[c]), zero
            for j in range(start, end):
                dx[j] += (one - factor) * dy[j]
                dz[j] += factor * dy[j]
                total += dy[j] * (z[j] - x[j])
            if with_parameters:
                dvector[c] += total * (one - factor * factor)
        elif op == BLEND_ADD:
            factor = alpha
            for j in range(start, end):
                dx[j] += (one - factor) * dy[j]
                dz[j] += factor * dy[j]
        elif op == BLEND_MULTIPLY:
            factor = alpha
            for j in range(start, end):
                t = np.tanh(z[j] - x[j])
                slope = factor * x[j] * (one - t * t) * dy[j]
                dx[j] += dy[j] * (one + factor * t) - slope
                dz[j] += slope
        elif op == STRAIGHT:
            for j in range(start, end):
                dx[j] += dy[j]
                dz[j] += dy[j]
        else:
            factor = alpha
            for p in range(pixels):
                a = start + p * samples
                if op == EXCITE:
                    for b in range(samples):
                        dx[a + b] += dy[a + b] * z[c * samples + b]
                        dz[c * samples + b] += dy[a + b] * x[a + b]
                else:
                    for b in range(samples):
                        share = factor * gate[b]
                        dx[a + b] += (one - share) * dy[a + b]
                        dz[a + b] += share * dy[a + b]
                        dgate[b] += factor * dy[a + b] * (z[a + b] - x[a + b])
