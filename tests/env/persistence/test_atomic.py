"""Files that are replaced all or nothing: on the disk before they take their place, and apart from other writers."""

import errno
import os
import stat
from pathlib import Path

import pytest
from esper_env.persistence.atomic import check_folder, check_writable, replaced, write_text


def test_contents_reach_the_disk_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    target, events = tmp_path / "a.txt", []
    sync, rename = os.fsync, os.replace

    def recorded_sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            events.append(("folder", os.path.samestat(os.fstat(descriptor), tmp_path.stat())))
        else:
            events.append(("file", os.pread(descriptor, 100, 0)))
        sync(descriptor)

    def recorded_rename(source, destination):
        events.append(("rename", os.fspath(destination)))
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "replace", recorded_rename)
    write_text(target, "new")
    assert events == [("file", b"new"), ("rename", str(target)), ("folder", True)]


def test_two_processes_can_replace_one_file_at_once(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with replaced(target) as slow:
        slow.write_text("slow")
        monkeypatch.setattr(os, "getpid", lambda: 2)
        write_text(target, "quick")
        assert target.read_text() == "quick"
    assert target.read_text() == "slow"
    assert list(tmp_path.iterdir()) == [target]


def test_error_of_a_full_disk_names_the_file(tmp_path):
    def fill_up():
        with replaced(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt"):
        fill_up()
    assert list(tmp_path.iterdir()) == []


def test_checks_accept_what_can_be_written_and_leave_nothing(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    for path in ("new.txt", "old.txt", "new/folder/new.txt"):
        check_writable(tmp_path / path)
    for folder in (tmp_path, tmp_path / "new", tmp_path / "new" / "folder"):
        check_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"


def refused_touch(self, **_options):
    raise PermissionError(errno.EACCES, "Permission denied", str(self))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "is a folder; expected the path of a file"),
        ("file/new.txt", "cannot be written: Not a directory; use another path"),
        ("n" * 250, "cannot be written: File name too long; use another path"),
        ("denied/new.txt", "cannot be written: Permission denied; use another path"),
        ("/dev/null", "is a device or pipe; expected the path of a regular file"),
        ("bad\udce9", "is not UTF-8 text"),
    ],
)
def test_files_that_cannot_be_written_are_found_beforehand(tmp_path, monkeypatch, path, said):
    (tmp_path / "file").touch()
    if path.startswith("denied"):
        monkeypatch.setattr(Path, "touch", refused_touch)
    with pytest.raises(ValueError, match=said):
        check_writable(tmp_path / path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("file", "cannot be written to: it is not a folder; use another one"),
        ("file/below", "cannot be written to: Not a directory; use another one"),
        ("denied", "cannot be written to: Permission denied; use another one"),
        ("bad\udce9", "is not UTF-8 text"),
    ],
)
def test_folders_that_cannot_be_written_to_are_found_beforehand(tmp_path, monkeypatch, path, said):
    (tmp_path / "file").touch()
    if path == "denied":
        monkeypatch.setattr(Path, "touch", refused_touch)
    with pytest.raises(ValueError, match=said):
        check_folder(tmp_path / path)
