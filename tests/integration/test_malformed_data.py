"""Malformed datasets: `make` rejects damaged and wrong files.

Each row is (id, change, error, parts of the message: value, expectation, remedy if there is one).
"""

import gymnasium
import pytest
from archives import CIFAR10_NAMES, cifar_files, write
from esper_env.data import MissingDataError
from malformed import refused, table

FOLDER = "cifar-10-batches-bin"
FETCH = "cifar-10-binary.tar.gz (the binary version)"


def make(data_dir, dataset="cifar10"):
    tiny = {"horizon": 2, "batches_per_step": 1, "batch_size": 8}
    gymnasium.make("Esper-CIFAR-v0", dataset=dataset, data_dir=str(data_dir), **tiny).close()


def replace_first(content):
    return lambda place: write(place / FOLDER, {"data_batch_1.bin": content})


@table(
    ("text", replace_first(b"<html>404</html>"), ValueError, "damaged: 16 bytes", "expected a multiple of 3073"),
    ("cut", replace_first(bytes(3073)), ValueError, ": 1 records", "expected 20 as in the largest of the 6 files"),
    (
        "one-missing",
        lambda place: (place / FOLDER / "data_batch_2.bin").unlink(),
        MissingDataError,
        "incomplete, without data_batch_2.bin",
    ),
)
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
def test_make_rejects_damaged_files(tmp_path, dataset, what, error, says):
    write(tmp_path / FOLDER, cifar_files((10,), CIFAR10_NAMES, 20))
    make(tmp_path, dataset)
    what(tmp_path)
    refused(lambda: make(tmp_path, dataset), error, [*says, FETCH])


@table(
    ("nothing", lambda _place: None, FileNotFoundError, "is not in", "download", FETCH),
    ("archive", lambda place: (place / "cifar-10-binary.tar.gz").touch(), ValueError, "the archive, not unpacked"),
    (
        "python-version",
        lambda place: write(place / "cifar-10-batches-py", {"data_batch_1": b"pickled"}),
        ValueError,
        "there is cifar-10-batches-py: the Python version",
    ),
    ("packed", lambda place: write(place / FOLDER, {"data_batch_1.bin.gz": b""}), ValueError, "is not in", "unpack it"),
    ("file", lambda place: [place.rmdir(), place.touch()], MissingDataError, "(a file, where a folder was expected)"),
)
def test_make_rejects_other_files_than_those_of_cifar10(tmp_path, what, error, says):
    what(tmp_path)
    refused(lambda: make(tmp_path), error, [*says, "data_dir or the environment variable ESPER_DATA_DIR"])
