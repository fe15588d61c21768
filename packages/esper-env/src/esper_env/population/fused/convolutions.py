"""Kernels of convolutions and of linear layers; see :mod:`esper_env.population.fused.compilation`.

A convolution has an odd kernel size and keeps the size of its input. Sums run over pixels inside the image only, so
the input needs no padding. Four output channels are computed at a time, so each loaded value is used four times.
"""

from __future__ import annotations

from typing import Any

from esper_env.population.fused.compilation import at, kernel
from esper_env.population.fused.vectors import add_product, load, store, total, width, zeros


@kernel
def convolve(
    x: Any, w: Any, y: Any, inputs: int, outputs: int, height: int, columns: int, samples: int, size: int, add: bool
) -> None:
    """Convolve x (I, H, W, B) with w (O, I, size, size) into y (O, H, W, B); add to y if ``add``."""
    border, taps, plane, step = size // 2, size * size, height * columns * samples, width(x)
    fan, blocks, whole, none = inputs * taps, outputs - outputs % 4, samples - samples % step, x.dtype.type(0)
    for h in range(height):
        top, bottom = max(-border, -h), min(border, height - 1 - h) + 1
        for c in range(columns):
            left, right = max(-border, -c), min(border, columns - 1 - c) + 1
            pixel = (h * columns + c) * samples
            for o in range(0, blocks, 4):
                y0, own = at(y, o * plane + pixel), at(w, o * fan + border * size + border)
                y1, y2, y3 = at(y0, plane), at(y0, 2 * plane), at(y0, 3 * plane)
                for j in range(0, whole, step):
                    s0 = s1 = s2 = s3 = zeros(x)
                    if add:
                        s0, s1, s2, s3 = load(y0, j), load(y1, j), load(y2, j), load(y3, j)
                    for t in range(top, bottom):
                        for u in range(left, right):
                            source, tap = at(x, pixel + (t * columns + u) * samples + j), at(own, t * size + u)
                            for i in range(inputs):
                                v, q = load(source, i * plane), at(tap, i * taps)
                                s0, s1 = add_product(s0, q[0], v), add_product(s1, at(q, fan)[0], v)
                                s2, s3 = add_product(s2, at(q, 2 * fan)[0], v), add_product(s3, at(q, 3 * fan)[0], v)
                    store(y0, j, s0)
                    store(y1, j, s1)
                    store(y2, j, s2)
                    store(y3, j, s3)
            for o in range(blocks, outputs):
                y0, own = at(y, o * plane + pixel), at(w, o * fan + border * size + border)
                for j in range(0, whole, step):
                    s0 = load(y0, j) if add else zeros(x)
                    for t in range(top, bottom):
                        for u in range(left, right):
                            source, tap = at(x, pixel + (t * columns + u) * samples + j), at(own, t * size + u)
                            for i in range(inputs):
                                s0 = add_product(s0, at(tap, i * taps)[0], load(source, i * plane))
                    store(y0, j, s0)
            for o in range(outputs):
                for j in range(whole, samples):
                    y0 = at(y, o * plane + pixel + j)
                    value = y0[0] if add else none
                    for t in range(top, bottom):
                        for u in range(left, right):
                            source = at(x, pixel + (t * columns + u) * samples + j)
                            own = at(w, o * fan + (t + border) * size + u + border)
                            for i in range(inputs):
                                value += at(own, i * taps)[0] * at(source, i * plane)[0]
                    y0[0] = value


@kernel
def convolve_weights(
    x: Any, dy: Any, dw: Any, inputs: int, outputs: int, height: int, columns: int, samples: int, size: int
) -> None:
    """Add the gradient with respect to the weights of :func:`convolve` to dw (O, I, size, size)."""
    border, taps, plane, step = size // 2, size * size, height * columns * samples, width(x)
    fan, blocks, none = inputs * taps, outputs - outputs % 4, x.dtype.type(0)
    for t in range(-border, border + 1):
        top, bottom = max(0, -t), height - max(0, t)
        for u in range(-border, border + 1):
            left, right = max(0, -u), columns - max(0, u)
            n = max(0, right - left) * samples
            whole = n - n % step
            for i in range(inputs):
                source = at(x, i * plane + (t * columns + left + u) * samples)
                own = at(dw, i * taps + (t + border) * size + u + border)
                for o in range(0, blocks, 4):
                    d0 = at(dy, o * plane + left * samples)
                    d1, d2, d3 = at(d0, plane), at(d0, 2 * plane), at(d0, 3 * plane)
                    s0 = s1 = s2 = s3 = zeros(x)
                    r0 = r1 = r2 = r3 = none
                    for h in range(top, bottom):
                        row = h * columns * samples
                        for k in range(row, row + whole, step):
                            v = load(source, k)
                            s0, s1 = add_product(s0, load(d0, k), v), add_product(s1, load(d1, k), v)
                            s2, s3 = add_product(s2, load(d2, k), v), add_product(s3, load(d3, k), v)
                        for k in range(row + whole, row + n):
                            r0 += d0[k] * source[k]
                            r1 += d1[k] * source[k]
                            r2 += d2[k] * source[k]
                            r3 += d3[k] * source[k]
                    at(own, o * fan)[0] += total(s0) + r0
                    at(own, (o + 1) * fan)[0] += total(s1) + r1
                    at(own, (o + 2) * fan)[0] += total(s2) + r2
                    at(own, (o + 3) * fan)[0] += total(s3) + r3
                for o in range(blocks, outputs):
                    d0 = at(dy, o * plane + left * samples)
                    s0, r0 = zeros(x), none
                    for h in range(top, bottom):
                        row = h * columns * samples
                        for k in range(row, row + whole, step):
                            s0 = add_product(s0, load(d0, k), load(source, k))
                        for k in range(row + whole, row + n):
                            r0 += d0[k] * source[k]
                    at(own, o * fan)[0] += total(s0) + r0


@kernel
def transpose(w: Any, out: Any, outputs: int, inputs: int, taps: int) -> None:
    """Write w (O, I, taps) to out (I, O, taps), with the taps reversed: the weights of the backward pass."""
    for o in range(outputs):
        for i in range(inputs):
            for t in range(taps):
                out[(i * outputs + o) * taps + t] = w[(o * inputs + i) * taps + taps - 1 - t]


@kernel
def fill_channels(y: Any, bias: Any, channels: int, n: int) -> None:
    """Set each channel of y (C, n) to its bias (C)."""
    for c in range(channels):
        out, b = at(y, c * n), bias[c]
        for j in range(n):
            out[j] = b


@kernel
def sum_channels(dy: Any, out: Any, channels: int, n: int) -> None:
    """Add the sum of each channel of dy (C, n) to out (C)."""
    for c in range(channels):
        d, value = at(dy, c * n), dy.dtype.type(0)
        for j in range(n):
            value += d[j]
        out[c] += value
