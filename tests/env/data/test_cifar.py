"""CIFAR-10's and CIFAR-100's binary files are loaded unchanged, or rejected."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from archives import CIFAR10_NAMES, as_records, cifar_files, write
from esper_env.data import ImageData
from esper_env.data.catalog import LOADERS


@dataclass(frozen=True)
class Version:
    """One of the two datasets with fewer records."""

    name: str
    labels: tuple[int, ...]  # classes of each label byte
    names: list[str]  # of the files; the last has the test images
    count: int  # records per file
    val: int  # validation images by default: a fifth
    digest: str  # of the validation images
    statistics: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def record(self) -> int:
        return len(self.labels) + 3072

    @property
    def files(self) -> dict[str, bytes]:
        return cifar_files(self.labels, self.names, self.count)

    def load(self, folder: Path, **arguments: int) -> ImageData:
        return LOADERS[self.name](folder, **arguments)

    def records(self, names: list[str]) -> list[bytes]:
        """The last label byte and the pixels of each record, cut by hand."""
        content, skip = b"".join(self.files[name] for name in names), len(self.labels) - 1
        return [content[i + skip : i + self.record] for i in range(0, len(content), self.record)]


VERSIONS = [
    Version(
        "cifar10", (10,), CIFAR10_NAMES, 40, 40, "ab730f528a30eaf897bf9b1a51ba7de3e47553a76cf56bc8e31a036759b253d1",
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ),
    Version(
        "cifar100", (20, 100), ["train.bin", "test.bin"], 500, 100,
        "37bf54480e23652b45340f8115b826871915080fdd0576ad2f6fe989b1e7677f",
        ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ),
]  # fmt: skip


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, version: Version) -> Path:
    return write(tmp_path / "files", version.files)


def test_splits_contain_the_records_of_the_files(folder: Path, version: Version) -> None:
    data = version.load(folder)
    assert (data.name, data.classes, data.image_shape) == (version.name, version.labels[-1], (3, 32, 32))
    train, val = as_records(data.train_images, data.train_labels), as_records(data.val_images, data.val_labels)
    assert sorted(train + val) == sorted(version.records(version.names[:-1]))
    assert as_records(data.test_images, data.test_labels) == version.records(version.names[-1:])
    assert ((data.mean, data.std), data.crop_padding, data.flip) == (version.statistics, 4, True)


def test_validation_is_stratified_and_has_the_requested_size(folder: Path, version: Version) -> None:
    whole, half = version.load(folder), version.load(folder, val=version.val // 2)
    assert set(np.bincount(whole.val_labels)) == {version.val // whole.classes}
    counts = np.bincount(half.val_labels, minlength=half.classes)
    assert counts.sum() == version.val // 2
    assert counts.max() - counts.min() <= 1
    # A different digest makes results incomparable with earlier ones.
    assert hashlib.sha256(whole.val_images.tobytes()).hexdigest() == version.digest


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


def test_files_of_cifar10_must_have_equal_sizes(tmp_path: Path) -> None:
    files = VERSIONS[0].files
    folder = write(tmp_path, files | {"test_batch.bin": files["test_batch.bin"][: 13 * 3073]})
    with pytest.raises(ValueError, match=r"test_batch\.bin is damaged: 13 records, expected 40 as in the largest"):
        VERSIONS[0].load(folder)
