"""Fashion-MNIST in the IDX format: a big-endian header and one byte per pixel or label, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esper_env.data.images import ImageData, Images, Labels
from esper_env.data.originals import ORIGINALS
from esper_env.data.sources import DamagedDataError, DataFile
from esper_env.data.splits import carved

SOURCE = ORIGINALS["fashion-mnist"]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = SOURCE.files

CLASSES = 10
SIDE = 28
#: Two bytes of zero, the type (8 = unsigned byte) and the number of dimensions.
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801

#: Records of the original's training files; what claims to have more is not read.
MOST = 60_000
#: Validation images: as many as CIFAR-10's, for the same reason.
VAL = 2_000

#: Of the training images; on the 0..1 scale.
MEAN, STD = (0.2860,), (0.3530,)


def load_fashion_mnist(folder: Path, val: int = VAL) -> ImageData:
    """Fashion-MNIST as (N, 1, 28, 28) from the folder that holds its four files, ``val`` images carved out of training.

    A file is read unpacked where it is there, else gzipped. Files may be shorter than the original; validation then
    takes at most a fifth of the training records. Raises ``MissingDataError`` for a missing file and
    ``DamagedDataError`` (a ``ValueError``) for one whose header, size or labels are wrong or that does not decompress.
    """
    SOURCE.refuse_missing(folder)
    images, labels = _read_pair(folder, TRAIN_IMAGES, TRAIN_LABELS)
    test_images, test_labels = _read_pair(folder, TEST_IMAGES, TEST_LABELS)
    return ImageData(
        name=SOURCE.name,
        classes=CLASSES,
        **carved(SOURCE.name, images, labels, val),
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
            f"{images_path} has {len(images)} images and {labels_path} {len(labels)} labels, expected as many of both"
        )
    if labels.max() >= CLASSES:
        first = int(np.argmax(labels >= CLASSES))
        raise _damaged(labels_path, f"record {first} has label {labels[first]}, expected 0..{CLASSES - 1}")
    return images[:, None], labels.astype(np.int64)


def read_idx(path: Path, magic: int, record_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The records of an IDX file of unsigned bytes, (N, *record_shape), N at least 1.

    Raises ``DamagedDataError`` for another magic number or shape, for more records than the original has, and for a
    file that is longer or shorter than its header says.
    """
    record = math.prod(record_shape)
    header = 8 + 4 * len(record_shape)
    content = _content(path, header + MOST * record)
    if len(content) < header:
        raise _damaged(path, f"{len(content)} bytes, expected a header of {header} bytes and records behind it")
    found, count, *shape = np.frombuffer(content[:header], dtype=">u4").tolist()
    if found != magic:
        raise _damaged(path, f"its magic number is {found}, expected {magic}")
    if tuple(shape) != record_shape:
        raise _damaged(path, f"its records are {tuple(shape)}, expected {record_shape}")
    if not 0 < count <= MOST:
        raise _damaged(path, f"its header tells of {count} records, expected 1..{MOST}")
    expected = header + count * record
    if len(content) != expected:
        amount = "more" if len(content) > expected else f"{len(content)}"
        raise _damaged(path, f"{amount} bytes, expected {expected} for the {count} records of its header")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(count, *record_shape)


def _content(path: Path, most: int) -> bytes:
    """The file, decompressed if its name says so; of what is longer than ``most`` bytes, one byte more than that."""
    if path.suffix != ".gz":
        with path.open("rb") as plain:
            return plain.read(most + 1)
    try:
        with gzip.open(path) as packed:
            return packed.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"it does not decompress ({error})") from error


def _damaged(path: Path, what: str) -> DamagedDataError:
    return DamagedDataError(f"{path} is damaged: {what}")
