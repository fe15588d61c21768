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

#: Statistics of the training split, on the 0..1 scale.
MEAN, STD = (0.4998, 0.4997, 0.5015), (0.2175, 0.2360, 0.2386)

#: Images drawn together, few enough for their fields to fit the processor's cache.
CHUNK = 250

SPOTS = 2  # above, below

P_FACTOR_LOST = 0.055  # probability that a random factor replaces one of the class, so that no network is perfect
P_COLOUR_OF_CLASS = 0.3  # probability of the class's hue; a linear classifier on colours stays below 35%
BLOBS = 2

# Amplitudes on the 0..1 scale of pixel values. The amplitude of the object's texture and the two probabilities above
# decide how hard the task is and how much seeds help; `benchmarks/tasks/calibration.py` measures both.
OBJECT_TEXTURE = 0.31
BACKGROUND_TEXTURE = 0.15
OBJECT_COLOUR = 0.6  # maximum opacity of the object's colour
NOISE = 0.08


def generate_procedural(train: int = TRAIN, val: int = VAL, test: int = TEST) -> ImageData:
    """Generate the dataset with equally frequent classes. The defaults take about two seconds on one core.

    Args:
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.

    Returns:
        The images as (N, 3, 32, 32). The same arguments yield the same bits in every process.
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

    image = np.empty((n, 3, SIZE, SIZE), np.float32)
    image[:] = _planes(_colours(factors.hue, factors.brightness, rng))
    for _ in range(BLOBS):
        image += draw_blob(x, y, rng)[:, None] * _planes(uniform(rng, (n, 3), -0.2, 0.2))
    cover = uniform(rng, n, 0, OBJECT_COLOUR)[:, None, None] * inside
    image += cover[:, None] * (_planes(_any_colour(n, rng)) - image)
    image += (behind + inside * (on_object - behind))[:, None]
    image += draw_bar(x, y, rng)[:, None] * (_planes(_any_colour(n, rng)) - image)
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


def _colours(hue: Field, brightness: Field, rng: np.random.Generator) -> Field:
    """Return the colour of each hue and brightness in 0..1, with random saturation, (n, 3)."""
    saturation = uniform(rng, (len(hue), 1), 0.05, 0.25)
    thirds = np.arange(3, dtype=np.float32) / 3
    return 0.2 + brightness[:, None] * np.float32(0.6) + saturation * wave(hue[:, None] + thirds)


def _any_colour(n: int, rng: np.random.Generator) -> Field:
    return _colours(uniform(rng, n, 0, 1), uniform(rng, n, 0, 1), rng)


def _expose(image: Field, rng: np.random.Generator) -> Images:
    """Return the pixels of images on the 0..1 scale after random contrast, brightness and noise."""
    n = len(image)
    contrast, brightness, grain = (
        uniform(rng, (n, 1, 1, 1), low, high) for low, high in ((0.8, 1.1), (-0.05, 0.05), (0.3 * NOISE, 1.7 * NOISE))
    )
    noise = rng.integers(-127, 128, image.shape, dtype=np.int8) * (grain / 127)
    exposed = (image - 0.5) * contrast + (0.5 + brightness) + noise
    return np.clip(np.rint(exposed * 255), 0, 255).astype(np.uint8)
