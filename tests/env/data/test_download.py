"""Downloads: resumed after interruptions, verified, and limited to public http(s) URLs."""

from __future__ import annotations

import errno
import hashlib
import random
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from esper_env.data.download import CHUNK, _Session, _translated, check_url, obtain
from esper_env.data.progress import FetchProgress, FetchStage, unwatched
from esper_env.data.sources import Download, FetchError, UnreachableError
from hypothesis import given
from hypothesis import strategies as st
from serving import Answer, Server, file, redirect, sends, serving, status, without_ranges

CONTENT = random.Random(5).randbytes(200_000)


def original(content: bytes = CONTENT) -> Download:
    return Download("https://example.org/file.bin", len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def part(folder: Path) -> Path:
    return folder / "file.bin.part"


def fetched(server: Server, folder: Path, *answers: Answer) -> bytes:
    obtain(original(), server.says("/file.bin", *answers), folder, unwatched)
    assert [path.name for path in folder.iterdir()] == ["file.bin"]
    return (folder / "file.bin").read_bytes()


def refusal(server: Server, folder: Path, *answers: Answer) -> str:
    """The error message of a download that fails."""
    with pytest.raises(FetchError) as caught:
        obtain(original(), server.says("/file.bin", *answers), folder, unwatched)
    assert not (folder / "file.bin").exists()
    assert "/file.bin" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("answer", [file(CONTENT), sends(CONTENT, None)], ids=["known-length", "unknown-length"])
def test_obtain_downloads_a_file(server: Server, folder: Path, answer: Answer) -> None:
    assert fetched(server, folder, answer) == CONTENT
    assert server.ranges == [None]


def test_obtain_does_not_decompress_the_response(server: Server, folder: Path) -> None:
    assert fetched(server, folder, sends(CONTENT, len(CONTENT), Content_Encoding="gzip")) == CONTENT


@pytest.mark.parametrize("name", ["file.bin", "file.bin.part"])
def test_obtain_makes_no_request_if_the_file_is_there(server: Server, folder: Path, name: str) -> None:
    (folder / name).write_bytes(CONTENT)
    assert fetched(server, folder, status(500)) == CONTENT
    assert server.requests == []


def test_obtain_replaces_a_file_with_a_wrong_checksum(server: Server, folder: Path) -> None:
    (folder / "file.bin").write_bytes(CONTENT[:-1] + b"?")
    assert fetched(server, folder, file(CONTENT)) == CONTENT


@given(
    cuts=st.lists(st.integers(0, 1500), max_size=6),
    ranged=st.lists(st.booleans(), min_size=7, max_size=7),
    here=st.integers(0, 1200),
    wrong=st.booleans(),
)
def test_obtain_succeeds_after_any_interruptions(cuts: list[int], ranged: list[bool], here: int, wrong: bool) -> None:
    content = CONTENT[:1000]
    answers = [
        file(content, cut=cut) if whole else without_ranges(content, cut)
        for cut, whole in zip([*cuts, 1500], ranged, strict=False)
    ]
    with serving() as server, tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        patch.setattr("esper_env.data.download.PAUSES", (0.0,) * 9)
        part(Path(place)).write_bytes((bytes(1200) if wrong else content + bytes(200))[:here])
        obtain(original(content), server.says("/f", *answers), Path(place), unwatched)
        assert (Path(place) / "file.bin").read_bytes() == content


def test_obtain_resumes_a_broken_connection(server: Server, folder: Path) -> None:
    assert fetched(server, folder, file(CONTENT, cut=70_000), file(CONTENT, cut=30_000), file(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=70000-", "bytes=100000-"]


def test_obtain_resumes_a_partial_download(server: Server, folder: Path) -> None:
    assert "HTTP 404" in refusal(server, folder, file(CONTENT, cut=90_000), status(404))
    assert part(folder).read_bytes() == CONTENT[:90_000]
    assert fetched(server, folder, file(CONTENT)) == CONTENT
    assert server.ranges[-1] == "bytes=90000-"


def test_obtain_starts_over_without_ranges(server: Server, folder: Path) -> None:
    assert fetched(server, folder, without_ranges(CONTENT, 60_000), without_ranges(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=60000-"]


@pytest.mark.parametrize(
    "place",
    ["bytes 0-199999/200000", "bytes 60001-199999/200000", "bytes 60000-199999/300000", "bytes */200000", "",
     "lines 60000-199999/200000", None],
)  # fmt: skip
def test_obtain_starts_over_after_an_unusable_range(server: Server, folder: Path, place: str | None) -> None:
    wrong = status(416) if place is None else sends(CONTENT[60_000:], 140_000, code=206, Content_Range=place)
    assert fetched(server, folder, file(CONTENT, cut=60_000), wrong, file(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=60000-", None]


def test_obtain_accepts_a_range_of_unknown_total(server: Server, folder: Path) -> None:
    rest = sends(CONTENT[60_000:], 140_000, code=206, Content_Range="bytes 60000-199999/*")
    assert fetched(server, folder, file(CONTENT, cut=60_000), rest) == CONTENT


def test_obtain_starts_over_if_the_resumed_file_has_a_wrong_checksum(server: Server, folder: Path) -> None:
    part(folder).write_bytes(bytes(150_000))
    seen: list[FetchProgress] = []
    obtain(original(), server.says("/f", file(CONTENT)), folder, seen.append)
    assert (folder / "file.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=150000-", None]
    assert [progress.reason for progress in seen if progress.stage is FetchStage.WAIT] == [
        "its SHA-256 is wrong; downloading it again"
    ]


def test_obtain_rejects_a_wrong_checksum_after_a_second_download(server: Server, folder: Path) -> None:
    damaged = CONTENT[:100] + b"!" + CONTENT[101:]
    said = refusal(server, folder, file(damaged))
    assert f"200,000 bytes whose SHA-256 is not {original().sha256}" in said
    assert "was removed; try again, or another URL (--url)" in said
    assert list(folder.iterdir()) == []
    assert server.ranges == [None, None]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_obtain_retries_after_temporary_errors(server: Server, folder: Path, code: int) -> None:
    assert fetched(server, folder, status(code), status(code), file(CONTENT)) == CONTENT


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 501, 206, 416])
def test_obtain_does_not_retry_after_a_refusal(server: Server, folder: Path, code: int) -> None:
    assert f"answers HTTP {code}" in refusal(server, folder, status(code))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answers", "problem", "kept"),
    [
        ([status(503)], "HTTP 503", "nothing has arrived"),
        ([file(CONTENT, cut=80_000), status(503)], "HTTP 503", "80,000 of 200,000 bytes are here and stay"),
        ([without_ranges(CONTENT, 60_000)], "the connection ended after 60,000 of 200,000 bytes", "60,000 of 200,000"),
    ],
    ids=["nothing", "something", "same-place"],
)
def test_obtain_gives_up_after_five_attempts_without_progress(
    server: Server, folder: Path, answers: list[Answer], problem: str, kept: str
) -> None:
    said = refusal(server, folder, *answers)
    assert f"could not be downloaded ({problem}" in said
    assert f" in 5 attempts; {kept}" in said
    assert ". Try again, or another URL" in said
    assert len(server.requests) == 5 + ("nothing" not in kept)


def test_obtain_reports_waits_for_an_unreachable_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    seen: list[FetchProgress] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match=r"could not be downloaded \(Connection refused\) in 5 attempts"):
            obtain(original(), f"http://127.0.0.1:{unused.getsockname()[1]}/f", folder, seen.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert {progress.stage for progress in seen} == {FetchStage.WAIT}
    assert seen[-1].reason == "Connection refused; trying again in 8 s"


@pytest.mark.parametrize("length", [199_999, 200_001, 0])
def test_obtain_rejects_a_different_length_before_reading(server: Server, folder: Path, length: int) -> None:
    assert f"has {length:,} bytes, expected 200,000" in refusal(server, folder, sends(CONTENT[:length], length))
    assert not part(folder).exists()


def test_obtain_does_not_write_more_than_the_file_has(server: Server, folder: Path) -> None:
    longest = 0

    def look(_progress: FetchProgress) -> None:
        nonlocal longest
        longest = max(longest, part(folder).stat().st_size)

    with pytest.raises(FetchError, match="more than 200,000 bytes"):
        obtain(original(), server.says("/f", sends(CONTENT * 40, None)), folder, look)
    assert longest <= 200_000
    assert not part(folder).exists()


def test_obtain_keeps_the_bytes_when_the_disk_is_full(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def open_small_disk(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = opened(path, mode, *args, **kwargs)
        return FullDisk(stream, room=100_000) if path == part(folder) else stream

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_small_disk)
        with pytest.raises(FetchError, match=r"no space is left in .*; \d?\d\d,\d{3} of 200,000 bytes are here"):
            obtain(original(), server.says("/file.bin", file(CONTENT)), folder, unwatched)
    there = part(folder).stat().st_size
    assert 0 < there <= 100_000
    assert fetched(server, folder, file(CONTENT)) == CONTENT
    assert server.ranges == [None, f"bytes={there}-"]


class FullDisk:
    """A file on a disk with room for a number of bytes."""

    def __init__(self, stream: Any, room: int) -> None:
        self._stream, self._room = stream, room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stream.close()

    def write(self, content: bytes) -> None:
        if len(content) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room -= len(content)
        self._stream.write(content)


@pytest.mark.parametrize("stage", [FetchStage.DOWNLOAD, FetchStage.CHECK])
def test_obtain_keeps_the_bytes_when_interrupted(server: Server, folder: Path, stage: FetchStage) -> None:
    def interrupt(progress: FetchProgress) -> None:
        if progress.stage is stage and (stage is FetchStage.CHECK or progress.done >= 2 * CHUNK):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(original(), server.says("/file.bin", file(CONTENT)), folder, interrupt)
    (left,) = folder.iterdir()
    there = left.read_bytes()
    assert len(there) >= 2 * CHUNK
    assert there == CONTENT[: len(there)]
    assert fetched(server, folder, file(CONTENT)) == CONTENT
    assert server.ranges == ([None] if stage is FetchStage.CHECK else [None, f"bytes={len(there)}-"])


def test_obtain_reports_progress_from_the_resumed_byte_to_the_size(server: Server, folder: Path) -> None:
    part(folder).write_bytes(CONTENT[:100_000])
    seen: list[FetchProgress] = []
    obtain(original(), server.says("/f", file(CONTENT)), folder, seen.append)
    downloads = [(progress.done, progress.total) for progress in seen if progress.stage is FetchStage.DOWNLOAD]
    assert downloads[0][0] > 100_000
    assert downloads == sorted(downloads)
    assert downloads[-1] == (200_000, 200_000)
    assert seen[-1] == FetchProgress(FetchStage.CHECK, "file.bin")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_obtain_follows_redirects_with_its_range(server: Server, folder: Path, code: int) -> None:
    part(folder).write_bytes(CONTENT[:5])
    server.says("/b/file", file(CONTENT))
    server.says("/b/a", redirect("file", code))
    assert fetched(server, folder, redirect(server.url + "/b/a", code)) == CONTENT
    assert [path for path, _ in server.requests] == ["/file.bin", "/b/a", "/b/file"]
    assert server.ranges == ["bytes=5-"] * 3


def test_obtain_rejects_a_loop_of_redirects(server: Server, folder: Path) -> None:
    assert "redirects more than 5 times" in refusal(server, folder, redirect("/file.bin"))
    assert len(server.requests) == 6


def test_obtain_rejects_a_redirect_without_location(server: Server, folder: Path) -> None:
    assert "answers HTTP 302" in refusal(server, folder, redirect(None))


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/", "http://me:secret@127.0.0.1/x"]
)
def test_obtain_rejects_redirects_to_other_than_public_urls(server: Server, folder: Path, target: str) -> None:
    said = refusal(server, folder, redirect(target))
    assert f"redirects to {target}, which is not a public http(s) URL" in said
    assert len(server.requests) == 1


def test_session_rejects_a_redirect_from_https_to_http() -> None:
    response = SimpleNamespace(url="https://example.org/file")
    with pytest.raises(FetchError, match=r"redirects to http://example\.org/file, which is not encrypted"):
        _Session().rebuild_auth(SimpleNamespace(url="http://example.org/file"), response)  # type: ignore[arg-type]
    _Session().rebuild_auth(SimpleNamespace(url="https://example.org/file"), response)  # type: ignore[arg-type]


def test_obtain_sends_no_credentials(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server.says("/b", file(CONTENT))
    obtain(original(), server.says("/a", redirect("/b")), folder, unwatched)
    assert [headers.get("Authorization") for _, headers in server.requests] == [None, None]


def test_invalid_certificate_is_no_temporary_error() -> None:
    import ssl

    cause = ssl.SSLCertVerificationError(1, "failed")
    cause.verify_message = "self-signed certificate"
    error = OSError("wrapped")
    error.__cause__ = cause
    said = _translated("https://a/b", error)
    assert isinstance(said, FetchError)
    assert str(said) == "https://a/b has no valid certificate (self-signed certificate)"


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "ftp://example.org/a", "example.org/a", "https://", "https:///a", "http://a b/c",
     "http://[::1/a", "http://a:99999/", "http://a/\n", "http://ä/"],
)  # fmt: skip
def test_check_url_rejects_other_than_web_urls(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL that begins with https:// or http://"):
        check_url(url)


@pytest.mark.parametrize("user", ["me:secret@", "me@", ":secret@", "@"])
def test_check_url_rejects_a_user_without_repeating_the_password(user: str) -> None:
    with pytest.raises(ValueError, match=r"in front of example\.org; expected a URL without them") as caught:
        check_url(f"https://{user}example.org/a")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://example.org/a@b", "https://a.org/a.tar.gz?b=c", "http://127.0.0.1:8000/a", "HTTPS://example.org/"]
)
def test_check_url_accepts_web_urls(url: str) -> None:
    check_url(url)
