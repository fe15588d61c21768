"""Compiled loops over networks: an epoch of training, and the evaluation of a split."""

from __future__ import annotations

from typing import Any

import numpy as np

from esper_env.population.fused.kernels import copy, entry_point, kernel
from esper_env.population.fused.machine import backward, forward

#: Fields of a piece, a tensor that trains: its place in the network's parameters, its size, and the unit with which it
#: is clipped.
PLACE, LENGTH, UNIT = range(3)


@kernel
def _load_images(images: Any, index: Any, top: Any, left: Any, mirrored: Any, scale: Any, shift: Any, out: Any, shape: Any) -> None:
    """Write a batch of normalised images (C, H, W, B) to ``out``.

    ``top`` and ``left`` (B) are where each image is cut out, and ``mirrored`` (B) which ones are flipped; an empty
    array means 0 or False.
    """
    channels, height, width = shape
    samples = len(index)
    for b in range(samples):
        image = images[index[b]]
        y, x = (top[b], left[b]) if len(top) else (0, 0)
        flip = mirrored[b] if len(mirrored) else False
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    column = width - 1 - w if flip else w
                    pixel = scale.dtype.type(image[y + h, x + column, c])
                    out[((c * height + h) * width + w) * samples + b] = shift[c] + pixel * scale[c]


@kernel
def _update(theta: Any, velocity: Any, gradient: Any, pieces: Any, rates: Any, norms: Any, unit_norms: Any, clip: float, momentum: float) -> None:
    """Take a step of clipped SGD with momentum, add up the norms of the gradients, and clear them."""
    zero, one, tiny = theta.dtype.type(0), theta.dtype.type(1), theta.dtype.type(1e-6)
    squares = np.zeros(len(unit_norms), theta.dtype)
    for p in range(len(pieces)):
        start = pieces[p, PLACE]
        g = gradient[start : start + pieces[p, LENGTH]]
        total = zero
        for j in range(len(g)):
            total += g[j] * g[j]
        squares[pieces[p, UNIT]] += total
        norms[p] += np.sqrt(total)
    for u in range(len(squares)):
        norm = np.sqrt(squares[u])
        unit_norms[u] += norm
        scale = clip / (norm + tiny)
        squares[u] = one if scale > one else scale  # NaN stays
    for p in range(len(pieces)):
        start, end = pieces[p, PLACE], pieces[p, PLACE] + pieces[p, LENGTH]
        g, v, own = gradient[start:end], velocity[start:end], theta[start:end]
        scale, rate = squares[pieces[p, UNIT]], rates[p]
        for j in range(len(g)):
            v[j] = g[j] * scale + momentum * v[j]
            own[j] -= rate * v[j]
            g[j] = zero


@entry_point
def train_images(
    networks: Any, programs: Any, constants: Any, lines: Any, pieces: Any, rates: Any, own_pieces: Any,
    images: Any, labels: Any, scale: Any, shift: Any, shape: Any, index: Any, top: Any, left: Any, mirrored: Any,
    theta: Any, velocity: Any, stats: Any, alpha: Any, losses: Any, norms: Any, unit_norms: Any,
    memory_size: int, scratch_size: int, clip: float, momentum: float,
) -> None:
    """Train some networks for an epoch.

    Args:
        networks: numbers of the networks.
        programs: the programs, one after the other; ``lines`` (n, 2) are the first and the last line of each network.
        constants: of the programs.
        pieces: the tensors that train; ``own_pieces`` (n, 2) are the first and the last of each network.
        rates: learning rates of the pieces.
        images: (N, H', W', C) the padded images; ``labels`` (N) are their classes.
        scale: (C) with ``shift`` (C), normalise a pixel.
        shape: C, H, W of a sample.
        index: (T, n, B) the samples; ``top``, ``left`` and ``mirrored`` have the same shape, or (T, n, 0).
        theta: (n, L) parameters, changed in place, like ``velocity`` (n, L) and ``stats`` (n, M).
        alpha: (n, S) alphas.
        losses: (n) get the sums of the losses.
        norms: (pieces) get the sums of the norms of the gradients; ``unit_norms`` (n, U) those of the units.
        memory_size: of the working memory; ``scratch_size`` of that of one instruction.
        clip: largest norm of the gradient of a unit.
        momentum: of the updates.
    """
    samples = index.shape[2]
    memory, gradient = np.empty(memory_size, theta.dtype), np.empty(memory_size, theta.dtype)
    scratch, dtheta = np.empty(scratch_size, theta.dtype), np.zeros(theta.shape[1], theta.dtype)
    drawn, results = np.empty(samples, labels.dtype), np.zeros((2, 2))
    for row in networks:
        program, own = programs[lines[row, 0] : lines[row, 1]], constants[lines[row, 0] : lines[row, 1]]
        first, last = own_pieces[row]
        for batch in range(len(index)):
            _load_images(
                images, index[batch, row], top[batch, row], left[batch, row], mirrored[batch, row], scale, shift,
                memory, shape,
            )
            for b in range(samples):
                drawn[b] = labels[index[batch, row, b]]
            forward(
                program, own, memory, scratch, theta[row], stats[row], alpha[row], drawn, results, samples, samples
            )
            losses[row] += results[0, 0]
            backward(
                program, own, memory, gradient, scratch, theta[row], dtheta, stats[row], alpha[row], drawn, samples
            )
            _update(
                theta[row], velocity[row], dtheta, pieces[first:last], rates[first:last], norms[first:last],
                unit_norms[row], clip, momentum,
            )


@entry_point
def score_samples(
    jobs: Any, programs: Any, constants: Any, lines: Any, inputs: Any, labels: Any, count: int,
    theta: Any, stats: Any, alpha: Any, results: Any, memory_size: int, scratch_size: int,
) -> None:
    """Evaluate some networks on a split.

    Args:
        jobs: numbers of the networks.
        programs: the programs, one after the other; ``lines`` (n, 2) are the first and the last line of each network.
        constants: of the programs.
        inputs: (chunks, size) the samples, in chunks of features; the last chunk may be filled up with anything.
        labels: (chunks, B) their classes.
        count: number of samples.
        theta: (n, L) parameters; ``stats`` (n, M) and ``alpha`` (n, S) likewise.
        results: (n, 2, R) get the sums of the losses, and the numbers of correct predictions.
        memory_size: of the working memory; ``scratch_size`` of that of one instruction.
    """
    samples = labels.shape[1]
    memory, scratch = np.empty(memory_size, theta.dtype), np.empty(scratch_size, theta.dtype)
    for row in jobs:
        program, own = programs[lines[row, 0] : lines[row, 1]], constants[lines[row, 0] : lines[row, 1]]
        for chunk in range(len(inputs)):
            copy(inputs[chunk], memory, inputs.shape[1])
            valid = min(samples, count - chunk * samples)
            forward(
                program, own, memory, scratch, theta[row], stats[row], alpha[row], labels[chunk], results[row],
                samples, valid,
            )
