"""Whether the data sets on the disk are whole."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from esper_env.data.catalog import LOADERS, MADE, OTHER_NAMES, to_name
from esper_env.data.manifest import ManifestError, differences, read_manifest
from esper_env.data.originals import ORIGINALS
from esper_env.data.progress import Watcher, unwatched
from esper_env.data.sources import Source
from esper_env.suggestions import did_you_mean


class State(StrEnum):
    """How a data set is found."""

    ABSENT = "absent"  # none of its files is there
    INTACT = "intact"  # as it was fetched, and readable
    READABLE = "readable"  # put there by hand: nothing to compare with, but the loader takes it
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Verdict:
    """What is known of one data set."""

    name: str
    state: State
    folder: Path | None  # that holds its files; None when absent
    detail: str  # one line: what is damaged, what was checked
    fetched: bool  # by `esper data fetch`, which may replace it then


def find_source(name: str) -> Source:
    """The data set in files with this name. Raises ``ValueError`` for any other name."""
    if name not in ORIGINALS:
        made = name in MADE or name in OTHER_NAMES
        what = "needs no files" if made else "is not known"
        hint = "" if made else did_you_mean(name, ORIGINALS)
        raise ValueError(f"data set {name!r} {what}; expected one of {', '.join(ORIGINALS)}{hint}")
    return ORIGINALS[name]


def verify(name: str, root: Path, watch: Watcher = unwatched) -> Verdict:
    """Compare the files below ``root`` with the manifest of what was fetched, and read them as an environment does.

    Files without a manifest are only read. Raises ``ValueError`` for an unknown name.
    """
    source = find_source(name)
    folder = source.find(root)
    if folder is None:
        return Verdict(name, State.ABSENT, None, f"not in {root}{source.instead(root)}", fetched=False)
    try:
        files = read_manifest(folder, source)
        changed = [] if files is None else differences(folder, files, watch)
    except ManifestError as error:
        return Verdict(name, State.DAMAGED, folder, str(error), fetched=True)
    if changed:
        return Verdict(name, State.DAMAGED, folder, "; ".join(changed), fetched=True)
    try:
        LOADERS[name](folder)
    except (ValueError, OSError) as error:
        detail = str(error)
        if files is None:  # which a fetch leaves alone
            detail = f"{detail}; {source.repair(folder, to_name(root))}"
        return Verdict(name, State.DAMAGED, folder, detail, fetched=files is not None)
    if files is None:
        detail = f"put there by hand, without a manifest: the loader takes it{_shorter(source, folder)}"
        return Verdict(name, State.READABLE, folder, detail, fetched=False)
    return Verdict(name, State.INTACT, folder, "sizes and SHA-256 as fetched; the loader takes it", fetched=True)


def _shorter(source: Source, folder: Path) -> str:
    """Which files are not of the original's size."""
    read = [(file, path) for file in source.files if (path := file.find(folder)) is not None]
    other = [path.name for file, path in read if path.stat().st_size != file.sizes[path.name]]
    return f"; not of the original's size: {', '.join(other)}" if other else "; sizes are the original's"
