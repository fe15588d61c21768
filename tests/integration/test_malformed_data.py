"""Malformed datasets: `make` rejects damaged and wrong files.

Each row is (id, change, error, parts of the message: value, expectation, remedy if there is one).
"""

import struct

import gymnasium
import pytest
from archives import CIFAR10_NAMES, cifar_files, write
from esper_env.data import MissingDataError
from malformed import refused, table

RECORD = 1 + 3 * 32 * 32
COUNT = 20  # records in each file


@pytest.fixture
def folder(tmp_path):
    """A folder of CIFAR-10 with fewer records."""
    return write(tmp_path / "cifar-10-batches-bin", cifar_files((10,), CIFAR10_NAMES, COUNT))


def make(data_dir, dataset="cifar10"):
    tiny = {"horizon": 2, "batches_per_step": 1, "batch_size": 8}
    gymnasium.make("Esper-CIFAR-v0", dataset=dataset, data_dir=str(data_dir), **tiny).close()


def damage(name, change):
    """Change the contents of a file."""

    def apply(folder):
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def mislabel(content):
    return content[: 7 * RECORD] + b"\x0a" + content[7 * RECORD + 1 :]


def as_idx(_content):
    """Images in MNIST's format."""
    return struct.pack(">IIII", 0x803, COUNT, 28, 28) + bytes(COUNT * 28 * 28)


EQUAL = "expected 20 as in the largest of the six files"
WHOLE = "expected a multiple of 3073"
FETCH = "cifar-10-binary.tar.gz (the binary version)"


@table(
    ("cut-at-a-record", damage("data_batch_4.bin", lambda c: c[: 13 * RECORD]), ValueError, "13 records", EQUAL),
    ("test-cut-at-a-record", damage("test_batch.bin", lambda c: c[:RECORD]), ValueError, ": 1 records", EQUAL),
    ("wrong-label", damage("data_batch_2.bin", mislabel), ValueError, "record 7 has label 10", "expected 0..9"),
    ("idx", damage("data_batch_1.bin", as_idx), ValueError, f"{16 + COUNT * 784} bytes", WHOLE),
    ("text", damage("data_batch_1.bin", lambda _: b"<html>404</html>"), ValueError, "damaged: 16 bytes", WHOLE),
    (
        "one-left",
        remove(*CIFAR10_NAMES[1:]),
        MissingDataError,
        "incomplete, without data_batch_2.bin, data_batch_3.bin",
    ),
)
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
def test_make_rejects_damaged_files(folder, dataset, what, error, says):
    make(folder, dataset)
    what(folder)
    refused(lambda: make(folder, dataset), error, [*says, FETCH])


@table(
    ("nothing", lambda _place: None, FileNotFoundError, "is not in", "download"),
    ("archive", lambda place: (place / "cifar-10-binary.tar.gz").touch(), ValueError, "the archive, not unpacked"),
    (
        "python-version",
        lambda place: write(place / "cifar-10-batches-py", {"data_batch_1": b"pickled"}),
        ValueError,
        "there is cifar-10-batches-py: the Python version",
    ),
    (
        "packed-files",
        lambda place: write(place / "cifar-10-batches-bin", {"data_batch_1.bin.gz": b"packed"}),
        ValueError,
        "is not in",
        "unpack it",
    ),
)
def test_make_rejects_other_versions_of_cifar10(tmp_path, what, error, says):
    what(tmp_path)
    refused(lambda: make(tmp_path), error, [*says, "data_dir or in the environment variable ESPER_DATA_DIR"])


@table(
    ("missing", lambda place: place / "nowhere", MissingDataError, "nowhere", FETCH),
    ("a-file", lambda place: place / "file", MissingDataError, "file (a file, where a folder was expected)", FETCH),
)
def test_make_rejects_a_data_dir_that_is_not_a_folder(tmp_path, what, error, says):
    (tmp_path / "file").touch()
    refused(lambda: make(what(tmp_path)), error, says)
