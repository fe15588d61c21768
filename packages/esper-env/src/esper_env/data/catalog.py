"""Datasets by name: the names that tasks accept, the folder of their files, and the meaning of ``"auto"``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Literal, overload

from esper_env.data.cifar import load_cifar10, load_cifar100
from esper_env.data.digits import load_digits
from esper_env.data.fashion import load_fashion_mnist
from esper_env.data.grammar import generate_text
from esper_env.data.images import ImageData
from esper_env.data.originals import (
    DATA_DIR_VARIABLE,
    ORIGINALS,
    DamagedDataError,
    MissingDataError,
    Source,
    default_folder,
)
from esper_env.data.own_text import TextFile, check_context, find_text, load_text
from esper_env.data.procedural import generate_procedural
from esper_env.data.text import TextData
from esper_env.data.tinystories import load_tinystories
from esper_env.paths import user_path
from esper_env.suggestions import did_you_mean, shown

Data = ImageData | TextData


class SyntheticDataWarning(UserWarning):
    """Warns when ``dataset="auto"`` uses the synthetic stand-in because the real data is not on the disk."""


class DataFamily(StrEnum):
    """Kind of data that a task needs, which also decides the meaning of ``"auto"``."""

    CIFAR = "cifar"  # labelled images; "auto" is CIFAR-10 or its stand-in
    DIGITS = "digits"  # labelled images; "auto" is the digits
    TINYSTORIES = "tinystories"  # a text; "auto" is TinyStories or its stand-in
    TEXT = "text"  # a text; "auto" is the grammar


#: Families of texts, whose tasks also accept the path of a text.
TEXT_FAMILIES = (DataFamily.TINYSTORIES, DataFamily.TEXT)

_IMAGES = ("auto", "cifar10", "cifar100", "fashion-mnist", "digits", "procedural", "procedural-cifar")
_TEXTS = ("auto", "tinystories", "grammar")

#: Names that each family's tasks accept as ``dataset``, the recorded names of the stand-ins included.
DATASETS: dict[DataFamily, tuple[str, ...]] = {
    DataFamily.CIFAR: tuple(name for name in _IMAGES if name != "digits"),  # too small for three pools
    DataFamily.DIGITS: _IMAGES,
    DataFamily.TINYSTORIES: _TEXTS,
    DataFamily.TEXT: _TEXTS,
}

#: Loader of each downloadable dataset, called with the folder of its files.
LOADERS: dict[str, Callable[[Path], Data]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "fashion-mnist": load_fashion_mnist,
    "tinystories": load_tinystories,
}


@dataclass(frozen=True)
class BuiltIn:
    """A dataset that needs no files."""

    description: str
    load: Callable[[], Data]


#: Datasets that need no files.
BUILT_IN: dict[str, BuiltIn] = {
    "digits": BuiltIn("scikit-learn's 1,797 handwritten digits, 8x8", load_digits),
    "procedural": BuiltIn(
        "synthetic colour images, 32x32, 10 classes, in place of CIFAR-10; recorded as procedural-cifar",
        generate_procedural,
    ),
    "grammar": BuiltIn("sentences of a small grammar", generate_text),
}

#: Recorded names that are accepted as well.
OTHER_NAMES = {"procedural-cifar": "procedural"}


@dataclass(frozen=True)
class StandIn:
    """The dataset that ``"auto"`` uses in place of one that is not on the disk, with the words of the warning."""

    name: str  # value of ``dataset`` that accepts it without a warning
    kind: str
    caution: str


#: Dataset that ``"auto"`` selects in each family.
AUTO: dict[DataFamily, str] = {
    DataFamily.CIFAR: "cifar10",
    DataFamily.DIGITS: "digits",
    DataFamily.TINYSTORIES: "tinystories",
    DataFamily.TEXT: "grammar",
}

#: Stand-ins for datasets that may not be on the disk.
STAND_INS: dict[str, StandIn] = {
    "cifar10": StandIn("procedural", "procedural images", "Accuracies are not CIFAR-10 accuracies"),
    "tinystories": StandIn("grammar", "the sentences of a grammar", "Losses are not TinyStories losses"),
}

_warned: set[str] = set()


@overload
def load_data(
    dataset: str = ..., data_dir: str | None = ..., *, family: Literal[DataFamily.CIFAR, DataFamily.DIGITS]
) -> ImageData: ...
@overload
def load_data(
    dataset: str = ..., data_dir: str | None = ..., *, family: Literal[DataFamily.TINYSTORIES, DataFamily.TEXT]
) -> TextData: ...
@overload
def load_data(dataset: str = ..., data_dir: str | None = ..., *, family: DataFamily) -> Data: ...
def load_data(dataset: str = "auto", data_dir: str | None = None, *, family: DataFamily) -> Data:
    """Load a dataset by name, once per process.

    Args:
        dataset: Name of the dataset. ``"auto"`` is the dataset that the task is named after. If its files are not on
            the disk, a stand-in takes its place: the data's ``name`` names it, and a :class:`SyntheticDataWarning` is
            issued once per process. In a family of texts, any other value is the path of a UTF-8 file, or of a folder
            with files ending in .txt or .md.
        data_dir: Folder of the data files; default as in :func:`data_folder`.
        family: Kind of data that the task needs.

    Returns:
        The dataset, whose arrays are read-only.

    Raises:
        ValueError: for an unknown name or damaged files, which the stand-in never replaces.
        MissingDataError: (a ``FileNotFoundError``) if a dataset requested by name is not on the disk.
        ImportError: for the digits without scikit-learn.
        OSError: if files cannot be read.
    """
    family = DataFamily(family)
    check_dataset(dataset, family)
    name = AUTO[family] if dataset == "auto" else OTHER_NAMES.get(dataset, dataset)
    if name in BUILT_IN:
        return _load_built_in(name)
    if name not in ORIGINALS:
        path = absolute_path(name)
        return _load_text(path, find_text(path))
    stand_in = STAND_INS.get(name) if dataset == "auto" else None
    return _load_files(ORIGINALS[name], data_folder(data_dir), stand_in)


def check_dataset(dataset: object, family: DataFamily) -> None:
    """Raise ``ValueError`` unless ``dataset`` is a name that the family accepts, or, for texts, an existing path."""
    names = DATASETS[family]
    known = ", ".join(map(repr, names))
    is_text = family in TEXT_FAMILIES
    if is_text:
        known = f"{known} and the path, as a string, of an existing UTF-8 file or folder of *.txt and *.md files"
    if not isinstance(dataset, str) or not dataset:
        raise ValueError(f"dataset is {shown(dataset)}; expected one of {known}")
    if dataset in names or (is_text and os.path.lexists(absolute_path(dataset))):
        return
    kind = ", a text" if dataset in _TEXTS else ", a dataset of images" if dataset in _IMAGES else ""
    hint = did_you_mean(Path(dataset).name, names)  # a misspelt name may have become an absolute path already
    raise ValueError(f"dataset is {shown(dataset)}{kind}; a {family} task accepts {known}{hint}")


def check_length(dataset: str, family: DataFamily, context: int) -> None:
    """Raise ``ValueError`` if ``dataset`` is the path of a text too short for windows of ``context`` bytes."""
    if _is_path(dataset, family):
        check_context(absolute_path(dataset), context)


def absolute_dataset(dataset: str, family: DataFamily) -> str:
    """Return ``dataset`` with the path of a text made absolute; names stay unchanged.

    Raises:
        ValueError: the absolute path is not UTF-8, so it cannot be recorded.
    """
    return str(user_path(absolute_path(dataset))) if _is_path(dataset, family) else dataset


def _is_path(dataset: str, family: DataFamily) -> bool:
    return family in TEXT_FAMILIES and dataset not in DATASETS[family]


def absolute_path(path: str) -> Path:
    """Return the absolute path, with ``~`` expanded; ``ValueError`` as of :func:`esper_env.paths.user_path`."""
    return user_path(path).absolute()


def data_folder(data_dir: str | None = None) -> Path:
    """Return the folder of the data files.

    This is the first that is set of ``data_dir``, ``$ESPER_DATA_DIR``, and ``esper`` in the user's cache folder
    (``$XDG_CACHE_HOME`` or ``~/.cache``). The others are not searched. An empty variable counts as not set.

    Raises:
        ValueError: ``data_dir`` is empty, and as of :func:`esper_env.paths.user_path`.
    """
    chosen = (os.environ.get(DATA_DIR_VARIABLE) or None) if data_dir is None else data_dir
    return default_folder() if chosen is None else user_path(chosen)


def _load_files(source: Source, root: Path, stand_in: StandIn | None) -> Data:
    folder = source.find(root)
    if folder is not None:
        try:
            return _read(source.name, folder.resolve(), _signature(source, folder))
        except (MissingDataError, DamagedDataError) as error:
            repair = source.repair(folder, root)
            raise type(error)(
                f"{error}; {repair} (a command of esper-agent), or download {source.originals} again"
            ) from error
    absent, remedy = f"not in {root}{source.lookalike(root)}", source.remedy(root)
    if stand_in is None:
        raise MissingDataError(f"{source.title} was requested by name but is {absent}; {remedy}")
    data = _load_built_in(stand_in.name)
    if stand_in.name not in _warned:
        warnings.warn(
            f"{source.title} is {absent}: training on {stand_in.kind} instead. {stand_in.caution} (dataset_name is "
            f"{data.name!r}). For the real data, {remedy}; to accept the stand-in, pass "
            f"dataset={stand_in.name!r}.",
            SyntheticDataWarning,
            stacklevel=3,
        )
        _warned.add(stand_in.name)  # not before: if warnings are errors, every attempt must raise
    return data


def _signature(source: Source, folder: Path) -> tuple[tuple[int, int] | None, ...]:
    """Return size and time of each file, so that the cache misses after a change."""
    paths = [folder / name for file in source.files for name in file.sizes]
    return tuple((p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else None for p in paths)


@lru_cache(maxsize=2)
def _read(name: str, folder: Path, signature: tuple[tuple[int, int] | None, ...]) -> Data:  # noqa: ARG001
    return LOADERS[name](folder)


@lru_cache(maxsize=2)
def _load_text(path: Path, files: tuple[TextFile, ...]) -> TextData:
    return load_text(path, files)


@lru_cache(maxsize=len(BUILT_IN))
def _load_built_in(name: str) -> Data:
    return BUILT_IN[name].load()
