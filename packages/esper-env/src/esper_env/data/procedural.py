"""The procedural stand-in for CIFAR-10: 32x32 colour images in ten classes that are drawn rather than photographed.

An image shows one object on a cluttered background. Its class is a pair of factors at different scales, either of
which alone leaves it open: the *texture* on the object (a few pixels) and its *variant*, which shows in the object's
*outline* (the whole object) and in whether a centre-surround *spot* sits above or below the middle (a part of it).

=========  =======================================================  ==================
class      texture                                                  outline, spot
=========  =======================================================  ==================
0 to 4     stripes, checks, dots, rings, grain                      class + 0, above
5 to 9     stripes, checks, dots, rings, grain                      class + 2, below
=========  =======================================================  ==================

(outlines, modulo 5: disc, triangle, square, star, petals). Nuisances hide the factors: pose, warp, a background with
a texture of its own, blobs, an occluding bar, contrast, noise, and colour, which tells the class only now and then.

Pixels are computed with additions, multiplications, divisions, square roots and comparisons alone. IEEE arithmetic
rounds those in one way, so the same images come out in every process and on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import ImageData, Images, Labels
from esper_env.seeding import derive_rng

Field = NDArray[np.float32]

CLASSES = 10
SIZE = 32
TRAIN, VAL, TEST = 12_000, 2_000, 2_000

#: Of the training split; on the 0..1 scale.
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

#: Images drawn together: their fields stay in the processor's cache.
CHUNK = 250

TEXTURES, OUTLINES, VARIANTS = 5, 5, 2

P_FACTOR_LOST = 0.05  # each factor is replaced by a random one: no network can be perfect
P_SPOT_LOST = 0.05
P_HUE_TELLS = 0.25
P_BAR = 0.35
BLOBS = 2

OBJECT_TEXTURE = 0.30  # amplitudes on the 0..1 scale of pixel values
BACKGROUND_TEXTURE = 0.15
NOISE = 0.10
OBJECT_COLOUR = 0.5  # how far the object's own colour can differ from what is behind it
SHIFT = 4
RADIUS = (7.5, 11.5)


def generate_procedural(train: int = TRAIN, val: int = VAL, test: int = TEST) -> ImageData:
    """The stand-in with this many images in each split; the classes are equally frequent in each.

    The same arguments give the same bits in every process. The defaults take about two seconds on one core.
    """
    total = train + val + test
    labels = np.arange(total, dtype=np.int64) % CLASSES
    images = np.concatenate(
        [
            draw_images(labels[start : start + CHUNK], derive_rng(0, "data/procedural-cifar", start // CHUNK))
            for start in range(0, total, CHUNK)
        ]
    )
    cuts = (train, train + val)
    (train_images, val_images, test_images), (train_labels, val_labels, test_labels) = (
        np.split(images, cuts),
        np.split(labels, cuts),
    )
    return ImageData(
        name="procedural-cifar",
        classes=CLASSES,
        train_images=train_images,
        train_labels=train_labels,
        val_images=val_images,
        val_labels=val_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=MEAN,
        std=STD,
        crop_padding=4,
        flip=True,
    )


def draw_images(labels: Labels, rng: np.random.Generator) -> Images:
    """One image (3, 32, 32) per label in 0..9, with factors, pose and nuisances drawn from ``rng``."""
    n = len(labels)
    factors = Factors.draw(labels, rng)
    x, y = _pixel_grid(n)
    u, v, radius = _object_frame(x, y, rng)
    inside = _soft(_outline(factors.outline, u, v, radius))  # (n, 32, 32), 1 on the object
    texture = OBJECT_TEXTURE * _jitter(n, rng) * _texture(factors.texture, u, v, rng)
    spot = _spot(u, v - radius * np.where(factors.variant == 0, np.float32(-0.45), np.float32(0.45))[:, None, None], rng)
    texture = texture * (1 - spot[1]) + spot[0]
    bu, bv = _rotated(x, y, _uniform(rng, n, -1, 1))
    behind = BACKGROUND_TEXTURE * _jitter(n, rng) * _texture(rng.integers(0, TEXTURES, n), bu, bv, rng)

    light = behind + inside * (texture - behind)
    image = _colour(factors.hue, factors.brightness, rng)[:, :, None, None] + np.zeros((1, 1, SIZE, SIZE), np.float32)
    for _ in range(BLOBS):
        image += _blob(x, y, rng)[:, None] * _uniform(rng, (n, 3), -0.3, 0.3)[:, :, None, None]
    own = _uniform(rng, n, 0, OBJECT_COLOUR)[:, None, None] * inside
    image += own[:, None] * (_colour(_uniform(rng, n, 0, 1), _uniform(rng, n, 0, 1), rng)[:, :, None, None] - image)
    image += light[:, None]
    bar = _bar(x, y, rng)[:, None]
    image += bar * (_colour(_uniform(rng, n, 0, 1), _uniform(rng, n, 0, 1), rng)[:, :, None, None] - image)
    return _exposed(image, rng)


@dataclass(frozen=True)
class Factors:
    """What the class decides, one entry per image."""

    texture: NDArray[np.int64]  # 0..4
    outline: NDArray[np.int64]  # 0..4
    variant: NDArray[np.int64]  # 0 = spot above the middle, 1 = below
    hue: Field  # 0..1, of the scene
    brightness: Field  # 0..1, of the scene

    @classmethod
    def draw(cls, labels: Labels, rng: np.random.Generator) -> Factors:
        """The factors of each label, a few of them lost to chance."""
        n = len(labels)
        variant, mate = labels // TEXTURES, rng.integers(0, 2, n)
        kind = (labels + 2 * mate) % TEXTURES

        def mostly(value: NDArray[np.int64], count: int, lost: float = P_FACTOR_LOST) -> NDArray[np.int64]:
            return np.where(rng.random(n) < lost, rng.integers(0, count, n), value)

        tells = rng.random(n) < P_HUE_TELLS
        hue, brightness = (
            np.where(tells, (labels + rng.random(n)) / CLASSES, rng.random(n)).astype(np.float32) for _ in range(2)
        )
        return cls(
            texture=mostly(kind, TEXTURES),
            outline=mostly((kind + 2 * variant + mate) % OUTLINES, OUTLINES),
            variant=mostly(variant, VARIANTS, P_SPOT_LOST),
            hue=hue,
            brightness=brightness,
        )


def _uniform(rng: np.random.Generator, shape: int | tuple[int, ...], low: float, high: float) -> Field:
    return rng.random(shape, dtype=np.float32) * np.float32(high - low) + np.float32(low)


def _jitter(n: int, rng: np.random.Generator) -> Field:
    """A factor around 1 of either sign: bright on dark as often as dark on bright."""
    return (_uniform(rng, n, 0.6, 1.2) * rng.choice(np.array([-1, 1], np.float32), n))[:, None, None]


def _wave(phase: Field) -> Field:
    """A sine wave of period 1 made of parabolas, in -1..1."""
    t = phase - np.floor(phase) - np.float32(0.5)
    return -16 * t * (np.float32(0.5) - np.abs(t))


def _soft(distance: Field) -> Field:
    """1 inside (negative distance, in pixels), 0 outside, with an edge one pixel wide."""
    return np.clip(np.float32(0.5) - distance, 0, 1)


def _pixel_grid(n: int) -> tuple[Field, Field]:
    """Coordinates x and y, each (n, 32, 32), 0 in the middle of the image; y grows downwards."""
    axis = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    shape = (n, SIZE, SIZE)
    return np.broadcast_to(axis[None, None, :], shape), np.broadcast_to(axis[None, :, None], shape)


def _rotated(x: Field, y: Field, half_tangent: Field) -> tuple[Field, Field]:
    """Coordinates turned by the angle whose half has this tangent, (n,)."""
    t = half_tangent[:, None, None]
    scale = 1 / (1 + t * t)
    cos, sin = (1 - t * t) * scale, 2 * t * scale
    return x * cos + y * sin, y * cos - x * sin


def _object_frame(x: Field, y: Field, rng: np.random.Generator) -> tuple[Field, Field, Field]:
    """Coordinates u, v (n, 32, 32) in which the object is upright and centred, and its radius (n, 1, 1) in pixels."""
    n = len(x)
    dx, dy = (_uniform(rng, n, -SHIFT, SHIFT)[:, None, None] for _ in range(2))
    u, v = _rotated(x - dx, y - dy, _uniform(rng, n, -0.2, 0.2))  # about +-0.4 radians
    bend_u, bend_v, phase_u, phase_v = (_uniform(rng, n, 0, 1)[:, None, None] for _ in range(4))
    warped_u = u + bend_u * _wave(v / 20 + phase_u)
    warped_v = v + bend_v * _wave(u / 20 + phase_v)
    return warped_u, warped_v, _uniform(rng, n, *RADIUS)[:, None, None]


def _outline(kind: NDArray[np.int64], u: Field, v: Field, radius: Field) -> Field:
    """Roughly the distance in pixels from the outline, negative inside; all kinds have about the same area."""
    distance = np.empty(u.shape, np.float32)
    for which, signed_distance in enumerate((_disc, _triangle, _square, _star, _petals)):
        rows = kind == which
        distance[rows] = signed_distance(u[rows], v[rows], radius[rows])
    return distance


def _disc(u: Field, v: Field, radius: Field) -> Field:
    return np.sqrt(u * u + v * v) - np.float32(0.92) * radius


def _triangle(u: Field, v: Field, radius: Field) -> Field:
    slope = np.float32(0.866025) * np.abs(u) - np.float32(0.5) * v
    return np.maximum(v, slope) - np.float32(0.72) * radius


def _square(u: Field, v: Field, radius: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82) * radius


def _star(u: Field, v: Field, radius: Field) -> Field:
    r2 = u * u + v * v + np.float32(1e-3)
    r = np.sqrt(r2)
    u2, v2 = u * u, v * v
    five = -v * (v2 * v2 - 10 * v2 * u2 + 5 * u2 * u2) / (r2 * r2 * r)  # cosine of five times the angle from the top
    return (r - radius * (np.float32(0.88) + np.float32(0.32) * five)) * np.float32(0.7)


def _petals(u: Field, v: Field, radius: Field) -> Field:
    r2 = u * u + v * v + np.float32(1e-3)
    four = 1 - 8 * u * u * v * v / (r2 * r2)  # cosine of four times the angle
    return (np.sqrt(r2) - radius * (np.float32(0.86) + np.float32(0.40) * four)) * np.float32(0.7)


def _texture(kind: NDArray[np.int64], u: Field, v: Field, rng: np.random.Generator) -> Field:
    """The texture of each image, about -1..1, (n, 32, 32); period and phase are drawn."""
    n = len(kind)
    cycles = 1 / _uniform(rng, n, 4.0, 5.5)[:, None, None]
    phase_u, phase_v = (_uniform(rng, n, 0, 1)[:, None, None] for _ in range(2))
    pu, pv = u * cycles + phase_u, v * cycles + phase_v
    grain = _uniform(rng, (n, SIZE // 2, SIZE // 2), -1, 1).repeat(2, axis=1).repeat(2, axis=2)
    field = np.empty(u.shape, np.float32)
    for which, draw in enumerate((_stripes, _checks, _dots, _rings)):
        rows = kind == which
        field[rows] = draw(pu[rows], pv[rows])
    rows = kind == TEXTURES - 1
    field[rows] = grain[rows]
    return field


def _stripes(pu: Field, pv: Field) -> Field:
    return _wave(pu + pv / 4)


def _checks(pu: Field, pv: Field) -> Field:
    return np.sign(_wave(pu / 1.25) * _wave(pv / 1.25)) 


def _dots(pu: Field, pv: Field) -> Field:
    return np.maximum(_wave(pu) + _wave(pv), 0) - np.float32(0.4)


def _rings(pu: Field, pv: Field) -> Field:
    return _wave(np.sqrt(pu * pu + pv * pv))


def _spot(u: Field, v: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """A spot with a ring of the opposite sign around the origin: its light, and where it covers the texture."""
    strength = OBJECT_TEXTURE * _jitter(len(u), rng)
    distance = np.sqrt(u * u + v * v)
    covered = _soft(distance - np.float32(3.3))
    return strength * (2 * _soft(distance - np.float32(1.8)) - 1) * covered, covered


def _blob(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """A smooth bump of height 1 somewhere in each image, (n, 32, 32)."""
    n, half = len(x), SIZE / 2
    dx, dy = (x - _uniform(rng, n, -half, half)[:, None, None], y - _uniform(rng, n, -half, half)[:, None, None])
    width = _uniform(rng, n, 3, 8)[:, None, None]
    fall = 1 / (1 + (dx * dx + dy * dy) / (width * width))
    return fall * fall


def _bar(x: Field, y: Field, rng: np.random.Generator) -> Field:
    """Where a straight bar hides the picture, (n, 32, 32); nowhere in most images."""
    n = len(x)
    across, _ = _rotated(x, y, _uniform(rng, n, -1, 1))
    middle, width = _uniform(rng, n, -9, 9)[:, None, None], _uniform(rng, n, 1.0, 2.0)[:, None, None]
    there = (rng.random(n) < P_BAR).astype(np.float32)[:, None, None]
    return there * _soft(np.abs(across - middle) - width)


def _colour(hue: Field, brightness: Field, rng: np.random.Generator) -> Field:
    """The colour of each hue and brightness in 0..1, with drawn saturation, (n, 3)."""
    saturation = _uniform(rng, (len(hue), 1), 0.05, 0.25)
    thirds = np.arange(3, dtype=np.float32) / 3
    return np.float32(0.25) + brightness[:, None] / 2 + saturation * _wave(hue[:, None] + thirds)


def _exposed(image: Field, rng: np.random.Generator) -> Images:
    """Pixels of a picture on the 0..1 scale, with contrast, brightness and noise of each image's own."""
    n = len(image)
    contrast, brightness, grain = (
        _uniform(rng, (n, 1, 1, 1), low, high) for low, high in ((0.7, 1.1), (-0.1, 0.1), (0.3 * NOISE, 1.7 * NOISE))
    )
    noise = rng.integers(-127, 128, image.shape, dtype=np.int8) * (grain / 127)
    exposed = (image - np.float32(0.5)) * contrast + (np.float32(0.5) + brightness) + noise
    return np.clip(np.rint(exposed * 255), 0, 255).astype(np.uint8)
