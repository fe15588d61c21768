"""One file from a web server, in as many pieces as it takes."""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import re
import time
from pathlib import Path

from esper_env.data.progress import Progress, Stage, Watcher
from esper_env.data.sources import Download
from esper_env.data.web import ConnectionProblemError, FetchError, UnreachableError, open_url
from esper_env.persistence import atomic

PART = ".part"
#: Seconds before the second, the third, ... try when nothing new has arrived.
PAUSES = (1.0, 2.0, 4.0, 8.0)
#: Statuses of a server that may do better in a moment.
PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Bytes read at a time: what a broken connection loses at most.
CHUNK = 2**16


def obtain(download: Download, url: str, target: Path, watch: Watcher) -> Path:
    """``target`` with exactly the bytes of the original, from ``url``, if it is not there already.

    What has arrived lies in ``target.part`` until all of it is there and has the right SHA-256; a later call goes on
    from there. What does not have it is removed; if it had come in pieces, it is fetched once more in one.
    Raises ``FetchError``.
    """
    if target.exists():
        if has_sha256(target, download.sha256, watch):
            return target
        target.unlink()
    part = target.with_name(target.name + PART)
    while True:
        in_pieces = length(part) > 0
        receive(url, part, download.size, watch)
        digest = sha256(part, watch, target.name)
        if digest == download.sha256:
            atomic.sync(part)
            part.replace(target)
            _validator_path(part).unlink(missing_ok=True)
            return target
        discard(part)
        if not in_pieces:
            raise FetchError(
                f"{url} delivered {download.size:,} bytes with the SHA-256 {digest}, expected {download.sha256}: it is "
                "damaged or another file, and was removed; try again, or another address (--url)"
            )


def receive(url: str, part: Path, size: int, watch: Watcher) -> None:
    """Bring ``part`` to ``size`` bytes, with as many requests as that takes; what is there is not asked for again.

    Raises ``FetchError`` when the server has another file or refuses, when five tries in a row brought nothing new, and
    when the disk is full. In the last two cases what has arrived stays.
    """
    most, failures = length(part), 0
    while length(part) < size:
        try:
            _request(url, part, size, watch)
            continue
        except ConnectionProblemError as error:
            problem = str(error)
        except FetchError:
            raise
        except OSError as error:
            raise _unwritable(part, size, error) from error
        failures = 0 if length(part) > most else failures + 1
        most = max(most, length(part))
        if failures > len(PAUSES):
            raise UnreachableError(
                f"{url} could not be fetched ({problem}) in {failures} tries; {_staying(part, size)}. Try again, or "
                "another address (--url)"
            )
        pause = PAUSES[max(failures, 1) - 1]
        watch(Progress(Stage.WAIT, _name(part), length(part), size, f"{problem}; again in {pause:g} s"))
        time.sleep(pause)


def _request(url: str, part: Path, size: int, watch: Watcher) -> None:
    """One request for what is missing."""
    offset = length(part)
    with open_url(url, _range_headers(url, part, offset)) as response:
        start = _start(url, response, offset, size)
        if start != offset:
            discard(part)
        if start is None:
            raise ConnectionProblemError("the server cannot go on where the file ends here")
        _note_validator(url, part, response)
        _copy(url, response, part, start, size, watch)
    if length(part) < size:
        raise ConnectionProblemError(f"the connection ended after {length(part):,} of {size:,} bytes")


def _range_headers(url: str, part: Path, offset: int) -> dict[str, str]:
    """Ask for the rest only, on condition that the file is still the one whose beginning is here."""
    if offset == 0:
        return {}
    headers = {"Range": f"bytes={offset}-"}
    try:
        noted = json.loads(_validator_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = {}  # nothing is known about the beginning; the SHA-256 of the whole tells whether the rest fits
    if isinstance(noted, dict) and noted.get("url") == url and isinstance(noted.get("validator"), str):
        headers["If-Range"] = noted["validator"]
    return headers


def _start(url: str, response: http.client.HTTPResponse, offset: int, size: int) -> int | None:
    """The place in the file at which the body of the answer begins; None if it does not fit what is here."""
    status = response.status
    if status in PASSING:
        raise ConnectionProblemError(f"HTTP {status} {response.reason}")
    if status == 200:
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) != size:
            raise FetchError(
                f"{url} has {int(announced):,} bytes, expected {size:,}: it is another file; try another address "
                "(--url)"
            )
        return 0
    if status == 206 and offset:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        fits = found is not None and int(found[1]) == offset and found[2] in ("*", str(size))
        return offset if fits else None
    if status == 416 and offset:
        return None
    raise FetchError(f"{url} answers HTTP {status} {response.reason}; try another address (--url)")


def _copy(url: str, response: http.client.HTTPResponse, part: Path, start: int, size: int, watch: Watcher) -> None:
    done = start
    with part.open("ab" if start else "wb") as file:
        while chunk := _read(response):
            done += len(chunk)
            if done > size:
                break
            file.write(chunk)
            watch(Progress(Stage.DOWNLOAD, _name(part), done, size))
    if done > size:
        discard(part)
        raise FetchError(f"{url} has more than {size:,} bytes: it is another file; try another address (--url)")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionProblemError(str(error) or type(error).__name__) from error


def _note_validator(url: str, part: Path, response: http.client.HTTPResponse) -> None:
    """Keep what tells later whether the file on the server is still the same."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    atomic.write_text(_validator_path(part), json.dumps({"url": url, "validator": validator}))


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _unwritable(part: Path, size: int, error: OSError) -> FetchError:
    if error.errno == errno.ENOSPC:
        return FetchError(f"no space is left in {part.parent}; {_staying(part, size)}: free some space and try again")
    return FetchError(f"{part} cannot be written ({error.strerror or error})")


def _staying(part: Path, size: int) -> str:
    """What the next try goes on from, in words."""
    here = length(part)
    return f"{here:,} of {size:,} bytes are here and stay for the next time" if here else "nothing has arrived"


def discard(part: Path) -> None:
    """Remove what has arrived, and what is known about it."""
    part.unlink(missing_ok=True)
    _validator_path(part).unlink(missing_ok=True)


def length(path: Path) -> int:
    """Bytes in a file; 0 if it is not there."""
    return path.stat().st_size if path.is_file() else 0


def has_sha256(path: Path, expected: str, watch: Watcher) -> bool:
    """Whether the file has this SHA-256."""
    return sha256(path, watch) == expected


def sha256(path: Path, watch: Watcher, name: str | None = None) -> str:
    """The SHA-256 of a file, told under ``name``."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            done += len(chunk)
            watch(Progress(Stage.CHECK, name or path.name, done, total))
    return digest.hexdigest()


def _name(part: Path) -> str:
    return part.name.removesuffix(PART)
