"""Files that are replaced all or nothing: on the disk before they take their place, and apart from other writers."""

import os
import stat

from esper_env.persistence.atomic import replaced, write_text


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
