"""The compiled machine that runs programs forward and backward.

Networks share no memory, so the results of a network depend neither on the others nor on the thread that computes them.
"""

from __future__ import annotations

from typing import Any

from esper_env.population.fused import convolutions as conv
from esper_env.population.fused import reductions as red
from esper_env.population.fused.compilation import clear, copy, kernel
from esper_env.population.fused.instructions import (
    AVERAGE,
    BATCH_NORM,
    BIAS,
    BLEND_ADD,
    CHANNELS,
    CONV,
    DEPTHWISE,
    DETACH,
    EPS,
    EXCITE,
    FACTOR,
    FIRST,
    FIXED_NORM,
    FLAGS,
    GATE,
    GROUP_NORM,
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


@kernel
def _convolve(
    x: Any, w: Any, y: Any, scratch: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int
) -> None:
    """Y += convolution; ``scratch`` holds the padded input."""
    if size == 1:
        conv.matmul(w, x, y, inputs, outputs, height * width * samples)
        return
    if size == 3 and height <= 2 and width <= 2:
        pixels = height * width
        conv.unroll(w, scratch, outputs, inputs, height, width)
        conv.matmul(scratch, x, y, inputs * pixels, outputs * pixels, samples)
        return
    conv.pad(x, scratch, inputs, height, width, size // 2, samples)
    if size == 3:
        conv.conv3(scratch, w, y, inputs, outputs, height, width, samples)
    else:
        conv.conv_any(scratch, w, y, inputs, outputs, height, width, samples, size)


@kernel
def _convolve_weights(
    x: Any, dy: Any, dw: Any, scratch: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int
) -> None:
    if size == 1:
        conv.matmul_weights(x, dy, dw, inputs, outputs, height * width * samples)
        return
    if size == 3 and height <= 2 and width <= 2:
        pixels = height * width
        clear(scratch, outputs * inputs * pixels * pixels)
        conv.matmul_weights(x, dy, scratch, inputs * pixels, outputs * pixels, samples)
        conv.fold(scratch, dw, outputs, inputs, height, width)
        return
    conv.pad(x, scratch, inputs, height, width, size // 2, samples)
    if size == 3:
        conv.conv3_weights(scratch, dy, dw, inputs, outputs, height, width, samples)
    else:
        conv.conv_any_weights(scratch, dy, dw, inputs, outputs, height, width, samples, size)


@kernel
def forward(
    program: Any,
    constants: Any,
    memory: Any,
    scratch: Any,
    theta: Any,
    stats: Any,
    alpha: Any,
    labels: Any,
    results: Any,
    samples: int,
    valid: int,
) -> None:
    """Run a program (K, FIELDS) on the batch of ``samples`` samples in ``memory``.

    Args:
        program: the instructions.
        constants: (K, CONSTANTS) constants of the instructions.
        memory: buffers of the network.
        scratch: memory for one instruction.
        theta: parameters of the network.
        stats: its running statistics.
        alpha: (S) alphas of its slots.
        labels: (B) the classes.
        results: (2, M), receives the losses and accumulates the counts of correct predictions.
        samples: B.
        valid: number of samples that count in SCORE.
    """
    for line in range(len(program)):
        op = program[line, OPERATION]
        x, z, y = memory[program[line, X] :], memory[program[line, Z] :], memory[program[line, Y] :]
        first, second, index = theta[program[line, FIRST] :], theta[program[line, SECOND] :], program[line, INDEX]
        channels, outputs, height = program[line, CHANNELS], program[line, OUTPUTS], program[line, HEIGHT]
        width, size, flags = program[line, WIDTH], program[line, SIZE], program[line, FLAGS]
        pixels = height * width
        n = pixels * samples
        eps = constants[line, EPS]
        if op == CONV:
            clear(y, outputs * n)
            if flags & BIAS:
                conv.add_bias(y, second, outputs, n)
            _convolve(x, first, y, scratch, channels, outputs, height, width, samples, size)
        elif op == DEPTHWISE:
            clear(y, channels * n)
            if flags & BIAS:
                conv.add_bias(y, second, channels, n)
            for c in range(channels):
                _convolve(x[c * n :], first[c * size * size :], y[c * n :], scratch, 1, 1, height, width, samples, size)
        elif op == BATCH_NORM:
            red.batch_norm(x, y, z, first, second, channels, n, eps)
            if flags & TRACK:
                red.track_statistics(z, stats[index:], channels, n, constants[line, FACTOR], eps)
        elif op == FIXED_NORM:
            red.fixed_norm(x, y, stats[index:], first, second, channels, n, eps)
        elif op == GROUP_NORM:
            red.group_norm(x, y, z, first, second, channels, pixels, samples, eps)
        elif op in (RELU, SILU, SIGMOID):
            activate(op, constants[line, FACTOR], x[: channels * n], y)
        elif op == MAX_POOL:
            red.max_pool(x, y, channels, height, width, samples)
        elif op == AVERAGE:
            red.average(x, y, channels, pixels, samples)
        elif op == DETACH:
            copy(x, y, channels * n)
        elif op == LOSS:
            red.softmax(x, z, channels, samples)
            results[0, index] = red.cross_entropy(x, z, labels, channels, samples, samples) / samples
        elif op == SCORE:
            results[1, index] += red.count_hits(x, z, labels, channels, samples, valid)
            if flags & WANTED:
                red.softmax(x, z, channels, samples)
                results[0, index] += red.cross_entropy(x, z, labels, channels, samples, valid)
        else:
            blend = alpha[index if op >= BLEND_ADD else 0]
            combine(op, x, z, y, first, blend, memory[program[line, GATE] :], channels, pixels, samples)


@kernel
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

    ``gradient`` has the same layout as ``memory``. ``scratch`` is memory for one instruction.
    """
    for step in range(len(program)):
        line = len(program) - 1 - step
        op = program[line, OPERATION]
        x, z, y = memory[program[line, X] :], memory[program[line, Z] :], memory[program[line, Y] :]
        dx, dz, dy = gradient[program[line, X] :], gradient[program[line, Z] :], gradient[program[line, Y] :]
        first, index = theta[program[line, FIRST] :], program[line, INDEX]
        dfirst, dsecond = dtheta[program[line, FIRST] :], dtheta[program[line, SECOND] :]
        channels, outputs, height = program[line, CHANNELS], program[line, OUTPUTS], program[line, HEIGHT]
        width, size, flags = program[line, WIDTH], program[line, SIZE], program[line, FLAGS]
        pixels = height * width
        n = pixels * samples
        if flags & NEW_X:
            clear(dx, channels * n)
        if flags & NEW_Z:
            clear(dz, channels * (samples if op == EXCITE else n))
        if flags & NEW_GATE:
            clear(gradient[program[line, GATE] :], samples)
        if op == CONV:
            if flags & PARAMETERS:
                if flags & BIAS:
                    conv.sum_channels(dy, dsecond, outputs, n)
                _convolve_weights(x, dy, dfirst, scratch, channels, outputs, height, width, samples, size)
            if flags & INPUT:
                weights = scratch[: channels * outputs * size * size]
                conv.transpose(first, weights, outputs, channels, size * size)
                _convolve(dy, weights, dx, scratch[len(weights) :], outputs, channels, height, width, samples, size)
        elif op == DEPTHWISE:
            if flags & PARAMETERS and flags & BIAS:
                conv.sum_channels(dy, dsecond, channels, n)
            for c in range(channels):
                a, taps = c * n, size * size
                if flags & PARAMETERS:
                    _convolve_weights(x[a:], dy[a:], dfirst[c * taps :], scratch, 1, 1, height, width, samples, size)
                if flags & INPUT:
                    conv.transpose(first[c * taps :], scratch, 1, 1, taps)
                    _convolve(dy[a:], scratch, dx[a:], scratch[taps:], 1, 1, height, width, samples, size)
        elif op == BATCH_NORM:
            red.batch_norm_backward(x, dy, dx, z, first, dfirst, dsecond, channels, n)
        elif op == FIXED_NORM:
            red.fixed_norm_backward(dy, dx, stats[index:], first, channels, n, constants[line, EPS])
        elif op == GROUP_NORM:
            if flags & PARAMETERS:
                red.group_norm_backward(x, dy, dx, z, scratch, first, dfirst, dsecond, channels, pixels, samples)
            else:
                unused, end = scratch[2 * samples :], 2 * samples + channels
                red.group_norm_backward(x, dy, dx, z, scratch, first, unused, scratch[end:], channels, pixels, samples)
        elif op in (RELU, SILU, SIGMOID):
            activate_backward(op, constants[line, FACTOR], x[: channels * n], y, dy, dx)
        elif op == MAX_POOL:
            red.max_pool_backward(x, y, dy, dx, scratch, channels, height, width, samples)
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
            gate, dgate = memory[program[line, GATE] :], gradient[program[line, GATE] :]
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
