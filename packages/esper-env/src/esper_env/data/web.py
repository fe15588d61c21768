"""Files from web servers, over HTTP and HTTPS and nothing else."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from typing import NoReturn
from urllib.parse import urljoin, urlsplit


class FetchError(OSError):
    """A data set that could not be fetched; the message says why and what to do."""


class UnreachableError(FetchError):
    """A server that has given no answer, or none of use, however often it was asked."""


class ConnectionProblemError(Exception):
    """A server that may do better in a moment."""


SCHEMES = ("http", "https")
#: Redirects that are followed one after the other.
MOST_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
#: Seconds without a byte after which a connection is given up.
TIMEOUT = 30.0


def check_url(url: str) -> None:
    """``ValueError`` unless it is the address of something on a web server that everybody may ask."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not (usable and url.isascii() and url.isprintable() and " " not in url):
        raise ValueError(f"url is {url!r}; expected an address that begins with https:// or http://")
    if "@" in parts.netloc:  # which is not repeated: what stands in front of it is secret
        raise ValueError(
            f"url has a user or password in front of {parts.hostname}, which are not sent; expected an address that "
            "needs none"
        )


def open_url(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The answer to a GET request, whatever its status, redirects followed; who calls it closes it.

    Raises ``FetchError`` for a redirect that is refused: to something that is not on a web server, from https to http,
    one too many, or without an address. Raises ``ConnectionProblemError`` when no answer comes.
    """
    place = url
    for _ in range(MOST_REDIRECTS + 1):
        response = _ask(place, headers)
        if response.status not in REDIRECTS:
            return response
        response.close()
        place = _redirected(place, response.headers.get("Location"))
    raise FetchError(f"{url} redirects more than {MOST_REDIRECTS} times; try another address (--url)")


def _redirected(place: str, location: str | None) -> str:
    if not location:
        raise FetchError(f"{place} redirects to nowhere; try another address (--url)")
    target = urljoin(place, location)
    try:
        check_url(target)
    except ValueError:
        _refuse(place, target, "which is not on a web server that everybody may ask")
    if place.startswith("https:") and not target.startswith("https:"):
        _refuse(place, target, "which is not encrypted")
    return target


def _refuse(place: str, target: str, why: str) -> NoReturn:
    raise FetchError(f"{place} redirects to {target}, {why}; try another address (--url)")


def _ask(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "esper-env", **headers})
    try:
        response = _opener().open(request, timeout=TIMEOUT)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise FetchError(f"{url} has no valid certificate ({error.reason.verify_message})") from error
        raise ConnectionProblemError(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionProblemError(str(error) or type(error).__name__) from error
    if not isinstance(response, http.client.HTTPResponse):
        raise FetchError(f"{url} was answered by something that is no web server")
    return response


def _opener() -> urllib.request.OpenerDirector:
    """Opens http and https, through the proxies of the environment; file:, ftp: and data: have no handler in it.

    Statuses are not turned into errors and redirects not followed: that is for the functions above.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
    ):
        opener.add_handler(handler)
    return opener
