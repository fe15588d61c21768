"""Extraction of the expected files from an archive that may be hostile."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from esper_env.data.progress import FetchProgress, FetchStage, Watcher
from esper_env.data.sources import FetchError

#: Bytes beyond the expected files that an archive may unpack to: headers, padding, a readme.
ALLOWANCE = 2**20
CHUNK = 2**20

#: Exceptions of gzip and tarfile for malformed archives.
_MALFORMED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ValueError, OverflowError, RecursionError)


class UnsafeArchiveError(FetchError):
    """The archive contains a member that we refuse to extract."""


def unpack(archive: Path, expected: Mapping[str, int], into: Path, watch: Watcher) -> None:
    """Extract the expected members of a .tar.gz into a new folder.

    A member ``NAME`` or ``FOLDER/NAME`` becomes ``into/NAME``. Other members are not extracted, but the whole archive
    is rejected if one of them leads out of the folder.

    Args:
        archive: Path of the archive.
        expected: Size in bytes of each expected member, by its name in the archive.
        into: Folder to create.
        watch: Callback for the progress.

    Raises:
        UnsafeArchiveError: for a member that tarfile's "data" filter rejects, for an expected name that is not a plain
            file of the expected size or comes twice, and for more bytes than the expected files have.
        FetchError: for an archive that is damaged or lacks a file, and on Python 3.11.0 to 3.11.3.
    """
    if not hasattr(tarfile, "data_filter"):
        raise FetchError(f"{archive} cannot be unpacked safely by this Python; use Python 3.11.4 or newer")
    into.mkdir()
    missing = dict(expected)
    try:
        with gzip.open(archive) as packed:
            stream = _Bounded(packed, sum(expected.values()) + ALLOWANCE)
            with tarfile.open(fileobj=stream, mode="r|") as members:  # type: ignore[call-overload]
                for member in members:
                    tarfile.data_filter(member, str(into))
                    if member.name in expected:
                        _extract(members, member, missing, into, watch)
            while stream.read(CHUNK):  # up to the checksum at the end
                pass
    except UnsafeArchiveError as error:
        raise UnsafeArchiveError(f"{archive} {error}; it is not the original") from error
    except tarfile.FilterError as error:
        raise UnsafeArchiveError(f"{archive} has an unsafe member ({error})") from error
    except _MALFORMED as error:
        raise FetchError(f"{archive} is damaged and cannot be unpacked ({error})") from error
    if missing:
        raise FetchError(f"{archive} lacks {', '.join(missing)}; it is not the original")


def _extract(
    members: tarfile.TarFile, member: tarfile.TarInfo, missing: dict[str, int], into: Path, watch: Watcher
) -> None:
    if member.name not in missing:
        raise UnsafeArchiveError(f"has {member.name} twice")
    size = missing.pop(member.name)
    if not member.isreg() or member.issparse():
        raise UnsafeArchiveError(f"has {member.name}, which is not a plain file")
    if member.size != size:
        raise UnsafeArchiveError(f"has {member.name} with {member.size:,} bytes, expected {size:,}")
    name = member.name.rpartition("/")[2]
    watch(FetchProgress(FetchStage.UNPACK, name))
    members.extract(member.replace(name=name, deep=False), into, filter="data")


class _Bounded:
    """A stream that raises an error beyond a limit, which the original archive does not reach."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, count: int) -> bytes:
        """Return at most ``count`` bytes."""
        content = self._stream.read(count)
        self._left -= len(content)
        if self._left < 0:
            raise UnsafeArchiveError("unpacks to more bytes than the files of the dataset")
        return content
