"""Files of JSON lines: rotation, numbering and failing disks."""

import errno
import os

import pytest
from esper_env.telemetry import JsonlSink, read_events, sinks
from esper_env.telemetry.jsonl import encode
from made_events import event

LINE = len(encode(event(0)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ids(path):
    return [found.id for found in read_events(path)]


def events(first, last):
    return [event(number) for number in range(first, last)]


@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("lines", [1, 2])
def test_file_rotates_before_it_exceeds_max_bytes_at_any_batch_size(tmp_path, size, lines):
    """A line that is longer than ``max_bytes`` has its own file."""
    sink = JsonlSink(tmp_path / "new", max_bytes=lines * LINE - (lines == 1))
    assert names(tmp_path / "new") == []
    for first in range(0, 9, size):
        sink.write(events(first, first + size))
    sink.close()
    found = [ids(tmp_path / "new" / name) for name in names(tmp_path / "new")]
    assert found == [list(range(first, min(first + lines, 9))) for first in range(0, 9, lines)]


def test_keep_deletes_only_the_oldest_event_files(tmp_path):
    (tmp_path / "events-old.jsonl").write_text("mine")
    (tmp_path / "events-99999.jsonl").write_bytes(encode(event(9)))
    sink = JsonlSink(tmp_path, max_bytes=LINE, keep=2)
    sink.write(events(0, 5))
    sink.close()
    assert names(tmp_path) == ["events-100003.jsonl", "events-100004.jsonl", "events-old.jsonl"]
    assert ids(tmp_path) == [3, 4]


def test_existing_files_are_never_written_to(tmp_path):
    torn = encode(event(1))[:-9]
    (tmp_path / "events-00007.jsonl").write_bytes(torn)
    sink = JsonlSink(tmp_path)
    for number in (2, 3):
        sink.write(events(number, number + 1))
        sink.close()
    assert names(tmp_path) == ["events-00007.jsonl", "events-00008.jsonl", "events-00009.jsonl"]
    assert (tmp_path / "events-00007.jsonl").read_bytes() == torn


def test_two_sinks_in_a_folder_write_separate_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "event_files", lambda _folder: [])  # both list the folder before either creates a file
    first, second = JsonlSink(tmp_path), JsonlSink(tmp_path)
    first.write(events(0, 1))
    second.write(events(1, 2))
    first.close(), second.close()
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [[0], [1]]


def test_full_disk_tears_one_line_and_writing_continues_in_another_file(tmp_path, monkeypatch):
    sink = JsonlSink(tmp_path)
    sink.write(events(0, 1))
    room, write = [LINE + 10], os.write

    def nearly_full(where, data):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(where, data[: room.pop()])  # a partial write

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match=r"No space left on device: .*events-00000.jsonl") as caught:
        sink.write(events(1, 4))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    sink.write(events(4, 5))
    sink.close()
    assert len(names(tmp_path)) == 2
    with pytest.warns(RuntimeWarning, match=r"events-00000.jsonl, line 3: .*incomplete"):
        assert ids(tmp_path) == [0, 1, 4]


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_bytes": 1.5}, {"keep": 0}, {"keep": True}])
def test_sink_rejects_invalid_options_before_it_creates_the_folder(tmp_path, options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is .*expected a positive integer"):
        JsonlSink(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
