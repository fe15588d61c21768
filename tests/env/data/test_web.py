"""Addresses that are opened, and those that are not."""

from __future__ import annotations

import socket

import pytest
from esper_env.data.web import ConnectionProblemError, FetchError, check_url, open_url
from serving import Server, redirect, sends, status


def body(url: str) -> bytes:
    with open_url(url, {}) as response:
        return response.read()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_also_relative_ones(server: Server, code: int) -> None:
    server.says("/b/file", sends(b"content", 7))
    server.says("/b/a", redirect("file", code))
    start = server.says("/a", redirect(server.url + "/b/a", code))
    assert body(start) == b"content"
    assert [path for path, _ in server.requests] == ["/a", "/b/a", "/b/file"]


def test_headers_reach_the_server_behind_the_redirect(server: Server) -> None:
    server.says("/b", sends(b"", 0))
    open_url(server.says("/a", redirect("/b")), {"Range": "bytes=5-"}).close()
    assert server.ranges == ["bytes=5-", "bytes=5-"]


def test_a_loop_of_redirects_ends(server: Server) -> None:
    server.says("/b", redirect("/a"))
    with pytest.raises(FetchError, match="redirects more than 5 times"):
        open_url(server.says("/a", redirect("/b")), {})
    assert len(server.requests) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"])
def test_redirects_lead_to_web_servers_only(server: Server, target: str) -> None:
    with pytest.raises(FetchError, match="which is not on a web server") as caught:
        open_url(server.says("/a", redirect(target)), {})
    assert target in str(caught.value)


def test_a_redirect_to_nowhere_is_refused(server: Server) -> None:
    with pytest.raises(FetchError, match="redirects to nowhere"):
        open_url(server.says("/a", redirect(None)), {})


def test_https_is_never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Response:
        status, headers = 302, {"Location": "http://example.org/file"}

        def close(self) -> None:
            pass

    asked = []
    monkeypatch.setattr("esper_env.data.web._ask", lambda url, _headers: asked.append(url) or Response())
    with pytest.raises(FetchError, match=r"redirects to http://example\.org/file, which is not encrypted"):
        open_url("https://example.org/file", {})
    assert asked == ["https://example.org/file"]


def test_an_error_of_the_server_is_an_answer(server: Server) -> None:
    with open_url(server.says("/a", status(503)), {}) as response:
        assert response.status == 503


def test_nobody_there_is_a_problem_that_may_pass(server: Server) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConnectionProblemError, match="refused"):
            open_url(f"http://127.0.0.1:{port}/", {})
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "ftp://example.org/a", "example.org/a", "https://", "https:///a", "http://a b/c",
     "http://[::1/a", "http://a:99999/", "http://a/\n", "http://ä/"],
)  # fmt: skip
def test_what_is_no_address_on_a_web_server_is_bad_input(url: str) -> None:
    with pytest.raises(ValueError, match="expected an address that begins with https:// or http://"):
        check_url(url)


@pytest.mark.parametrize("user", ["me:secret@", "me@", ":secret@", "@"])
def test_a_user_in_an_address_is_bad_input_and_a_password_is_not_repeated(user: str) -> None:
    with pytest.raises(
        ValueError, match=r"in front of example\.org, .*; expected an address that needs none"
    ) as caught:
        check_url(f"https://{user}example.org/a")
    assert "secret" not in str(caught.value)


def test_addresses_on_web_servers_are_accepted() -> None:
    for url in (
        "https://example.org/a@b",
        "https://example.org/a.tar.gz?b=c",
        "http://127.0.0.1:8000/a",
        "HTTPS://example.org/",
    ):
        check_url(url)
