"""Verification of the datasets on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from esper_env.data.catalog import BUILT_IN, LOADERS, OTHER_NAMES, folder_to_name
from esper_env.data.manifest import ManifestError, find_changes, read_manifest
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import Watcher, unwatched
from esper_env.data.sources import Source
from esper_env.suggestions import did_you_mean


class DatasetState(StrEnum):
    """State of a dataset on the disk."""

    ABSENT = "absent"  # it has no file there
    INTACT = "intact"  # unchanged since it was fetched, and readable
    READABLE = "readable"  # without a manifest to compare with, but the loader accepts it
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Verdict:
    """Result of verifying one dataset."""

    name: str
    state: DatasetState
    folder: Path | None  # with its files; None if absent
    detail: str  # one line: the damage, or the checks that passed
    replaceable: bool  # `esper data fetch` put these files there and repairs the damage


def find_source(name: str) -> Source:
    """Return the downloadable dataset of this name. Raises ``ValueError`` for any other name."""
    if name not in ORIGINALS:
        built_in = name in BUILT_IN or name in OTHER_NAMES
        problem = "needs no files" if built_in else "is not known"
        hint = "" if built_in else did_you_mean(name, ORIGINALS)
        raise ValueError(f"dataset {name!r} {problem}; expected one of {', '.join(ORIGINALS)}{hint}")
    return ORIGINALS[name]


def verify_dataset(name: str, root: Path, watch: Watcher = unwatched) -> Verdict:
    """Compare the files below ``root`` with their manifest, and load them as an environment does.

    Files without a manifest are only loaded. Raises ``ValueError`` for an unknown name.
    """
    source = find_source(name)
    folder = source.find(root)
    if folder is None:
        return Verdict(name, DatasetState.ABSENT, None, f"not in {root}{source.lookalike(root)}", replaceable=False)
    try:
        files = read_manifest(folder, source)
    except ManifestError as error:
        return Verdict(name, DatasetState.DAMAGED, folder, str(error), replaceable=True)
    if changes := find_changes(folder, files or [], watch):
        return Verdict(name, DatasetState.DAMAGED, folder, "; ".join(changes), replaceable=True)
    try:
        LOADERS[name](folder)
    except (ValueError, OSError) as error:  # not replaceable: a fetch would bring the same files
        detail = f"{error}; {source.repair(folder, folder_to_name(root))}"
        return Verdict(name, DatasetState.DAMAGED, folder, detail, replaceable=False)
    if files is None:
        detail = f"manually copied, without a manifest: the loader accepts it{_compare_sizes(source, folder)}"
        return Verdict(name, DatasetState.READABLE, folder, detail, replaceable=False)
    detail = "sizes and SHA-256 as fetched; the loader accepts it"
    return Verdict(name, DatasetState.INTACT, folder, detail, replaceable=True)


def _compare_sizes(source: Source, folder: Path) -> str:
    """Describe which files do not have the size of the original."""
    paths = [(file, path) for file in source.files if (path := file.find(folder)) is not None]
    others = [path.name for file, path in paths if path.stat().st_size != file.sizes[path.name]]
    return f"; not of the original's size: {', '.join(others)}" if others else "; its sizes are the original's"
