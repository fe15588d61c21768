"""Archives and small datasets in the layouts of the originals."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from esper_env.data.originals import ORIGINALS, DataFile, Source


def packed(files: dict[str, bytes], *links: tuple[str, bytes, str]) -> bytes:
    """A .tar.gz of these files, after links or special members given by name, type and target.

    A link that has the name of a file claims its size, too.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, target in links:
            header = tarfile.TarInfo(name)
            header.type, header.linkname, header.size = kind, target, len(files.get(name, b""))
            archive.addfile(header)
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def cifar_files(labels: tuple[int, ...], names: Iterable[str], count: int, seed: int = 3) -> dict[str, bytes]:
    """Files of ``count`` records each, with random label bytes below ``labels`` and random pixels."""
    rng = np.random.default_rng(seed)
    files = {}
    for name in names:
        records = rng.integers(0, 256, (count, len(labels) + 3072), dtype=np.uint8)
        for byte, classes in enumerate(labels):
            records[:, byte] = rng.permutation(np.arange(count) % classes)
        files[name] = records.tobytes()
    return files


def as_records(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    """Label and pixels of each image."""
    return [bytes([label]) + image.tobytes() for image, label in zip(images, labels.tolist(), strict=True)]


def idx(array: np.ndarray) -> bytes:
    """Unsigned bytes in the IDX format."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def fashion_files(train: int = 40, test: int = 20, seed: int = 4) -> dict[str, bytes]:
    """Fashion-MNIST's four files with random images."""
    rng = np.random.default_rng(seed)
    files = {}
    for split, count in (("train", train), ("t10k", test)):
        files[f"{split}-images-idx3-ubyte.gz"] = idx(rng.integers(0, 256, (count, 28, 28)))
        files[f"{split}-labels-idx1-ubyte.gz"] = idx(rng.permutation(np.arange(count) % 10))
    return {name: gzip.compress(content, mtime=0) for name, content in files.items()}


def story(number: int) -> str:
    """A story of about 100 bytes, with the line that ends it."""
    return f"Once upon a time there was a fox with {number} red boats. It was very happy “today”.\n<|endoftext|>\n"


def tinystories_files(train: int = 60, valid: int = 10) -> dict[str, bytes]:
    """TinyStories' two files."""
    return {
        "TinyStoriesV2-GPT4-train.txt": "".join(map(story, range(train))).encode(),
        "TinyStoriesV2-GPT4-valid.txt": "".join(story(900 + number) for number in range(valid)).encode(),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder, which is created if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def original(name: str, content: bytes) -> DataFile:
    """The expected file with these contents."""
    return DataFile(name, len(content), hashlib.sha256(content).hexdigest())


CIFAR10_NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def small_cifar10(url: str, count: int = 40) -> tuple[Source, dict[str, bytes], bytes]:
    """CIFAR-10 with fewer records: source, files, and archive. The archive's URL is in the folder ``url``."""
    files, source = cifar_files((10,), CIFAR10_NAMES, count), ORIGINALS["cifar10"]
    packed_files = {
        f"{source.folder}/{name}": content for name, content in ({"readme.html": b"<html>"} | files).items()
    }
    archive = packed(packed_files, (source.folder, tarfile.DIRTYPE, ""))
    small = replace(
        source,
        files=tuple(DataFile(name, len(content)) for name, content in files.items()),
        url=url,
        archive=original("cifar-10-binary.tar.gz", archive),
    )
    return small, files, archive


def small_in_files(name: str, files: dict[str, bytes], url: str) -> Source:
    """The source of a small dataset without archive, whose files are in the folder ``url``."""
    source = ORIGINALS[name]
    small = (replace(original(f.name, files[f.name]), unpacked_size=f.unpacked_size) for f in source.files)
    return replace(source, files=tuple(small), url=url)
