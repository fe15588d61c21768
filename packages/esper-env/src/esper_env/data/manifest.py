"""The manifest of a fetched dataset: sizes and checksums to compare its files with later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pooch

from esper_env.checks import is_whole
from esper_env.data.progress import FetchProgress, FetchStage, Watcher
from esper_env.data.sources import Source
from esper_env.persistence import atomic

MANIFEST = "esper-manifest.json"


class ManifestError(ValueError):
    """A manifest that does not describe the dataset."""


@dataclass(frozen=True)
class FetchedFile:
    """A file as it was fetched."""

    name: str
    size: int  # bytes
    sha256: str


def write_manifest(folder: Path, source: Source, digests: Mapping[str, str], origins: Sequence[str]) -> None:
    """Write the manifest of a dataset.

    Args:
        folder: Folder with the files.
        source: The dataset.
        digests: SHA-256 of each file, by its name.
        origins: Where each of the source's downloads came from, in their order.
    """
    files = [FetchedFile(name, (folder / name).stat().st_size, digest) for name, digest in sorted(digests.items())]
    content = {
        "name": source.name,
        "title": source.title,
        "licence": source.licence,
        "homepage": source.homepage,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "downloads": [
            {"from": origin, "name": download.name, "size": download.size, "sha256": download.sha256}
            for origin, download in zip(origins, source.downloads, strict=True)
        ],
        "files": [asdict(file) for file in files],
    }
    atomic.write_text(folder / MANIFEST, json.dumps(content, indent=2) + "\n")


def read_manifest(folder: Path, source: Source) -> list[FetchedFile] | None:
    """Return the files that were fetched into ``folder``; None without a manifest.

    Raises:
        ManifestError: if the manifest cannot be read or does not name exactly the files of ``source``.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = [FetchedFile(entry["name"], entry["size"], entry["sha256"]) for entry in content["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path} cannot be read ({error})") from error
    typed = all(is_whole(file.size) and isinstance(file.sha256, str) for file in files)
    names = sorted(str(file.name) for file in files)
    if not typed or content.get("name") != source.name or names != sorted(file.name for file in source.files):
        raise ManifestError(f"{path} is not a manifest of {source.title}")
    return files


def find_changes(folder: Path, files: Sequence[FetchedFile], watch: Watcher) -> list[str]:
    """Describe each file that differs from the one that was fetched."""
    changes = []
    for file in files:
        path = folder / file.name
        watch(FetchProgress(FetchStage.CHECK, file.name))
        if not path.is_file():
            changes.append(f"{file.name} is missing")
        elif path.stat().st_size != file.size:
            changes.append(f"{file.name} has {path.stat().st_size:,} bytes, {file.size:,} were fetched")
        elif pooch.file_hash(str(path)) != file.sha256:
            changes.append(f"{file.name} differs from the fetched file (SHA-256)")
    return changes
