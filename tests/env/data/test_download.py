"""Downloads: resumed after interruptions, and verified."""

from __future__ import annotations

import gc
import random
import socket
import ssl
import tempfile
import warnings
from pathlib import Path
from urllib.error import URLError
from urllib.request import OpenerDirector

import pytest
from archives import original
from esper_env.data.download import CHUNK, check_url, obtain
from esper_env.data.originals import FetchError
from esper_env.data.progress import FetchProgress, FetchStage, unwatched
from hypothesis import given
from hypothesis import strategies as st
from serving import Answer, Server, file, redirect, sends, serving, status, without_ranges

CONTENT = random.Random(5).randbytes(200_000)
ORIGINAL = original("file.bin", CONTENT)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.bin.part"


def fetched(server: Server, folder: Path, *answers: Answer) -> bytes:
    obtain(ORIGINAL, server.says("/file.bin", *answers), folder, unwatched)
    assert [path.name for path in folder.iterdir()] == ["file.bin"]
    return (folder / "file.bin").read_bytes()


def refusal(server: Server, folder: Path, *answers: Answer) -> str:
    """The error message of a download that fails."""
    url = server.says("/file.bin", *answers)
    with pytest.raises(FetchError, match=rf"^{url} .*\(--url\)$") as caught:
        obtain(ORIGINAL, url, folder, unwatched)
    assert not (folder / "file.bin").exists()
    return str(caught.value)


@pytest.mark.parametrize("headers", [{"Content_Length": 200_000}, {}, {"Content_Encoding": "gzip"}])
def test_obtain_downloads_a_file_as_it_is(server: Server, tmp_path: Path, headers: dict) -> None:
    assert fetched(server, tmp_path, sends(CONTENT, **headers)) == CONTENT
    assert server.ranges == [None]


@pytest.mark.parametrize("name", ["file.bin", "file.bin.part"])
def test_obtain_makes_no_request_if_the_file_is_there(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    assert fetched(server, tmp_path, status(500)) == CONTENT
    assert server.requests == []


KINDS = [file, without_ranges, lambda _content, _cut: status(503), lambda _content, _cut: status(416)]


@given(
    cuts=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 1500)), max_size=6),
    last=st.sampled_from(KINDS[:2]),
    here=st.integers(0, 1200),
    wrong=st.booleans(),
    complete=st.booleans(),
)
def test_obtain_succeeds_after_any_interruptions(
    cuts: list[tuple], last: Answer, here: int, wrong: bool, complete: bool
) -> None:
    content = CONTENT[:1000]
    answers = [answer(content, cut) for answer, cut in cuts] + [last(content, 1500)]
    with serving() as server, tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        patch.setattr("esper_env.data.download.PAUSES", (0.0,) * 9)
        there = Path(place) / ("file.bin" if complete else "file.bin.part")
        there.write_bytes((bytes(1200) if wrong else content + bytes(200))[:here])
        obtain(original("file.bin", content), server.says("/f", *answers), Path(place), unwatched)
        assert (Path(place) / "file.bin").read_bytes() == content


def test_obtain_resumes_in_the_same_and_in_the_next_call(server: Server, tmp_path: Path, part: Path) -> None:
    said = refusal(server, tmp_path, file(CONTENT, cut=70_000), file(CONTENT, cut=30_000), status(404))
    assert "answers HTTP 404 Not Found; try another URL" in said
    assert part.read_bytes() == CONTENT[:100_000]
    assert fetched(server, tmp_path, file(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=70000-", "bytes=100000-", "bytes=100000-"]


def test_obtain_starts_over_after_the_server_refuses_the_range(server: Server, tmp_path: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:100_000])
    assert fetched(server, tmp_path, status(416), file(CONTENT)) == CONTENT
    assert server.ranges == ["bytes=100000-", None]


def test_obtain_downloads_a_file_with_a_wrong_checksum_once_more(server: Server, tmp_path: Path, part: Path) -> None:
    part.write_bytes(bytes(150_000))
    seen: list[FetchProgress] = []
    obtain(ORIGINAL, server.says("/f", file(CONTENT)), tmp_path, seen.append)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=150000-", None]
    reasons = [progress.reason for progress in seen if progress.stage is FetchStage.WAIT]
    assert reasons == ["its SHA-256 is wrong; downloading it again"]


@pytest.mark.parametrize("length", [{"Content_Length": 200_000}, {}])
def test_obtain_rejects_a_wrong_checksum_after_a_second_download(server: Server, tmp_path: Path, length: dict) -> None:
    said = refusal(server, tmp_path, sends(bytes(200_000) + bytes(9) * (not length), **length))
    assert f"200,000 bytes whose SHA-256 is not {ORIGINAL.sha256}" in said
    assert list(tmp_path.iterdir()) == []
    assert server.ranges == [None, None]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 501])
def test_obtain_does_not_retry_after_a_refusal(server: Server, tmp_path: Path, code: int) -> None:
    assert f"answers HTTP {code}" in refusal(server, tmp_path, status(code))
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", [199_999, 200_001, 0])
def test_obtain_rejects_a_different_length_before_reading(
    server: Server, tmp_path: Path, part: Path, length: int
) -> None:
    said = refusal(server, tmp_path, sends(CONTENT[:length], Content_Length=length))
    assert f"has {length:,} bytes, expected 200,000" in said
    assert not part.exists()


@pytest.mark.parametrize(
    ("answers", "problem", "here"),
    [
        ([status(503)], "HTTP 503 Service Unavailable", "0"),
        ([file(CONTENT, cut=80_000), status(429)], "HTTP 429 Too Many Requests", "80,000"),
        ([without_ranges(CONTENT, 60_000)], "the connection ended after 60,000 of 200,000 bytes", "60,000"),
    ],
    ids=["nothing", "something", "same-place"],
)
def test_obtain_gives_up_after_five_attempts_without_progress(
    server: Server, tmp_path: Path, answers: list[Answer], problem: str, here: str
) -> None:
    said = refusal(server, tmp_path, *answers)
    assert f"could not be downloaded ({problem}) in 5 attempts; {here} of 200,000 bytes have arrived and are" in said
    assert len(server.requests) == 5 + (here != "0")


def test_obtain_reports_waits_for_an_unreachable_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    seen: list[FetchProgress] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match=r"could not be downloaded \(Connection refused\) in 5 attempts"):
            obtain(ORIGINAL, f"http://127.0.0.1:{unused.getsockname()[1]}/f", tmp_path, seen.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert {progress.stage for progress in seen} == {FetchStage.WAIT}
    assert seen[-1].reason == "Connection refused; trying again in 8 s"


def test_obtain_does_not_retry_after_an_invalid_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        error = ssl.SSLCertVerificationError(1, "failed")
        error.verify_message = "self-signed certificate"
        raise URLError(error)

    monkeypatch.setattr(OpenerDirector, "open", refuse)
    with pytest.raises(FetchError, match=r"https://a/b has no valid certificate \(self-signed certificate\)"):
        obtain(ORIGINAL, "https://a/b", tmp_path, unwatched)


@pytest.mark.parametrize("stage", [FetchStage.DOWNLOAD, FetchStage.CHECK])
def test_obtain_keeps_the_bytes_when_interrupted(server: Server, tmp_path: Path, stage: FetchStage) -> None:
    def interrupt(progress: FetchProgress) -> None:
        if progress.stage is stage and (stage is FetchStage.CHECK or progress.done >= 2 * CHUNK):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(ORIGINAL, server.says("/file.bin", file(CONTENT)), tmp_path, interrupt)
    (left,) = tmp_path.iterdir()
    there = left.read_bytes()
    assert len(there) >= 2 * CHUNK
    assert there == CONTENT[: len(there)]
    assert fetched(server, tmp_path, file(CONTENT)) == CONTENT
    assert server.ranges == ([None] if stage is FetchStage.CHECK else [None, f"bytes={len(there)}-"])


def test_obtain_reports_progress_from_the_resumed_byte_to_the_size(server: Server, tmp_path: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:100_000])
    seen: list[FetchProgress] = []
    obtain(ORIGINAL, server.says("/f", file(CONTENT)), tmp_path, seen.append)
    downloads = [(progress.done, progress.total) for progress in seen if progress.stage is FetchStage.DOWNLOAD]
    assert downloads[0][0] > 100_000
    assert downloads == sorted(downloads)
    assert downloads[-1] == (200_000, 200_000)
    assert seen[-1] == FetchProgress(FetchStage.CHECK, "file.bin")


@pytest.mark.parametrize("code", [302, 308])
def test_obtain_follows_redirects_with_its_range(server: Server, tmp_path: Path, part: Path, code: int) -> None:
    part.write_bytes(CONTENT[:5])
    server.says("/b/file", file(CONTENT))
    server.says("/b/a", redirect("file", code))
    assert fetched(server, tmp_path, redirect(server.url + "/b/a", code)) == CONTENT
    assert [path for path, _ in server.requests] == ["/file.bin", "/b/a", "/b/file"]
    assert server.ranges == ["bytes=5-"] * 3


@pytest.mark.parametrize("target", ["/file.bin", "file:///etc/passwd", "data:,x"], ids=["loop", "file", "data"])
def test_obtain_rejects_invalid_redirects(server: Server, tmp_path: Path, target: str) -> None:
    assert "answers HTTP 302 " in refusal(server, tmp_path, redirect(target))


def test_obtain_rejects_a_redirect_to_a_malformed_url(server: Server, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # urllib leaves the answer to the garbage collector
        said = refusal(server, tmp_path, redirect("http://[::1"))
        gc.collect()
    assert "redirects to a malformed URL (Invalid IPv6 URL)" in said


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "ftp://example.org/a", "example.org/a", "https:///a", "http://a b/c",
     "http://[::1/a", "http://a:99999/", "http://a/\n", "http://ä/"],
)  # fmt: skip
def test_check_url_rejects_other_than_web_urls(url: str) -> None:
    with pytest.raises(ValueError, match="expected a URL that begins with https:// or http://"):
        check_url(url)


def test_check_url_rejects_a_user_without_repeating_the_password() -> None:
    with pytest.raises(ValueError, match=r"in front of example\.org; expected a URL without them") as caught:
        check_url("https://me:secret@example.org/a")
    assert "secret" not in str(caught.value)
    check_url("https://example.org/a@b")
