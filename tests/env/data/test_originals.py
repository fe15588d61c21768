"""The table of downloadable datasets, and how they are found on the disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from archives import CIFAR10_NAMES, write
from esper_env.data.catalog import BUILT_IN, DATASETS, LOADERS
from esper_env.data.download import check_url
from esper_env.data.originals import ORIGINALS


def test_downloadable_datasets_have_a_loader_and_an_accepted_name() -> None:
    assert set(ORIGINALS) == set(LOADERS)
    accepted = {name for names in DATASETS.values() for name in names}
    assert accepted == {*ORIGINALS, *BUILT_IN, "auto", "procedural-cifar"}


@pytest.mark.parametrize("name", ORIGINALS)
def test_row_is_complete_and_consistent(name: str) -> None:
    source = ORIGINALS[name]
    assert source.name == name
    assert all((source.title, source.description, source.licence, source.homepage, source.folder))
    check_url(source.url)
    assert source.url.startswith("https://")
    assert source.url.endswith("/")
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in source.downloads)
    assert len({file.sha256 for file in source.downloads}) == len(source.downloads)
    assert source.archive is None or source.archive.name.endswith(".tar.gz")


def test_sizes_are_those_of_the_headers_and_records() -> None:
    sizes = {name: [file.size for file in ORIGINALS[name].files] for name in ("cifar10", "cifar100")}
    assert sizes["cifar10"] == [10_000 * 3_073] * 6
    assert sizes["cifar100"] == [50_000 * 3_074, 10_000 * 3_074]
    unpacked = [file.unpacked_size for file in ORIGINALS["fashion-mnist"].files]
    assert unpacked == [16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000]


def test_find_returns_the_folder_or_its_child(tmp_path: Path) -> None:
    find = ORIGINALS["cifar10"].find
    folder = write(tmp_path / "cifar-10-batches-bin", dict.fromkeys(CIFAR10_NAMES, b"x"))
    assert find(folder) == find(tmp_path) == folder
    for name in CIFAR10_NAMES[1:]:
        (folder / name).unlink()
    assert find(folder) == find(tmp_path) == folder  # the loader reports that it is incomplete
    (folder / CIFAR10_NAMES[0]).unlink()
    assert find(tmp_path) is None
    assert find(tmp_path / "nowhere") is None


def test_find_requires_all_files_in_a_folder_of_a_different_name(tmp_path: Path) -> None:
    find = ORIGINALS["cifar100"].find
    write(tmp_path, {"train.bin": b"somebody's training data"})
    assert find(tmp_path) is None
    write(tmp_path, {"test.bin": b"x"})
    assert find(tmp_path) == tmp_path
    folder = write(tmp_path / "cifar-100-binary", {"test.bin": b"x"})
    assert find(tmp_path) == folder  # the folder of the dataset's name comes first
