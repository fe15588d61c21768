"""Kernels of normalisation, pooling and the loss; see :mod:`esper_env.population.fused.compilation`."""

from __future__ import annotations

from typing import Any

import numpy as np

from esper_env.population.fused.compilation import at, clear, copy, kernel
from esper_env.population.fused.functions import exp

# Normalisation


@kernel
def batch_norm(x: Any, y: Any, saved: Any, weight: Any, bias: Any, channels: int, n: int, eps: float) -> None:
    """Normalise each channel of x (C, n); ``saved`` (2, C) receives the means and inverse standard deviations."""
    zero, one, count = x.dtype.type(0), x.dtype.type(1), x.dtype.type(n)
    for c in range(channels):
        source, out = at(x, c * n), at(y, c * n)
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
    """Update the running means and variances in ``stats`` (2, C) with those of a batch; see :func:`batch_norm`."""
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
        source, d, dsource = at(x, c * n), at(dy, c * n), at(dx, c * n)
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
        source, out = at(x, c * n), at(y, c * n)
        factor = weight[c] / np.sqrt(stats[channels + c] + eps)
        shift = bias[c] - stats[c] * factor
        for j in range(n):
            out[j] = source[j] * factor + shift


@kernel
def fixed_norm_backward(dy: Any, dx: Any, stats: Any, weight: Any, channels: int, n: int, eps: float) -> None:
    """Backward pass of :func:`fixed_norm`, for its input only."""
    for c in range(channels):
        d, dsource = at(dy, c * n), at(dx, c * n)
        factor = weight[c] / np.sqrt(stats[channels + c] + eps)
        for j in range(n):
            dsource[j] += factor * d[j]


@kernel
def group_norm(
    x: Any, y: Any, saved: Any, weight: Any, bias: Any, channels: int, pixels: int, samples: int, eps: float
) -> None:
    """Normalise each sample of x (C, P, B); ``saved`` (2, B) receives the means and inverse standard deviations."""
    mean, inverse = saved, at(saved, samples)
    size, one, count = channels * pixels, x.dtype.type(1), x.dtype.type(channels * pixels)
    clear(saved, 2 * samples)
    for k in range(size):
        source = at(x, k * samples)
        for b in range(samples):
            mean[b] += source[b]
    for b in range(samples):
        mean[b] /= count
    for k in range(size):
        source = at(x, k * samples)
        for b in range(samples):
            inverse[b] += (source[b] - mean[b]) * (source[b] - mean[b])
    for b in range(samples):
        inverse[b] = one / np.sqrt(inverse[b] / count + eps)
    for c in range(channels):
        factor, shift = weight[c], bias[c]
        for k in range(c * pixels, (c + 1) * pixels):
            source, out = at(x, k * samples), at(y, k * samples)
            for b in range(samples):
                out[b] = (source[b] - mean[b]) * inverse[b] * factor + shift


@kernel
def group_norm_backward(
    x: Any,
    dy: Any,
    dx: Any,
    saved: Any,
    sums: Any,
    weight: Any,
    dweight: Any,
    dbias: Any,
    channels: int,
    pixels: int,
    samples: int,
) -> None:
    """Backward pass of :func:`group_norm`; ``sums`` (2, B) is scratch memory."""
    mean, inverse = saved, at(saved, samples)
    total, along = sums, at(sums, samples)
    clear(sums, 2 * samples)
    zero, count = x.dtype.type(0), x.dtype.type(channels * pixels)
    for c in range(channels):
        factor = weight[c]
        to_weight = to_bias = zero
        for k in range(c * pixels, (c + 1) * pixels):
            source, d = at(x, k * samples), at(dy, k * samples)
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
            source, d = at(x, k * samples), at(dy, k * samples)
            dsource = at(dx, k * samples)
            for b in range(samples):
                dsource[b] += inverse[b] * (factor * d[b] - total[b] - (source[b] - mean[b]) * along[b])


# Pooling


@kernel
def max_pool(x: Any, y: Any, first: Any, channels: int, height: int, width: int, samples: int) -> None:
    """Largest value of each 2x2 window of x (C, H, W, B); an odd last row or column is ignored.

    ``first``, as large as y, receives the index of the first maximum in its window: 0 to 3, row by row.
    """
    rows, columns = height // 2, width // 2
    zero, one, two = x.dtype.type(0), x.dtype.type(1), x.dtype.type(2)
    three = one + two
    for c in range(channels):
        for h in range(rows):
            for w in range(columns):
                a = ((c * height + 2 * h) * width + 2 * w) * samples
                b = a + width * samples
                x0, x1 = at(x, a), at(x, a + samples)
                x2, x3 = at(x, b), at(x, b + samples)
                k = ((c * rows + h) * columns + w) * samples
                out, place = at(y, k), at(first, k)
                for j in range(samples):
                    # Comparisons can drop a NaN, so 0 times the sum is added: NaN if a value is not finite, else 0.
                    upper, above = (x0[j], zero) if x0[j] >= x1[j] else (x1[j], one)
                    lower, below = (x2[j], two) if x2[j] >= x3[j] else (x3[j], three)
                    place[j] = above if upper >= lower else below
                    out[j] = (upper if upper >= lower else lower) + zero * (x0[j] + x1[j] + x2[j] + x3[j])


@kernel
def max_pool_backward(dy: Any, dx: Any, first: Any, channels: int, height: int, width: int, samples: int) -> None:
    """Backward pass of :func:`max_pool`."""
    rows, columns, zero = height // 2, width // 2, dy.dtype.type(0)
    for c in range(channels):
        for h in range(rows):
            for w in range(columns):
                k = ((c * rows + h) * columns + w) * samples
                d, place = at(dy, k), at(first, k)
                for t in range(4):
                    out = at(dx, ((c * height + 2 * h + t // 2) * width + 2 * w + t % 2) * samples)
                    number = dy.dtype.type(t)
                    for j in range(samples):
                        out[j] += d[j] if place[j] == number else zero


@kernel
def average(x: Any, y: Any, channels: int, pixels: int, samples: int) -> None:
    """Mean over the pixels of x (C, P, B)."""
    count = x.dtype.type(pixels)
    for c in range(channels):
        out = at(y, c * samples)
        clear(out, samples)
        for p in range(pixels):
            source = at(x, (c * pixels + p) * samples)
            for b in range(samples):
                out[b] += source[b]
        for b in range(samples):
            out[b] /= count


@kernel
def average_backward(dy: Any, dx: Any, channels: int, pixels: int, samples: int) -> None:
    """Backward pass of :func:`average`."""
    count = dy.dtype.type(pixels)
    for c in range(channels):
        d = at(dy, c * samples)
        for p in range(pixels):
            dsource = at(dx, (c * pixels + p) * samples)
            for b in range(samples):
                dsource[b] += d[b] / count


# Loss


@kernel
def softmax(logits: Any, out: Any, classes: int, samples: int) -> None:
    """Write probabilities of logits (K, B), the largest logits and the sums of exponentials to out (K + 2, B)."""
    top, total = at(out, classes * samples), at(out, (classes + 1) * samples)
    copy(logits, top, samples)
    clear(total, samples)
    for k in range(1, classes):
        row = at(logits, k * samples)
        for b in range(samples):
            top[b] = row[b] if row[b] > top[b] else top[b]
    for k in range(classes):
        row, weight = at(logits, k * samples), at(out, k * samples)
        for b in range(samples):
            weight[b] = exp(row[b] - top[b])
            total[b] += weight[b]
    for k in range(classes):
        weight = at(out, k * samples)
        for b in range(samples):
            weight[b] /= total[b]


@kernel
def cross_entropy(logits: Any, saved: Any, labels: Any, classes: int, samples: int, count: int) -> float:
    """Sum of the cross-entropies (nats) of the first ``count`` samples; ``saved`` is the output of :func:`softmax`."""
    top, total = at(saved, classes * samples), at(saved, (classes + 1) * samples)
    loss = 0.0
    for b in range(count):
        loss += np.log(total[b]) + top[b] - logits[labels[b] * samples + b]
    return loss


@kernel
def count_hits(logits: Any, best: Any, labels: Any, classes: int, samples: int, count: int) -> int:
    """Number of correct predictions among the first ``count`` samples; ties go to the lower class.

    ``best`` (2, B) is scratch memory.
    """
    top, kind = best, at(best, samples)
    copy(logits, top, samples)
    clear(kind, samples)
    for k in range(1, classes):
        row, number = at(logits, k * samples), logits.dtype.type(k)
        for b in range(samples):
            better = not row[b] <= top[b] and top[b] == top[b]  # NaN counts as the largest value, as in PyTorch
            kind[b] = number if better else kind[b]
            top[b] = row[b] if better else top[b]
    hits = 0
    for b in range(count):
        hits += kind[b] == logits.dtype.type(labels[b])
    return hits
