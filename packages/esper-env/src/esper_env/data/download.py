"""Download of one file over HTTP, resumed after interruptions and verified by pooch."""

from __future__ import annotations

import errno
import logging
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
import urllib3
from requests import PreparedRequest, Response

from esper_env.data.progress import FetchProgress, FetchStage, Watcher
from esper_env.data.sources import Download, FetchError, UnreachableError

PART = ".part"
#: Seconds to wait after consecutive attempts that brought no new bytes.
PAUSES = (1.0, 2.0, 4.0, 8.0)
#: Status codes of temporary problems.
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
#: Bytes read at a time: the most that a broken connection loses.
CHUNK = 2**16
#: Seconds without a byte after which a connection counts as broken.
TIMEOUT = 30.0
MAX_REDIRECTS = 5

pooch.get_logger().setLevel(logging.WARNING)  # `FetchProgress` reports what happens


class _TemporaryError(Exception):
    """A problem that another attempt may not have."""


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


def obtain(download: Download, url: str, folder: Path, watch: Watcher) -> None:
    """Download a file into ``folder``, which exists, unless the original is already there.

    Bytes that have arrived stay in ``NAME.part`` until the file is complete, and a later call resumes from there. If
    the SHA-256 of the complete file is wrong, the file is downloaded once more.

    Raises:
        UnreachableError: if the server cannot be reached.
        FetchError: if the server refuses or has a different file, or if the file cannot be written.
    """
    target = folder / download.name
    part = folder / (download.name + PART)

    def resume(url: str, output_file: str | Path, _pooch: object = None) -> None:
        if target.exists():
            watch(FetchProgress(FetchStage.WAIT, target.name, reason="its SHA-256 is wrong; downloading it again"))
        _receive(url, part, download.size, watch)
        part.replace(output_file)

    if not target.exists():  # not through pooch, which deletes its temporary files when interrupted
        resume(url, target)
    watch(FetchProgress(FetchStage.CHECK, target.name))
    try:
        pooch.retrieve(url, download.sha256, target.name, folder, downloader=resume)
    except ValueError as error:
        target.unlink()
        raise FetchError(
            f"{url} delivered {download.size:,} bytes whose SHA-256 is not {download.sha256}: the file is damaged or a "
            "different one, and was removed; try again, or another URL (--url)"
        ) from error


def bytes_present(target: Path) -> int:
    """Return how many bytes of a download are on the disk."""
    return max(file_size(target), file_size(target.with_name(target.name + PART)))


def file_size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def _receive(url: str, part: Path, size: int, watch: Watcher) -> None:
    """Complete ``part`` to ``size`` bytes in as many requests as necessary."""
    if file_size(part) > size:
        part.unlink()
    name = part.name.removesuffix(PART)
    most, failures = file_size(part), 0
    with _Session() as session:
        while (done := file_size(part)) < size:
            try:
                _request(session, url, part, done, size, watch)
                continue
            except _TemporaryError as error:
                problem = str(error)
            done = file_size(part)
            failures = 0 if done > most else failures + 1
            most = max(most, done)
            if failures > len(PAUSES):
                raise UnreachableError(
                    f"{url} could not be downloaded ({problem}) in {failures} attempts; {_kept(part, size)}. Try "
                    "again, or another URL (--url)"
                )
            pause = PAUSES[max(failures, 1) - 1]
            watch(FetchProgress(FetchStage.WAIT, name, done, size, f"{problem}; trying again in {pause:g} s"))
            time.sleep(pause)


def _request(session: requests.Session, url: str, part: Path, offset: int, size: int, watch: Watcher) -> None:
    """Make one request for the missing bytes."""
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    try:
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            start = _start_of_body(url, response, part, offset, size)
            _append(url, response, part, start, size, watch)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _translated(url, error) from error
    except FetchError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            message = f"no space is left in {part.parent}; {_kept(part, size)}: free some space and try again"
            raise FetchError(message) from error
        raise FetchError(f"{part} cannot be written ({error.strerror or error})") from error
    if (done := file_size(part)) < size:
        raise _TemporaryError(f"the connection ended after {done:,} of {size:,} bytes")


def _start_of_body(url: str, response: Response, part: Path, offset: int, size: int) -> int:
    """Return the position in the file of the first byte of the response."""
    status = f"HTTP {response.status_code} {response.reason}"
    if response.status_code in TEMPORARY:
        raise _TemporaryError(status)
    if response.status_code == 200:
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal() and int(announced) != size:
            raise FetchError(
                f"{url} has {int(announced):,} bytes, expected {size:,}: it is a different file; try another URL "
                "(--url)"
            )
        return 0
    if not offset or response.status_code not in (206, 416):
        raise FetchError(f"{url} answers {status}; try another URL (--url)")
    place = response.headers.get("Content-Range", "")
    if not (place.startswith(f"bytes {offset}-") and place.endswith(("/*", f"/{size}"))):
        part.unlink()
        raise _TemporaryError("the server cannot resume the download, which starts over")
    return offset


def _append(url: str, response: Response, part: Path, start: int, size: int, watch: Watcher) -> None:
    """Write the raw response to ``part``, because ``iter_content`` would decompress some archives."""
    done = start
    response.raw.enforce_content_length = False  # the caller compares the sizes
    with part.open("ab" if start else "wb") as file:
        while chunk := response.raw.read(CHUNK):
            done += len(chunk)
            if done > size:
                break
            file.write(chunk)
            watch(FetchProgress(FetchStage.DOWNLOAD, part.name.removesuffix(PART), done, size))
    if done > size:
        part.unlink()
        raise FetchError(f"{url} has more than {size:,} bytes: it is a different file; try another URL (--url)")


def _translated(url: str, error: Exception) -> Exception:
    """Return our error for one of the HTTP libraries, in the words of its root cause."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    words = getattr(cause, "verify_message", "") or getattr(cause, "strerror", None) or str(cause)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return FetchError(f"{url} has no valid certificate ({words})")
    if isinstance(error, requests.TooManyRedirects):
        return FetchError(f"{url} redirects more than {MAX_REDIRECTS} times; try another URL (--url)")
    return _TemporaryError(words or type(cause).__name__)


def _kept(part: Path, size: int) -> str:
    """Describe the bytes from which the next attempt resumes."""
    done = file_size(part)
    return f"{done:,} of {size:,} bytes are here and stay for the next time" if done else "nothing has arrived"


class _Session(requests.Session):
    """An HTTP session that sends no credentials and follows redirects to public http(s) URLs only."""

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS
        self.auth = _unauthorized
        self.headers.update({"User-Agent": "esper-env", "Accept-Encoding": "identity"})
        system = ssl.get_default_verify_paths()  # so that a certificate installed by an administrator counts
        self.verify = system.cafile or system.capath or True

    def rebuild_auth(self, prepared_request: PreparedRequest, response: Response) -> None:
        """Check a redirect before it is followed; unlike the base class, add no credentials from ~/.netrc."""
        target = prepared_request.url or ""
        try:
            check_url(target)
        except ValueError:
            problem = "not a public http(s) URL"
        else:
            if not response.url.startswith("https:") or target.startswith("https:"):
                return
            problem = "not encrypted"
        raise FetchError(f"{response.url} redirects to {target}, which is {problem}; try another URL (--url)")


def _unauthorized(request: PreparedRequest) -> PreparedRequest:
    """Leave a request without credentials, because requests would read some from ~/.netrc."""
    return request
