"""CIFAR-10 and CIFAR-100 in their binary layouts: records of one or two label bytes and 3,072 pixel bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esper_env.data.images import ImageData, Images, Labels
from esper_env.data.originals import ORIGINALS
from esper_env.data.sources import DamagedDataError, Source
from esper_env.data.splits import carve_validation

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32

#: Validation images. A contribution is the paired difference of two accuracies on them. If the two networks disagree in
#: correctness on a share d of n images, its standard error is sqrt(d / n): 0.5 points at d = 5%, 0.7 at d = 10%. More
#: images, such as 10,000, would take evaluation time in every step.
VAL = 2_000


@dataclass(frozen=True)
class Layout:
    """File layout of one of the two datasets."""

    source: Source
    labels: tuple[int, ...]  # classes of each label byte; the last byte is the label to predict
    mean: tuple[float, float, float]  # of the training images, on the 0..1 scale
    std: tuple[float, float, float]

    @property
    def classes(self) -> int:
        """Number of classes to predict."""
        return self.labels[-1]

    @property
    def record(self) -> int:
        """Bytes of an image and its labels."""
        return len(self.labels) + PIXELS

    @property
    def train_files(self) -> tuple[str, ...]:
        """Names of the files with training images."""
        return tuple(file.name for file in self.source.files[:-1])

    @property
    def test_file(self) -> str:
        """Name of the file with test images."""
        return self.source.files[-1].name


CIFAR10 = Layout(ORIGINALS["cifar10"], (10,), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
#: 20 coarse classes, then 100 fine ones.
CIFAR100 = Layout(ORIGINALS["cifar100"], (20, 100), mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))


def load_cifar10(folder: Path, val: int = VAL) -> ImageData:
    """Load CIFAR-10.

    Args:
        folder: Folder of its six files, which may be shorter than the originals, but of equal size.
        val: Number of validation images to take from the training images, at most a fifth of them.

    Returns:
        The images as (N, 3, 32, 32), in 10 classes.

    Raises:
        MissingDataError: for a missing file.
        DamagedDataError: (a ``ValueError``) for a file whose size or labels are wrong.
    """
    return _load(CIFAR10, folder, val)


def load_cifar100(folder: Path, val: int = VAL) -> ImageData:
    """Load CIFAR-100 with its 100 fine classes from the folder of train.bin and test.bin, as :func:`load_cifar10` does.

    If one of the two files has the size of the original, the other must have it too.
    """
    return _load(CIFAR100, folder, val)


def _load(layout: Layout, folder: Path, val: int) -> ImageData:
    layout.source.refuse_missing(folder)
    _check_sizes(layout, folder)
    batches = [_read_records(layout, folder / name) for name in layout.train_files]
    images = np.concatenate([batch[0] for batch in batches])
    labels = np.concatenate([batch[1] for batch in batches])
    test_images, test_labels = _read_records(layout, folder / layout.test_file)
    name = layout.source.name
    return ImageData(
        name=name,
        classes=layout.classes,
        **carve_validation(name, images, labels, val),
        test_images=test_images,
        test_labels=test_labels,
        mean=layout.mean,
        std=layout.std,
        crop_padding=4,
        flip=True,
    )


def _check_sizes(layout: Layout, folder: Path) -> None:
    """Raise ``DamagedDataError`` unless every file has whole records, and the same share of the original's."""
    record = layout.record
    sizes = {file.name: (folder / file.name).stat().st_size for file in layout.source.files}
    for name, size in sizes.items():
        if size == 0 or size % record:
            problem = (
                f"{size} bytes, expected a multiple of {record} ({record - PIXELS} for labels and {PIXELS:,} for pixels"
            )
            raise DamagedDataError.of(folder / name, f"{problem} in each record) above 0")
    originals = {file.name: file.size for file in layout.source.files}
    fullest = max(sizes, key=lambda name: sizes[name] / originals[name])
    if len(set(originals.values())) > 1 and sizes[fullest] != originals[fullest]:
        return  # shortened files of unequal sizes: the expected sizes are unknown
    for name, size in sizes.items():
        expected = sizes[fullest] * originals[name] // originals[fullest] // record
        if size // record < expected:
            problem = f"{size // record} records, expected {expected} as in {_reference(layout)}"
            raise DamagedDataError.of(folder / name, problem)


def _reference(layout: Layout) -> str:
    equal = len({file.size for file in layout.source.files}) == 1
    return "the largest of the six files" if equal else "the original, whose other file is complete"


def _read_records(layout: Layout, path: Path) -> tuple[Images, Labels]:
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, layout.record)
    for byte, classes in enumerate(layout.labels):
        labels = records[:, byte]
        if labels.max() >= classes:
            first = int(np.argmax(labels >= classes))
            which = "label" if len(layout.labels) == 1 else ("coarse label", "fine label")[byte]
            raise DamagedDataError.of(path, f"record {first} has {which} {labels[first]}, expected 0..{classes - 1}")
    pixels = records[:, len(layout.labels) :].reshape(-1, *SHAPE)
    return pixels, records[:, len(layout.labels) - 1].astype(np.int64)
