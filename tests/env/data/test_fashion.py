"""Fashion-MNIST's IDX files, gzipped or not, are loaded or rejected."""

from __future__ import annotations

import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from archives import as_records, fashion_files, idx, write
from esper_env.data.fashion import load_fashion_mnist, read_idx
from esper_env.data.originals import ORIGINALS
from hypothesis import given
from hypothesis import strategies as st

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.fixture
def files() -> dict[str, bytes]:
    """The four unpacked files, with 40 training and 20 test images."""
    return {name.removesuffix(".gz"): gzip.decompress(content) for name, content in fashion_files().items()}


def packed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


def records(files: dict[str, bytes], images: str, labels: str) -> list[bytes]:
    """Label and pixels of each image, cut by hand."""
    content = files[images][16:]
    cut = [content[i : i + 784] for i in range(0, len(content), 784)]
    return [bytes([label]) + pixels for label, pixels in zip(files[labels][8:], cut, strict=True)]


def test_splits_contain_the_images_of_gzipped_and_unpacked_files(tmp_path: Path, files: dict[str, bytes]) -> None:
    gzipped = packed(files)
    gzipped.pop(f"{TRAIN_IMAGES}.gz")
    data = load_fashion_mnist(write(tmp_path, gzipped | {TRAIN_IMAGES: files[TRAIN_IMAGES]}))
    assert ORIGINALS["fashion-mnist"].missing(tmp_path) == []
    assert (data.name, data.classes, data.image_shape) == ("fashion-mnist", 10, (1, 28, 28))
    train, val = as_records(data.train_images, data.train_labels), as_records(data.val_images, data.val_labels)
    assert (len(train), len(val)) == (32, 8)
    assert sorted(train + val) == sorted(records(files, TRAIN_IMAGES, TRAIN_LABELS))
    assert as_records(data.test_images, data.test_labels) == records(files, TEST_IMAGES, TEST_LABELS)
    digest = hashlib.sha256(data.val_images.tobytes()).hexdigest()
    # A different digest makes results incomparable with earlier ones.
    assert digest == "f008a1d52a091046e85a423b8f2f8d3b96620eeb28e9c960949e60bf377fad20"
    assert (data.mean, data.std, data.crop_padding, data.flip) == ((0.2860,), (0.3530,), 2, True)


def header(content: bytes, place: int, value: int) -> bytes:
    """The contents with a changed number in the header."""
    return content[:place] + struct.pack(">I", value) + content[place + 4 :]


DAMAGES = {
    "cut": (TRAIN_IMAGES, lambda c: c[:-1], "31375 bytes, expected 31376 for the 40 records of its header"),
    "longer": (TRAIN_IMAGES, lambda c: c + b"x", "31377|more bytes, expected 31376"),
    "labels-cut": (TEST_LABELS, lambda c: c[:-1], "27 bytes, expected 28 for the 20 records"),
    "empty": (TEST_IMAGES, lambda _: b"", r"its header is 0, 0, 0, 0, expected 2051, 1\.\.60000, 28, 28"),
    "no-header": (TEST_LABELS, lambda c: c[:7], r"its header is 2049, 0, expected 2049, 1\.\.60000"),
    "no-records": (TEST_LABELS, lambda c: header(c, 4, 0)[:8], "its header is 2049, 0, expected"),
    "many-records": (TRAIN_IMAGES, lambda c: header(c, 4, 2**32 - 1), "its header is 2051, 4294967295, 28, 28, exp"),
    "labels-for-images": (TRAIN_IMAGES, lambda c: header(c, 0, 2049), "its header is 2049, 40, 28, 28, expected"),
    "other-size": (TRAIN_IMAGES, lambda c: header(header(c, 8, 14), 12, 56), "its header is 2051, 40, 14, 56, exp"),
    "label-10": (TRAIN_LABELS, lambda c: c[:13] + b"\x0a" + c[14:], r"record 5 has label 10, expected 0\.\.9"),
    "fewer-labels": (TRAIN_LABELS, lambda c: header(c, 4, 39)[:-1], "40 images but .* has 39 labels, expected equal"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_file_is_rejected_by_name(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    damaged, damage, message = DAMAGES[name]
    write(tmp_path, files | {damaged: damage(files[damaged])})
    with pytest.raises(ValueError, match=message) as caught:
        load_fashion_mnist(tmp_path)
    assert damaged in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", gzip.compress(bytes(10**6), mtime=0)[:-9], b"\x1f\x8b\x08"]
)
def test_corrupt_gzip_file_is_rejected(tmp_path: Path, files: dict[str, bytes], content: bytes) -> None:
    write(tmp_path, packed(files) | {f"{TRAIN_IMAGES}.gz": content})
    with pytest.raises(ValueError, match=f"{TRAIN_IMAGES}.gz is damaged"):
        load_fashion_mnist(tmp_path)


def test_decompression_bomb_is_rejected_with_little_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(struct.pack(">II", 0x0801, 60_000) + bytes(5 * 10**7)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more bytes, expected 60008 for the 60000 records"):
            read_idx(bomb, 0x0801, ())
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_missing_file_is_rejected_by_name(tmp_path: Path, files: dict[str, bytes]) -> None:
    write(tmp_path, packed(files))
    (tmp_path / f"{TEST_LABELS}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"incomplete, without {TEST_LABELS}\.gz"):
        load_fashion_mnist(tmp_path)


@given(st.data())
def test_read_idx_returns_the_written_records(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(), (2, 3)]))
    count = data.draw(st.integers(1, 20))
    records = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / data.draw(st.sampled_from(["a", "a.gz"]))
    content = idx(records)
    path.write_bytes(gzip.compress(content) if path.suffix else content)
    assert np.array_equal(read_idx(path, 0x0800 + records.ndim, shape), records)
