"""Data sets by name: which names a task accepts, where files are looked for, and what ``"auto"`` means."""

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
from esper_env.data.originals import ORIGINALS
from esper_env.data.own_text import TextFile, check_context, find_text, load_text
from esper_env.data.procedural import generate_procedural
from esper_env.data.sources import DamagedDataError, MissingDataError, Source
from esper_env.data.text import TextData
from esper_env.data.tinystories import load_tinystories
from esper_env.suggestions import did_you_mean, shown

DATA_DIR_VARIABLE = "ESPER_DATA_DIR"

Data = ImageData | TextData


class SyntheticDataWarning(UserWarning):
    """``dataset="auto"`` found no real data and took the procedural stand-in."""


class DataFamily(StrEnum):
    """What a task's data are, and which of them ``"auto"`` is."""

    CIFAR = "cifar"  # labelled images; CIFAR-10, or the stand-in for it
    DIGITS = "digits"  # labelled images; the digits
    TINYSTORIES = "tinystories"  # a text; TinyStories, or the stand-in for it
    TEXT = "text"  # a text; the grammar


#: Families of texts, whose tasks accept the path of a text as well.
TEXT_FAMILIES = (DataFamily.TINYSTORIES, DataFamily.TEXT)

_IMAGES = ("auto", "cifar10", "cifar100", "fashion-mnist", "digits", "procedural", "procedural-cifar")
_TEXTS = ("auto", "tinystories", "grammar")

#: What each family's tasks accept as ``dataset``; a stand-in also by the name it goes on record with.
DATASETS: dict[DataFamily, tuple[str, ...]] = {
    DataFamily.CIFAR: tuple(name for name in _IMAGES if name != "digits"),  # too small for three pools
    DataFamily.DIGITS: _IMAGES,
    DataFamily.TINYSTORIES: _TEXTS,
    DataFamily.TEXT: _TEXTS,
}

#: What reads the files of a data set, given the folder they are in.
LOADERS: dict[str, Callable[[Path], Data]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "fashion-mnist": load_fashion_mnist,
    "tinystories": load_tinystories,
}


@dataclass(frozen=True)
class Made:
    """A data set that needs no files."""

    what: str
    make: Callable[[], Data]


#: Data sets that need no files.
MADE: dict[str, Made] = {
    "digits": Made("scikit-learn's 1,797 handwritten digits, 8x8", load_digits),
    "procedural": Made(
        "drawn colour images, 32x32, 10 classes, in place of CIFAR-10; on record as procedural-cifar",
        generate_procedural,
    ),
    "grammar": Made("sentences of a small grammar", generate_text),
}

#: Names on record that are accepted as well.
OTHER_NAMES = {"procedural-cifar": "procedural"}


@dataclass(frozen=True)
class StandIn:
    """What ``"auto"`` takes where a data set is not on the disk, and the words it is announced in."""

    name: str  # that accepts it
    on_record: str
    kind: str
    caution: str


#: What ``"auto"`` is in each family, and what stands in for it.
AUTO: dict[DataFamily, tuple[str, StandIn | None]] = {
    DataFamily.CIFAR: (
        "cifar10",
        StandIn("procedural", "procedural-cifar", "procedural images", "Accuracies are not CIFAR-10 accuracies"),
    ),
    DataFamily.DIGITS: ("digits", None),
    DataFamily.TINYSTORIES: (
        "tinystories",
        StandIn("grammar", "grammar", "the sentences of a grammar", "Losses are not TinyStories losses"),
    ),
    DataFamily.TEXT: ("grammar", None),
}

_announced: set[str] = set()


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
    """The data set of this name for a task of this family; loaded once per process, arrays read-only.

    ``"auto"`` is the data the task is named after. Where those are files that are not on the disk, a stand-in takes
    their place: the ``name`` of the data says so, and a :class:`SyntheticDataWarning` does once per process. In a
    family of texts, what is no name is the path of a text: a UTF-8 file, or a folder of *.txt and *.md files.

    Raises ``ValueError`` for an unknown name or damaged files (never replaced by the stand-in), ``MissingDataError``
    (a ``FileNotFoundError``) for a data set that was named and is not on the disk, ``ImportError`` for digits without
    scikit-learn, ``OSError`` for files that cannot be read.
    """
    family = DataFamily(family)
    check_dataset(dataset, family)
    stand_in = None
    if dataset == "auto":
        dataset, stand_in = AUTO[family]
    name = OTHER_NAMES.get(dataset, dataset)
    if name in MADE:
        return _made(name)
    if name not in ORIGINALS:
        path = absolute_path(name)
        return _own_text(path, find_text(path))
    return _from_files(ORIGINALS[name], data_folder(data_dir), stand_in)


def check_dataset(dataset: object, family: DataFamily) -> None:
    """``ValueError`` unless tasks of this family accept ``dataset``: a known name, or for text an existing path."""
    names = DATASETS[family]
    known = ", ".join(map(repr, names))
    of_texts = family in TEXT_FAMILIES
    if not isinstance(dataset, str) or not dataset:
        remedy = _text_remedy(dataset) if of_texts else ""
        raise ValueError(f"dataset is {shown(dataset)}; expected one of {known}{remedy}")
    if dataset in names:
        return
    if not of_texts:
        kind = ", a text" if dataset in _TEXTS else ""
        hint = did_you_mean(dataset, names)
        raise ValueError(f"dataset is {shown(dataset)}{kind}; a {family} task knows {known}{hint}")
    if not os.path.lexists(absolute_path(dataset)):
        kind = "a data set of images" if dataset in _IMAGES else "and there is nothing at that path"
        hint = did_you_mean(Path(dataset).name, names)  # a name that is nearly right may have become a path already
        raise ValueError(
            f"dataset is {shown(dataset)}, {kind}; a {family} task knows {known} and the path of a UTF-8 file or of a "
            f"folder of *.txt and *.md files{hint}"
        )


def check_length(dataset: str, family: DataFamily, context: int) -> None:
    """``ValueError`` where ``dataset`` is the path of a text that is too short for windows of ``context`` bytes."""
    if _is_path(dataset, family):
        check_context(absolute_path(dataset), context)


def absolute_dataset(dataset: str, family: DataFamily) -> str:
    """``dataset`` as every folder can read it: the path of a text made absolute, a name as it is."""
    return str(absolute_path(dataset)) if _is_path(dataset, family) else dataset


def _is_path(dataset: str, family: DataFamily) -> bool:
    return family in TEXT_FAMILIES and dataset not in DATASETS[family]


def _text_remedy(dataset: object) -> str:
    """How to give what may have been meant as a path."""
    path = ", or the path of a UTF-8 file or of a folder of *.txt and *.md files, as a text"
    if isinstance(dataset, os.PathLike):
        return f"{path}: give str(path)"
    if isinstance(dataset, int | float):
        return f"{path}: a name such as 123 reads as a number, so write './123'"
    return path


def absolute_path(path: str) -> Path:
    """The path as it is read from every folder."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:  # "~somebody" who is not known here
        return Path(path).absolute()


def data_folder(data_dir: str | None = None) -> Path:
    """Where data files are looked for: ``data_dir``, else ``$ESPER_DATA_DIR``, else ``esper`` in the user's cache
    folder (``$XDG_CACHE_HOME`` or ``~/.cache``). The first that is set counts; the others are not searched."""
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    return Path(chosen).expanduser() if chosen else _usual_folder()


def _usual_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "esper"


def to_name(root: Path) -> Path | None:
    """``root`` where a command has to name it; None where it is used without being named, whatever the environment."""
    return None if root == _usual_folder() else root


def _from_files(source: Source, root: Path, stand_in: StandIn | None) -> Data:
    folder = source.find(root)
    if folder is not None:
        try:
            return _read(source.name, folder.resolve(), _signature(source, folder))
        except (MissingDataError, DamagedDataError) as error:
            repair = source.repair(folder, to_name(root))
            raise type(error)(
                f"{error}; {repair} (a command of esper-agent), or download {source.wanted} anew"
            ) from error
    if stand_in is None:
        raise MissingDataError(
            f"{source.title} was asked for by name and is not in {root}{source.instead(root)}; "
            f"{source.remedy(to_name(root))}"
        )
    _announce(source, root, stand_in)
    return _made(stand_in.name)


def _announce(source: Source, root: Path, stand_in: StandIn) -> None:
    if stand_in.name in _announced:
        return
    remedy = source.remedy(to_name(root))
    warnings.warn(
        f"{source.title} is not in {root}{source.instead(root)}: training on {stand_in.kind} instead. "
        f"{stand_in.caution} (dataset_name is {stand_in.on_record!r}). For the real data, {remedy}; to accept the "
        f"stand-in, pass dataset={stand_in.name!r}.",
        SyntheticDataWarning,
        stacklevel=4,
    )
    _announced.add(stand_in.name)  # after the warning: where warnings are errors, every attempt raises


def _signature(source: Source, folder: Path) -> tuple[tuple[int, int] | None, ...]:
    """Size and time of each file, so that files that changed on disk are read again."""
    paths = [folder / name for file in source.files for name in file.sizes]
    return tuple((p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else None for p in paths)


@lru_cache(maxsize=2)
def _read(name: str, folder: Path, signature: tuple[tuple[int, int] | None, ...]) -> Data:  # noqa: ARG001
    return LOADERS[name](folder)


@lru_cache(maxsize=2)
def _own_text(path: Path, files: tuple[TextFile, ...]) -> TextData:
    return load_text(path, files)


@lru_cache(maxsize=len(MADE))
def _made(name: str) -> Data:
    return MADE[name].make()
