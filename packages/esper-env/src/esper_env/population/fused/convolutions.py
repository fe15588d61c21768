"""Kernels of convolutions and of linear layers; see :mod:`esper_env.population.fused.compilation`."""

from __future__ import annotations

from typing import Any

from esper_env.population.fused.compilation import at, clear, copy, kernel

# Products of matrices: 1x1 convolutions, and linear layers


@kernel
def matmul(w: Any, x: Any, y: Any, inputs: int, outputs: int, n: int) -> None:
    """Y (O, n) += w (O, I) x (I, n)."""
    whole = inputs - inputs % 4
    for o in range(outputs):
        out = at(y, o * n)
        for i in range(0, whole, 4):
            k = o * inputs + i
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            x0, x1 = at(x, i * n), at(x, (i + 1) * n)
            x2, x3 = at(x, (i + 2) * n), at(x, (i + 3) * n)
            for j in range(n):
                out[j] += w0 * x0[j] + w1 * x1[j] + w2 * x2[j] + w3 * x3[j]
        for i in range(whole, inputs):
            w0 = w[o * inputs + i]
            x0 = at(x, i * n)
            for j in range(n):
                out[j] += w0 * x0[j]


@kernel
def matmul_weights(x: Any, dy: Any, dw: Any, inputs: int, outputs: int, n: int) -> None:
    """Dw (O, I) += dy (O, n) x (I, n)^T."""
    whole = inputs - inputs % 4
    zero = dy.dtype.type(0)
    for o in range(outputs):
        d = at(dy, o * n)
        for i in range(0, whole, 4):
            x0, x1 = at(x, i * n), at(x, (i + 1) * n)
            x2, x3 = at(x, (i + 2) * n), at(x, (i + 3) * n)
            s0 = s1 = s2 = s3 = zero
            for j in range(n):
                s0 += d[j] * x0[j]
                s1 += d[j] * x1[j]
                s2 += d[j] * x2[j]
                s3 += d[j] * x3[j]
            k = o * inputs + i
            dw[k] += s0
            dw[k + 1] += s1
            dw[k + 2] += s2
            dw[k + 3] += s3
        for i in range(whole, inputs):
            x0 = at(x, i * n)
            s0 = zero
            for j in range(n):
                s0 += d[j] * x0[j]
            dw[o * inputs + i] += s0


@kernel
def transpose(w: Any, out: Any, outputs: int, inputs: int, taps: int) -> None:
    """Write w (O, I, taps) to out (I, O, taps), with the taps reversed: the weights of the backward pass."""
    for o in range(outputs):
        for i in range(inputs):
            for t in range(taps):
                out[(i * outputs + o) * taps + t] = w[(o * inputs + i) * taps + taps - 1 - t]


@kernel
def add_bias(y: Any, bias: Any, channels: int, n: int) -> None:
    """Y (C, n) += bias (C)."""
    for c in range(channels):
        out, b = at(y, c * n), bias[c]
        for j in range(n):
            out[j] += b


@kernel
def sum_channels(dy: Any, out: Any, channels: int, n: int) -> None:
    """Out (C) += the sums of dy (C, n)."""
    for c in range(channels):
        d = at(dy, c * n)
        total = dy.dtype.type(0)
        for j in range(n):
            total += d[j]
        out[c] += total


# Convolutions with an odd kernel that keep the size


@kernel
def pad(x: Any, out: Any, channels: int, height: int, width: int, border: int, samples: int) -> None:
    """Copy x (C, H, W, B) into the middle of out (C, H + 2 border, W + 2 border, B), with zeros around it."""
    row, edge = (width + 2 * border) * samples, border * samples
    for c in range(channels):
        plane = at(out, c * (height + 2 * border) * row)
        clear(plane, border * row)
        clear(at(plane, (height + border) * row), border * row)
        for h in range(height):
            line = at(plane, (h + border) * row)
            source = at(x, (c * height + h) * width * samples)
            clear(line, edge)
            clear(at(line, row - edge), edge)
            copy(source, at(line, edge), width * samples)


@kernel
def conv3(x: Any, w: Any, y: Any, inputs: int, outputs: int, height: int, width: int, samples: int) -> None:
    """Y (O, H, W, B) += the 3x3 convolution of x, padded by 1, with w (O, I, 3, 3)."""
    n, row, one = width * samples, (width + 2) * samples, samples
    for o in range(outputs):
        for h in range(height):
            out = at(y, (o * height + h) * n)
            for i in range(inputs):
                k = (o * inputs + i) * 9
                w0, w1, w2, w3, w4 = w[k], w[k + 1], w[k + 2], w[k + 3], w[k + 4]
                w5, w6, w7, w8 = w[k + 5], w[k + 6], w[k + 7], w[k + 8]
                a = (i * (height + 2) + h) * row
                b, c = a + row, a + 2 * row
                x0, x1, x2 = at(x, a), at(x, a + one), at(x, a + 2 * one)
                x3, x4, x5 = at(x, b), at(x, b + one), at(x, b + 2 * one)
                x6, x7, x8 = at(x, c), at(x, c + one), at(x, c + 2 * one)
                for j in range(n):
                    first = w0 * x0[j] + w1 * x1[j] + w2 * x2[j] + w3 * x3[j] + w4 * x4[j]
                    out[j] += first + w5 * x5[j] + w6 * x6[j] + w7 * x7[j] + w8 * x8[j]


@kernel
def conv3_weights(x: Any, dy: Any, dw: Any, inputs: int, outputs: int, height: int, width: int, samples: int) -> None:
    """Dw (O, I, 3, 3) += the gradient of a 3x3 convolution of x, padded by 1."""
    n, row, one = width * samples, (width + 2) * samples, samples
    zero = dy.dtype.type(0)
    for o in range(outputs):
        for i in range(inputs):
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = zero
            for h in range(height):
                d = at(dy, (o * height + h) * n)
                a = (i * (height + 2) + h) * row
                b, c = a + row, a + 2 * row
                x0, x1, x2 = at(x, a), at(x, a + one), at(x, a + 2 * one)
                x3, x4, x5 = at(x, b), at(x, b + one), at(x, b + 2 * one)
                x6, x7, x8 = at(x, c), at(x, c + one), at(x, c + 2 * one)
                for j in range(n):
                    s0 += d[j] * x0[j]
                    s1 += d[j] * x1[j]
                    s2 += d[j] * x2[j]
                    s3 += d[j] * x3[j]
                    s4 += d[j] * x4[j]
                    s5 += d[j] * x5[j]
                    s6 += d[j] * x6[j]
                    s7 += d[j] * x7[j]
                    s8 += d[j] * x8[j]
            k = (o * inputs + i) * 9
            dw[k] += s0
            dw[k + 1] += s1
            dw[k + 2] += s2
            dw[k + 3] += s3
            dw[k + 4] += s4
            dw[k + 5] += s5
            dw[k + 6] += s6
            dw[k + 7] += s7
            dw[k + 8] += s8


@kernel
def unroll(w: Any, matrix: Any, outputs: int, inputs: int, height: int, width: int, back: bool) -> None:
    """Write 3x3 weights (O, I, 3, 3) as a dense matrix (O * P, I * P) that convolves a map of at most 2x2 pixels.

    On a 2x2 map, 20 of the 36 products of a 3x3 convolution multiply zeros of the padding. With ``back``, add each
    element of the matrix to its weight.
    """
    pixels = height * width
    for o in range(outputs):
        for i in range(inputs):
            taps = at(w, (o * inputs + i) * 9)
            for p in range(pixels):
                for q in range(pixels):
                    tap = (q // width - p // width + 1) * 3 + q % width - p % width + 1
                    k = ((o * pixels + p) * inputs + i) * pixels + q
                    if back:
                        taps[tap] += matrix[k]
                    else:
                        matrix[k] = taps[tap]


@kernel
def conv_any(
    x: Any, w: Any, y: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int
) -> None:
    """Y (O, H, W, B) += the convolution of x, padded by size // 2, with w (O, I, size, size)."""
    n, row = width * samples, (width + size - 1) * samples
    for o in range(outputs):
        for h in range(height):
            out = at(y, (o * height + h) * n)
            for i in range(inputs):
                for t in range(size * size):
                    a = (i * (height + size - 1) + h + t // size) * row + t % size * samples
                    factor, source = w[(o * inputs + i) * size * size + t], at(x, a)
                    for j in range(n):
                        out[j] += factor * source[j]


@kernel
def conv_any_weights(
    x: Any, dy: Any, dw: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int
) -> None:
    """Dw (O, I, size, size) += the gradient of a convolution of x, padded by size // 2."""
    n, row = width * samples, (width + size - 1) * samples
    for o in range(outputs):
        for i in range(inputs):
            for t in range(size * size):
                total = dy.dtype.type(0)
                for h in range(height):
                    a = (i * (height + size - 1) + h + t // size) * row + t % size * samples
                    d, source = at(dy, (o * height + h) * n), at(x, a)
                    for j in range(n):
                        total += d[j] * source[j]
                dw[(o * inputs + i) * size * size + t] += total
