"""CIFAR-100's binary files are read as they are, by their fine labels, or refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import cifar_files, write
from esper_env.data import cifar
from esper_env.data.cifar import load_cifar100
from esper_env.data.sources import DataFile

RECORD = 2 + 3072


@pytest.fixture
def files() -> dict[str, bytes]:
    """Two files of 500 records, each with every fine class five times."""
    return cifar_files((20, 100), ["train.bin", "test.bin"], 500)


@pytest.fixture
def folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return write(tmp_path / "cifar-100-binary", files)


def records(content: bytes) -> list[bytes]:
    """Fine label and pixels of each record, cut by hand."""
    return [content[i + 1 : i + RECORD] for i in range(0, len(content), RECORD)]


def as_records(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return [bytes([label]) + image.tobytes() for image, label in zip(images, labels.tolist(), strict=True)]


def test_the_splits_are_the_records_by_their_fine_labels(folder: Path, files: dict[str, bytes]) -> None:
    data = load_cifar100(folder)
    assert (data.name, data.classes, data.image_shape) == ("cifar100", 100, (3, 32, 32))
    train, val = as_records(data.train_images, data.train_labels), as_records(data.val_images, data.val_labels)
    assert (len(train), len(val)) == (400, 100)
    assert sorted(train + val) == sorted(records(files["train.bin"]))
    assert as_records(data.test_images, data.test_labels) == records(files["test.bin"])


def test_validation_has_every_class(folder: Path) -> None:
    assert np.bincount(load_cifar100(folder).val_labels, minlength=100).tolist() == [1] * 100


def test_the_split_is_the_recorded_one(folder: Path) -> None:
    digest = hashlib.sha256(load_cifar100(folder).val_images.tobytes()).hexdigest()
    assert (
        digest == "37bf54480e23652b45340f8115b826871915080fdd0576ad2f6fe989b1e7677f"
    )  # another one means that results are no longer comparable with earlier ones


def test_normalisation_and_augmentation_are_the_usual_ones(folder: Path) -> None:
    data = load_cifar100(folder)
    assert data.mean == (0.5071, 0.4865, 0.4409)
    assert data.std == (0.2673, 0.2564, 0.2762)
    assert (data.crop_padding, data.flip) == (4, True)


def changed(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([value]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["train.bin", "test.bin"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "1536999 bytes, expected a multiple of 3074"),
        (lambda content: content + b"x", "1537001 bytes"),
        (lambda _: b"", "is damaged: 0 bytes"),
        (lambda content: changed(content, 7 * RECORD, 20), r"record 7 has coarse label 20, expected 0\.\.19"),
        (lambda content: changed(content, 7 * RECORD + 1, 100), r"record 7 has fine label 100, expected 0\.\.99"),
    ],
)
def test_damage_is_refused_with_the_file(folder: Path, name: str, damage, message: str) -> None:
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        load_cifar100(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["train.bin", "test.bin"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"incomplete, without {name}"):
        load_cifar100(folder)


def test_a_file_that_was_cut_between_records_is_found_by_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = (DataFile("train.bin", 500 * RECORD), DataFile("test.bin", 100 * RECORD))
    layout = replace(cifar.CIFAR100, source=replace(cifar.CIFAR100.source, files=original))
    monkeypatch.setattr(cifar, "CIFAR100", layout)
    content = cifar_files((20, 100), ["train.bin"], 500)["train.bin"]
    for train, test, damaged in ((500, 100, None), (499, 100, "train.bin"), (500, 99, "test.bin"), (300, 50, None)):
        folder = write(tmp_path / f"{train}-{test}", {"train.bin": content[: train * RECORD]})
        (folder / "test.bin").write_bytes(content[: test * RECORD])
        if damaged is None:
            assert len(load_cifar100(folder).test_labels) == test
        else:
            with pytest.raises(ValueError, match=f"{damaged} is damaged: .* as in the original"):
                load_cifar100(folder)
