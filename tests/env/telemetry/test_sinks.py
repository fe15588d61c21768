"""Files of JSON lines: rotation, numbers, what is kept, and what a failing disk leaves behind."""

import errno
import os

import pytest
from esper_env.telemetry import JsonlSink, MemorySink, read_events
from esper_env.telemetry.lines import encode
from made_events import epoch_completed, event

LINE = len(encode(event(0)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def ids(path):
    return [found.id for found in read_events(path)]


def events(first, last):
    return [event(number) for number in range(first, last)]


def test_a_file_is_left_before_it_is_too_long(tmp_path):
    sink = JsonlSink(tmp_path, max_bytes=2 * LINE)
    sink.write(events(0, 5))
    sink.write(events(5, 6))
    sink.close()
    assert names(tmp_path) == [f"events-0000{number}.jsonl" for number in range(3)]
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [[0, 1], [2, 3], [4, 5]]
    assert all(path.stat().st_size == 2 * LINE for path in tmp_path.iterdir())


def test_batches_of_any_size_rotate_alike(tmp_path):
    for size in (1, 3, 9):
        folder = tmp_path / str(size)
        sink = JsonlSink(folder, max_bytes=2 * LINE + 1)
        for first in range(0, 9, size):
            sink.write(events(first, first + size))
        sink.close()
        assert [ids(folder / name) for name in names(folder)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]


def test_a_line_longer_than_a_file_has_one_for_itself(tmp_path):
    sink = JsonlSink(tmp_path, max_bytes=1)
    sink.write(events(0, 3))
    sink.close()
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [[0], [1], [2]]


def test_only_the_latest_files_are_kept_and_nothing_else_is_deleted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "events-old.jsonl").write_text("mine")
    sink = JsonlSink(tmp_path, max_bytes=LINE, keep=2)
    sink.write(events(0, 5))
    sink.close()
    assert names(tmp_path) == ["events-00003.jsonl", "events-00004.jsonl", "events-old.jsonl", "notes.txt"]
    assert ids(tmp_path) == [3, 4]


def test_files_that_are_there_are_never_written_to(tmp_path):
    (tmp_path / "events-00007.jsonl").write_bytes(encode(event(1))[:-9])
    before = (tmp_path / "events-00007.jsonl").read_bytes()
    sink = JsonlSink(tmp_path)
    sink.write(events(2, 3))
    sink.close()
    sink.write(events(3, 4))
    sink.close()
    assert names(tmp_path) == ["events-00007.jsonl", "events-00008.jsonl", "events-00009.jsonl"]
    assert (tmp_path / "events-00007.jsonl").read_bytes() == before


def test_the_hundred_thousandth_file_comes_last(tmp_path):
    for number in (99_999, 100_000):
        (tmp_path / f"events-{number}.jsonl").write_bytes(encode(event(number)))
    sink = JsonlSink(tmp_path)
    sink.write(events(1, 2))
    sink.close()
    assert ids(tmp_path) == [99_999, 100_000, 1]


def test_two_sinks_in_one_folder_have_files_of_their_own(tmp_path, monkeypatch):
    first, second = JsonlSink(tmp_path), JsonlSink(tmp_path)
    listed = iter([[], []])  # both look before either has begun a file
    monkeypatch.setattr("esper_env.telemetry.sinks._numbered", lambda _folder: next(listed))
    first.write(events(0, 1))
    second.write(events(1, 2))
    first.close(), second.close()
    monkeypatch.undo()
    assert [ids(tmp_path / name) for name in names(tmp_path)] == [[0], [1]]


def test_there_is_no_file_without_an_event(tmp_path):
    JsonlSink(tmp_path / "new").close()
    assert names(tmp_path / "new") == []


def test_whole_lines_reach_the_system_in_one_append(tmp_path, monkeypatch):
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


def test_a_write_cut_short_is_gone_on_with(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda where, data: write(where, data[:7]))
    sink = JsonlSink(tmp_path)
    sink.write(events(0, 3))
    monkeypatch.undo()
    sink.close()
    assert ids(tmp_path) == [0, 1, 2]


def test_a_full_disk_tears_one_line_and_writing_goes_on_in_another_file(tmp_path, monkeypatch):
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
    with pytest.warns(RuntimeWarning, match=r"events-00000.jsonl, line 3: .*cut off"):
        assert ids(tmp_path) == [0, 1, 4]


@pytest.mark.parametrize("options", [{"max_bytes": 0}, {"max_bytes": 1.5}, {"keep": 0}, {"keep": True}])
def test_options_that_make_no_sense_are_refused_before_anything_is_made(tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*expected a whole number"):
        JsonlSink(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/below"):
        with pytest.raises(ValueError, match="cannot be made"):
            JsonlSink(tmp_path / folder)


def test_events_stay_in_memory_in_order():
    sink = MemorySink()
    sink.write([event(0, epoch_completed(1.0))])
    sink.write(events(1, 3))
    sink.close()
    assert [found.id for found in sink.events] == [0, 1, 2]
