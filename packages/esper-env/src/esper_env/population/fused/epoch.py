"""Compiled loops over networks: an epoch of training, and the evaluation of a split."""

from __future__ import annotations

import logging
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.population.fused.compilation import copy, entry_point, kernel
from esper_env.population.fused.instructions import CONSTANTS, FIELDS
from esper_env.population.fused.machine import backward, forward

_log = logging.getLogger(__name__)
#: A compilation that takes longer is reported.
REPORTED_SECONDS = 2.0

#: Fields of a piece, a tensor that trains: its place in the network's parameters, its size, and the unit with which it
#: is clipped.
PLACE, LENGTH, UNIT = range(3)


class Programs(NamedTuple):
    """Programs of n networks, concatenated."""

    instructions: NDArray[np.int64]  # (K, FIELDS)
    constants: NDArray[Any]  # (K, CONSTANTS)
    lines: NDArray[np.int64]  # (n, 2) the first line of each network, and the line behind its last one
    memory: int  # values of working memory
    scratch: int  # values of memory for one instruction


class Networks(NamedTuple):
    """Tensors of n networks; training changes all but the alphas."""

    theta: NDArray[Any]  # (n, L) parameters
    velocity: NDArray[Any]  # (n, L) the momentum of the optimizer
    stats: NDArray[Any]  # (n, M) running statistics
    alpha: NDArray[Any]  # (n, S)


class Pieces(NamedTuple):
    """The tensors that train, sorted by network."""

    table: NDArray[np.int64]  # (P, 3) place, length, unit
    rates: NDArray[Any]  # (P) learning rates
    own: NDArray[np.int64]  # (n, 2) the first piece of each network, and the one behind its last one


class Images(NamedTuple):
    """Training images and their normalisation."""

    pixels: NDArray[np.uint8]  # (N, H', W', C) with a border for crops
    labels: NDArray[np.int64]  # (N)
    scale: NDArray[Any]  # (C)
    shift: NDArray[Any]  # (C)
    shape: tuple[int, int, int]  # C, H, W of a sample


class Draws(NamedTuple):
    """The samples of T minibatches."""

    samples: NDArray[np.int64]  # (T, n, B) numbers of the images
    top: NDArray[np.int64]  # (T, n, B) where each image is cut out, or (T, n, 0) for 0
    left: NDArray[np.int64]  # the same
    mirrored: NDArray[np.bool_]  # (T, n, B), or (T, n, 0) for False


class Sums(NamedTuple):
    """Sums over minibatches."""

    losses: NDArray[np.float64]  # (n) of the main pass
    norms: NDArray[Any]  # (P) of the gradients of the pieces
    unit_norms: NDArray[Any]  # (n, U) of those of the units


@kernel
def _load_images(images: Any, draws: Any, batch: int, row: int, out: Any, labels: Any) -> None:
    """Write a network's batch of normalised images (C, H, W, B) to ``out``, and their labels to ``labels``."""
    channels, height, width = images.shape
    index, flips = draws.samples[batch, row], draws.mirrored[batch, row]
    top, left = draws.top[batch, row], draws.left[batch, row]
    samples = len(index)
    for b in range(samples):
        pixels = images.pixels[index[b]]
        labels[b] = images.labels[index[b]]
        y, x = (top[b], left[b]) if len(top) else (0, 0)
        flip = flips[b] if len(flips) else False
        for c in range(channels):
            for h in range(height):
                for w in range(width):
                    column = width - 1 - w if flip else w
                    pixel = images.scale.dtype.type(pixels[y + h, x + column, c])
                    out[((c * height + h) * width + w) * samples + b] = images.shift[c] + pixel * images.scale[c]


@kernel
def _update(
    theta: Any,
    velocity: Any,
    gradient: Any,
    table: Any,
    rates: Any,
    norms: Any,
    unit_norms: Any,
    clip: Any,
    momentum: Any,
) -> None:
    """Take a step of clipped SGD with momentum, add the gradient norms to the sums, and clear the gradients."""
    zero, one, tiny = theta.dtype.type(0), theta.dtype.type(1), theta.dtype.type(1e-6)
    squares = np.zeros(len(unit_norms), theta.dtype)
    for p in range(len(table)):
        start = table[p, PLACE]
        g = gradient[start : start + table[p, LENGTH]]
        total = zero
        for j in range(len(g)):
            total += g[j] * g[j]
        squares[table[p, UNIT]] += total
        norms[p] += np.sqrt(total)
    for u in range(len(squares)):
        norm = np.sqrt(squares[u])
        unit_norms[u] += norm
        scale = clip / (norm + tiny)
        squares[u] = one if scale > one else scale  # NaN stays
    for p in range(len(table)):
        start, end = table[p, PLACE], table[p, PLACE] + table[p, LENGTH]
        g, v, own = gradient[start:end], velocity[start:end], theta[start:end]
        scale, rate = squares[table[p, UNIT]], rates[p]
        for j in range(len(g)):
            v[j] = g[j] * scale + momentum * v[j]
            own[j] -= rate * v[j]
            g[j] = zero


def _entry_points(sources: int) -> tuple[Any, Any]:
    """Return the functions that Python calls.

    numba caches compiled functions on disk. It recompiles them if this file or a variable of their closure changes,
    such as ``sources``, but not if a function that they call is in another file.
    """

    @entry_point
    def train_images(
        rows: Any,
        programs: Any,
        networks: Any,
        pieces: Any,
        images: Any,
        draws: Any,
        sums: Any,
        clip: Any,
        momentum: Any,
    ) -> None:
        """Train some networks for an epoch.

        Args:
            rows: (k,) numbers of the networks.
            programs: :class:`Programs` of a minibatch.
            networks: :class:`Networks`; all floating-point arguments but the losses have the dtype of its values.
            pieces: :class:`Pieces`.
            images: :class:`Images`.
            draws: :class:`Draws`.
            sums: :class:`Sums`, to which the networks' results are added.
            clip: largest gradient norm of a unit.
            momentum: momentum of SGD.
        """
        sources  # noqa: B018
        samples, dtype = draws.samples.shape[2], networks.theta.dtype
        memory, gradient = np.empty(programs.memory, dtype), np.empty(programs.memory, dtype)
        scratch, dtheta = np.empty(programs.scratch, dtype), np.zeros(networks.theta.shape[1], dtype)
        labels, results = np.empty(samples, np.int64), np.zeros((2, 2))
        for row in rows:
            start, end = programs.lines[row]
            program, constants = programs.instructions[start:end], programs.constants[start:end]
            theta, stats, alpha = networks.theta[row], networks.stats[row], networks.alpha[row]
            first, last = pieces.own[row]
            for batch in range(len(draws.samples)):
                _load_images(images, draws, batch, row, memory, labels)
                forward(program, constants, memory, scratch, theta, stats, alpha, labels, results, samples, samples)
                sums.losses[row] += results[0, 0]
                backward(program, constants, memory, gradient, scratch, theta, dtheta, stats, alpha, labels, samples)
                _update(
                    theta,
                    networks.velocity[row],
                    dtheta,
                    pieces.table[first:last],
                    pieces.rates[first:last],
                    sums.norms[first:last],
                    sums.unit_norms[row],
                    clip,
                    momentum,
                )

    @entry_point
    def score_samples(
        rows: Any, programs: Any, networks: Any, inputs: Any, labels: Any, count: int, results: Any
    ) -> None:
        """Evaluate configurations of some networks on a split.

        Args:
            rows: (k,) numbers of the networks.
            programs: :class:`Programs` of the evaluation.
            networks: :class:`Networks`; not modified.
            inputs: (chunks, C * H * W * B) the samples; padding in the last chunk is ignored.
            labels: (chunks, B) their classes.
            count: number of samples.
            results: (n, 2, R), to which the summed losses and the counts of correct predictions are added.
        """
        sources  # noqa: B018
        samples, dtype = labels.shape[1], networks.theta.dtype
        memory, scratch = np.empty(programs.memory, dtype), np.empty(programs.scratch, dtype)
        for row in rows:
            start, end = programs.lines[row]
            program, constants = programs.instructions[start:end], programs.constants[start:end]
            for chunk in range(len(inputs)):
                copy(inputs[chunk], memory, inputs.shape[1])
                valid = min(samples, count - chunk * samples)
                forward(
                    program,
                    constants,
                    memory,
                    scratch,
                    networks.theta[row],
                    networks.stats[row],
                    networks.alpha[row],
                    labels[chunk],
                    results[row],
                    samples,
                    valid,
                )

    return train_images, score_samples


def _digest() -> int:
    """Return a number that depends on every source file of this folder."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return int.from_bytes(sha256(b"".join(texts)).digest()[:6])


train_images, score_samples = _entry_points(_digest())


@cache
def prepare(dtype: Any) -> None:
    """Compile for networks of a dtype, or load the cached result; log if compiling takes long."""
    reminder = Timer(
        REPORTED_SECONDS, _log.warning, ["compiling the programs of networks, which takes up to half a minute, once"]
    )
    reminder.daemon = True
    start = monotonic()
    reminder.start()
    try:
        none, one, index = np.zeros(0, dtype), np.zeros((1, 1), dtype), np.zeros((1, 1), np.int64)
        nobody, nowhere = np.zeros(0, np.int64), np.zeros((1, 1, 0), np.int64)
        instructions, lines = np.zeros((0, FIELDS), np.int64), np.zeros((1, 2), np.int64)
        programs = Programs(instructions, np.zeros((0, CONSTANTS), dtype), lines, 1, 1)
        networks = Networks(one, one, one, one)
        score_samples(nobody, programs, networks, one, index, 1, np.zeros((1, 2, 1)))
        pieces = Pieces(np.zeros((0, 3), np.int64), none, lines)
        images = Images(np.zeros((1, 1, 1, 1), np.uint8), nobody, none, none, (1, 1, 1))
        draws = Draws(nowhere, nowhere, nowhere, np.zeros((1, 1, 0), np.bool_))
        sums = Sums(np.zeros(1), none, one)
        train_images(nobody, programs, networks, pieces, images, draws, sums, dtype(1), dtype(1))
    finally:
        reminder.cancel()
    if (seconds := monotonic() - start) > REPORTED_SECONDS:
        kept = train_images._cache.cache_path
        where = (
            f"other processes load them from {kept}"
            if kept
            else "no folder for them can be written: set NUMBA_CACHE_DIR"
        )
        _log.warning("compiled the programs of networks in %.0f s; %s", seconds, where)
