"""Fashion-MNIST in the IDX format: a big-endian header and one byte per pixel or label, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import ImageData, Images, Labels
from esper_env.data.originals import ORIGINALS, DamagedDataError, DataFile
from esper_env.data.splits import carve_validation

CLASSES = 10
SIDE = 28
#: Two bytes of zero, the type (8 = unsigned byte) and the number of dimensions.
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801

#: Records of the original's training files, and the most that a file may have.
MAX_RECORDS = 60_000
#: Validation images: as many as CIFAR-10's, for the same reason.
VAL = 2_000

#: Statistics of the training images, on the 0..1 scale.
MEAN, STD = (0.2860,), (0.3530,)


def load_fashion_mnist(folder: Path) -> ImageData:
    """Load Fashion-MNIST.

    Args:
        folder: Folder of its four files, each unpacked or gzipped. They may be shorter than the originals.

    Returns:
        The images as (N, 1, 28, 28), in 10 classes.

    Raises:
        MissingDataError: for a missing file.
        DamagedDataError: (a ``ValueError``) for a file with a wrong header, size or label, or one that does not
            decompress.
    """
    source = ORIGINALS["fashion-mnist"]
    source.refuse_missing(folder)
    images, labels = _read_pair(folder, *source.files[:2])
    test_images, test_labels = _read_pair(folder, *source.files[2:])
    return ImageData(
        name=source.name,
        classes=CLASSES,
        **carve_validation(source.name, images, labels, VAL),
        test_images=test_images,
        test_labels=test_labels,
        mean=MEAN,
        std=STD,
        crop_padding=2,  # the clothes fill the picture from side to side or from top to bottom
        flip=True,  # a mirrored shoe is a shoe
    )


def _read_pair(folder: Path, images_file: DataFile, labels_file: DataFile) -> tuple[Images, Labels]:
    images_path, labels_path = (file.find(folder) or folder / file.name for file in (images_file, labels_file))
    images = read_idx(images_path, IMAGES_MAGIC, (SIDE, SIDE))
    labels = read_idx(labels_path, LABELS_MAGIC, ())
    if len(images) != len(labels):
        raise DamagedDataError(
            f"{images_path} has {len(images)} images but {labels_path} has {len(labels)} labels, expected equal numbers"
        )
    if labels.max() >= CLASSES:
        first = int(np.argmax(labels >= CLASSES))
        raise DamagedDataError.of(labels_path, f"record {first} has label {labels[first]}, expected 0..{CLASSES - 1}")
    return images[:, None], labels.astype(np.int64)


def read_idx(path: Path, magic: int, record_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped if its name ends in ".gz": (N, *record_shape), N at least 1.

    Raises:
        DamagedDataError: for a different magic number or shape, no records or more than in the original, or a size
            that does not match the header.
    """
    record = math.prod(record_shape)
    header = 4 * (2 + len(record_shape))  # bytes
    content = _content(path, header + MAX_RECORDS * record)
    found = np.frombuffer(content[:header].ljust(header, b"\0"), dtype=">u4").tolist()
    count = found[1]
    if found != [magic, count, *record_shape] or not 0 < count <= MAX_RECORDS:
        expected = ", ".join(map(str, [magic, f"1..{MAX_RECORDS}", *record_shape]))
        raise DamagedDataError.of(path, f"its header is {', '.join(map(str, found))}, expected {expected}")
    size = header + count * record
    if len(content) != size:
        amount = "more" if len(content) > size else f"{len(content)}"
        raise DamagedDataError.of(path, f"{amount} bytes, expected {size} for the {count} records of its header")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(count, *record_shape)


def _content(path: Path, most: int) -> bytes:
    """Return the decompressed contents, cut after ``most`` + 1 bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedDataError.of(path, f"it does not decompress ({error})") from error
