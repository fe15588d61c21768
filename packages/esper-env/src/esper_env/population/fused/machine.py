"""The compiled machine that runs programs forward and backward.

No network reads another's values, so its results depend neither on the others nor on the thread that computes them.
"""

from __future__ import annotations

from typing import Any

from esper_env.population.fused import convolutions as conv
from esper_env.population.fused import reductions as red
from esper_env.population.fused.compilation import at, clear, copy, inlined
from esper_env.population.fused.instructions import (
    AVERAGE,
    BATCH_NORM,
    BIAS,
    BLEND_ADD,
    CHANNELS,
    CONV,
    DETACH,
    EPS,
    EXCITE,
    FACTOR,
    FIRST,
    FIXED_NORM,
    FLAGS,
    GATE,
    GROUP_NORM,
    GROUPS,
    HEIGHT,
    INDEX,
    INPUT,
    LOSS,
    MAX_POOL,
    NEW_GATE,
    NEW_X,
    NEW_Z,
    OPERATION,
    OUTPUTS,
    PARAMETERS,
    RELU,
    SCORE,
    SECOND,
    SIGMOID,
    SILU,
    SIZE,
    TRACK,
    WANTED,
    WIDTH,
    X,
    Y,
    Z,
)
from esper_env.population.fused.pointwise import activate, activate_backward, combine, combine_backward


@inlined
def forward(
    program: Any,
    constants: Any,
    memory: Any,
    theta: Any,
    stats: Any,
    alpha: Any,
    labels: Any,
    results: Any,
    samples: int,
    valid: int,
) -> None:
    """Run a program on the batch in ``memory``.

    Args:
        program: (K, FIELDS) the instructions.
        constants: (K, CONSTANTS) constants of the instructions.
        memory: working memory, which begins with the samples (C, H, W, B).
        theta: (L) parameters of the network.
        stats: (M) its running statistics.
        alpha: (S) alphas of its slots.
        labels: (B) classes of the samples.
        results: (2, R) losses and numbers of correct predictions, to which the program adds.
        samples: B.
        valid: number of samples that count in SCORE.
    """
    for line in range(len(program)):
        op = program[line, OPERATION]
        x, z, y = at(memory, program[line, X]), at(memory, program[line, Z]), at(memory, program[line, Y])
        first, second, index = at(theta, program[line, FIRST]), at(theta, program[line, SECOND]), program[line, INDEX]
        channels, outputs, groups = program[line, CHANNELS], program[line, OUTPUTS], program[line, GROUPS]
        height, width = program[line, HEIGHT], program[line, WIDTH]
        size, flags = program[line, SIZE], program[line, FLAGS]
        pixels = height * width
        n = pixels * samples
        eps = constants[line, EPS]
        if op == CONV:
            if flags & BIAS:
                conv.fill_channels(y, second, outputs, n)
            inputs, own, taps = channels // groups, outputs // groups, size * size
            rows, columns, parts = (1, 1, n) if size == 1 else (height, width, samples)
            for g in range(groups):
                a, w = at(x, g * inputs * n), at(first, g * own * inputs * taps)
                to, add = at(y, g * own * n), flags & BIAS != 0
                conv.convolve(a, w, to, inputs, own, rows, columns, parts, size, add)
        elif op == BATCH_NORM:
            red.batch_norm(x, y, z, first, second, channels, n, eps)
            if flags & TRACK:
                red.track_statistics(z, at(stats, index), channels, n, constants[line, FACTOR], eps)
        elif op == FIXED_NORM:
            red.fixed_norm(x, y, at(stats, index), first, second, channels, n, eps)
        elif op == GROUP_NORM:
            red.group_norm(x, y, z, first, second, channels, pixels, samples, eps)
        elif op in (RELU, SILU, SIGMOID):
            activate(op, constants[line, FACTOR], x, y, channels * n)
        elif op == MAX_POOL:
            red.max_pool(x, y, z, channels, height, width, samples)
        elif op == AVERAGE:
            red.average(x, y, channels, pixels, samples)
        elif op == DETACH:
            copy(x, y, channels * n)
        elif op == LOSS:
            red.softmax(x, z, channels, samples)
            results[0, index] += red.cross_entropy(x, z, labels, channels, samples, samples) / samples
        elif op == SCORE:
            results[1, index] += red.count_hits(x, z, labels, channels, samples, valid)
            if flags & WANTED:
                red.softmax(x, z, channels, samples)
                results[0, index] += red.cross_entropy(x, z, labels, channels, samples, valid)
        else:
            blend = alpha[index if op >= BLEND_ADD else 0]
            combine(op, x, z, y, first, blend, at(memory, program[line, GATE]), channels, pixels, samples)


@inlined
def backward(
    program: Any,
    constants: Any,
    memory: Any,
    gradient: Any,
    scratch: Any,
    theta: Any,
    dtheta: Any,
    stats: Any,
    alpha: Any,
    labels: Any,
    samples: int,
) -> None:
    """Run a program backward after :func:`forward`, and add the gradients of its losses to ``dtheta``.

    ``gradient`` has the same layout as ``memory``.
    """
    for step in range(len(program)):
        line = len(program) - 1 - step
        op = program[line, OPERATION]
        x, z, y = at(memory, program[line, X]), at(memory, program[line, Z]), at(memory, program[line, Y])
        dx, dz, dy = at(gradient, program[line, X]), at(gradient, program[line, Z]), at(gradient, program[line, Y])
        first, index = at(theta, program[line, FIRST]), program[line, INDEX]
        dfirst, dsecond = at(dtheta, program[line, FIRST]), at(dtheta, program[line, SECOND])
        channels, outputs, groups = program[line, CHANNELS], program[line, OUTPUTS], program[line, GROUPS]
        height, width = program[line, HEIGHT], program[line, WIDTH]
        size, flags = program[line, SIZE], program[line, FLAGS]
        pixels = height * width
        n = pixels * samples
        if flags & NEW_X and op != CONV:
            clear(dx, channels * n)
        if flags & NEW_Z:
            clear(dz, channels * (samples if op == EXCITE else n))
        if flags & NEW_GATE:
            clear(at(gradient, program[line, GATE]), samples)
        if op == CONV:
            if flags & PARAMETERS and flags & BIAS:
                conv.sum_channels(dy, dsecond, outputs, n)
            inputs, own, taps = channels // groups, outputs // groups, size * size
            rows, columns, parts = (1, 1, n) if size == 1 else (height, width, samples)
            for g in range(groups):
                k, d = g * own * inputs * taps, at(dy, g * own * n)
                if flags & PARAMETERS:
                    a = at(x, g * inputs * n)
                    conv.convolve_weights(a, d, at(dfirst, k), inputs, own, rows, columns, parts, size)
                if flags & INPUT:
                    conv.transpose(at(first, k), scratch, own, inputs, taps)
                    to, add = at(dx, g * inputs * n), flags & NEW_X == 0
                    conv.convolve(d, scratch, to, own, inputs, rows, columns, parts, size, add)
        elif op == BATCH_NORM:
            red.batch_norm_backward(x, dy, dx, z, first, dfirst, dsecond, channels, n)
        elif op == FIXED_NORM:
            red.fixed_norm_backward(dy, dx, at(stats, index), first, channels, n, constants[line, EPS])
        elif op == GROUP_NORM:
            rest = at(scratch, 2 * samples)
            to_weight, to_bias = (dfirst, dsecond) if flags & PARAMETERS else (rest, at(rest, channels))
            red.group_norm_backward(x, dy, dx, z, scratch, first, to_weight, to_bias, channels, pixels, samples)
        elif op in (RELU, SILU, SIGMOID):
            activate_backward(op, constants[line, FACTOR], x, y, dy, dx, channels * n)
        elif op == MAX_POOL:
            red.max_pool_backward(dy, dx, z, channels, height, width, samples)
        elif op == AVERAGE:
            red.average_backward(dy, dx, channels, pixels, samples)
        elif op == LOSS:
            one, count = x.dtype.type(1), x.dtype.type(samples)
            for c in range(channels):
                for b in range(samples):
                    dx[c * samples + b] += z[c * samples + b] / count
            for b in range(samples):
                dx[labels[b] * samples + b] -= one / count
        elif op != DETACH:
            blend = alpha[index if op >= BLEND_ADD else 0]
            gate, dgate = at(memory, program[line, GATE]), at(gradient, program[line, GATE])
            combine_backward(
                op,
                x,
                z,
                dy,
                dx,
                dz,
                first,
                dfirst,
                blend,
                gate,
                dgate,
                channels,
                pixels,
                samples,
                flags & PARAMETERS != 0,
            )
