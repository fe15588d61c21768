"""Programs of layers for one network, and the compiled machine that runs them forward and backward.

A program is an array of instructions. An instruction names an operation, its buffers in the network's working memory,
its tensors in the network's parameters, and its sizes. Networks share no memory, so the results of a network depend
neither on the others nor on the thread that computes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from esper_env.population.fused import kernels as k
from esper_env.population.fused.kernels import kernel

# Operations: x is the first buffer, z the second, y the result.
CONV = 0  # y = convolution of x, with a bias if there is one; a linear layer is a convolution of one pixel
DEPTHWISE = 1  # the same, with one kernel for each channel
BATCH_NORM = 2  # y = x normalised per channel with the statistics of the batch; z keeps them
FIXED_NORM = 3  # y = x normalised per channel with the running statistics
GROUP_NORM = 4  # y = x normalised per sample; z keeps the statistics
RELU = 5
SILU = 6
SIGMOID = 7  # y = factor sigmoid(x)
MAX_POOL = 8
AVERAGE = 9  # y (C, B) = mean over the pixels of x
RESIDUAL = 10  # y = x + scale z, with a scale for each channel
MIX = 11  # y = x + tanh(gate) (z - x), with a gate for each channel
EXCITE = 12  # y = x z, with z (C, B) for all pixels
DETACH = 13  # y = x, without a gradient
STRAIGHT = 14  # y = x + (z - z), with a gradient for z
BLEND_ADD = 15  # y = x + alpha (z - x)
BLEND_MULTIPLY = 16  # y = x + alpha x tanh(z - x)
BLEND_GATE = 17  # y = x + alpha g (z - x), with g (B)
LOSS = 18  # mean cross-entropy of x; z is for the probabilities
SCORE = 19  # number of correct predictions of x, and the sum of the cross-entropies if requested; z is for them

#: Fields of an instruction. X, Z, Y and GATE are places of buffers. FIRST and SECOND are places in the parameters.
#: INDEX is a place in the statistics, the slot of a blend, or the number of a result.
OPERATION, X, Z, Y, GATE, FIRST, SECOND, INDEX, CHANNELS, OUTPUTS, HEIGHT, WIDTH, SIZE, FLAGS = range(14)
FIELDS = 14
#: Fields of an instruction's constants; FACTOR is the momentum of BATCH_NORM and the factor of SIGMOID.
EPS, FACTOR = range(2)
CONSTANTS = 2
#: Flags: the parameters get a gradient; the input does; there is a bias; the running statistics move; a loss is
#: requested; the backward pass is the first to write the gradient of x, of z, or of the gate.
PARAMETERS, INPUT, BIAS, TRACK, WANTED, NEW_X, NEW_Z, NEW_GATE = (1 << bit for bit in range(8))


@kernel
def _activate(op: int, factor: float, x: Any, y: Any) -> None:
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
def _activate_backward(op: int, factor: float, x: Any, y: Any, dy: Any, dx: Any) -> None:
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
def _convolve(x: Any, w: Any, y: Any, scratch: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int) -> None:
    """y += convolution; ``scratch`` holds the padded input."""
    if size == 1:
        k.matmul(w, x, y, inputs, outputs, height * width * samples)
        return
    k.pad(x, scratch, inputs, height, width, size // 2, samples)
    if size == 3:
        k.conv3(scratch, w, y, inputs, outputs, height, width, samples)
    else:
        k.conv_any(scratch, w, y, inputs, outputs, height, width, samples, size)


@kernel
def _convolve_weights(x: Any, dy: Any, dw: Any, scratch: Any, inputs: int, outputs: int, height: int, width: int, samples: int, size: int) -> None:
    if size == 1:
        k.matmul_weights(x, dy, dw, inputs, outputs, height * width * samples)
        return
    k.pad(x, scratch, inputs, height, width, size // 2, samples)
    if size == 3:
        k.conv3_weights(scratch, dy, dw, inputs, outputs, height, width, samples)
    else:
        k.conv_any_weights(scratch, dy, dw, inputs, outputs, height, width, samples, size)


@kernel
def _combine(op: int, x: Any, z: Any, y: Any, vector: Any, alpha: float, gate: Any, channels: int, pixels: int, samples: int) -> None:
    """Operations of x and z; ``vector`` (C) are parameters."""
    n = pixels * samples
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
                y[j] = x[j] + (z[j] - z[j])
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
def _combine_backward(
    op: int, x: Any, z: Any, dy: Any, dx: Any, dz: Any, vector: Any, dvector: Any, alpha: float, gate: Any, dgate: Any,
    channels: int, pixels: int, samples: int, with_parameters: bool,
) -> None:
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


@kernel
def forward(
    program: Any, constants: Any, memory: Any, scratch: Any, theta: Any, stats: Any, alpha: Any, labels: Any,
    results: Any, samples: int, valid: int,
) -> None:
    """Run a program (K, FIELDS) on a batch of ``samples`` samples that are in ``memory``.

    Args:
        program: the instructions; ``constants`` (K, CONSTANTS) belong to them.
        memory: buffers of the network; ``scratch`` is memory for one instruction.
        theta: parameters of the network; ``stats`` are its running statistics.
        alpha: (S) alphas of its slots.
        labels: (B) the classes.
        results: (2, M) get the losses, and add up the correct predictions.
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
            k.clear(y, outputs * n)
            if flags & BIAS:
                k.add_bias(y, second, outputs, n)
            _convolve(x, first, y, scratch, channels, outputs, height, width, samples, size)
        elif op == DEPTHWISE:
            k.clear(y, channels * n)
            if flags & BIAS:
                k.add_bias(y, second, channels, n)
            for c in range(channels):
                _convolve(x[c * n :], first[c * size * size :], y[c * n :], scratch, 1, 1, height, width, samples, size)
        elif op == BATCH_NORM:
            k.batch_norm(x, y, z, first, second, channels, n, eps)
            if flags & TRACK:
                k.track_statistics(z, stats[index:], channels, n, constants[line, FACTOR], eps)
        elif op == FIXED_NORM:
            k.fixed_norm(x, y, stats[index:], first, second, channels, n, eps)
        elif op == GROUP_NORM:
            k.group_norm(x, y, z, first, second, channels, pixels, samples, eps)
        elif op == RELU or op == SILU or op == SIGMOID:
            _activate(op, constants[line, FACTOR], x[: channels * n], y)
        elif op == MAX_POOL:
            k.max_pool(x, y, channels, height, width, samples)
        elif op == AVERAGE:
            k.average(x, y, channels, pixels, samples)
        elif op == DETACH:
            k.copy(x, y, channels * n)
        elif op == LOSS or op == SCORE:
            k.softmax(x, z, channels, samples)
            loss, hits = 0.0, 0
            for b in range(samples if op == LOSS else valid):
                top, total = z[channels * samples + b], z[(channels + 1) * samples + b]
                own = x[labels[b] * samples + b]
                loss += np.log(total) + top - own
                best = 0
                for c in range(channels):
                    if x[c * samples + b] == top:
                        best = c
                        break
                hits += best == labels[b]
            if op == LOSS:
                results[0, index] = loss / samples
            else:
                results[0, index] += loss
                results[1, index] += hits
        else:
            blend = alpha[index if op >= BLEND_ADD else 0]
            _combine(op, x, z, y, first, blend, memory[program[line, GATE] :], channels, pixels, samples)


@kernel
def backward(
    program: Any, constants: Any, memory: Any, gradient: Any, scratch: Any, theta: Any, dtheta: Any, stats: Any,
    alpha: Any, labels: Any, samples: int,
) -> None:
    """Run a program backward after :func:`forward`: add the gradients of its losses to ``dtheta``.

    ``gradient`` has the places of ``memory``. ``scratch`` is memory for one instruction.
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
            k.clear(dx, channels * n)
        if flags & NEW_Z:
            k.clear(dz, channels * (samples if op == EXCITE else n))
        if flags & NEW_GATE:
            k.clear(gradient[program[line, GATE] :], samples)
        if op == CONV:
            if flags & PARAMETERS:
                if flags & BIAS:
                    k.sum_channels(dy, dsecond, outputs, n)
                _convolve_weights(x, dy, dfirst, scratch, channels, outputs, height, width, samples, size)
            if flags & INPUT:
                weights = scratch[: channels * outputs * size * size]
                k.transpose(first, weights, outputs, channels, size * size)
                _convolve(dy, weights, dx, scratch[len(weights) :], outputs, channels, height, width, samples, size)
        elif op == DEPTHWISE:
            if flags & PARAMETERS and flags & BIAS:
                k.sum_channels(dy, dsecond, channels, n)
            for c in range(channels):
                a, taps = c * n, size * size
                if flags & PARAMETERS:
                    _convolve_weights(x[a:], dy[a:], dfirst[c * taps :], scratch, 1, 1, height, width, samples, size)
                if flags & INPUT:
                    k.transpose(first[c * taps :], scratch, 1, 1, taps)
                    _convolve(dy[a:], scratch, dx[a:], scratch[taps:], 1, 1, height, width, samples, size)
        elif op == BATCH_NORM:
            k.batch_norm_backward(x, dy, dx, z, first, dfirst, dsecond, channels, n)
        elif op == FIXED_NORM:
            k.fixed_norm_backward(dy, dx, stats[index:], first, channels, n, constants[line, EPS])
        elif op == GROUP_NORM:
            if flags & PARAMETERS:
                k.group_norm_backward(x, dy, dx, z, scratch, first, dfirst, dsecond, channels, pixels, samples)
            else:
                unused, end = scratch[2 * samples :], 2 * samples + channels
                k.group_norm_backward(x, dy, dx, z, scratch, first, unused, scratch[end:], channels, pixels, samples)
        elif op == RELU or op == SILU or op == SIGMOID:
            _activate_backward(op, constants[line, FACTOR], x[: channels * n], y, dy, dx)
        elif op == MAX_POOL:
            k.max_pool_backward(x, y, dy, dx, scratch, channels, height, width, samples)
        elif op == AVERAGE:
            k.average_backward(dy, dx, channels, pixels, samples)
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
            _combine_backward(
                op, x, z, dy, dx, dz, first, dfirst, blend, gate, dgate, channels, pixels, samples,
                flags & PARAMETERS != 0,
            )
