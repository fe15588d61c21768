"""Scalar fields of many images: outlines, textures, spots, blobs and bars.

A field is a float32 array (n, 32, 32), one value per pixel of n images. Only additions, multiplications,
divisions, square roots, roundings and comparisons are used, whose results IEEE arithmetic fixes on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # float32 in practice; the stubs widen float32 arithmetic

SIZE = 32
TEXTURES, OUTLINES = 5, 5  # stripes, checks, dots, rings, grain; disc, triangle, square, star, petals

SHIFT = 4  # pixels either way
RADIUS = (7.5, 11.5)  # pixels
HALF_TURN = 0.2  # tangent of half the largest angle, which is about 0.4 radians
P_BAR = 0.35


def uniform(rng: np.random.Generator, shape: int | tuple[int, ...], low: float, high: float) -> Field:
    """Draw float32 values of this shape between ``low`` and ``high``."""
    return rng.random(shape, dtype=np.float32) * (high - low) + low


def jitter(n: int, rng: np.random.Generator) -> Field:
    """Draw factors of magnitude 0.6..1.2 and random sign, (n, 1, 1)."""
    factor: Field = uniform(rng, n, 0.6, 1.2) * rng.choice(np.array([-1, 1], np.float32), n)
    return factor[:, None, None]


def wave(phase: Field) -> Field:
    """Return a sine-like wave of period 1 made of parabolas, in -1..1."""
    t = phase - np.floor(phase) - 0.5
    height: Field = -16 * t * (0.5 - np.abs(t))
    return height


def soft(distance: Field) -> Field:
    """Return 1 inside (negative distance, in pixels) and 0 outside, with an edge one pixel wide."""
    weight: Field = np.clip(0.5 - distance, 0, 1)
    return weight


def pixel_grid(n: int) -> tuple[Field, Field]:
    """Return coordinates x and y, each (n, 32, 32), 0 in the middle of the image; y grows downwards."""
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    shape = (n, SIZE, SIZE)
    return np.broadcast_to(axis[None, None, :], shape), np.broadcast_to(axis[None, :, None], shape)


def rotated(x: Field, y: Field, half_tangent: Field) -> tuple[Field, Field]:
    """Rotate coordinates by the angle whose half has this tangent, (n,)."""
    t = half_tangent[:, None, None]
    scale = 1 / (1 + t * t)
    cos, sin = (1 - t * t) * scale, 2 * t * scale
    return x * cos + y * sin, y * cos - x * sin


def object_frame(x: Field, y: Field, rng: np.random.Generator) -> tuple[Field, Field, Field]:
    """Draw the pose of the objects.

    Returns:
        Coordinates u and v, each (n, 32, 32), in which the object is upright and centred, and its radius in pixels,
        (n, 1, 1).
    """
    n = len(x)
    dx, dy = (uniform(rng, n, -SHIFT, SHIFT)[:, None, None] for _ in range(2))
    u, v = rotated(x - dx, y - dy, uniform(rng, n, -HALF_TURN, HALF_TURN))
    bend_u, bend_v, phase_u, phase_v = (uniform(rng, n, 0, 1)[:, None, None] for _ in range(4))
    warped_u = u + bend_u * wave(v / 20 + phase_u)
    warped_v = v + bend_v * wave(u / 20 + phase_v)
    return warped_u, warped_v, uniform(rng, n, *RADIUS)[:, None, None]


def outline_distance(kind: NDArray[np.int64], u: Field, v: Field, radius: Field) -> Field:
    """Return the approximate distance in pixels from the outline, negative inside; all kinds have about equal areas."""
    distance = np.empty(u.shape, np.float32)
    for which, signed_distance in enumerate((_disc, _triangle, _square, _star, _petals)):
        rows = kind == which
        distance[rows] = signed_distance(u[rows], v[rows], radius[rows])
    return distance


def _disc(u: Field, v: Field, radius: Field) -> Field:
    distance: Field = np.sqrt(u * u + v * v) - 0.92 * radius
    return distance


def _triangle(u: Field, v: Field, radius: Field) -> Field:
    slope = 0.866025 * np.abs(u) - 0.5 * v
    distance: Field = np.maximum(v, slope) - 0.72 * radius
    return distance


def _square(u: Field, v: Field, radius: Field) -> Field:
    distance: Field = np.maximum(np.abs(u), np.abs(v)) - 0.82 * radius
    return distance


def _star(u: Field, v: Field, radius: Field) -> Field:
    r2 = u * u + v * v + 1e-3
    r = np.sqrt(r2)
    u2, v2 = u * u, v * v
    five = -v * (v2 * v2 - 10 * v2 * u2 + 5 * u2 * u2) / (r2 * r2 * r)  # cosine of five times the angle from the top
    return (r - radius * (0.88 + 0.32 * five)) * 0.7


def _petals(u: Field, v: Field, radius: Field) -> Field:
    r2 = u * u + v * v + 1e-3
    four = 1 - 8 * u * u * v * v / (r2 * r2)  # cosine of four times the angle
    return (np.sqrt(r2) - radius * (0.86 + 0.40 * four)) * 0.7


def draw_texture(kind: NDArray[np.int64], u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Draw the texture of each image with random period and phase, (n, 32, 32), about -1..1."""
    n = len(kind)
    cycles = 1 / uniform(rng, n, 4.0, 5.5)[:, None, None]
    phase_u, phase_v = (uniform(rng, n, 0, 1)[:, None, None] for _ in range(2))
    pu, pv = u * cycles + phase_u, v * cycles + phase_v
    grain = uniform(rng, (n, SIZE // 2, SIZE // 2), -1, 1).repeat(2, axis=1).repeat(2, axis=2)
    field = np.empty(u.shape, np.float32)
    for which, draw in enumerate((_stripes, _checks, _dots, _rings)):
        rows = kind == which
        field[rows] = draw(pu[rows], pv[rows])
    rows = kind == TEXTURES - 1
    field[rows] = grain[rows]
    return field


def _stripes(pu: Field, pv: Field) -> Field:
    return wave(pu + pv / 4)


def _checks(pu: Field, pv: Field) -> Field:
    return np.sign(wave(pu / 1.25) * wave(pv / 1.25))


def _dots(pu: Field, pv: Field) -> Field:
    return np.maximum(wave(pu) + wave(pv), 0) - 0.4


def _rings(pu: Field, pv: Field) -> Field:
    return wave(np.sqrt(pu * pu + pv * pv))


def draw_spot(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw a spot with a ring of the opposite sign around the origin; return its light and its mask."""
    distance = np.sqrt(u * u + v * v)
    covered = soft(distance - 3.3)
    return jitter(len(u), rng) * (2 * soft(distance - 1.8) - 1) * covered, covered


def draw_blob(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Draw a smooth bump of height 1 at a random place of each image, (n, 32, 32)."""
    n, half = len(x), SIZE / 2
    dx, dy = (x - uniform(rng, n, -half, half)[:, None, None], y - uniform(rng, n, -half, half)[:, None, None])
    width = uniform(rng, n, 3, 8)[:, None, None]
    fall = 1 / (1 + (dx * dx + dy * dy) / (width * width))
    return fall * fall


def draw_bar(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Draw the mask of a straight bar that occludes the image, (n, 32, 32); zero in most images."""
    n = len(x)
    across, _ = rotated(x, y, uniform(rng, n, -1, 1))
    middle, width = uniform(rng, n, -9, 9)[:, None, None], uniform(rng, n, 1.0, 2.0)[:, None, None]
    there = (rng.random(n) < P_BAR).astype(np.float32)[:, None, None]
    return there * soft(np.abs(across - middle) - width)
