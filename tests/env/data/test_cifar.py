"""CIFAR-10's and CIFAR-100's binary files are loaded unchanged, or rejected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from archives import CIFAR10_NAMES, cifar_files, write
from esper_env.data import ImageData, cifar
from esper_env.data.cifar import load_cifar10, load_cifar100
from esper_env.data.sources import DataFile

PIXELS = 3072


@dataclass(frozen=True)
class Version:
    """One of the two datasets with fewer records."""

    name: str
    labels: tuple[int, ...]  # classes of each label byte
    names: list[str]  # of the files; the last has the test images
    count: int  # records per file
    val: int  # validation images by default: a fifth
    digest: str  # of the validation images

    @property
    def record(self) -> int:
        return len(self.labels) + PIXELS

    @property
    def files(self) -> dict[str, bytes]:
        return cifar_files(self.labels, self.names, self.count)

    def load(self, folder: Path, **arguments: int) -> ImageData:
        return (load_cifar10 if self.name == "cifar10" else load_cifar100)(folder, **arguments)

    def records(self, names: list[str]) -> list[bytes]:
        """The last label byte and the pixels of each record, cut by hand."""
        content, skip = b"".join(self.files[name] for name in names), len(self.labels) - 1
        return [content[i + skip : i + self.record] for i in range(0, len(content), self.record)]


VERSIONS = [
    Version(
        "cifar10", (10,), CIFAR10_NAMES, 40, 40, "ab730f528a30eaf897bf9b1a51ba7de3e47553a76cf56bc8e31a036759b253d1"
    ),
    Version(
        "cifar100",
        (20, 100),
        ["train.bin", "test.bin"],
        500,
        100,
        "37bf54480e23652b45340f8115b826871915080fdd0576ad2f6fe989b1e7677f",
    ),
]


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, version: Version) -> Path:
    return write(tmp_path / "files", version.files)


def as_records(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return [bytes([label]) + image.tobytes() for image, label in zip(images, labels.tolist(), strict=True)]


def test_splits_contain_the_records_of_the_files(folder: Path, version: Version) -> None:
    data = version.load(folder)
    assert (data.name, data.classes, data.image_shape) == (version.name, version.labels[-1], (3, 32, 32))
    train, val = as_records(data.train_images, data.train_labels), as_records(data.val_images, data.val_labels)
    assert len(val) == version.val
    assert sorted(train + val) == sorted(version.records(version.names[:-1]))
    assert not set(train) & set(val)
    assert as_records(data.test_images, data.test_labels) == version.records(version.names[-1:])


def test_record_is_labels_and_three_planes_of_rows(folder: Path, version: Version) -> None:
    data = version.load(folder)
    record = version.files[version.names[-1]][7 * version.record : 8 * version.record]
    channel, row, column = 2, 5, 11
    pixel = record[len(version.labels) + channel * 1024 + row * 32 + column]
    assert data.test_labels[7] == record[len(version.labels) - 1]
    assert data.test_images[7, channel, row, column] == pixel


def test_validation_is_stratified_and_has_the_requested_size(folder: Path, version: Version) -> None:
    data = version.load(folder, val=version.val // 2)
    counts = np.bincount(data.val_labels, minlength=data.classes)
    assert counts.sum() == version.val // 2
    assert counts.max() - counts.min() <= (0 if version.name == "cifar10" else 1)
    whole = version.load(folder)
    assert len(set(np.bincount(whole.val_labels, minlength=data.classes))) == 1
    assert len(data.train_labels) == len(whole.train_labels) + version.val - version.val // 2


def test_split_matches_the_recorded_digest(folder: Path, version: Version) -> None:
    # A different digest makes results incomparable with earlier ones.
    assert hashlib.sha256(version.load(folder).val_images.tobytes()).hexdigest() == version.digest


def test_normalisation_and_augmentation_are_the_usual_ones(folder: Path, version: Version) -> None:
    data = version.load(folder)
    expected = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }
    assert (data.mean, data.std) == expected[version.name]
    assert (data.crop_padding, data.flip) == (4, True)


def change_byte(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([value]) + content[place + 1 :]


@pytest.mark.parametrize("last", [False, True], ids=["train", "test"])
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "label", "missing"])
def test_damaged_file_is_rejected_by_name(folder: Path, version: Version, damage: str, last: bool) -> None:
    name = version.names[-1] if last else version.names[-2]
    content, record = version.files[name], version.record
    changes = {
        "cut": [(content[:-1], f"{len(content) - 1} bytes, expected a multiple of {record}")],
        "longer": [(content + b"x", f"{len(content) + 1} bytes")],
        "empty": [(b"", "is damaged: 0 bytes")],
        "label": [
            (change_byte(content, 7 * record + byte, classes), rf"record 7 has .*label {classes}, expected 0\.\.")
            for byte, classes in enumerate(version.labels)
        ],
        "missing": [(None, "incomplete, without")],
    }
    for changed, message in changes[damage]:
        (folder / name).unlink() if changed is None else (folder / name).write_bytes(changed)
        with pytest.raises(FileNotFoundError if changed is None else ValueError, match=message) as caught:
            version.load(folder)
        assert name in str(caught.value)


def test_file_cut_between_records_is_detected_if_another_file_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = VERSIONS[1]
    original = (DataFile("train.bin", 500 * version.record), DataFile("test.bin", 100 * version.record))
    layout = replace(cifar.CIFAR100, source=replace(cifar.CIFAR100.source, files=original))
    monkeypatch.setattr(cifar, "CIFAR100", layout)
    content = version.files["train.bin"]
    for train, test, damaged in ((500, 100, None), (499, 100, "train.bin"), (500, 99, "test.bin"), (300, 50, None)):
        folder = write(tmp_path / f"{train}-{test}", {"train.bin": content[: train * version.record]})
        (folder / "test.bin").write_bytes(content[: test * version.record])
        if damaged is None:
            assert len(load_cifar100(folder).test_labels) == test
        else:
            with pytest.raises(ValueError, match=f"{damaged} is damaged: .* as in the original"):
                load_cifar100(folder)
