"""A file arrives whole, whatever happens on the way, or not at all."""

from __future__ import annotations

import errno
import hashlib
import random
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from esper_env.data import download
from esper_env.data.download import CHUNK, length, obtain
from esper_env.data.progress import Progress, Stage, unwatched
from esper_env.data.sources import Download
from esper_env.data.web import FetchError, UnreachableError
from hypothesis import given
from hypothesis import strategies as st
from serving import Answer, Server, file, redirect, sends, serving, status, without_ranges

CONTENT = random.Random(5).randbytes(200_000)


def original(content: bytes = CONTENT) -> Download:
    return Download("https://example.org/file.bin", len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.bin"


def part(target: Path) -> Path:
    return target.with_name("file.bin.part")


def fetched(server: Server, target: Path, *answers: Answer) -> bytes:
    obtain(original(), server.says("/file.bin", *answers), target, unwatched)
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]  # nothing is left beside it
    return target.read_bytes()


def test_a_file_is_fetched_whole(server: Server, target: Path) -> None:
    assert fetched(server, target, file(CONTENT)) == CONTENT
    assert server.ranges == [None]


def test_a_file_that_is_there_is_not_asked_for(server: Server, target: Path) -> None:
    target.write_bytes(CONTENT)
    assert fetched(server, target, status(500)) == CONTENT
    assert server.requests == []


def test_a_file_that_is_there_and_another_one_is_fetched_anew(server: Server, target: Path) -> None:
    target.write_bytes(CONTENT[:-1] + b"?")
    assert fetched(server, target, file(CONTENT)) == CONTENT


def test_a_broken_connection_goes_on_where_it_broke(server: Server, target: Path) -> None:
    assert fetched(server, target, file(CONTENT, cut=70_000), file(CONTENT, cut=30_000), file(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=70000-", "bytes=100000-"]
    assert [headers.get("If-Range") for _, headers in server.requests] == [None, '"one"', '"one"']


@given(
    cuts=st.lists(st.integers(0, 1500), max_size=6),
    ranged=st.lists(st.booleans(), min_size=7, max_size=7),
    here=st.integers(0, 1200),
)
def test_any_sequence_of_interruptions_ends_in_the_file(cuts: list[int], ranged: list[bool], here: int) -> None:
    content = CONTENT[:1000]
    answers = [
        file(content, cut=cut) if whole else without_ranges(content, cut)
        for cut, whole in zip([*cuts, 1500], ranged, strict=False)
    ]
    with serving() as server, tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        patch.setattr("esper_env.data.download.PAUSES", (0.0,) * 9)
        target = Path(folder) / "file.bin"
        part(target).write_bytes(content[:here] + b"?" * (here - 1000))
        obtain(original(content), server.says("/f", *answers), target, unwatched)
        assert target.read_bytes() == content


def test_a_later_fetch_goes_on_from_what_an_earlier_one_left(server: Server, target: Path) -> None:
    url = server.says("/f", file(CONTENT, cut=90_000), status(404))
    with pytest.raises(FetchError, match="HTTP 404"):
        obtain(original(), url, target, unwatched)
    assert part(target).read_bytes() == CONTENT[:90_000]
    server.says("/f", file(CONTENT))
    obtain(original(), url, target, unwatched)
    assert target.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=90000-"


def test_all_of_it_left_by_an_earlier_fetch_needs_no_server(server: Server, target: Path) -> None:
    part(target).write_bytes(CONTENT)
    assert fetched(server, target, status(500)) == CONTENT
    assert server.requests == []


def test_another_server_is_asked_for_the_rest_without_the_first_ones_tag(server: Server, target: Path) -> None:
    with pytest.raises(FetchError):
        obtain(original(), server.says("/one", file(CONTENT, cut=5_000), status(404)), target, unwatched)
    obtain(original(), server.says("/two", file(CONTENT, etag='"two"')), target, unwatched)
    assert target.read_bytes() == CONTENT
    assert server.requests[-1][1]["Range"] == "bytes=5000-"
    assert "If-Range" not in server.requests[-1][1]


def test_a_file_that_changed_on_the_server_is_begun_anew(server: Server, target: Path) -> None:
    old = bytes(200_000)
    assert fetched(server, target, file(old, etag='"old"', cut=150_000), file(CONTENT, etag='"new"')) == CONTENT
    assert len(server.requests) == 2


def test_a_weak_tag_is_no_condition(server: Server, target: Path) -> None:
    weak = file(CONTENT, etag='W/"x"', cut=1_000)
    assert fetched(server, target, weak, file(CONTENT)) == CONTENT
    assert "If-Range" not in server.requests[1][1]


def test_the_date_serves_where_there_is_no_tag(server: Server, target: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    begun = sends(CONTENT[:1_000], len(CONTENT), Last_Modified=date)
    assert fetched(server, target, begun, without_ranges(CONTENT)) == CONTENT
    assert server.requests[1][1]["If-Range"] == date


def test_a_beginning_of_another_file_is_found_out_and_begun_anew(server: Server, target: Path) -> None:
    part(target).write_bytes(bytes(150_000))
    assert fetched(server, target, file(CONTENT)) == CONTENT
    assert server.ranges == ["bytes=150000-", None]


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, target: Path) -> None:
    assert fetched(server, target, without_ranges(CONTENT, 60_000), without_ranges(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=60000-"]


@pytest.mark.parametrize(
    "place",
    ["bytes 0-199999/200000", "bytes 60001-199999/200000", "bytes 60000-199999/300000", "bytes */200000", "",
     "lines 60000-199999/200000"],
)  # fmt: skip
def test_another_range_than_was_asked_for_is_not_used(server: Server, target: Path, place: str) -> None:
    wrong = sends(CONTENT[60_000:], 140_000, code=206, Content_Range=place)
    assert fetched(server, target, file(CONTENT, cut=60_000), wrong, file(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=60000-", None]


def test_a_range_of_a_file_of_unknown_length_is_used(server: Server, target: Path) -> None:
    rest = sends(CONTENT[60_000:], 140_000, code=206, Content_Range="bytes 60000-199999/*")
    assert fetched(server, target, file(CONTENT, cut=60_000), rest) == CONTENT


def test_a_range_that_the_server_does_not_have_is_begun_anew(server: Server, target: Path) -> None:
    assert fetched(server, target, file(CONTENT, cut=60_000), status(416), file(CONTENT)) == CONTENT
    assert server.ranges == [None, "bytes=60000-", None]


def test_a_file_of_unannounced_length_is_fetched(server: Server, target: Path) -> None:
    assert fetched(server, target, sends(CONTENT, None)) == CONTENT


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(server: Server, target: Path, code: int) -> None:
    assert fetched(server, target, status(code), status(code), file(CONTENT)) == CONTENT


def refusal(server: Server, target: Path, *answers: Answer) -> str:
    """What is said when it fails; the file is not there then."""
    with pytest.raises(FetchError) as caught:
        obtain(original(), server.says("/file.bin", *answers), target, unwatched)
    assert not target.exists()
    assert "/file.bin" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 501, 206, 416])
def test_a_server_that_will_not_give_it_is_asked_once(server: Server, target: Path, code: int) -> None:
    assert f"HTTP {code}" in refusal(server, target, status(code))
    assert len(server.requests) == 1


def test_a_server_that_stays_in_trouble_is_given_up(server: Server, target: Path) -> None:
    said = refusal(server, target, file(CONTENT, cut=80_000), status(503))
    assert "HTTP 503" in said
    assert "80,000 of 200,000 bytes are here" in said
    assert len(server.requests) == 6  # one that brought something and five that did not
    assert part(target).read_bytes() == CONTENT[:80_000]


def test_a_server_that_breaks_at_the_same_place_each_time_is_given_up(server: Server, target: Path) -> None:
    assert "the connection ended after 60,000" in refusal(server, target, without_ranges(CONTENT, 60_000))
    assert len(server.requests) == 6


def test_nobody_there_is_given_up(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    seen: list[Progress] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match=r"refused.* in 5 tries"):
            obtain(original(), f"http://127.0.0.1:{unused.getsockname()[1]}/f", target, seen.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert {progress.stage for progress in seen} == {Stage.WAIT}
    assert "again in 8 s" in seen[-1].reason


def test_a_damaged_file_is_refused_and_removed(server: Server, target: Path) -> None:
    damaged = CONTENT[:100] + b"!" + CONTENT[101:]
    said = refusal(server, target, file(damaged))
    assert hashlib.sha256(damaged).hexdigest() in said
    assert original().sha256 in said
    assert not part(target).exists()
    assert len(server.requests) == 1


def test_damage_in_the_rest_costs_one_more_download_and_is_refused_then(server: Server, target: Path) -> None:
    damaged = CONTENT[:-1] + b"!"
    assert "HTTP 404" in refusal(server, target, file(damaged, cut=100), status(404))
    assert "SHA-256" in refusal(server, target, file(damaged))
    assert server.ranges[-2:] == ["bytes=100-", None]
    assert not part(target).exists()


@pytest.mark.parametrize("length", [199_999, 200_001, 0])
def test_another_length_is_refused_before_anything_is_read(server: Server, target: Path, length: int) -> None:
    said = refusal(server, target, sends(CONTENT[:length], length))
    assert f"has {length:,} bytes, expected 200,000" in said
    assert not part(target).exists()


def test_more_than_the_file_has_is_refused(server: Server, target: Path) -> None:
    assert "more than 200,000 bytes" in refusal(server, target, sends(CONTENT + b"x", None))
    assert not part(target).exists()


def test_a_file_without_end_is_not_written_to_the_disk(server: Server, target: Path) -> None:
    longest = 0

    def look(_progress: Progress) -> None:
        nonlocal longest
        longest = max(longest, part(target).stat().st_size)

    with pytest.raises(FetchError, match="more than 200,000 bytes"):
        obtain(original(), server.says("/f", sends(CONTENT * 40, None)), target, look)
    assert longest <= 200_000


def test_more_than_the_file_has_left_by_an_earlier_fetch_is_begun_anew(server: Server, target: Path) -> None:
    part(target).write_bytes(CONTENT + b"x")
    assert fetched(server, target, file(CONTENT)) == CONTENT


def test_less_than_the_file_has_is_an_interruption(server: Server, target: Path) -> None:
    assert fetched(server, target, sends(CONTENT[:199_999], None), file(CONTENT)) == CONTENT


def test_a_page_of_a_gateway_is_not_taken_for_the_file(server: Server, target: Path) -> None:
    server.says("/login", sends(b"<html>please log in</html>", 26))
    assert "has 26 bytes, expected 200,000" in refusal(server, target, redirect("/login"))


def test_a_full_disk_is_told_and_what_has_arrived_stays(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def full_after_a_while(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        stream = opened(path, mode, *args, **kwargs)
        if path.name == "file.bin.part" and mode in ("ab", "wb"):
            write = stream.write
            return FullDisk(stream, write, room=100_000)
        return stream

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_after_a_while)
        with pytest.raises(FetchError, match=r"no space is left in .*; 1?\d\d,\d{3} of 200,000 bytes are here"):
            obtain(original(), server.says("/f", file(CONTENT)), target, unwatched)
    there = part(target).stat().st_size
    assert 0 < there <= 100_000
    obtain(original(), server.url + "/f", target, unwatched)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={there}-"]


@pytest.mark.parametrize(("cut", "said"), [(0, "nothing has arrived"), (70_000, "of 200,000 bytes are here and stay")])
def test_a_failure_says_what_stays_if_anything_does(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, cut: int, said: str
) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0,))
    url = server.says("/f", file(CONTENT, cut=cut) if cut else status(503), status(503))
    with pytest.raises(UnreachableError, match=rf"in \d tries; .*{said}.*\. Try again") as caught:
        obtain(original(), url, target, unwatched)
    assert ("stay" in str(caught.value)) == (length(part(target)) > 0)


class FullDisk:
    """A file whose disk has room for so many bytes."""

    def __init__(self, stream: Any, write: Callable[[bytes], int], room: int) -> None:
        self._stream, self._write, self._room = stream, write, room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stream.close()

    def write(self, content: bytes) -> int:
        if len(content) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room -= len(content)
        return self._write(content)


def test_an_interrupt_leaves_what_has_arrived(server: Server, target: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done >= 2 * CHUNK:
            raise KeyboardInterrupt

    url = server.says("/f", file(CONTENT))
    with pytest.raises(KeyboardInterrupt):
        obtain(original(), url, target, interrupt)
    there = part(target).read_bytes()
    assert 2 * CHUNK <= len(there) < 200_000
    assert there == CONTENT[: len(there)]
    obtain(original(), url, target, unwatched)
    assert server.ranges == [None, f"bytes={len(there)}-"]


def test_progress_counts_what_is_there_and_ends_at_the_size(server: Server, target: Path) -> None:
    part(target).write_bytes(CONTENT[:100_000])
    seen: list[Progress] = []
    obtain(original(), server.says("/f", file(CONTENT)), target, seen.append)
    downloads = [progress.done for progress in seen if progress.stage is Stage.DOWNLOAD]
    assert downloads[0] > 100_000
    assert downloads == sorted(downloads)
    assert seen[-1] == Progress(Stage.CHECK, "file.bin", 200_000, 200_000)
    assert {progress.file for progress in seen} == {"file.bin"}
