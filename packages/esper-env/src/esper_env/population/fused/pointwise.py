"""Kernels of activations, and of operations that combine two features; see ``compilation.py``."""

from __future__ import annotations

from typing import Any

from esper_env.population.fused.compilation import at, kernel
from esper_env.population.fused.functions import exp, tanh
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
def activate(op: int, factor: float, x: Any, y: Any, n: int) -> None:
    """Write RELU, SILU or SIGMOID of x (n) to y (n)."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    if op == RELU:
        for j in range(n):
            y[j] = zero if x[j] <= zero else x[j]  # keeps NaN
    elif op == SILU:
        for j in range(n):
            y[j] = x[j] / (one + exp(-x[j]))
    else:
        for j in range(n):
            y[j] = factor / (one + exp(-x[j]))


@kernel
def activate_backward(op: int, factor: float, x: Any, y: Any, dy: Any, dx: Any, n: int) -> None:
    """Backward pass of :func:`activate`."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    if op == RELU:
        for j in range(n):
            dx[j] += zero if y[j] <= zero else dy[j]
    elif op == SILU:
        for j in range(n):
            s = one / (one + exp(-x[j]))
            dx[j] += dy[j] * s * (one + x[j] * (one - s))
    else:
        for j in range(n):
            dx[j] += dy[j] * y[j] * (one - y[j] / factor)


@kernel
def combine(
    op: int,
    x: Any,
    z: Any,
    y: Any,
    vector: Any,
    alpha: float,
    gate: Any,
    channels: int,
    pixels: int,
    samples: int,
) -> None:
    """Apply the operation ``op`` to x (C, P, B) and z; ``vector`` (C) holds its parameters."""
    zero, n = x.dtype.type(0), pixels * samples
    for c in range(channels):
        xs, zs, ys = at(x, c * n), at(z, c * n), at(y, c * n)
        if op == RESIDUAL:
            factor = vector[c]
            for j in range(n):
                ys[j] = xs[j] + factor * zs[j]
        elif op in (MIX, BLEND_ADD):
            factor = tanh(vector[c]) if op == MIX else alpha
            for j in range(n):
                ys[j] = xs[j] + factor * (zs[j] - xs[j])
        elif op == BLEND_MULTIPLY:
            for j in range(n):
                ys[j] = xs[j] + alpha * xs[j] * tanh(zs[j] - xs[j])
        elif op == STRAIGHT:
            for j in range(n):
                ys[j] = xs[j] + zero * zs[j]  # NaN if z is not finite; the compiler would remove z - z
        elif op == EXCITE:
            excitation = at(z, c * samples)
            for p in range(pixels):
                one, out = at(xs, p * samples), at(ys, p * samples)
                for b in range(samples):
                    out[b] = one[b] * excitation[b]
        else:
            for p in range(pixels):
                one, other = at(xs, p * samples), at(zs, p * samples)
                out = at(ys, p * samples)
                for b in range(samples):
                    out[b] = one[b] + alpha * gate[b] * (other[b] - one[b])


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
        xs, zs, d = at(x, c * n), at(z, c * n), at(dy, c * n)
        dxs, dzs = at(dx, c * n), at(dz, c * n)
        if op == RESIDUAL:
            factor, total = vector[c], zero
            for j in range(n):
                dxs[j] += d[j]
                dzs[j] += factor * d[j]
            if with_parameters:
                for j in range(n):
                    total += d[j] * zs[j]
                dvector[c] += total
        elif op in (MIX, BLEND_ADD):
            factor = tanh(vector[c]) if op == MIX else alpha
            for j in range(n):
                dxs[j] += (one - factor) * d[j]
                dzs[j] += factor * d[j]
            if op == MIX and with_parameters:
                total = zero
                for j in range(n):
                    total += d[j] * (zs[j] - xs[j])
                dvector[c] += total * (one - factor * factor)
        elif op == BLEND_MULTIPLY:
            for j in range(n):
                t = tanh(zs[j] - xs[j])
                slope = alpha * xs[j] * (one - t * t) * d[j]
                dxs[j] += d[j] * (one + alpha * t) - slope
                dzs[j] += slope
        elif op == STRAIGHT:
            for j in range(n):
                dxs[j] += d[j]
                dzs[j] += d[j]
        elif op == EXCITE:
            excitation, to = at(z, c * samples), at(dz, c * samples)
            for p in range(pixels):
                xp, dp = at(xs, p * samples), at(d, p * samples)
                dxp = at(dxs, p * samples)
                for b in range(samples):
                    dxp[b] += dp[b] * excitation[b]
                    to[b] += dp[b] * xp[b]
        else:
            for p in range(pixels):
                xp, zp = at(xs, p * samples), at(zs, p * samples)
                dp, dxp = at(d, p * samples), at(dxs, p * samples)
                dzp = at(dzs, p * samples)
                for b in range(samples):
                    share = alpha * gate[b]
                    dxp[b] += (one - share) * dp[b]
                    dzp[b] += share * dp[b]
                for b in range(samples):
                    dgate[b] += alpha * dp[b] * (zp[b] - xp[b])
