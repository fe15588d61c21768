"""Events after a checkpoint leave the files; what came before stays, byte for byte."""

import pytest
from esper_env.telemetry import JsonlSink, Telemetry, drop_events, read_events
from esper_env.telemetry.sinks import event_files
from made_events import epoch_completed


@pytest.fixture
def told(tmp_path):
    """A folder with twelve events in several files."""
    telemetry = Telemetry()
    telemetry.add_sink(JsonlSink(tmp_path, max_bytes=700))
    for epoch in range(12):
        telemetry.emit(epoch_completed(), env=0, epoch=epoch)
    telemetry.close()
    assert len(event_files(tmp_path)) > 3
    return tmp_path


@pytest.mark.parametrize("first", range(13))
def test_events_from_an_id_on_are_dropped(told, first):
    before = b"".join(file.read_bytes() for file in event_files(told)).splitlines(keepends=True)
    drop_events(told, first)
    assert b"".join(file.read_bytes() for file in event_files(told)) == b"".join(before[:first])
    assert first == 0 or [event.id for event in read_events(told)] == list(range(first))
    assert not [path for path in told.iterdir() if path not in event_files(told)]


def test_files_without_a_later_event_are_not_written(told):
    files = event_files(told)
    stamps = [file.stat().st_mtime_ns for file in files[:2]]
    drop_events(told, 11)
    assert [file.stat().st_mtime_ns for file in files[:2]] == stamps


def test_a_torn_line_goes_too(told):
    last = event_files(told)[-1]
    whole = last.read_bytes()
    last.write_bytes(whole + b'{"schema":1,"id":12,"ty')
    drop_events(told, 100)
    assert last.read_bytes() == whole


def test_foreign_lines_and_folders_without_events_are_left_alone(told, tmp_path):
    last = event_files(told)[-1]
    last.write_bytes(b"not an event\n" + last.read_bytes())
    drop_events(told, 0)
    assert [file.read_bytes() for file in event_files(told)] == [b"not an event\n"]
    empty = tmp_path / "empty"
    empty.mkdir()
    drop_events(empty, 0)
    drop_events(tmp_path / "missing", 0)
