"""CIFAR-10 and CIFAR-100 in their binary layouts: records of one or two label bytes and 3,072 pixel bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esper_env.data.images import ImageData, Images, Labels
from esper_env.data.originals import ORIGINALS, DamagedDataError, Source
from esper_env.data.splits import carve_validation

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32

#: Validation images. A contribution is the paired difference of two accuracies on them. If the two networks disagree in
#: correctness on a share d of n images, its standard error is sqrt(d / n): 0.5 points at d = 5%, 0.7 at d = 10%. More
#: images, such as 10,000, would take evaluation time in every step.
VAL = 2_000


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
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training images, on the 0..1 scale
    return _load(ORIGINALS["cifar10"], {"label": 10}, folder, val, mean, std)


def load_cifar100(folder: Path, val: int = VAL) -> ImageData:
    """Load CIFAR-100 with its 100 fine classes from train.bin and test.bin, as :func:`load_cifar10` does."""
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _load(ORIGINALS["cifar100"], {"coarse label": 20, "fine label": 100}, folder, val, mean, std)


def _load(
    source: Source, labels: dict[str, int], folder: Path, val: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> ImageData:
    """Load files of records; ``labels`` maps the name of each label byte to its classes, and the last is predicted."""
    source.refuse_missing(folder)
    batches = [_read_records(folder / file.name, labels) for file in source.files]
    counts = [len(batch[1]) for batch in batches]
    if len({file.size for file in source.files}) == 1 and min(counts) < max(counts):
        shortest = folder / source.files[counts.index(min(counts))].name
        problem = f"{min(counts)} records, expected {max(counts)} as in the largest of the {len(counts)} files"
        raise DamagedDataError.of(shortest, problem)
    train_images, train_labels = (np.concatenate(arrays) for arrays in zip(*batches[:-1], strict=True))
    return ImageData(
        name=source.name,
        classes=list(labels.values())[-1],
        **carve_validation(source.name, train_images, train_labels, val),
        test_images=batches[-1][0],
        test_labels=batches[-1][1],
        mean=mean,
        std=std,
        crop_padding=4,
        flip=True,
    )


def _read_records(path: Path, label_bytes: dict[str, int]) -> tuple[Images, Labels]:
    content = np.fromfile(path, dtype=np.uint8)
    record = len(label_bytes) + PIXELS
    if not len(content) or len(content) % record:
        raise DamagedDataError.of(
            path,
            f"{len(content)} bytes, expected a multiple of {record} ({len(label_bytes)} for labels and {PIXELS:,} for "
            "pixels in each record) above 0",
        )
    records = content.reshape(-1, record)
    for byte, (name, classes) in enumerate(label_bytes.items()):
        labels = records[:, byte]
        if labels.max() >= classes:
            first = int(np.argmax(labels >= classes))
            raise DamagedDataError.of(path, f"record {first} has {name} {labels[first]}, expected 0..{classes - 1}")
    pixels = records[:, len(label_bytes) :].reshape(-1, *SHAPE)
    return pixels, labels.astype(np.int64)
