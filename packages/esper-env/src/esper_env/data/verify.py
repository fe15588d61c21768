"""Verification of the datasets on the disk, and the manifests of fetched ones to compare them with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from esper_env.data.catalog import BUILT_IN, LOADERS, OTHER_NAMES
from esper_env.data.originals import ORIGINALS, Source, sha256_of
from esper_env.data.progress import FetchProgress, FetchStage, Watcher, unwatched
from esper_env.paths import user_path
from esper_env.persistence import atomic
from esper_env.suggestions import did_you_mean

MANIFEST = "esper-manifest.json"


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
    replaceable: bool = False  # `esper data fetch` put these files there and repairs the damage


def find_source(name: str) -> Source:
    """Return the downloadable dataset of this name. Raises ``ValueError`` for any other name."""
    if name not in ORIGINALS:
        built_in = name in BUILT_IN or name in OTHER_NAMES
        problem = "needs no files" if built_in else "is not known"
        hint = "" if built_in else did_you_mean(name, ORIGINALS)
        raise ValueError(f"dataset {name!r} {problem}; expected one of {', '.join(ORIGINALS)}{hint}")
    return ORIGINALS[name]


def verify_dataset(name: str, root: str | Path, watch: Watcher = unwatched) -> Verdict:
    """Compare the files below ``root`` with their manifest, and load them as an environment does.

    Files without a manifest are only loaded. Raises ``ValueError`` for an unknown name.
    """
    source, root = find_source(name), user_path(root)
    folder = source.find(root)
    if folder is None:
        return Verdict(name, DatasetState.ABSENT, None, f"not in {root}{source.lookalike(root)}")
    fetched = (folder / MANIFEST).exists()
    if fetched and (damage := _compare_with_manifest(folder, source, watch)):
        return Verdict(name, DatasetState.DAMAGED, folder, damage, replaceable=True)
    try:
        LOADERS[name](folder)
    except (ValueError, OSError) as error:  # not replaceable: a fetch would bring the same files
        return Verdict(name, DatasetState.DAMAGED, folder, f"{error}; {source.repair(folder, root)}")
    if fetched:
        detail = "sizes and SHA-256 as fetched; the loader accepts it"
        return Verdict(name, DatasetState.INTACT, folder, detail, replaceable=True)
    detail = f"manually copied, without a manifest: the loader accepts it; {_compare_sizes(source, folder)}"
    return Verdict(name, DatasetState.READABLE, folder, detail)


def write_manifest(folder: Path, source: Source, origins: Sequence[str]) -> None:
    """Write the manifest of the files in ``folder``, whose downloads came from these origins."""
    content = {
        "name": source.name,
        "title": source.title,
        "licence": source.licence,
        "homepage": source.homepage,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "downloads": [
            {"from": origin, "name": file.name, "size": file.size, "sha256": file.sha256}
            for origin, file in zip(origins, source.downloads, strict=True)
        ],
        "files": [
            {"name": file.name, "size": file.size, "sha256": file.sha256 or sha256_of(folder / file.name)}
            for file in sorted(source.files, key=lambda file: file.name)
        ],
    }
    atomic.write_text(folder / MANIFEST, json.dumps(content, indent=2) + "\n")


def _compare_with_manifest(folder: Path, source: Source, watch: Watcher) -> str:
    """Describe the damage to the fetched files or to their manifest; return "" if there is none."""
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        fetched = {file["name"]: file["sha256"] for file in content["files"]}
        is_of_source = content["name"] == source.name and set(fetched) == {file.name for file in source.files}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{manifest} cannot be read ({error})"
    if not is_of_source:
        return f"{manifest} is not a manifest of {source.title}"
    changes = []
    for name, sha256 in fetched.items():
        watch(FetchProgress(FetchStage.CHECK, name))
        if not (folder / name).is_file():
            changes.append(f"{name} is missing")
        elif sha256_of(folder / name) != sha256:
            changes.append(f"{name} differs from the fetched file (SHA-256)")
    return "; ".join(changes)


def _compare_sizes(source: Source, folder: Path) -> str:
    """Describe which files do not have the size of the original."""
    paths = [(file, path) for file in source.files if (path := file.find(folder)) is not None]
    others = [path.name for file, path in paths if path.stat().st_size != file.sizes[path.name]]
    return f"not of the original's size: {', '.join(others)}" if others else "its sizes are the original's"
