"""The procedural stand-in for CIFAR-10: 32x32 colour images in ten classes that are drawn rather than photographed.

An image shows one object on a cluttered background. What tells its class are factors at different scales: the
*texture* on the object (a few pixels), its *outline* (the whole object), and whether a centre-surround *spot* sits
above or below its middle. Every class comes in two kinds, drawn equally often:

=============  ===============================  =====================  ======
class          texture                          outline                spot
=============  ===============================  =====================  ======
c = 0 to 4     c            (first kind)        texture + 0            above
..             c + 2        (second kind)       texture + 1            above
c = 5 to 9     c            (first kind)        texture + 2            below
..             c + 2        (second kind)       texture + 3            below
=============  ===============================  =====================  ======

modulo 5, among stripes, checks, dots, rings, grain and among disc, triangle, square, star, petals. So one factor alone
leaves four or five classes, the spot and one other leave two, texture and outline settle it. Nuisances hide the
factors: pose, warp, a background with a texture of its own, blobs, an occluding bar, contrast, noise; and the colour of
the scene, which tells the class only now and then.

Pixels are computed with additions, multiplications, divisions, square roots and comparisons alone. IEEE arithmetic
rounds those in one way, so the same images come out in every process and on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esper_env.data.drawing import (
    OUTLINES,
    SIZE,
    TEXTURES,
    Field,
    draw_bar,
    draw_blob,
    draw_spot,
    draw_texture,
    jitter,
    object_frame,
    outline_distance,
    pixel_grid,
    rotated,
    soft,
    uniform,
    wave,
)
from esper_env.data.images import ImageData, Images, Labels
from esper_env.seeding import derive_rng

CLASSES = 10
TRAIN, VAL, TEST = 12_000, 2_000, 2_000

#: Of the training split; on the 0..1 scale.
MEAN, STD = (0.4998, 0.4997, 0.5015), (0.2175, 0.2360, 0.2386)

#: Images drawn together: few enough for their fields to stay in the processor's cache.
CHUNK = 250

SPOTS = 2  # above, below

P_FACTOR_LOST = 0.055  # each factor is replaced by a random one: no network can be perfect
P_COLOUR_TELLS = 0.3  # a linear classifier on colours stays under 35%
BLOBS = 2

# Amplitudes on the 0..1 scale of pixel values. How hard the task is, and how much seeds help, is decided by the
# strength of the object's texture, by how often a factor is lost, and by how often the colour tells the class:
# `benchmarks/tasks/calibration.py` measures it.
OBJECT_TEXTURE = 0.31
BACKGROUND_TEXTURE = 0.15
OBJECT_COLOUR = 0.6  # how much of the object's own colour covers the background's, at most
NOISE = 0.08


def generate_procedural(train: int = TRAIN, val: int = VAL, test: int = TEST) -> ImageData:
    """The stand-in with this many images in each split; the classes are equally frequent in each.

    The same arguments give the same bits in every process. The defaults take about two seconds on one core.
    """
    total = train + val + test
    labels = np.arange(total, dtype=np.int64) % CLASSES
    chunks = [
        draw_images(labels[start : start + CHUNK], derive_rng(0, "data/procedural-cifar", start // CHUNK))
        for start in range(0, total, CHUNK)
    ]
    cuts = (train, train + val)
    train_images, val_images, test_images = np.split(np.concatenate(chunks), cuts)
    train_labels, val_labels, test_labels = np.split(labels, cuts)
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
    x, y = pixel_grid(n)
    u, v, radius = object_frame(x, y, rng)
    inside = soft(outline_distance(factors.outline, u, v, radius))  # (n, 32, 32), 1 on the object
    side = np.array([-0.45, 0.45], np.float32)[factors.spot][:, None, None]  # y grows downwards
    spot, covered = draw_spot(u, v - side * radius, rng)
    texture = jitter(n, rng) * draw_texture(factors.texture, u, v, rng)
    on_object = OBJECT_TEXTURE * (spot + texture * (1 - covered))
    behind_u, behind_v = rotated(x, y, uniform(rng, n, -1, 1))
    behind = BACKGROUND_TEXTURE * jitter(n, rng) * draw_texture(rng.integers(0, TEXTURES, n), behind_u, behind_v, rng)

    image = np.empty((n, 3, SIZE, SIZE), np.float32)
    image[:] = _planes(_colours(factors.hue, factors.brightness, rng))
    for _ in range(BLOBS):
        image += draw_blob(x, y, rng)[:, None] * _planes(uniform(rng, (n, 3), -0.2, 0.2))
    cover = uniform(rng, n, 0, OBJECT_COLOUR)[:, None, None] * inside
    image += cover[:, None] * (_planes(_any_colour(n, rng)) - image)
    image += (behind + inside * (on_object - behind))[:, None]
    image += draw_bar(x, y, rng)[:, None] * (_planes(_any_colour(n, rng)) - image)
    return _exposed(image, rng)


@dataclass(frozen=True)
class Factors:
    """What the class decides, one entry per image."""

    texture: NDArray[np.int64]  # 0..4
    outline: NDArray[np.int64]  # 0..4
    spot: NDArray[np.int64]  # 0 = above the middle, 1 = below
    hue: Field  # 0..1, of the scene
    brightness: Field  # 0..1, of the scene

    @classmethod
    def draw(cls, labels: Labels, rng: np.random.Generator) -> Factors:
        """The factors of each label, a few of them lost to chance."""
        n = len(labels)
        spot, kind = labels // TEXTURES, rng.integers(0, 2, n)
        texture = (labels + 2 * kind) % TEXTURES
        outline = (texture + 2 * spot + kind) % OUTLINES
        colour_tells = rng.random(n) < P_COLOUR_TELLS

        def mostly(value: NDArray[np.int64], count: int) -> NDArray[np.int64]:
            return np.where(rng.random(n) < P_FACTOR_LOST, rng.integers(0, count, n), value)

        def sometimes_of_the_class() -> Field:
            return np.where(colour_tells, (labels + rng.random(n)) / CLASSES, rng.random(n)).astype(np.float32)

        return cls(
            texture=mostly(texture, TEXTURES),
            outline=mostly(outline, OUTLINES),
            spot=mostly(spot, SPOTS),
            hue=sometimes_of_the_class(),
            brightness=sometimes_of_the_class(),
        )


def _planes(colour: Field) -> Field:
    """Colours (n, 3) as something that broadcasts over (n, 3, 32, 32)."""
    return colour[:, :, None, None]


def _colours(hue: Field, brightness: Field, rng: np.random.Generator) -> Field:
    """The colour of each hue and brightness in 0..1, with drawn saturation, (n, 3)."""
    saturation = uniform(rng, (len(hue), 1), 0.05, 0.25)
    thirds = np.arange(3, dtype=np.float32) / 3
    return 0.2 + brightness[:, None] * np.float32(0.6) + saturation * wave(hue[:, None] + thirds)


def _any_colour(n: int, rng: np.random.Generator) -> Field:
    return _colours(uniform(rng, n, 0, 1), uniform(rng, n, 0, 1), rng)


def _exposed(image: Field, rng: np.random.Generator) -> Images:
    """Pixels of a picture on the 0..1 scale, with contrast, brightness and noise of each image's own."""
    n = len(image)
    contrast, brightness, grain = (
        uniform(rng, (n, 1, 1, 1), low, high) for low, high in ((0.8, 1.1), (-0.05, 0.05), (0.3 * NOISE, 1.7 * NOISE))
    )
    noise = rng.integers(-127, 128, image.shape, dtype=np.int8) * (grain / 127)
    exposed = (image - 0.5) * contrast + (0.5 + brightness) + noise
    return np.clip(np.rint(exposed * 255), 0, 255).astype(np.uint8)
