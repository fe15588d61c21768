"""ImageData holds consistent, read-only splits and rejects anything else."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from esper_env.data import ImageData
from esper_env.data.images import digest


def fields(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    base: dict[str, Any] = {"name": "toy", "classes": 3, "mean": (0.5, 0.5), "std": (0.2, 0.2)}
    base |= {"crop_padding": 1, "flip": True}
    for split, n in (("train", 6), ("val", 4), ("test", 3)):
        base[f"{split}_images"] = rng.integers(0, 256, (n, 2, 5, 4), dtype=np.uint8)
        base[f"{split}_labels"] = np.arange(n) % 3
    return base | changes


def test_arrays_are_read_only_copies() -> None:
    given = fields()
    data = ImageData(**given)
    assert data.image_shape == (2, 5, 4)
    for name in (f"{split}_{kind}" for split in ("train", "val", "test") for kind in ("images", "labels")):
        np.testing.assert_array_equal(getattr(data, name), given[name])
        with pytest.raises(ValueError, match="read-only"):
            getattr(data, name)[:1] = 1
    before = data.train_images.copy()
    given["train_images"][:] = 0  # the caller's array stays writable
    np.testing.assert_array_equal(data.train_images, before)
    with pytest.raises(FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]


class Tagged(np.ndarray):
    """A custom array class."""


def test_read_only_view_of_a_writable_array_becomes_a_plain_copy() -> None:
    base = fields()["train_images"]
    view = base.view(Tagged)
    view.flags.writeable = False
    data = ImageData(**fields(train_images=view))
    before = data.train_images.copy()
    base[:] = 0
    assert type(data.train_images) is np.ndarray
    np.testing.assert_array_equal(data.train_images, before)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": ""}, TypeError, "name is ''; expected a non-empty string"),
        ({"classes": 3.5}, ValueError, "classes is 3.5; expected 2 or more"),
        ({"flip": "no"}, TypeError, "flip is 'no'; expected True or False"),
        ({"train_images": np.full((6, 2, 5, 4), np.nan)}, TypeError, r"train split: images are a .* float64.*\* 255"),
        ({"val_images": [[0]]}, TypeError, "val split: images are a list; expected a plain NumPy array of uint8"),
        (
            {"test_images": np.ma.zeros((3, 2, 5, 4), np.uint8)},
            TypeError,
            "images are a MaskedArray of uint8; expected",
        ),
        (
            {"test_labels": np.zeros(3, np.int32)},
            TypeError,
            r"a ndarray of int32; .* \(np.asarray\(labels, dtype=np.int64",
        ),
        ({"val_images": np.zeros((4, 5, 4), np.uint8)}, ValueError, r"\(4, 5, 4\); expected \(N, channels"),
        ({"val_images": np.zeros((0, 2, 5, 4), np.uint8)}, ValueError, r"\(0, 2, 5, 4\); .* all at least 1"),
        ({"test_images": np.zeros((3, 2, 4, 5), np.uint8)}, ValueError, r"\(2, 4, 5\).*\(2, 5, 4\)"),
        ({"test_labels": np.zeros(4, np.int64)}, ValueError, r"\(4,\) for 3 images"),
        ({"train_labels": np.array([0, 1, 2, 3, 0, 1])}, ValueError, r"0\.\.3; expected 0\.\.2"),
        ({"train_labels": np.array([0, 1, 2, -1, 0, 1])}, ValueError, r"-1\.\.2"),
        ({"mean": (0.5,)}, ValueError, r"mean \(0.5,\) and .*; expected .* for each of the 2 channels"),
        ({"mean": 0.5}, ValueError, r"mean 0.5 and .*; expected a finite number on the 0\.\.1 scale for each of the 2"),
        ({"mean": (125.0, 125.0)}, ValueError, r"0\.\.1 scale"),
        ({"std": (0.2, 0.0)}, ValueError, "std above 0"),
        ({"std": (0.2, float("nan"))}, ValueError, "expected a finite number"),
        ({"crop_padding": -1}, ValueError, r"expected 0\.\.3"),
        ({"crop_padding": 1.5}, ValueError, r"crop_padding is 1\.5; expected 0\.\.3"),
        ({"crop_padding": 4}, ValueError, r"5x4"),
    ],
)
def test_image_data_rejects_inconsistent_fields(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ImageData(**fields(**changes))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))], ids=["copy", "deep", "pickle"]
)
def test_copies_are_read_only_and_have_the_same_digest(copied: Any) -> None:
    data = ImageData(**fields())
    known = data.digest
    other = copied(data)
    for split in ("train", "val", "test"):
        for array in (getattr(other, f"{split}_images"), getattr(other, f"{split}_labels")):
            assert not array.flags.writeable
    assert other.digest == known
    assert (other.name, other.classes, other.mean, other.flip) == (data.name, data.classes, data.mean, data.flip)


def test_digest_depends_on_everything_except_the_name() -> None:
    def other_pixel(images: Any) -> Any:
        images = images.copy()
        images[-1, -1, -1, -1] ^= 1
        return images

    own = fields()
    known = ImageData(**own).digest
    assert ImageData(**fields(name="other")).digest == known
    changes = [{f"{split}_images": other_pixel(own[f"{split}_images"])} for split in ("train", "val", "test")]
    changes += [{f"{split}_labels": own[f"{split}_labels"][::-1].copy()} for split in ("train", "val", "test")]
    changes += [{"classes": 4}, {"mean": (0.5, 0.4)}, {"std": (0.2, 0.3)}, {"crop_padding": 0}, {"flip": False}]
    digests = {ImageData(**fields(**change)).digest for change in changes}
    assert len(digests | {known}) == len(changes) + 1


def test_statistics_become_tuples_of_floats() -> None:
    data = ImageData(**fields(mean=[-0.0, 1], std=(np.float64(0.5), 1)))
    assert (data.mean, data.std) == ((0.0, 1.0), (0.5, 1.0))
    assert (type(data.mean), {type(value) for value in data.mean + data.std}) == (tuple, {float})
    assert data.digest == ImageData(**fields(mean=(0.0, 1.0), std=(0.5, 1.0))).digest


ZEROS = np.zeros(8, dtype=np.uint8)


@pytest.mark.parametrize(
    ("parts", "others"),
    [
        ((ZEROS.reshape(2, 4),), (ZEROS.reshape(4, 2),)),
        ((ZEROS,), (ZEROS.view(np.int8),)),
        ((ZEROS,), (np.zeros(1, dtype=np.int64),)),
        ((ZEROS[:3], ZEROS[:5]), (ZEROS[:5], ZEROS[:3])),
        ((ZEROS[:8],), (ZEROS[:4], ZEROS[:4])),
        ((1, 12), (11, 2)),
        (((0.5, 0.5), (0.5,)), ((0.5,), (0.5, 0.5))),
        ((0.1,), (0.1 + 1e-16,)),
    ],
)
def test_digest_distinguishes_equal_bytes_of_different_arrays(parts: Any, others: Any) -> None:
    assert digest(*parts) != digest(*others)
