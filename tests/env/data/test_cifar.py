"""CIFAR-10's binary files are read as they are, or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from esper_env.data.cifar import load_cifar10

NAMES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files of 40 records, each with every class four times."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for name in NAMES:
        records = rng.integers(0, 256, (40, 3073), dtype=np.uint8)
        records[:, 0] = rng.permutation(np.arange(40) % 10)
        (folder / name).write_bytes(records.tobytes())
    return folder


def records(folder: Path, names: list[str]) -> list[bytes]:
    """The records of these files, cut by hand."""
    content = b"".join((folder / name).read_bytes() for name in names)
    return [content[i : i + 3073] for i in range(0, len(content), 3073)]


def as_records(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return [bytes([label]) + image.tobytes() for image, label in zip(images, labels.tolist(), strict=True)]


def test_training_and_validation_are_the_five_batches_and_share_no_image(folder: Path) -> None:
    data = load_cifar10(folder)
    train, val = as_records(data.train_images, data.train_labels), as_records(data.val_images, data.val_labels)
    assert (len(train), len(val)) == (160, 40)  # a fifth at most
    assert sorted(train + val) == sorted(records(folder, NAMES[:5]))
    assert not set(train) & set(val)


def test_the_test_split_is_the_test_batch(folder: Path) -> None:
    data = load_cifar10(folder)
    assert as_records(data.test_images, data.test_labels) == records(folder, ["test_batch.bin"])


def test_a_record_is_a_label_and_three_planes_of_rows(folder: Path) -> None:
    data = load_cifar10(folder)
    record = (folder / "test_batch.bin").read_bytes()[7 * 3073 : 8 * 3073]
    channel, row, column = 2, 5, 11
    assert data.test_labels[7] == record[0]
    assert data.test_images[7, channel, row, column] == record[1 + channel * 1024 + row * 32 + column]


def test_validation_is_stratified_and_of_the_size_asked_for(folder: Path) -> None:
    data = load_cifar10(folder, val=20)
    assert np.bincount(data.val_labels).tolist() == [2] * 10
    assert len(data.train_labels) == 180


def test_the_split_is_the_recorded_one(folder: Path) -> None:
    digest = hashlib.sha256(load_cifar10(folder).val_images.tobytes()).hexdigest()
    assert (
        digest == "ab730f528a30eaf897bf9b1a51ba7de3e47553a76cf56bc8e31a036759b253d1"
    )  # another one means that results are no longer comparable with earlier ones


def test_normalisation_and_augmentation_are_the_usual_ones(folder: Path) -> None:
    data = load_cifar10(folder)
    assert data.name == "cifar10"
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert data.std == (0.2470, 0.2435, 0.2616)
    assert (data.crop_padding, data.flip, data.classes) == (4, True, 10)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def mislabel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3073 * 12] = 10
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncate, ValueError, "122919 bytes, expected a multiple of 3073"),
        (lengthen, ValueError, "122921 bytes"),
        (empty, ValueError, "is damaged: 0 bytes"),
        (mislabel, ValueError, r"record 12 has label 10, expected 0\.\.9"),
        (Path.unlink, FileNotFoundError, "incomplete, without"),
    ],
)
def test_damage_is_refused_with_the_file(
    folder: Path, name: str, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(folder / name)
    with pytest.raises(error, match=message) as caught:
        load_cifar10(folder)
    assert name in str(caught.value)
