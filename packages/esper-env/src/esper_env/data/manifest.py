"""What was fetched, kept beside it: sizes and checksums that tell later whether the files are still the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from esper_env.checks import is_whole
from esper_env.data.download import sha256
from esper_env.data.progress import Watcher
from esper_env.data.sources import Source
from esper_env.persistence import atomic

MANIFEST = "esper-manifest.json"


class ManifestError(ValueError):
    """A manifest that does not say what was fetched."""


@dataclass(frozen=True)
class Fetched:
    """A file as it was when it was fetched."""

    name: str
    size: int  # bytes
    sha256: str


def write_manifest(folder: Path, source: Source, digests: Mapping[str, str], origins: Sequence[str]) -> None:
    """Note the files of ``folder`` with the SHA-256 of each, and the ``origins`` of what was downloaded, in order."""
    files = [asdict(Fetched(name, (folder / name).stat().st_size, digest)) for name, digest in sorted(digests.items())]
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
        "files": files,
    }
    atomic.write_text(folder / MANIFEST, json.dumps(content, indent=2) + "\n")


def read_manifest(folder: Path, source: Source) -> list[Fetched] | None:
    """The files that were fetched into ``folder``; None if they came there in another way.

    Raises ``ManifestError`` for a manifest that cannot be read or does not name exactly the files of ``source``.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = [Fetched(entry["name"], entry["size"], entry["sha256"]) for entry in content["files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path} cannot be read ({error})") from error
    sound = all(is_whole(file.size) and isinstance(file.sha256, str) for file in files)
    if not sound or content.get("name") != source.name or not _same_names(files, source):
        raise ManifestError(f"{path} is not the one of {source.title}")
    return files


def _same_names(files: Sequence[Fetched], source: Source) -> bool:
    names = [file.name for file in files]
    return len(names) == len(source.files) and set(names) == {file.name for file in source.files}


def differences(folder: Path, files: Sequence[Fetched], watch: Watcher) -> list[str]:
    """What is no longer as it was fetched, a few words for each file."""
    found = []
    for file in files:
        path = folder / file.name
        if not path.is_file():
            found.append(f"{file.name} is missing")
        elif path.stat().st_size != file.size:
            found.append(f"{file.name} has {path.stat().st_size:,} bytes, {file.size:,} were fetched")
        elif sha256(path, watch) != file.sha256:
            found.append(f"{file.name} is not what was fetched (SHA-256)")
    return found
