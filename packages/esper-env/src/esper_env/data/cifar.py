"""CIFAR-10 in its binary layout: six files of records, one label byte and 3,072 pixel bytes each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esper_env.data.images import ImageData, Images, Labels
from esper_env.data.splits import stratified_split

FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILE = "test_batch.bin"
FILES = (*TRAIN_FILES, TEST_FILE)

CLASSES = 10
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

#: Validation images. Every contribution is the paired difference of two accuracies on them, so its standard error
#: is sqrt(d / n) for a share d of images on which the two networks disagree in correctness: 0.5 points at d = 5%
#: and 0.7 at d = 10%. More images would cost evaluation time in every step, which is why it is not 10,000.
VAL = 2_000

REMEDY = (
    "download cifar-10-binary.tar.gz (the binary version) from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it "
    f"and name the folder that holds {FOLDER} in data_dir or in the environment variable ESPER_DATA_DIR"
)


class MissingDataError(FileNotFoundError, ValueError):
    """A data set that was asked for by name is not there, or not all of it; the message says how to get it."""


def find_cifar10(folder: Path) -> Path | None:
    """The folder that holds CIFAR-10's files: ``folder`` itself or ``cifar-10-batches-bin`` in it; None if neither.

    One of the six files is enough to count as found: a partial copy is for :func:`load_cifar10` to refuse.
    """
    for candidate in (folder, folder / FOLDER):
        if any((candidate / name).exists() for name in FILES):
            return candidate
    return None


def load_cifar10(folder: Path, val: int = VAL) -> ImageData:
    """CIFAR-10 from the folder that holds its six files, with ``val`` images carved out of the training data.

    Files may be shorter than the original; validation then takes at most a fifth of the training records.
    Raises :class:`MissingDataError` for a missing file and ``ValueError`` for one whose size or labels are wrong. The
    six original files are of one size; a file that was cut between two records is found by that.
    """
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise MissingDataError(f"CIFAR-10 in {folder} is incomplete, without {', '.join(missing)}; {REMEDY}")
    _check_sizes(folder)
    batches = [_read_records(folder / name) for name in TRAIN_FILES]
    images = np.concatenate([batch[0] for batch in batches])
    labels = np.concatenate([batch[1] for batch in batches])
    test_images, test_labels = _read_records(folder / TEST_FILE)
    val = min(val, len(labels) // 5)
    train_index, val_index = stratified_split(labels, (len(labels) - val, val), "data/cifar10")
    return ImageData(
        name="cifar10",
        classes=CLASSES,
        train_images=images[train_index],
        train_labels=labels[train_index],
        val_images=images[val_index],
        val_labels=labels[val_index],
        test_images=test_images,
        test_labels=test_labels,
        mean=MEAN,
        std=STD,
        crop_padding=4,
        flip=True,
    )


def _check_sizes(folder: Path) -> None:
    """Whole records, and as many in each file."""
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    for name, size in sizes.items():
        if size == 0 or size % RECORD:
            raise ValueError(
                f"{folder / name} is damaged: {size} bytes, expected a multiple of {RECORD} (1 label byte and 3,072 "
                f"pixels per record) above 0; {REMEDY}"
            )
    largest = max(sizes.values())
    for name, size in sizes.items():
        if size < largest:
            raise ValueError(
                f"{folder / name} is damaged: {size // RECORD} records, expected {largest // RECORD} as in the largest "
                f"of the six files; {REMEDY}"
            )


def _read_records(path: Path) -> tuple[Images, Labels]:
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= CLASSES:
        first = int(np.argmax(labels >= CLASSES))
        raise ValueError(f"{path} is damaged: record {first} has label {labels[first]}, expected 0..9; {REMEDY}")
    return records[:, 1:].reshape(-1, *SHAPE), labels
