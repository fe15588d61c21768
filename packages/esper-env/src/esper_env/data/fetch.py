"""Data sets from the web, onto the disk: all of one or nothing."""

from __future__ import annotations

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from esper_env.data.catalog import LOADERS, to_name
from esper_env.data.download import PART, has_sha256, length, obtain
from esper_env.data.manifest import write_manifest
from esper_env.data.progress import Watcher, unwatched
from esper_env.data.replacement import install, is_empty_folder, settle
from esper_env.data.sources import Download, Source
from esper_env.data.unpack import unpack
from esper_env.data.verify import State, Verdict, find_source, verify
from esper_env.data.web import FetchError, UnreachableError, check_url
from esper_env.data.workplace import READY, workplace


@dataclass(frozen=True)
class Outcome:
    """Where a data set is now."""

    folder: Path
    detail: str  # one line: what was checked
    already_there: bool
    kept: Path | None = None  # the folder it replaced, where that holds files which are not the data set's


def fetch(name: str, root: Path, url: str | None = None, watch: Watcher = unwatched) -> Outcome:
    """Bring a data set into its folder below ``root``, unless it is there and whole.

    ``url`` is another place to fetch from: the address of the file or, when it ends in "/", of a folder that has all
    files under their own names. What comes from there must be the original as well, byte for byte.

    An original archive that lies in ``root`` already is unpacked instead of fetched. Whatever ends a fetch early, what
    has arrived stays in ``root/.esper-downloads`` and the next fetch goes on from there; the folder of the data set
    appears at the end, complete. Damaged files are replaced where a fetch had put them there; others are never touched.

    Raises ``ValueError`` for an unknown name, an address that is none and a ``root`` that is a file; ``FetchError`` (an
    ``OSError``) for all that can go wrong on the way.
    """
    source = find_source(name)
    addresses = [_address(source, download, url) for download in source.downloads]
    if root.exists() and not root.is_dir():
        raise ValueError(f"data_dir is {str(root)!r}, a file; expected a folder")
    try:
        with workplace(source, root) as work:
            return _fetch(source, root, work, addresses, watch)
    except UnreachableError as error:
        raise FetchError(f"{error}. {_without_network(source, root)}") from error
    except FetchError:
        raise
    except OSError as error:
        raise FetchError(f"{source.title} could not be put into {root}: {error}") from error


def _without_network(source: Source, root: Path) -> str:
    """What to do where no server can be reached."""
    addresses = ", ".join(download.url for download in source.downloads)
    if source.archive is not None:
        place, then = root, f"run `{source.command('fetch', to_name(root))}` here, which unpacks it"
    else:
        place, then = root / source.folder, "nothing else is needed"
    return f"On a machine without network: download {addresses} on another one, put it into {place}, and {then}"


def _fetch(source: Source, root: Path, work: Path, addresses: list[str], watch: Watcher) -> Outcome:
    kept = settle(source, root / source.folder, work)
    before = verify(source.name, root, watch)
    if before.folder is not None and before.state is not State.DAMAGED:
        if before.state is State.INTACT:  # what a fetch that was interrupted at its very end has left
            shutil.rmtree(work, ignore_errors=True)
        return Outcome(before.folder, before.detail, already_there=True, kept=kept)
    target = before.folder or root / source.folder
    _check_room(source, root, before, target)
    work.mkdir(exist_ok=True)
    prepare = _download if source.archive is None else _download_and_unpack
    digests, origins = prepare(source, root, work, addresses, watch)
    ready = work / READY
    try:
        LOADERS[source.name](ready)
    except ValueError as error:
        raise FetchError(f"what was fetched cannot be read: {error}") from error
    write_manifest(ready, source, digests, origins)
    kept = install(source, ready, target, work) or kept
    shutil.rmtree(work, ignore_errors=True)  # only space is at stake
    return Outcome(target, "sizes and SHA-256 are the original's; the loader takes it", already_there=False, kept=kept)


#: The SHA-256 of each file that is ready, and where the downloads came from.
Prepared = tuple[dict[str, str], list[str]]


def _download(source: Source, root: Path, work: Path, addresses: list[str], watch: Watcher) -> Prepared:
    """Bring the files into the folder of what is ready; those that are there by an earlier fetch stay."""
    ready = work / READY
    ready.mkdir(exist_ok=True)
    places = [ready / download.name for download in source.downloads]
    _check_space(source, root, sum(map(_missing, source.downloads, places)))
    for download, url, place in zip(source.downloads, addresses, places, strict=True):
        obtain(download, url, place, watch)
    return {download.name: download.sha256 for download in source.downloads}, addresses


def _download_and_unpack(source: Source, root: Path, work: Path, addresses: list[str], watch: Watcher) -> Prepared:
    """Bring the archive and unpack it into the folder of what is ready."""
    (download,) = source.downloads
    by_hand, archive = root / download.name, work / download.name
    unpacked = sum(file.size for file in source.files)
    given = by_hand.is_file()
    difference = _difference(by_hand, download, watch) if given else ""
    if given and not difference:
        archive, addresses = by_hand, ["the archive in the data folder"]
        _check_space(source, root, unpacked)
    else:
        if difference:
            warnings.warn(f"{by_hand} is not used: {difference}; remove it, or put the original there", stacklevel=5)
        _check_space(source, root, unpacked + _missing(download, archive))
        obtain(download, addresses[0], archive, watch)
    ready = work / READY
    if ready.exists():  # of a fetch that ended while it unpacked
        shutil.rmtree(ready)
    expected = {f"{source.folder}/{file.name}": file.size for file in source.files}
    return unpack(archive, expected, ready, watch), addresses


def _difference(path: Path, download: Download, watch: Watcher) -> str:
    """In which way the file is not the original, in words; empty if it is."""
    if length(path) != download.size:
        return f"it has {length(path):,} bytes, the original {download.size:,}"
    return "" if has_sha256(path, download.sha256, watch) else "it is not the original (SHA-256)"


def _missing(download: Download, place: Path) -> int:
    """Bytes that are still to come."""
    here = max(length(place), length(place.with_name(place.name + PART)))
    return max(download.size - here, 0)


def _check_space(source: Source, root: Path, needed: int) -> None:
    """``FetchError`` unless this many bytes have room."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise FetchError(
            f"{root} has {free:,} bytes free and {source.title} needs {needed:,}; free some space, or choose another "
            "folder (--data-dir)"
        )


def _check_room(source: Source, root: Path, before: Verdict, target: Path) -> None:
    """``FetchError`` where something is in the way that a fetch has not put there, or that holds the fetch itself."""
    if before.state is State.DAMAGED and not before.fetched:
        raise FetchError(f"{target} was not put there by a fetch, and is left as it is: {before.detail}")
    if before.state is State.DAMAGED and target == root:
        raise FetchError(f"{target} is damaged; to have it replaced, name the folder that it is in (--data-dir)")
    if before.state is State.ABSENT and os.path.lexists(target) and not is_empty_folder(target):
        raise FetchError(f"{target} is in the way and has nothing of {source.title}; move it away and fetch again")


def _address(source: Source, download: Download, url: str | None) -> str:
    if url is None:
        return download.url
    check_url(url)
    if url.endswith("/"):
        return url + download.name
    if len(source.downloads) > 1:
        raise ValueError(
            f"url is {url!r}, and {source.title} consists of {len(source.downloads)} files; expected the address of a "
            "folder that has all of them, ending in '/'"
        )
    return url
