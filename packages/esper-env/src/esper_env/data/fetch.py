"""Fetching of datasets: each appears in its folder complete, or not at all."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import filelock
import pooch

from esper_env.data.catalog import LOADERS, folder_to_name
from esper_env.data.download import bytes_present, check_url, file_size, obtain
from esper_env.data.manifest import MANIFEST, write_manifest
from esper_env.data.progress import FetchProgress, FetchStage, Watcher, unwatched
from esper_env.data.sources import Download, FetchError, Source, UnreachableError
from esper_env.data.unpack import unpack
from esper_env.data.verify import DatasetState, Verdict, find_source, verify_dataset
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


def fetch_dataset(name: str, root: Path, url: str | None = None, watch: Watcher = unwatched) -> Outcome:
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
        The folder of the dataset and the checks that it passed.

    Raises:
        ValueError: for an unknown name, an invalid URL, and a ``root`` that is a file.
        FetchError: (an ``OSError``) if the download fails, the files are not the originals, or cannot be written.
    """
    source = find_source(name)
    urls = [_choose_url(source, download, url) for download in source.downloads]
    if root.exists() and not root.is_dir():
        raise ValueError(f"data_dir is {str(root)!r}, a file; expected a folder")
    try:
        (root / WORK).mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(root / WORK / f"{name}.lock", timeout=0):
            return _fetch(source, root, root / WORK / name, urls, watch)
    except filelock.Timeout as error:
        raise FetchError(f"{source.title} is being fetched into {root} by another process") from error
    except UnreachableError as error:
        raise FetchError(f"{error}. {_offline_remedy(source, root)}") from error
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"{source.title} could not be put into {root}: {error}") from error


def _choose_url(source: Source, download: Download, url: str | None) -> str:
    if url is None:
        return download.url
    check_url(url)
    if url.endswith("/"):
        return url + download.name
    if len(source.downloads) > 1:
        raise ValueError(
            f"url is {url!r}, but {source.title} consists of {len(source.downloads)} files; expected the URL of a "
            "folder that has all of them, ending in '/'"
        )
    return url


def _offline_remedy(source: Source, root: Path) -> str:
    """Describe how to bring the files to a machine without network."""
    urls = ", ".join(download.url for download in source.downloads)
    place, then = root / source.folder, "nothing else is needed"
    if source.archive is not None:
        place, then = root, f"run `{source.command('fetch', folder_to_name(root))}` here, which unpacks it"
    return f"On a machine without network: download {urls} on another one, put it into {place}, and {then}"


def _fetch(source: Source, root: Path, work: Path, urls: list[str], watch: Watcher) -> Outcome:
    before = verify_dataset(source.name, root, watch)
    if before.folder is not None and before.state is not DatasetState.DAMAGED:
        if before.state is DatasetState.INTACT:
            shutil.rmtree(work, ignore_errors=True)  # left by a fetch that was killed at its end
        return Outcome(before.folder, before.detail, already_there=True)
    target = before.folder or root / source.folder
    _check_target(source, before, target)
    work.mkdir(exist_ok=True)
    ready = work / READY
    prepare = _download if source.archive is None else _download_and_unpack
    digests, origins = prepare(source, root, ready, urls, watch)
    try:
        LOADERS[source.name](ready)
    except ValueError as error:
        raise FetchError(f"the fetched files cannot be loaded: {error}") from error
    write_manifest(ready, source, digests, origins)
    _install(ready, target)
    shutil.rmtree(work, ignore_errors=True)
    return Outcome(target, "sizes and SHA-256 are the original's; the loader accepts it", already_there=False)


def _check_target(source: Source, before: Verdict, target: Path) -> None:
    """Raise ``FetchError`` if the fetch would replace files that it did not write."""
    if before.state is DatasetState.DAMAGED and not before.replaceable:
        raise FetchError(f"{target} was not written by a fetch and is not replaced: {before.detail}")
    if before.state is DatasetState.ABSENT and os.path.lexists(target) and not _is_empty_folder(target):
        raise FetchError(f"{target} is in the way and has no file of {source.title}; move it away and fetch again")


#: SHA-256 of each file, by its name, and the origin of each download.
Prepared = tuple[dict[str, str], list[str]]


def _download(source: Source, root: Path, ready: Path, urls: list[str], watch: Watcher) -> Prepared:
    """Download the files of the dataset."""
    ready.mkdir(exist_ok=True)
    _check_space(source, root, sum(_missing(download, ready) for download in source.downloads))
    for download, url in zip(source.downloads, urls, strict=True):
        obtain(download, url, ready, watch)
    return {download.name: download.sha256 for download in source.downloads}, urls


def _download_and_unpack(source: Source, root: Path, ready: Path, urls: list[str], watch: Watcher) -> Prepared:
    """Download the archive, unless the original lies in the data folder, and unpack it."""
    (download,) = source.downloads
    unpacked = sum(file.size for file in source.files)
    folder = root
    problem = _compare(root / download.name, download, watch)
    if problem is None:
        urls = ["the archive in the data folder"]
        _check_space(source, root, unpacked)
    else:
        if problem:
            remedy = "remove it, or put the original there"
            warnings.warn(f"{root / download.name} is ignored: {problem}; {remedy}", stacklevel=5)
        folder = ready.parent
        _check_space(source, root, unpacked + _missing(download, folder))
        obtain(download, urls[0], folder, watch)
    if ready.exists():  # left by a fetch that was interrupted while unpacking
        shutil.rmtree(ready)
    expected = {f"{source.folder}/{file.name}": file.size for file in source.files}
    unpack(folder / download.name, expected, ready, watch)
    return {file.name: pooch.file_hash(str(ready / file.name)) for file in source.files}, urls


def _compare(path: Path, download: Download, watch: Watcher) -> str | None:
    """Describe how a file differs from the original: None if it is the same, "" if there is no file."""
    if not path.is_file():
        return ""
    if file_size(path) != download.size:
        return f"it has {file_size(path):,} bytes, the original {download.size:,}"
    watch(FetchProgress(FetchStage.CHECK, path.name))
    return None if pooch.file_hash(str(path)) == download.sha256 else "it is not the original (SHA-256)"


def _missing(download: Download, folder: Path) -> int:
    """Return how many bytes of a download have not arrived yet."""
    return max(download.size - bytes_present(folder / download.name), 0)


def _check_space(source: Source, root: Path, needed: int) -> None:
    """Raise ``FetchError`` unless the disk has room for this many bytes."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise FetchError(
            f"{root} has {free:,} bytes free but {source.title} needs {needed:,}; free some space, or choose another "
            "folder (--data-dir)"
        )


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
