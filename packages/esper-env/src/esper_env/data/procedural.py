"""The synthetic stand-in for CIFAR-10: 32x32 colour images in ten classes.

An image shows one object on a cluttered background. Factors at different scales determine its class: the *texture* on
the object (a few pixels), its *outline* (the whole object), and the position of a centre-surround *spot*, above or
below the middle. Every class has two kinds, drawn equally often:

=============  ===============================  =====================  ======
class          texture                          outline                spot
=============  ===============================  =====================  ======
c = 0 to 4     c            (first kind)        texture + 0            above
..             c + 2        (second kind)       texture + 1            above
c = 5 to 9     c            (first kind)        texture + 2            below
..             c + 2        (second kind)       texture + 3            below
=============  ===============================  =====================  ======

modulo 5. The textures are stripes, checks, dots, rings and grain; the outlines are disc, triangle, square, star and
petals. One factor leaves four or five classes, the spot and one other factor leave two, texture and outline leave one.
Nuisances hide the factors: pose, warp, a textured background, blobs, an occluding bar, contrast, noise, and the colour
of the scene, which indicates the class only sometimes.

Pixels are computed with additions, multiplications, divisions, square roots and comparisons only. IEEE arithmetic fixes
their results, so the images are the same in every process and on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import ImageData, Images, Labels
from esper_env.data.splits import split_fields
from esper_env.seeding import derive_rng

#: One value per pixel of n images, (n, 32, 32), or one per image; float32 in practice, which the stubs widen.
Field = NDArray[np.floating[Any]]

SIZE = 32
CLASSES = 10
TRAIN, VAL, TEST = 12_000, 2_000, 2_000

#: Statistics of the training split, on the 0..1 scale.
MEAN, STD = (0.4998, 0.4997, 0.5015), (0.2175, 0.2360, 0.2386)

#: Images drawn together, few enough for their fields to fit the processor's cache.
CHUNK = 250

TEXTURES, OUTLINES = 5, 5  # stripes, checks, dots, rings, grain; disc, triangle, square, star, petals
SPOTS = 2  # above, below

SHIFT = 4  # of the object, in pixels either way
RADIUS = (7.5, 11.5)  # of the object, in pixels
HALF_TURN = 0.2  # tangent of half the object's largest angle, which is about 0.4 radians
P_BAR = 0.35  # probability of an occluding bar
P_FACTOR_LOST = 0.055  # probability that a random factor replaces one of the class, so that no network is perfect
P_COLOUR_OF_CLASS = 0.3  # probability of the class's hue; a linear classifier on colours stays below 35%
BLOBS = 2

# Amplitudes on the 0..1 scale of pixel values. OBJECT_TEXTURE, P_FACTOR_LOST and P_COLOUR_OF_CLASS decide how hard the
# task is and how much seeds help; `benchmarks/tasks/calibration.py` measures both.
OBJECT_TEXTURE = 0.31
BACKGROUND_TEXTURE = 0.15
OBJECT_COLOUR = 0.6  # maximum opacity of the object's colour
NOISE = 0.08


def generate_procedural() -> ImageData:
    """Generate the images of each split, (N, 3, 32, 32), with equally frequent classes.

    This takes about a second on one core and yields the same bits in every process.
    """
    total = TRAIN + VAL + TEST
    labels = np.arange(total, dtype=np.int64) % CLASSES
    chunks = [
        draw_images(labels[start : start + CHUNK], derive_rng(0, "data/procedural-cifar", start // CHUNK))
        for start in range(0, total, CHUNK)
    ]
    splits = {"train": slice(TRAIN), "val": slice(TRAIN, TRAIN + VAL), "test": slice(TRAIN + VAL, total)}
    return ImageData(
        name="procedural-cifar",
        classes=CLASSES,
        **split_fields(np.concatenate(chunks), labels, **splits),
        mean=MEAN,
        std=STD,
        crop_padding=4,
        flip=True,
    )


def draw_images(labels: Labels, rng: np.random.Generator) -> Images:
    """Draw an image (3, 32, 32) for each label in 0..9, with random factors, pose and nuisances."""
    n = len(labels)
    factors = Factors.draw(labels, rng)
    x, y = pixel_grid(n)
    u, v, radius = object_frame(x, y, rng)
    inside = soft(outline_distance(factors.outline, u, v, radius))  # (n, 32, 32), 1 on the object
    side = np.array([-0.45, 0.45], np.float32)[factors.spot][:, None, None]  # y grows downwards
    spot, covered = draw_spot(u, v - side * radius, rng)
    texture = jitter(n, rng) * draw_texture(factors.texture, u, v, rng)
    on_object = OBJECT_TEXTURE * (spot + texture * (1 - covered))
    behind_u, behind_v = rotated(x, y, uniform(rng, n, -1, 1))
    behind = BACKGROUND_TEXTURE * jitter(n, rng) * draw_texture(rng.integers(0, TEXTURES, n), behind_u, behind_v, rng)

    # Large temporary arrays would take as long as the arithmetic, because the system clears their memory first.
    image, change = np.empty((2, n, 3, SIZE, SIZE), np.float32)
    image[:] = _planes(_colours(factors.hue, factors.brightness, rng))
    for _ in range(BLOBS):
        image += np.multiply(draw_blob(x, y, rng)[:, None], _planes(uniform(rng, (n, 3), -0.2, 0.2)), out=change)
    cover = uniform(rng, n, 0, OBJECT_COLOUR)[:, None, None] * inside
    _paint(image, cover, _any_colour(n, rng), change)
    image += (behind + inside * (on_object - behind))[:, None]
    bar = draw_bar(x, y, rng)
    _paint(image, bar, _any_colour(n, rng), change)
    return _expose(image, rng)


@dataclass(frozen=True)
class Factors:
    """Factors that depend on the class, one entry per image."""

    texture: NDArray[np.int64]  # 0..4
    outline: NDArray[np.int64]  # 0..4
    spot: NDArray[np.int64]  # 0 = above the middle, 1 = below
    hue: Field  # 0..1, of the scene
    brightness: Field  # 0..1, of the scene

    @classmethod
    def draw(cls, labels: Labels, rng: np.random.Generator) -> Factors:
        """Draw the factors of each label; a few are random."""
        n = len(labels)
        spot, kind = labels // TEXTURES, rng.integers(0, 2, n)
        texture = (labels + 2 * kind) % TEXTURES
        outline = (texture + 2 * spot + kind) % OUTLINES
        has_hue_of_class = rng.random(n) < P_COLOUR_OF_CLASS

        def mostly(value: NDArray[np.int64], count: int) -> NDArray[np.int64]:
            return np.where(rng.random(n) < P_FACTOR_LOST, rng.integers(0, count, n), value)

        def hue_or_brightness() -> Field:
            return np.where(has_hue_of_class, (labels + rng.random(n)) / CLASSES, rng.random(n)).astype(np.float32)

        return cls(
            texture=mostly(texture, TEXTURES),
            outline=mostly(outline, OUTLINES),
            spot=mostly(spot, SPOTS),
            hue=hue_or_brightness(),
            brightness=hue_or_brightness(),
        )


def _planes(colour: Field) -> Field:
    """Reshape colours (n, 3) to broadcast over (n, 3, 32, 32)."""
    return colour[:, :, None, None]


def _paint(image: Field, opacity: Field, colour: Field, change: Field) -> None:
    """Paint a colour (n, 3) over images (n, 3, 32, 32) with an opacity (n, 32, 32); ``change`` is an array to use."""
    np.subtract(_planes(colour), image, out=change)
    change *= opacity[:, None]
    image += change


def _colours(hue: Field, brightness: Field, rng: np.random.Generator) -> Field:
    """Return the colour of each hue and brightness in 0..1, with random saturation, (n, 3)."""
    saturation = uniform(rng, (len(hue), 1), 0.05, 0.25)
    thirds = np.arange(3, dtype=np.float32) / 3
    return 0.2 + brightness[:, None] * np.float32(0.6) + saturation * wave(hue[:, None] + thirds)


def _any_colour(n: int, rng: np.random.Generator) -> Field:
    return _colours(uniform(rng, n, 0, 1), uniform(rng, n, 0, 1), rng)


def _expose(image: Field, rng: np.random.Generator) -> Images:
    """Return the pixels of images, which are overwritten, after random contrast, brightness and noise."""
    n = len(image)
    contrast, brightness, grain = (
        uniform(rng, (n, 1, 1, 1), low, high) for low, high in ((0.8, 1.1), (-0.05, 0.05), (0.3 * NOISE, 1.7 * NOISE))
    )
    image -= 0.5
    image *= contrast
    image += 0.5 + brightness
    image += rng.integers(-127, 128, image.shape, dtype=np.int8) * (grain / 127)
    image *= 255
    return np.clip(np.rint(image, out=image), 0, 255, out=image).astype(np.uint8)


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
    """Draw the pose of the objects: coordinates u and v, (n, 32, 32), in which they are upright and centred, and radii.

    The radii are in pixels, (n, 1, 1).
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
    for which, signed_distance in enumerate(_SIGNED_DISTANCES):
        rows = kind == which
        distance[rows] = signed_distance(u[rows], v[rows], radius[rows])
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


_SIGNED_DISTANCES: tuple[Callable[[Field, Field, Field], Field], ...] = (
    lambda u, v, radius: np.sqrt(u * u + v * v) - 0.92 * radius,  # disc
    lambda u, v, radius: np.maximum(v, 0.866025 * np.abs(u) - 0.5 * v) - 0.72 * radius,  # triangle
    lambda u, v, radius: np.maximum(np.abs(u), np.abs(v)) - 0.82 * radius,  # square
    _star,
    _petals,
)


def draw_texture(kind: NDArray[np.int64], u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Draw the texture of each image with random period and phase, (n, 32, 32), about -1..1."""
    n = len(kind)
    cycles = 1 / uniform(rng, n, 4.0, 5.5)[:, None, None]
    phase_u, phase_v = (uniform(rng, n, 0, 1)[:, None, None] for _ in range(2))
    pu, pv = u * cycles + phase_u, v * cycles + phase_v
    field: Field = uniform(rng, (n, SIZE // 2, SIZE // 2), -1, 1).repeat(2, axis=1).repeat(2, axis=2)  # grain
    for which, draw in enumerate(_PATTERNS):
        rows = kind == which
        field[rows] = draw(pu[rows], pv[rows])
    return field


#: Textures in coordinates of period 1, except grain.
_PATTERNS: tuple[Callable[[Field, Field], Field], ...] = (
    lambda pu, pv: wave(pu + pv / 4),  # stripes
    lambda pu, pv: np.sign(wave(pu / 1.25) * wave(pv / 1.25)),  # checks
    lambda pu, pv: np.maximum(wave(pu) + wave(pv), 0) - 0.4,  # dots
    lambda pu, pv: wave(np.sqrt(pu * pu + pv * pv)),  # rings
)


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
