"""A small CIFAR-10 on a test server, and its files on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from esper_env.data import DataFamily, MissingDataError, load_data

ARCHIVE = "/cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
MANIFEST = "esper-manifest.json"


def load(root: Path, name: str = "cifar10"):
    return load_data(name, str(root), family=DataFamily.CIFAR)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a dataset, without the manifest."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


def assert_not_there(root: Path) -> None:
    with pytest.raises(MissingDataError):
        load(root)
    assert not (root / FOLDER).exists()
