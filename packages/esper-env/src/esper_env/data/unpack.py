"""Files out of an archive that may be hostile."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from esper_env.data.progress import Progress, Stage, Watcher
from esper_env.data.web import FetchError

#: Bytes beyond those of the expected files that an archive may unpack to: headers, padding, a readme.
ALLOWANCE = 2**20
CHUNK = 2**20

#: What gzip and tarfile raise on malformed input.
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, ValueError, OverflowError, RecursionError)


class UnsafeArchiveError(FetchError):
    """An archive with something in it that is not unpacked."""


def unpack(archive: Path, expected: Mapping[str, int], into: Path, watch: Watcher) -> dict[str, str]:
    """Write the members with exactly these names, of exactly these sizes in bytes, into a folder, which must be new.

    A member NAME or FOLDER/NAME becomes ``into/NAME``. Other plain files and folders of the archive are passed over;
    one with a link, a device, an absolute name, a ``..``, an expected name twice, or more bytes than the expected files
    have, is refused as a whole. Returns the SHA-256 of what was written, by the name of the file; everything is on the
    disk then. Raises ``UnsafeArchiveError``, and ``FetchError`` for an archive that is damaged or lacks a file.
    """
    into.mkdir()
    written: dict[str, str] = {}
    limit = sum(expected.values()) + ALLOWANCE
    with _readable(archive), gzip.open(archive) as packed:
        stream = _Bounded(packed, archive, limit)
        with tarfile.open(fileobj=stream, mode="r|") as members:  # type: ignore[call-overload]
            for member in members:
                _check_member(archive, member)
                if member.name not in expected:
                    continue
                name = member.name.rpartition("/")[2]
                if name in written:
                    raise UnsafeArchiveError(f"{archive} has {member.name} twice; it is not the original")
                if member.size != expected[member.name]:
                    raise UnsafeArchiveError(
                        f"{archive} has {member.name} with {member.size:,} bytes, expected {expected[member.name]:,}"
                    )
                written[name] = _write(_content(members, member, watch), into / name)
        while stream.read(CHUNK):  # as far as the checksum at the end
            pass
    missing = [name for name in expected if name.rpartition("/")[2] not in written]
    if missing:
        raise FetchError(f"{archive} lacks {', '.join(missing)}; it is not the original")
    return written


@contextmanager
def _readable(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise FetchError(f"{archive} is damaged and cannot be unpacked ({error})") from error


class _Bounded:
    """Reads from a stream, up to a limit that a well-meant archive does not reach."""

    def __init__(self, stream: gzip.GzipFile, archive: Path, limit: int) -> None:
        self._stream, self._archive, self._left = stream, archive, limit

    def read(self, count: int) -> bytes:
        """At most ``count`` bytes."""
        content = self._stream.read(count)
        self._left -= len(content)
        if self._left < 0:
            raise UnsafeArchiveError(f"{self._archive} unpacks to more than its files can have; it is not the original")
        return content


def _check_member(archive: Path, member: tarfile.TarInfo) -> None:
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) and not member.issparse()
    if not plain:
        raise UnsafeArchiveError(f"{archive} has {member.name!r}, which is neither a plain file nor a folder")
    if member.name.startswith(("/", "\\")) or ".." in member.name.replace("\\", "/").split("/"):
        raise UnsafeArchiveError(f"{archive} has {member.name!r}, which leads out of the folder it is unpacked into")


def _content(members: tarfile.TarFile, member: tarfile.TarInfo, watch: Watcher) -> Iterator[bytes]:
    file = members.extractfile(member)
    if file is None:
        raise UnsafeArchiveError(f"{member.name!r} has no content")
    done = 0
    while chunk := file.read(CHUNK):
        done += len(chunk)
        yield chunk
        watch(Progress(Stage.UNPACK, member.name.rpartition("/")[2], done, member.size))


def _write(chunks: Iterator[bytes], path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
