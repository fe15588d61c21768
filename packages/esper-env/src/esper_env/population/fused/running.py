"""The compiled function that runs the minibatches of a network: an epoch of training, or the evaluation of a split."""

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

from esper_env.population.fused.compilation import at, copy, entry_point, inlined
from esper_env.population.fused.instructions import CONSTANTS, FIELDS
from esper_env.population.fused.machine import backward, forward

_log = logging.getLogger(__name__)
#: A compilation that takes longer is logged.
REPORTED_SECONDS = 2.0

#: Fields of a piece, a tensor that trains: its place in the network's parameters, its length, and the unit
#: (0 for the host, 1 + slot for a seed) whose gradient is clipped as a whole.
PLACE, LENGTH, UNIT = range(3)


class Tensors(NamedTuple):
    """Tensors of a network; training changes all but the alphas."""

    theta: NDArray[Any]  # (L) parameters
    velocity: NDArray[Any]  # (L) the momentum of the optimizer
    stats: NDArray[Any]  # (M) running statistics
    alpha: NDArray[Any]  # (S)


class Images(NamedTuple):
    """Labelled images, and their normalisation."""

    pixels: NDArray[np.uint8]  # (N * H' * W' * C) of images (H', W', C), which can have a border for crops
    size: int  # H' * W' * C
    pitch: int  # W' * C
    labels: NDArray[np.int64]  # (N)
    scale: NDArray[Any]  # (C)
    shift: NDArray[Any]  # (C)
    shape: tuple[int, int, int]  # C, H, W of a sample


class Minibatches(NamedTuple):
    """The samples of T minibatches."""

    samples: NDArray[np.int64]  # (T, B) indices of the images
    top: NDArray[np.int64]  # (T, B) first row of each crop, or (T, 0) if all are 0
    left: NDArray[np.int64]  # first column, likewise
    mirrored: NDArray[np.bool_]  # (T, B), or (T, 0) if all are False
    inputs: NDArray[Any]  # (T, C * H * W * B) normalised images, or (T, 0) to read :class:`Images`
    total: int  # number of samples; the rest is padding

    def first(self) -> Minibatches:
        """Return the first minibatch."""
        samples, top, left, mirrored, inputs, total = self
        return Minibatches(samples[:1], top[:1], left[:1], mirrored[:1], inputs[:1], min(total, samples.shape[1]))


class Pieces(NamedTuple):
    """The tensors that train."""

    table: NDArray[np.int64]  # (P, 3) place, length, unit
    rates: NDArray[Any]  # (P) learning rates


class Sums(NamedTuple):
    """Sums over minibatches, to which a run adds."""

    results: NDArray[np.float64]  # (2, R) losses and numbers of correct predictions
    norms: NDArray[Any]  # (P) gradient norms of the pieces
    unit_norms: NDArray[Any]  # (U) gradient norms of the units


class Workspace(NamedTuple):
    """Memory of a thread."""

    memory: NDArray[Any]  # working memory of a network
    gradient: NDArray[Any]  # as large as ``memory`` in training
    scratch: NDArray[Any]
    dtheta: NDArray[Any]  # (L) zeros, before and after a run
    labels: NDArray[np.int64]  # (B)


@inlined
def _load_images(images: Any, batches: Any, batch: int, out: Any) -> None:
    """Write a minibatch of normalised images (C, H, W, B) to ``out``."""
    channels, height, width = images.shape
    index, flips, top, left = batches.samples[batch], batches.mirrored[batch], batches.top[batch], batches.left[batch]
    samples = len(index)
    for b in range(samples):
        start = index[b] * images.size
        if len(top):
            start += top[b] * images.pitch + left[b] * channels
        step = channels
        if len(flips) and flips[b]:
            start += (width - 1) * channels
            step = -channels
        for c in range(channels):
            scale, shift = images.scale[c], images.shift[c]
            place = at(out, c * height * width * samples + b)
            for h in range(height):
                line = at(images.pixels, start + h * images.pitch + c)
                for w in range(width):
                    pixel = at(line, w * step)[0]
                    place[(h * width + w) * samples] = shift + images.scale.dtype.type(pixel) * scale


@inlined
def _update(tensors: Any, pieces: Any, gradient: Any, sums: Any, squares: Any, clip: Any, momentum: Any) -> None:
    """Take a step of clipped SGD with momentum, add the gradient norms to the sums, and clear the gradients.

    ``squares`` (U) is scratch memory for the squared norms of the units.
    """
    zero, one, tiny = gradient.dtype.type(0), gradient.dtype.type(1), gradient.dtype.type(1e-6)
    table, units = pieces.table, len(sums.unit_norms)
    for u in range(units):
        squares[u] = zero
    for p in range(len(table)):
        g = at(gradient, table[p, PLACE])
        total = zero
        for j in range(table[p, LENGTH]):
            total += g[j] * g[j]
        squares[table[p, UNIT]] += total
        sums.norms[p] += np.sqrt(total)
    for u in range(units):
        norm = np.sqrt(squares[u])
        sums.unit_norms[u] += norm
        scale = clip / (norm + tiny)
        squares[u] = one if scale > one else scale  # keeps NaN
    for p in range(len(table)):
        start = table[p, PLACE]
        g, v, own = at(gradient, start), at(tensors.velocity, start), at(tensors.theta, start)
        scale, rate = squares[table[p, UNIT]], pieces.rates[p]
        for j in range(table[p, LENGTH]):
            v[j] = g[j] * scale + momentum * v[j]
            own[j] -= rate * v[j]
            g[j] = zero


def _entry_point(sources: int) -> Any:
    """Return the function that Python calls.

    numba caches compiled functions on disk. It recompiles them if this file changes, or a variable of their closure
    such as ``sources``. It ignores changes in other files whose functions are called.
    """

    @entry_point
    def run(
        program: Any,
        constants: Any,
        tensors: Any,
        images: Any,
        batches: Any,
        pieces: Any,
        sums: Any,
        workspace: Any,
        clip: Any,
        momentum: Any,
        training: bool,
    ) -> None:
        """Run the minibatches of a network.

        Args:
            program: (K, FIELDS) the instructions.
            constants: (K, CONSTANTS) their constants. Floating-point arguments except ``sums.results`` have this dtype.
            tensors: :class:`Tensors`.
            images: :class:`Images`.
            batches: :class:`Minibatches`.
            pieces: :class:`Pieces`.
            sums: :class:`Sums`.
            workspace: :class:`Workspace`.
            clip: largest gradient norm of a unit.
            momentum: momentum of SGD.
            training: update the network after each minibatch.
        """
        sources  # noqa: B018
        memory, gradient, scratch, dtheta = workspace.memory, workspace.gradient, workspace.scratch, workspace.dtheta
        theta, stats, alpha, labels = tensors.theta, tensors.stats, tensors.alpha, workspace.labels
        samples = batches.samples.shape[1]
        for batch in range(len(batches.samples)):
            if batches.inputs.shape[1]:
                copy(batches.inputs[batch], memory, batches.inputs.shape[1])
            else:
                _load_images(images, batches, batch, memory)
            for b in range(samples):
                labels[b] = images.labels[batches.samples[batch, b]]
            valid = min(samples, batches.total - batch * samples)
            forward(program, constants, memory, theta, stats, alpha, labels, sums.results, samples, valid)
            if training:
                backward(program, constants, memory, gradient, scratch, theta, dtheta, stats, alpha, labels, samples)
                _update(tensors, pieces, dtheta, sums, scratch, clip, momentum)

    return run


def _digest() -> int:
    """Return a number that depends on every source file of this folder."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return int.from_bytes(sha256(b"".join(texts)).digest()[:6])


run = _entry_point(_digest())


@cache
def prepare(dtype: Any) -> None:
    """Compile :func:`run` for a dtype, or load the cached result; log a warning if this takes long."""
    reminder = Timer(
        REPORTED_SECONDS, _log.warning, ["compiling the programs of networks; this takes up to half a minute, once"]
    )
    reminder.daemon = True
    start = monotonic()
    reminder.start()
    try:
        none, nothing, nowhere = np.zeros(0, dtype), np.zeros(0, np.int64), np.zeros((0, 0), np.int64)
        run(
            np.zeros((0, FIELDS), np.int64),
            np.zeros((0, CONSTANTS), dtype),
            Tensors(none, none, none, none),
            Images(np.zeros(0, np.uint8), 0, 0, nothing, none, none, (1, 1, 1)),
            Minibatches(nowhere, nowhere, nowhere, np.zeros((0, 0), np.bool_), np.zeros((0, 0), dtype), 0),
            Pieces(np.zeros((0, 3), np.int64), none),
            Sums(np.zeros((2, 1)), none, none),
            Workspace(none, none, none, none, nothing),
            dtype(1),
            dtype(1),
            False,
        )
    finally:
        reminder.cancel()
    if (seconds := monotonic() - start) > REPORTED_SECONDS:
        kept = run._cache.cache_path
        where = f"other processes load them from {kept}" if kept else "no cache folder is writable: set NUMBA_CACHE_DIR"
        _log.warning("compiled the programs of networks in %.0f s; %s", seconds, where)
