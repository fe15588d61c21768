"""Compiled kernels of layers, forward and backward, for one network.

Features are flat arrays in the order (C, H, W, B), samples last; one row of an image is then W * B contiguous values.
A forward kernel overwrites its output. A backward kernel adds to the gradient of its input, and to the gradients of
its parameters. ``n`` is a number of contiguous values of a channel.

Numbers are added in another order than in PyTorch, and products are fused with sums. Values that are not finite stay
so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

#: Everything that speeds up sums without assuming that numbers are finite.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that other compiled functions call, at its first call."""
    return njit(function, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy", fastmath=_FAST)


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, keep the result on disk, and release the interpreter while it runs."""
    return njit(function, nogil=True, cache=True, error_model="numpy", fastmath=_FAST)


@kernel
def clear(x: Any, n: int) -> None:
    """Set the first n values of x to zero."""
    zero = x.dtype.type(0)
    for j in range(n):
        x[j] = zero


@kernel
def copy(x: Any, y: Any, n: int) -> None:
    """Copy the first n values of x to y."""
    for j in range(n):
        y[j] = x[j]


# Products of matrices: 1x1 convolutions, and linear layers


@kernel
def matmul(w: Any, x: Any, y: Any, inputs: int, outputs: int, n: int) -> None:
    """y (O, n) += w (O, I) x (I, n)."""
    whole = inputs - inputs % 4
    for o in range(outputs):
        out = y[o * n : (o + 1) * n]
        for i in range(0, whole, 4):
            k = o * inputs + i
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            x0, x1 = x[i * n : (i + 1) * n], x[(i + 1) * n : (i + 2) * n]
            x2, x3 = x[(i + 2) * n : (i + 3) * n], x[(i + 3) * n : (i + 4) * n]
            for j in range(n):
                out[j] += w0 * x0[j] + w1 * x1[j] + w2 * x2[j] + w3 * x3[j]
        for i in range(whole, inputs):
            w0 = w[o * inputs + i]
            x0 = x[i * n : (i + 1) * n]
            for j in range(n):
                out[j] += w0 * x0[j]


@kernel
def matmul_weights(x: Any, dy: Any, dw: Any, inputs: int, outputs: int, n: int) -> None:
    """dw (O, I) += dy (O, n) x (I, n)^T."""
    whole = inputs - inputs % 4
    zero = dy.dtype.type(0)
    for o in range(outputs):
        d = dy[o * n : (o + 1) * n]
        for i in range(0, whole, 4):
            x0, x1 = x[i * n : (i + 1) * n], x[(i + 1) * n : (i + 2) * n]
            x2, x3 = x[(i + 2) * n : (i + 3) * n], x[(i + 3) * n : (i + 4) * n]
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
            x0 = x[i * n : (i + 1) * n]
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
    """y (C, n) += bias (C)."""
    for c in range(channels):
        out, b = y[c * n : (c + 1) * n], bias[c]
        for j in range(n):
            out[j] += b


@kernel
def sum_channels(dy: Any, out: Any, channels: int, n: int) -> None:
    """out (C) += the sums of dy (C, n)."""
    for c in range(channels):
        d = dy[c * n : (c + 1) * n]
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
        plane = out[c * (height + 2 * border) * row : (c + 1) * (height + 2 * border) * row]
        clear(plane, border * row)
        clear(plane[(height + border) * row :], border * row)
        for h in range(height):
            line = plane[(h + border) * row : (h + border + 1) * row]
            source = x[(c * height + h) * width * samples : (c * height + h + 1) * width * samples]
            clear(line, edge)
            clear(line[row - edge :], edge)
            copy(source, line[edge:], width * samples)


@kernel
def conv3(x: Any, w: Any, y: Any, inputs: int, outputs: int, height: int, width: int, samples: int) -> None:
    """y (O, H, W, B) += the 3x3 convolution of x, padded by 1, with w (O, I, 3, 3)."""
    n, row, one = width * samples, (width + 2) * samples, samples
    for o in range(outputs):
        for h in range(height):
            out = y[(o * height + h) * n : (o * height + h + 1) * n]
            for i in range(inputs):
                k = (o * inputs + i) * 9
                w0, w1, w2, w3, w4 = w[k], w[k + 1], w[k + 2], w[k + 3], w[k + 4]
                w5, w6, w7, w8 = w[k + 5], w[k + 6], w[k + 7], w[k + 8]
                a = (i * (height + 2) + h) * row
                b, c = a + row, a + 2 * row
                x0, x1, x2 = x[a : a + n], x[a + one : a + one + n], x[a + 2 * one : a + 2 * one + n]
                x3, x4, x5 = x[b : b + n], x[b + one : b + one + n], x[b + 2 * one : b + 2 * one + n]
                x6, x7, x8 = x[c : c + n], x[c + one : c + one + n], x[c + 2 * one : c + 2 * one + n]
                for j in range(n):
                    first = w0 * x0[j] + w1 * x1[j] + w2 * x2[j] + w3 * x3[j] + w4 * x4[j]
                    out[j] += first + w5 * x5[j] + w6 * x6[j] + w7 * x7[j] + w8 * x8[j]


@kernel
def conv3_weights(x: Any, dy: Any, dw: Any, inputs: int, outputs: int, height: int, width: int, samples: int) -> None:
    """dw (O, I, 3, 3) += the gradient of a 3x3 convolution of x, padded by 1."""
    n, row, one = width * samples, (width + 2) * samples, samples
    zero = dy.dtype.type(0)
    for o in range(outputs):
        for i in range(inputs):
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = zero
            for h in range(height):
                d = dy[(o * height + h) * n : (o * height + h + 1) * n]
                a = (i * (height + 2) + h) * row
                b, c = a + row, a + 2 * row
                x0, x1, x2 = x[a : a + n], x[a + one : a + one + n], x[a + 2 * one : a + 2 * one + n]
                x3, x4, x5 = x[b : b + n], x[b + one : b + one + n], x[b + 2 * one : b + 2 * one + n]
                x6, x7, x8 = x[c : c + n], x[c + one : c + one + n], x[c + 2 * one : c + 2 * one + n]
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
def conv_any(
    x: Any, w: Any, y: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int
) -> None:
    """y (O, H, W, B) += the convolution of x, padded by size // 2, with w (O, I, size, size)."""
    n, row = width * samples, (width + size - 1) * samples
    for o in range(outputs):
        for h in range(height):
            out = y[(o * height + h) * n : (o * height + h + 1) * n]
            for i in range(inputs):
                for t in range(size * size):
                    a = (i * (height + size - 1) + h + t // size) * row + t % size * samples
                    factor, source = w[(o * inputs + i) * size * size + t], x[a : a + n]
                    for j in range(n):
                        out[j] += factor * source[j]


@kernel
def conv_any_weights(
    x: Any, dy: Any, dw: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int
) -> None:
    """dw (O, I, size, size) += the gradient of a convolution of x, padded by size // 2."""
    n, row = width * samples, (width + size - 1) * samples
    for o in range(outputs):
        for i in range(inputs):
            for t in range(size * size):
                total = dy.dtype.type(0)
                for h in range(height):
                    a = (i * (height + size - 1) + h + t // size) * row + t % size * samples
                    d, source = dy[(o * height + h) * n : (o * height + h + 1) * n], x[a : a + n]
                    for j in range(n):
                        total += d[j] * source[j]
                dw[(o * inputs + i) * size * size + t] += total


# Normalisation


@kernel
def batch_norm(x: Any, y: Any, saved: Any, weight: Any, bias: Any, channels: int, n: int, eps: float) -> None:
    """Normalise each channel of x (C, n); ``saved`` (2, C) gets the means and the inverse deviations."""
    zero, one, count = x.dtype.type(0), x.dtype.type(1), x.dtype.type(n)
    for c in range(channels):
        source, out = x[c * n : (c + 1) * n], y[c * n : (c + 1) * n]
        total = zero
        for j in range(n):
            total += source[j]
        mean = total / count
        squares = zero
        for j in range(n):
            squares += (source[j] - mean) * (source[j] - mean)
        inverse = one / np.sqrt(squares / count + eps)
        saved[c], saved[channels + c] = mean, inverse
        factor = inverse * weight[c]
        shift = bias[c]
        for j in range(n):
            out[j] = (source[j] - mean) * factor + shift


@kernel
def track_statistics(saved: Any, stats: Any, channels: int, n: int, momentum: float, eps: float) -> None:
    """Move the running means and variances in ``stats`` (2, C) towards those of a batch; see :func:`batch_norm`."""
    one, unbiased = stats.dtype.type(1), stats.dtype.type(n / (n - 1))
    for c in range(channels):
        variance = one / (saved[channels + c] * saved[channels + c]) - eps
        stats[c] += momentum * (saved[c] - stats[c])
        stats[channels + c] += momentum * (variance * unbiased - stats[channels + c])


@kernel
def batch_norm_backward(
    x: Any, dy: Any, dx: Any, saved: Any, weight: Any, dweight: Any, dbias: Any, channels: int, n: int
) -> None:
    """Backward pass of :func:`batch_norm`."""
    zero, count = x.dtype.type(0), x.dtype.type(n)
    for c in range(channels):
        source, d, dsource = x[c * n : (c + 1) * n], dy[c * n : (c + 1) * n], dx[c * n : (c + 1) * n]
        mean, inverse = saved[c], saved[channels + c]
        total = along = zero
        for j in range(n):
            total += d[j]
            along += d[j] * (source[j] - mean)
        dweight[c] += along * inverse
        dbias[c] += total
        factor = weight[c] * inverse
        slope, offset = along * inverse * inverse / count, total / count
        for j in range(n):
            dsource[j] += factor * (d[j] - offset - (source[j] - mean) * slope)


@kernel
def fixed_norm(x: Any, y: Any, stats: Any, weight: Any, bias: Any, channels: int, n: int, eps: float) -> None:
    """Normalise x (C, n) with the running statistics (2, C)."""
    for c in range(channels):
        source, out = x[c * n : (c + 1) * n], y[c * n : (c + 1) * n]
        factor = weight[c] / np.sqrt(stats[channels + c] + eps)
        shift = bias[c] - stats[c] * factor
        for j in range(n):
            out[j] = source[j] * factor + shift


@kernel
def fixed_norm_backward(dy: Any, dx: Any, stats: Any, weight: Any, channels: int, n: int, eps: float) -> None:
    """Backward pass of :func:`fixed_norm` to its input."""
    for c in range(channels):
        d, dsource = dy[c * n : (c + 1) * n], dx[c * n : (c + 1) * n]
        factor = weight[c] / np.sqrt(stats[channels + c] + eps)
        for j in range(n):
            dsource[j] += factor * d[j]


@kernel
def group_norm(x: Any, y: Any, saved: Any, weight: Any, bias: Any, channels: int, pixels: int, samples: int, eps: float) -> None:
    """Normalise each sample of x (C, P, B) as one group; ``saved`` (2, B) gets the means and inverse deviations."""
    mean, inverse = saved[:samples], saved[samples : 2 * samples]
    size, one, count = channels * pixels, x.dtype.type(1), x.dtype.type(channels * pixels)
    clear(saved, 2 * samples)
    for k in range(size):
        source = x[k * samples : (k + 1) * samples]
        for b in range(samples):
            mean[b] += source[b]
    for b in range(samples):
        mean[b] /= count
    for k in range(size):
        source = x[k * samples : (k + 1) * samples]
        for b in range(samples):
            inverse[b] += (source[b] - mean[b]) * (source[b] - mean[b])
    for b in range(samples):
        inverse[b] = one / np.sqrt(inverse[b] / count + eps)
    for c in range(channels):
        factor, shift = weight[c], bias[c]
        for k in range(c * pixels, (c + 1) * pixels):
            source, out = x[k * samples : (k + 1) * samples], y[k * samples : (k + 1) * samples]
            for b in range(samples):
                out[b] = (source[b] - mean[b]) * inverse[b] * factor + shift


@kernel
def group_norm_backward(
    x: Any, dy: Any, dx: Any, saved: Any, sums: Any, weight: Any, dweight: Any, dbias: Any, channels: int, pixels: int,
    samples: int,
) -> None:
    """Backward pass of :func:`group_norm`; ``sums`` (2, B) is scratch memory."""
    mean, inverse = saved[:samples], saved[samples : 2 * samples]
    total, along = sums[:samples], sums[samples : 2 * samples]
    clear(sums, 2 * samples)
    zero, count = x.dtype.type(0), x.dtype.type(channels * pixels)
    for c in range(channels):
        factor = weight[c]
        to_weight = to_bias = zero
        for k in range(c * pixels, (c + 1) * pixels):
            source, d = x[k * samples : (k + 1) * samples], dy[k * samples : (k + 1) * samples]
            for b in range(samples):
                normed = (source[b] - mean[b]) * inverse[b]
                total[b] += factor * d[b]
                along[b] += factor * d[b] * normed
                to_weight += d[b] * normed
                to_bias += d[b]
        dweight[c] += to_weight
        dbias[c] += to_bias
    for b in range(samples):
        total[b] /= count
        along[b] *= inverse[b] / count
    for c in range(channels):
        factor = weight[c]
        for k in range(c * pixels, (c + 1) * pixels):
            source, d = x[k * samples : (k + 1) * samples], dy[k * samples : (k + 1) * samples]
            dsource = dx[k * samples : (k + 1) * samples]
            for b in range(samples):
                dsource[b] += inverse[b] * (factor * d[b] - total[b] - (source[b] - mean[b]) * along[b])


# Pooling


@kernel
def max_pool(x: Any, y: Any, channels: int, height: int, width: int, samples: int) -> None:
    """Largest value of each 2x2 window of x (C, H, W, B); an odd last row or column is left out."""
    rows, columns, zero = height // 2, width // 2, x.dtype.type(0)
    for c in range(channels):
        for h in range(rows):
            for w in range(columns):
                a = ((c * height + 2 * h) * width + 2 * w) * samples
                b = a + width * samples
                x0, x1 = x[a : a + samples], x[a + samples : a + 2 * samples]
                x2, x3 = x[b : b + samples], x[b + samples : b + 2 * samples]
                k = ((c * rows + h) * columns + w) * samples
                out = y[k : k + samples]
                for j in range(samples):
                    # A comparison with NaN is False, so the sum keeps it; without NaN it adds nothing.
                    upper = x0[j] if x0[j] >= x1[j] else x1[j]
                    lower = x2[j] if x2[j] >= x3[j] else x3[j]
                    out[j] = (upper if upper >= lower else lower) + zero * (x0[j] + x1[j] + x2[j] + x3[j])


@kernel
def max_pool_backward(
    x: Any, y: Any, dy: Any, dx: Any, rest: Any, channels: int, height: int, width: int, samples: int
) -> None:
    """Backward pass of :func:`max_pool`: to the first largest value of each window; ``rest`` (B) is scratch memory."""
    rows, columns, zero = height // 2, width // 2, x.dtype.type(0)
    for c in range(channels):
        for h in range(rows):
            for w in range(columns):
                k = ((c * rows + h) * columns + w) * samples
                top = y[k : k + samples]
                copy(dy[k:], rest, samples)
                for t in range(4):
                    a = ((c * height + 2 * h + t // 2) * width + 2 * w + t % 2) * samples
                    source, d = x[a : a + samples], dx[a : a + samples]
                    for j in range(samples):
                        hit = source[j] == top[j]
                        d[j] += rest[j] if hit else zero
                        rest[j] = zero if hit else rest[j]


@kernel
def average(x: Any, y: Any, channels: int, pixels: int, samples: int) -> None:
    """Mean over the pixels of x (C, P, B)."""
    count = x.dtype.type(pixels)
    for c in range(channels):
        out = y[c * samples : (c + 1) * samples]
        clear(out, samples)
        for p in range(pixels):
            source = x[(c * pixels + p) * samples : (c * pixels + p + 1) * samples]
            for b in range(samples):
                out[b] += source[b]
        for b in range(samples):
            out[b] /= count


@kernel
def average_backward(dy: Any, dx: Any, channels: int, pixels: int, samples: int) -> None:
    """Backward pass of :func:`average`."""
    count = dy.dtype.type(pixels)
    for c in range(channels):
        d = dy[c * samples : (c + 1) * samples]
        for p in range(pixels):
            dsource = dx[(c * pixels + p) * samples : (c * pixels + p + 1) * samples]
            for b in range(samples):
                dsource[b] += d[b] / count


# Loss


@kernel
def softmax(logits: Any, out: Any, classes: int, samples: int) -> None:
    """Probabilities of logits (K, B); the rows behind them, (2, B), get the largest logits and the sums."""
    top, total = out[classes * samples : (classes + 1) * samples], out[(classes + 1) * samples : (classes + 2) * samples]
    copy(logits, top, samples)
    clear(total, samples)
    for k in range(1, classes):
        row = logits[k * samples : (k + 1) * samples]
        for b in range(samples):
            top[b] = row[b] if row[b] > top[b] else top[b]
    for k in range(classes):
        row, weight = logits[k * samples : (k + 1) * samples], out[k * samples : (k + 1) * samples]
        for b in range(samples):
            weight[b] = np.exp(row[b] - top[b])
            total[b] += weight[b]
    for k in range(classes):
        weight = out[k * samples : (k + 1) * samples]
        for b in range(samples):
            weight[b] /= total[b]
