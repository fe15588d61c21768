"""Data sets by name: which names a task accepts, where files are looked for, and what ``"auto"`` means."""

from __future__ import annotations

import os
import warnings
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from esper_env.data.cifar import FILES, REMEDY, MissingDataError, find_cifar10, load_cifar10
from esper_env.data.digits import load_digits
from esper_env.data.images import ImageData
from esper_env.data.procedural import generate_procedural

DATA_DIR_VARIABLE = "ESPER_DATA_DIR"


class SyntheticDataWarning(UserWarning):
    """``dataset="auto"`` found no real data and took the procedural stand-in."""


class DataFamily(StrEnum):
    """Image data sets that can stand in for each other in one task."""

    CIFAR = "cifar"  # 3x32x32, 10 classes
    DIGITS = "digits"  # 1x8x8, 10 classes


#: What each family's tasks accept as ``dataset``; the stand-in also by the name it goes on record with.
DATASETS: dict[DataFamily, tuple[str, ...]] = {
    DataFamily.CIFAR: ("auto", "cifar10", "procedural", "procedural-cifar"),
    DataFamily.DIGITS: ("auto", "digits"),
}

_announced: set[str] = set()


def load_data(dataset: str = "auto", data_dir: str | None = None, *, family: DataFamily) -> ImageData:
    """The data set of this name for a task of this family; loaded once per process, arrays read-only.

    ``"auto"`` is the real data when it is on disk. For CIFAR the procedural stand-in takes its place otherwise:
    ``ImageData.name`` says so, and a :class:`SyntheticDataWarning` does once per process.

    Raises ``ValueError`` for an unknown name or damaged files (never replaced by the stand-in), ``MissingDataError``
    (a ``FileNotFoundError``) for ``"cifar10"`` without its files, ``ImportError`` for digits without scikit-learn.
    """
    family = DataFamily(family)
    if dataset not in DATASETS[family]:
        raise ValueError(f"dataset is {dataset!r}; a {family} task knows {', '.join(map(repr, DATASETS[family]))}")
    if family is DataFamily.DIGITS:
        return _cached_digits()
    if dataset in ("procedural", "procedural-cifar"):
        return _cached_procedural()
    root = data_folder(data_dir)
    folder = find_cifar10(root)
    if folder is not None:
        return _cached_cifar10(folder.resolve(), _signature(folder))
    if dataset == "cifar10":
        raise MissingDataError(f"CIFAR-10 was asked for by name and is not in {root}{_instead(root)}; {REMEDY}")
    _announce_stand_in(root)
    return _cached_procedural()


def data_folder(data_dir: str | None = None) -> Path:
    """Where data files are looked for: ``data_dir``, else ``$ESPER_DATA_DIR``, else ``esper`` in the user's cache
    folder (``$XDG_CACHE_HOME`` or ``~/.cache``). The first that is set counts; the others are not searched."""
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "esper"


#: What people have instead of the folder with the binary files.
_LOOKALIKES = {
    "cifar-10-binary.tar.gz": "the archive, not unpacked",
    "cifar-10-python.tar.gz": "the Python version",
    "cifar-10-batches-py": "the Python version",
    "cifar-10-batches-mat": "the MATLAB version",
}


def _instead(root: Path) -> str:
    """What is at ``root`` that looks like CIFAR-10, in words; empty if nothing does."""
    if root.is_file():
        return " (a file, where a folder was expected)"
    found = next((name for name in _LOOKALIKES if (root / name).exists()), None)
    return f" (there is {found}: {_LOOKALIKES[found]})" if found else ""


def _announce_stand_in(root: Path) -> None:
    if "procedural-cifar" in _announced:
        return
    warnings.warn(
        f"CIFAR-10 is not in {root}{_instead(root)}: training on procedural images instead. Accuracies are "
        f"not CIFAR-10 accuracies (dataset_name is 'procedural-cifar'). For the real data, {REMEDY}; to accept the "
        "stand-in, pass dataset='procedural'.",
        SyntheticDataWarning,
        stacklevel=3,
    )
    _announced.add("procedural-cifar")  # after the warning: where warnings are errors, every attempt raises


def _signature(folder: Path) -> tuple[tuple[int, int] | None, ...]:
    """Size and time of each file, so that files that changed on disk are read again."""
    paths = [folder / name for name in FILES]
    return tuple((p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else None for p in paths)


@lru_cache(maxsize=2)
def _cached_cifar10(folder: Path, signature: tuple[tuple[int, int] | None, ...]) -> ImageData:  # noqa: ARG001
    return load_cifar10(folder)


@lru_cache(maxsize=1)
def _cached_digits() -> ImageData:
    return load_digits()


@lru_cache(maxsize=1)
def _cached_procedural() -> ImageData:
    return generate_procedural()
