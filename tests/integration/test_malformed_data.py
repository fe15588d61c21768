"""Malformed data sets: arrays that are no data set, and files that are damaged or not what they should be.

Each row is (id, what is done, error, value named, what was expected, remedy where there is one).
"""

import gzip
import struct

import gymnasium
import numpy as np
import pytest
from esper_env.data import ImageData, MissingDataError
from malformed import refused, table

NAN, INF = float("nan"), float("inf")
FILES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
RECORD = 1 + 3 * 32 * 32
COUNT = 20  # records in each file


def fields(**changes):
    """A data set of one-channel images, 5x4, in three classes."""
    base = {"name": "toy", "classes": 3, "mean": (0.5,), "std": (0.2,), "crop_padding": 1, "flip": True}
    for split, size in (("train", 6), ("val", 4), ("test", 3)):
        base[f"{split}_images"] = np.zeros((size, 1, 5, 4), dtype=np.uint8)
        base[f"{split}_labels"] = np.arange(size) % 3
    return base | changes


def pixels(value):
    return np.full((6, 1, 5, 4), value)


BYTES = "expected a NumPy array of uint8 in 0..255"
CAST = "np.round(images * 255).astype(np.uint8)"
INTS = "expected a NumPy array of int64"
NONE = np.zeros((0, 1, 5, 4), dtype=np.uint8)


@table(
    ("nan", {"train_images": pixels(NAN)}, TypeError, "toy, train split: images are float64", BYTES, CAST),
    ("inf", {"train_images": pixels(INF)}, TypeError, "images are float64", BYTES, CAST),
    ("float32", {"val_images": np.ones((4, 1, 5, 4), np.float32)}, TypeError, "images are float32", BYTES, CAST),
    ("list", {"test_images": [[0]]}, TypeError, "toy, test split: images are list", BYTES),
    ("flat", {"val_images": np.zeros((4, 20), np.uint8)}, ValueError, "(4, 20)", "(N, channels, height, width)"),
    ("other-size", {"test_images": np.zeros((3, 1, 4, 5), np.uint8)}, ValueError, "(1, 4, 5)", "must be one shape"),
    ("empty", {"val_images": NONE, "val_labels": np.zeros(0, int)}, ValueError, "no images", "needs at least one"),
    ("label-high", {"train_labels": np.array([0, 1, 2, 3, 0, 1])}, ValueError, "labels span 0..3", "expected 0..2"),
    ("label-negative", {"test_labels": np.array([0, -1, 2])}, ValueError, "labels span -1..2", "expected 0..2"),
    (
        "labels-float",
        {"test_labels": np.zeros(3)},
        TypeError,
        "labels are float64",
        INTS,
        "np.asarray(labels, dtype=np.int64)",
    ),
    ("labels-few", {"test_labels": np.zeros(2, int)}, ValueError, "shape (2,) for 3 images", "expected (3,)"),
    ("one-class", {"classes": 1}, ValueError, "classes is 1", "needs 2 or more"),
    ("half-a-class", {"classes": 3.5}, ValueError, "classes is 3.5", "needs 2 or more"),
    ("mean-of-bytes", {"mean": (125.0,)}, ValueError, "mean (125.0,)", "expected the 0..1 scale"),
    ("mean-nan", {"mean": (NAN,)}, ValueError, "mean (nan,)", "expected a finite number per channel"),
    ("mean-number", {"mean": 0.5}, ValueError, "mean 0.5", "expected a finite number per channel"),
    ("std-zero", {"std": (0.0,)}, ValueError, "std (0.0,)", "std above 0"),
    ("std-of-three", {"std": (0.2, 0.2, 0.2)}, ValueError, "1 means and 3 stds", "expected one per channel, 1"),
    ("padding-negative", {"crop_padding": -1}, ValueError, "crop_padding is -1", "expected 0..3"),
    ("padding-float", {"crop_padding": 1.5}, ValueError, "crop_padding is 1.5", "expected 0..3"),
    ("flip-text", {"flip": "no"}, TypeError, "flip is 'no'", "expected True or False"),
    ("name", {"name": None}, TypeError, "name is None", "expected a text"),
)
def test_arrays(what, error, says):
    refused(lambda: ImageData(**fields(**what)), error, says)


@pytest.fixture
def folder(tmp_path):
    """CIFAR-10 as it lies on a disk, with fewer records."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (COUNT, RECORD), dtype=np.uint8)
    records[:, 0] = np.arange(COUNT) % 10
    for name in FILES:
        (folder / name).write_bytes(records.tobytes())
    return folder


def make(data_dir, dataset="cifar10"):
    tiny = {"horizon": 2, "batches_per_step": 1, "batch_size": 8}
    gymnasium.make("Esper-CIFAR-v0", dataset=dataset, data_dir=str(data_dir), **tiny).close()


def damage(name, change):
    """Replaces a file's content."""

    def apply(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def mislabelled(content):
    return content[: 7 * RECORD] + b"\x0a" + content[7 * RECORD + 1 :]


def as_idx(_content):
    """Images in MNIST's format."""
    return struct.pack(">IIII", 0x803, COUNT, 28, 28) + bytes(COUNT * 28 * 28)


EQUAL = "expected 20 as in the largest of the six files"
WHOLE = "expected a multiple of 3073"
FETCH = "cifar-10-binary.tar.gz (the binary version)"


@table(
    ("cut", damage("data_batch_3.bin", lambda content: content[:-1]), ValueError, f"{COUNT * RECORD - 1} bytes", WHOLE),
    ("longer", damage("test_batch.bin", lambda content: content + b"?"), ValueError, "test_batch.bin is dam", WHOLE),
    ("empty", damage("data_batch_1.bin", lambda _: b""), ValueError, "data_batch_1.bin is damaged: 0 bytes", WHOLE),
    ("cut-at-a-record", damage("data_batch_4.bin", lambda c: c[: 13 * RECORD]), ValueError, "13 records", EQUAL),
    ("test-cut-at-a-record", damage("test_batch.bin", lambda c: c[:RECORD]), ValueError, ": 1 records", EQUAL),
    ("wrong-label", damage("data_batch_2.bin", mislabelled), ValueError, "record 7 has label 10", "expected 0..9"),
    ("idx", damage("data_batch_1.bin", as_idx), ValueError, f"{16 + COUNT * 784} bytes", WHOLE),
    ("gzip", damage("data_batch_1.bin", gzip.compress), ValueError, "data_batch_1.bin is damaged", WHOLE),
    ("text", damage("data_batch_1.bin", lambda _: b"<html>404</html>"), ValueError, "damaged: 16 bytes", WHOLE),
    ("one-missing", remove("data_batch_5.bin"), MissingDataError, "incomplete, without data_batch_5.bin"),
    ("one-left", remove(*FILES[1:]), MissingDataError, "incomplete, without data_batch_2.bin, data_batch_3.bin"),
)
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
def test_files_of_cifar10(folder, dataset, what, error, says):
    make(folder, dataset)
    what(folder)
    refused(lambda: make(folder, dataset), error, [*says, FETCH])


def unpacked_python_version(place):
    (place / "cifar-10-batches-py").mkdir()
    (place / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"pickled")


def packed_file(place):
    inside = place / "cifar-10-batches-bin"
    inside.mkdir()
    (inside / "data_batch_1.bin.gz").write_bytes(b"packed")


@table(
    ("nothing", lambda _place: None, FileNotFoundError, "is not in", "download"),
    ("archive", lambda place: (place / "cifar-10-binary.tar.gz").touch(), ValueError, "the archive, not unpacked"),
    ("python-version", unpacked_python_version, ValueError, "there is cifar-10-batches-py: the Python version"),
    ("packed-files", packed_file, ValueError, "is not in", "unpack it"),
)
def test_what_is_not_the_binary_version(tmp_path, what, error, says):
    what(tmp_path)
    refused(lambda: make(tmp_path), error, [*says, "data_dir or in the environment variable ESPER_DATA_DIR"])


@table(
    ("missing", lambda place: place / "nowhere", MissingDataError, "nowhere", FETCH),
    ("a-file", lambda place: place / "file", MissingDataError, "file (a file, where a folder was expected)", FETCH),
)
def test_a_data_dir_that_is_no_folder(tmp_path, what, error, says):
    (tmp_path / "file").touch()
    refused(lambda: make(what(tmp_path)), error, says)
