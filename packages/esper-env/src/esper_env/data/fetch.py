"""Fetching of datasets: each appears in its folder complete, or not at all."""

from __future__ import annotations

import os
import shutil
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import filelock

from esper_env.data.catalog import LOADERS
from esper_env.data.download import bytes_missing, check_url, obtain
from esper_env.data.originals import DATA_DIR_PLACES, FetchError, Source
from esper_env.data.progress import FetchProgress, FetchStage, Watcher, unwatched
from esper_env.data.verify import MANIFEST, DatasetState, find_source, verify_dataset, write_manifest
from esper_env.paths import user_path
from esper_env.persistence import atomic

#: Folder below the data folder for incomplete datasets and the locks. Loaders ignore it.
WORK = ".esper-downloads"
#: Folder below that for the files of a dataset until they move into their place.
READY = "ready"


@dataclass(frozen=True)
class Outcome:
    """Result of a fetch."""

    folder: Path
    detail: str  # one line: the checks that passed
    already_there: bool


def fetch_dataset(name: str, root: str | Path, url: str | None = None, watch: Watcher = unwatched) -> Outcome:
    """Bring a dataset into its folder below ``root``, unless it is there already and intact.

    An original archive that lies in ``root`` is unpacked instead of downloaded. An interrupted fetch leaves its bytes
    in ``root/.esper-downloads``, and the next one resumes. Damaged files are replaced only if a fetch put them there;
    no other file is changed.

    Args:
        name: Name of the dataset.
        root: Data folder; created if necessary.
        url: Different URL of the same files: of the file, or, ending in "/", of a folder that has them all.
        watch: Callback for the progress.

    Returns:
        The folder of the dataset, the checks that it passed, and whether it was there already.

    Raises:
        ValueError: for an unknown name, an invalid URL, and a ``root`` that is a file.
        FetchError: (an ``OSError``) if the download fails, the files are not the originals, or cannot be written.
    """
    source, root = find_source(name), user_path(root)
    urls = _choose_urls(source, url)
    if root.exists() and not root.is_dir():
        raise ValueError(f"data_dir is {str(root)!r}, a file; expected a folder")
    try:
        (root / WORK).mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / WORK / f"{name}.lock", timeout=0):
            return _fetch(source, root, urls, watch)
    except filelock.Timeout as error:
        raise FetchError(f"{source.title} is being fetched into {root} by another process") from error
    except FetchError:
        raise
    except OSError as error:
        kept = "the next fetch resumes from the bytes that have arrived"
        raise FetchError(f"{source.title} could not be saved in {root}: {error}; {kept}") from error


def _choose_urls(source: Source, url: str | None) -> list[str]:
    """Return the URL of each download."""
    if url is None:
        url = source.url
    check_url(url)
    if url.endswith("/"):
        return [url + file.name for file in source.downloads]
    if len(source.downloads) > 1:
        raise ValueError(
            f"url is {url!r}, but {source.title} consists of {len(source.downloads)} files; expected the URL of a "
            "folder that has all of them, ending in '/'"
        )
    return [url]


def _fetch(source: Source, root: Path, urls: list[str], watch: Watcher) -> Outcome:
    work = root / WORK / source.name
    before = verify_dataset(source.name, root, watch)
    target = before.folder or root / source.folder
    if before.state in (DatasetState.INTACT, DatasetState.READABLE):
        shutil.rmtree(work, ignore_errors=True)  # left by a fetch that was killed at its end
        return Outcome(target, before.detail, already_there=True)
    if before.state is DatasetState.DAMAGED and not before.replaceable:
        raise FetchError(f"{target} was not written by a fetch and is not replaced: {before.detail}")
    if before.state is DatasetState.ABSENT and os.path.lexists(target) and not _is_empty_folder(target):
        raise FetchError(f"{target} is in the way and has no file of {source.title}; move it away and fetch again")
    ready = work / READY
    origins = _prepare(source, root, ready, urls, watch)
    try:
        LOADERS[source.name](ready)
    except ValueError as error:
        raise FetchError(f"the fetched files cannot be loaded: {error}") from error
    write_manifest(ready, source, origins)
    _install(ready, target)
    shutil.rmtree(work, ignore_errors=True)
    return Outcome(target, "sizes and SHA-256 are the original's; the loader accepts it", already_there=False)


def _prepare(source: Source, root: Path, ready: Path, urls: list[str], watch: Watcher) -> list[str]:
    """Download and unpack the files into ``ready``; return the origin of each download."""
    ready.mkdir(parents=True, exist_ok=True)
    local = _find_archive(source, root, watch)
    place, unpacked = (ready, 0) if source.archive is None else (ready.parent, sum(file.size for file in source.files))
    downloads = source.downloads if local is None else ()
    needed = unpacked + sum(bytes_missing(file, place) for file in downloads)
    if (free := shutil.disk_usage(root).free) < needed:
        raise FetchError(
            f"{root} has {free:,} bytes free but {source.title} needs {needed:,}; free some space, or name another "
            f"folder in {DATA_DIR_PLACES}"
        )
    for file, url in zip(downloads, urls, strict=False):
        try:
            obtain(file, url, place, watch)
        except FetchError as error:
            raise FetchError(f"{error}. {_offline_remedy(source, root)}") from error
    if source.archive is not None:
        _unpack(local or place / source.archive.name, source, ready, watch)
    return urls if local is None else ["the archive in the data folder"]


def _find_archive(source: Source, root: Path, watch: Watcher) -> Path | None:
    """Return the path of the original archive if it lies in the data folder."""
    if source.archive is None or not (path := root / source.archive.name).is_file():
        return None
    watch(FetchProgress(FetchStage.CHECK, path.name))
    if source.archive.is_original(path):
        return path
    problem = "its size or SHA-256 is not the original's; remove it, or put the original there"
    warnings.warn(f"{path} is ignored: {problem}", stacklevel=5)
    return None


def _offline_remedy(source: Source, root: Path) -> str:
    """Describe how to bring the files to a machine without network."""
    urls = ", ".join(source.url + file.name for file in source.downloads)
    place, then = root / source.folder, "nothing else is needed"
    if source.archive is not None:
        place, then = root, f"run `{source.fetch_command(root)}` here, which unpacks it"
    return f"On a machine without network: download {urls} on another one, put it into {place}, and {then}"


def _unpack(archive: Path, source: Source, into: Path, watch: Watcher) -> None:
    """Extract the files of the dataset from its archive, whose SHA-256 is the original's."""
    if not hasattr(tarfile, "data_filter"):
        raise FetchError(f"{archive} cannot be unpacked safely by this Python; use Python 3.11.4 or newer")
    expected = {f"{source.folder}/{file.name}": file for file in source.files}

    def choose(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        member = tarfile.data_filter(member, folder)  # rejects names and links that lead out of the folder
        file = expected.get(member.name)
        if file is None:
            return None
        if not member.isreg() or member.size != file.size:
            raise FetchError(f"{archive} has {member.name}, which is not a plain file of {file.size:,} bytes")
        watch(FetchProgress(FetchStage.UNPACK, file.name))
        return member.replace(name=file.name, deep=False)

    try:
        with tarfile.open(archive) as members:
            members.extractall(into, filter=choose)
    except tarfile.TarError as error:
        raise FetchError(f"{archive} cannot be unpacked ({error})") from error


def _install(ready: Path, target: Path) -> None:
    """Move the folder into its place, or its files over those of a damaged dataset.

    In a damaged dataset every file is either the old or the new one at any time, and the next fetch replaces files that
    are still damaged. Other files in the folder stay.
    """
    for path in ready.iterdir():
        atomic.sync(path)
    if not target.exists() or _is_empty_folder(target):
        ready.rename(target)
    else:
        for path in sorted(ready.iterdir(), key=lambda path: path.name == MANIFEST):  # the manifest last
            path.replace(target / path.name)
        atomic.sync(target)
    atomic.sync(target.parent)


def _is_empty_folder(path: Path) -> bool:
    """Return True for an empty folder, but not for a link to one."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
