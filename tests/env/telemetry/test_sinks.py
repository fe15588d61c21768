"""Files of JSON lines: rotation, numbering, failing disks, and removal of later events."""

import errno
import os

import pytest
from esper_env.telemetry import JsonlSink, MemorySink, Telemetry, drop_events, read_events
from esper_env.telemetry.lines import encode
from esper_env.telemetry.sinks import event_files
from made_events import epoch_completed, event

LINE = len(encode(event(0)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ids(path):
    return [found.id for found in read_events(path)]


def events(first, last):
    return [event(number) for number in range(first, last)]


@pytest.mark.parametrize("size", [1, 3, 9])
def test_file_rotates_before_it_exceeds_max_bytes_at_any_batch_size(tmp_path, size):
    sink = JsonlSink(tmp_path, max_bytes=2 * LINE)
    for first in range(0, 9, size):
        sink.write(events(first, first + size))
    sink.close()
    assert names(tmp_path) == [f"events-0000{number}.jsonl" for number in range(5)]
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert (tmp_path / "events-00000.jsonl").stat().st_size == 2 * LINE


def test_line_longer_than_max_bytes_has_its_own_file(tmp_path):
    sink = JsonlSink(tmp_path, max_bytes=1)
    sink.write(events(0, 3))
    sink.close()
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [[0], [1], [2]]


def test_keep_deletes_only_the_oldest_event_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "events-old.jsonl").write_text("mine")
    sink = JsonlSink(tmp_path, max_bytes=LINE, keep=2)
    sink.write(events(0, 5))
    sink.close()
    assert names(tmp_path) == ["events-00003.jsonl", "events-00004.jsonl", "events-old.jsonl", "notes.txt"]
    assert ids(tmp_path) == [3, 4]


def test_existing_files_are_never_written_to(tmp_path):
    (tmp_path / "events-00007.jsonl").write_bytes(encode(event(1))[:-9])
    before = (tmp_path / "events-00007.jsonl").read_bytes()
    sink = JsonlSink(tmp_path)
    sink.write(events(2, 3))
    sink.close()
    sink.write(events(3, 4))
    sink.close()
    assert names(tmp_path) == ["events-00007.jsonl", "events-00008.jsonl", "events-00009.jsonl"]
    assert (tmp_path / "events-00007.jsonl").read_bytes() == before


def test_files_are_sorted_by_number(tmp_path):
    for number in (99_999, 100_000):
        (tmp_path / f"events-{number}.jsonl").write_bytes(encode(event(number)))
    sink = JsonlSink(tmp_path)
    sink.write(events(1, 2))
    sink.close()
    assert ids(tmp_path) == [99_999, 100_000, 1]


def test_two_sinks_in_a_folder_write_separate_files(tmp_path, monkeypatch):
    first, second = JsonlSink(tmp_path), JsonlSink(tmp_path)
    listed = iter([[], []])  # both list the folder before either creates a file
    monkeypatch.setattr("esper_env.telemetry.sinks._numbered", lambda _folder: next(listed))
    first.write(events(0, 1))
    second.write(events(1, 2))
    first.close(), second.close()
    monkeypatch.undo()
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [[0], [1]]


def test_sink_without_events_creates_no_file(tmp_path):
    JsonlSink(tmp_path / "new").close()
    assert names(tmp_path / "new") == []


def test_whole_lines_are_written_by_one_append(tmp_path, monkeypatch):
    written = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda where, data: written.append(bytes(data)) or write(where, data))
    opened = []
    open_file = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: opened.append(flags) or open_file(path, flags, *mode))
    sink = JsonlSink(tmp_path, max_bytes=2 * LINE)
    sink.write(events(0, 3))
    monkeypatch.undo()
    sink.close()
    assert written == [b"".join(map(encode, events(0, 2))), encode(event(2))]
    assert all(flags & os.O_APPEND for flags in opened)
    assert len(opened) == 2


def test_partial_write_is_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda where, data: write(where, data[:7]))
    sink = JsonlSink(tmp_path)
    sink.write(events(0, 3))
    monkeypatch.undo()
    sink.close()
    assert ids(tmp_path) == [0, 1, 2]


def test_full_disk_tears_one_line_and_writing_continues_in_another_file(tmp_path, monkeypatch):
    sink = JsonlSink(tmp_path)
    sink.write(events(0, 1))
    room = [LINE + 10]
    write = os.write

    def nearly_full(where, data):
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(where, data[: room.pop()])

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
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*expected a positive integer"):
        JsonlSink(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_sink_rejects_a_file_as_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(ValueError, match="cannot be created"):
            JsonlSink(tmp_path / folder)


def test_memory_sink_keeps_events_in_order():
    sink = MemorySink()
    sink.write([event(0, epoch_completed(1.0))])
    sink.write(events(1, 3))
    sink.close()
    assert [found.id for found in sink.events] == [0, 1, 2]


@pytest.fixture
def folder(tmp_path):
    """A folder with twelve events in several files."""
    telemetry = Telemetry()
    telemetry.add_sink(JsonlSink(tmp_path, max_bytes=700))
    for epoch in range(12):
        telemetry.emit(epoch_completed(), env=0, epoch=epoch)
    telemetry.close()
    assert len(event_files(tmp_path)) > 3
    return tmp_path


@pytest.mark.parametrize("first", [0, 1, 2, 5, 11, 12])
def test_drop_events_removes_an_id_and_all_later_ones(folder, first):
    before = b"".join(file.read_bytes() for file in event_files(folder)).splitlines(keepends=True)
    drop_events(folder, first)
    assert b"".join(file.read_bytes() for file in event_files(folder)) == b"".join(before[:first])
    assert first == 0 or [event.id for event in read_events(folder)] == list(range(first))
    assert not [path for path in folder.iterdir() if path not in event_files(folder)]


def test_drop_events_does_not_write_earlier_files(folder):
    files = event_files(folder)
    stamps = [file.stat().st_mtime_ns for file in files[:2]]
    drop_events(folder, 11)
    assert [file.stat().st_mtime_ns for file in files[:2]] == stamps


def test_drop_events_continues_before_an_empty_file(folder):
    (folder / "events-99999.jsonl").touch()  # as a full disk leaves it behind
    drop_events(folder, 2)
    assert [event.id for event in read_events(folder)] == [0, 1]


def test_drop_events_removes_a_torn_line(folder):
    last = event_files(folder)[-1]
    whole = last.read_bytes()
    last.write_bytes(whole + b'{"schema":1,"id":12,"ty')
    drop_events(folder, 100)
    assert last.read_bytes() == whole


def test_drop_events_keeps_foreign_lines_and_ignores_empty_folders(folder, tmp_path):
    last = event_files(folder)[-1]
    last.write_bytes(b"not an event\n" + last.read_bytes())
    drop_events(folder, 0)
    assert [file.read_bytes() for file in event_files(folder)] == [b"not an event\n"]
    empty = tmp_path / "empty"
    empty.mkdir()
    drop_events(empty, 0)
    drop_events(tmp_path / "missing", 0)
