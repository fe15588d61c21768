"""Download of one file over HTTP, resumed after interruptions and verified by pooch."""

from __future__ import annotations

import logging
import os
import ssl
import time
from functools import cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, Request, build_opener

import certifi

from esper_env.data.originals import DataFile, FetchError
from esper_env.data.progress import FetchProgress, FetchStage, Watcher

PART = ".part"
#: Seconds to wait after consecutive attempts that brought no new bytes.
PAUSES = (1.0, 2.0, 4.0, 8.0)
#: Status codes of temporary problems, and 416 for bytes that do not belong to the server's file.
TEMPORARY = (408, 416, 425, 429, 500, 502, 503, 504)
#: Bytes read at a time: the most that a broken connection loses.
CHUNK = 2**16
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 30.0


def check_url(url: str) -> None:
    """Raise ``ValueError`` unless ``url`` is a public http(s) URL, without user and password."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not (usable and url.isascii() and url.isprintable() and " " not in url):
        raise ValueError(f"url is {url!r}; expected a URL that begins with https:// or http://")
    if "@" in parts.netloc:  # the message must not repeat the password
        raise ValueError(f"url has a user or password in front of {parts.hostname}; expected a URL without them")


def obtain(file: DataFile, url: str, folder: Path, watch: Watcher) -> None:
    """Download a file into ``folder``, which exists, unless the original is already there.

    Bytes that have arrived stay in ``NAME.part`` until the file is complete, and a later call resumes from there. If
    the SHA-256 of the complete file is wrong, the file is downloaded once more.

    Raises:
        FetchError: if the server cannot be reached, refuses, or has a different file.
        OSError: if the file cannot be written.
    """
    import pooch  # slow, and needed only here

    pooch.get_logger().setLevel(logging.WARNING)  # `watch` reports what happens
    target, part = folder / file.name, folder / (file.name + PART)

    def again(url: str, output: str, _pooch: object) -> None:
        watch(FetchProgress(FetchStage.WAIT, file.name, reason="its SHA-256 is wrong; downloading it again"))
        _receive(url, part, file, watch)
        part.replace(output)

    if not target.exists():  # not through pooch, which removes what it has when it is interrupted
        _receive(url, part, file, watch)
        part.replace(target)
    watch(FetchProgress(FetchStage.CHECK, file.name))
    try:
        pooch.retrieve(url, file.sha256, file.name, folder, downloader=again)
    except ValueError as error:
        target.unlink()
        raise FetchError(
            f"{url} delivered {file.size:,} bytes whose SHA-256 is not {file.sha256}: the file is damaged or a "
            "different one, and was removed; try again, or another URL (--url)"
        ) from error


def bytes_missing(file: DataFile, folder: Path) -> int:
    """Return how many bytes of a download have not arrived in ``folder`` yet."""
    return max(file.size - max(_size(folder / name) for name in (file.name, file.name + PART)), 0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(url: str, part: Path, file: DataFile, watch: Watcher) -> None:
    """Complete ``part`` in as many requests as necessary."""
    opener = build_opener(HTTPSHandler(context=_certificates()))  # with the proxies of the environment
    failures, most = 0, _size(part)
    while (done := _size(part)) != file.size:
        if problem := _request(opener, url, part, file, watch):
            done = _size(part)
            failures = 0 if done > most else failures + 1
            most = max(most, done)
            if failures > len(PAUSES):
                raise FetchError(
                    f"{url} could not be downloaded ({problem}) in {failures} attempts; {done:,} of {file.size:,} "
                    "bytes have arrived and are kept. Try again to resume, or use another URL (--url)"
                )
            pause = PAUSES[max(failures, 1) - 1]
            reason = f"{problem}; trying again in {pause:g} s"
            watch(FetchProgress(FetchStage.WAIT, file.name, done, file.size, reason))
            time.sleep(pause)


@cache
def _certificates() -> ssl.SSLContext:
    """Trust the certificates of the system, and those of $REQUESTS_CA_BUNDLE or of certifi."""
    context = ssl.create_default_context()
    context.load_verify_locations(os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where())
    return context


def _request(opener: OpenerDirector, url: str, part: Path, file: DataFile, watch: Watcher) -> str:
    """Make one request for the missing bytes; return why another one is needed, or "" if none is."""
    start = _size(part) if _size(part) < file.size else 0
    headers = {"User-Agent": "esper-env"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        opened = opener.open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        status = f"HTTP {error.code} {error.reason}".partition("\n")[0]
        if error.code not in TEMPORARY:
            raise FetchError(f"{url} answers {status}; try another URL (--url)") from error
        if error.code == 416:
            part.unlink(missing_ok=True)
        return status
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise FetchError(f"{url} has no valid certificate ({cause.verify_message})") from error
        return _words(cause)
    except ValueError as error:  # a redirect to a malformed URL
        raise FetchError(f"{url} redirects to a malformed URL ({error}); try another URL (--url)") from error
    with opened as response:
        return _append(url, response, part, start, file, watch)


def _append(url: str, response: HTTPResponse, part: Path, start: int, file: DataFile, watch: Watcher) -> str:
    """Write the response to ``part`` without decoding it; return why it ended early, or ""."""
    if response.status != 206:  # a server without ranges sends the whole file
        start = 0
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) != file.size:
            raise FetchError(
                f"{url} has {int(announced):,} bytes, expected {file.size:,}: it is a different file; try another URL "
                "(--url)"
            )
    done = start
    with part.open("ab" if start else "wb") as written:
        while done < file.size:
            try:
                chunk = response.read(min(CHUNK, file.size - done))
            except (OSError, HTTPException) as error:
                return _words(error)
            if not chunk:
                return f"the connection ended after {done:,} of {file.size:,} bytes"
            written.write(chunk)
            done += len(chunk)
            watch(FetchProgress(FetchStage.DOWNLOAD, file.name, done, file.size))
    return ""


def _words(error: BaseException | str) -> str:
    """Return the message of an error, without the error number of the operating system."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
