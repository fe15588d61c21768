"""The synthetic images are reproducible and hide their classes from simple cues."""

from __future__ import annotations

import numpy as np
import pytest
from esper_env.data import ImageData
from esper_env.data.procedural import CLASSES, P_FACTOR_LOST, Factors, generate_procedural

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def data() -> ImageData:
    return generate_procedural()


def accuracy_of_ridge(train: np.ndarray, val: np.ndarray, data: ImageData, penalty: float) -> float:
    """Validation accuracy in percent of a linear classifier on features, fitted by ridge regression."""
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-9
    train, val = (train - mean) / std, (val - mean) / std
    targets = np.eye(CLASSES)[data.train_labels] - 1 / CLASSES
    weights = np.linalg.solve(train.T @ train + penalty * np.eye(train.shape[1]), train.T @ targets)
    return 100 * float(np.mean(np.argmax(val @ weights, axis=1) == data.val_labels))


def test_images_have_the_documented_form_and_the_recorded_digest(data: ImageData) -> None:
    assert (data.name, data.classes, data.image_shape) == ("procedural-cifar", 10, (3, 32, 32))
    # A different digest makes results incomparable with earlier ones.
    assert data.digest == "2666ab71491824adc8288a878fbc2d13"
    for labels, size in ((data.train_labels, 12_000), (data.val_labels, 2_000), (data.test_labels, 2_000)):
        assert np.bincount(labels).tolist() == [size // 10] * 10
    assert (data.crop_padding, data.flip) == (4, True)
    images = np.concatenate([data.train_images, data.val_images, data.test_images])
    assert len({image.tobytes() for image in images}) == len(images)  # none occurs twice


def test_statistics_match_the_training_images(data: ImageData) -> None:
    for channel, (mean, std) in enumerate(zip(data.mean, data.std, strict=True)):
        np.testing.assert_allclose(mean, data.train_images[:, channel].mean() / 255, atol=5e-5)
        np.testing.assert_allclose(std, data.train_images[:, channel].std() / 255, atol=5e-5)
    clipped = (data.train_images == 0) | (data.train_images == 255)
    assert 0 < clipped.mean() < 0.03


def best_guess(labels: np.ndarray, *columns: np.ndarray) -> float:
    """Accuracy in percent of predicting the most frequent class of each combination of factors."""
    code = np.zeros(len(labels), np.int64)
    for column in columns:
        code = code * 10 + column
    table = np.zeros((code.max() + 1, CLASSES))
    np.add.at(table, (code, labels), 1)
    return 100 * float(table.max(axis=1).sum() / len(labels))


def test_texture_and_outline_determine_the_class_and_fewer_factors_do_not() -> None:
    labels = np.arange(50_000) % CLASSES
    factors = Factors.draw(labels, np.random.default_rng(0))
    hue = (factors.hue * CLASSES).astype(int) % CLASSES
    assert best_guess(labels, factors.texture) < 27
    assert best_guess(labels, factors.outline) < 27
    assert best_guess(labels, factors.spot) < 27
    assert best_guess(labels, hue) < 40
    assert 42 < best_guess(labels, factors.texture, factors.spot) < 50
    assert 42 < best_guess(labels, factors.outline, factors.spot) < 50
    assert 89 < best_guess(labels, factors.texture, factors.outline) < 94


def test_factors_match_the_documented_table() -> None:
    labels = np.arange(20_000) % CLASSES
    factors = Factors.draw(labels, np.random.default_rng(0))
    table = {}  # class -> its (texture, outline, spot) of the first and the second kind
    for c in range(CLASSES):
        spot, base = divmod(c, 5)
        table[c] = {
            (base, (base + 2 * spot) % 5, spot),
            ((base + 2) % 5, (base + 2 + 2 * spot + 1) % 5, spot),
        }
    seen = zip(labels.tolist(), factors.texture.tolist(), factors.outline.tolist(), factors.spot.tolist(), strict=True)
    share = np.mean([(texture, outline, spot) in table[c] for c, texture, outline, spot in seen])
    # A lost factor may be correct by chance, or match the table of the other kind.
    kept = (1 - 0.8 * P_FACTOR_LOST) ** 2 * (1 - 0.5 * P_FACTOR_LOST)
    assert kept - 0.01 < share < kept + 0.02


def test_linear_classifier_on_pixels_stays_below_35_percent(data: ImageData) -> None:
    def halved(images: np.ndarray) -> np.ndarray:
        """Means of 2x2 pixels, (N, 768), faster to fit and easier for a linear model."""
        return images.reshape(-1, 3, 16, 2, 16, 2).mean(axis=(3, 5)).reshape(len(images), -1)

    assert accuracy_of_ridge(halved(data.train_images), halved(data.val_images), data, 1e4) < 35


def test_colour_histograms_stay_below_35_percent(data: ImageData) -> None:
    def histogram(images: np.ndarray) -> np.ndarray:
        """Square roots of the counts of 64 colours."""
        quarters = images // 64
        colours = quarters[:, 0] * 16 + quarters[:, 1] * 4 + quarters[:, 2]
        rows = np.arange(len(images))[:, None] * 64 + colours.reshape(len(images), -1)
        return np.sqrt(np.bincount(rows.reshape(-1), minlength=64 * len(images)).reshape(-1, 64))

    assert accuracy_of_ridge(histogram(data.train_images), histogram(data.val_images), data, 10) < 35
