"""Memory that passes its limit is told once, and again after it fell."""

import os
from pathlib import Path

import numpy as np
import pytest
from esper_env.telemetry import MemoryWarning, MemoryWatch, memory
from hypothesis import given
from hypothesis import strategies as st

MIB = 2**20


@given(sizes=st.lists(st.sampled_from([50.0, 94.9, 95.0, 100.0, 100.1, 200.0]), max_size=20))
def test_a_crossing_is_told_once_until_memory_was_below_95_percent(sizes):
    present = iter(sizes)
    armed = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "resident_mib", lambda: 1.0)
        watch = MemoryWatch(100.0)
        patch.setattr(memory, "resident_mib", lambda: next(present))
        for size in sizes:
            told = armed and size > 100.0
            expected = MemoryWarning(kind="resident", used_mib=size, limit_mib=100.0) if told else None
            assert watch.check() == expected
            armed = (armed or size < 95.0) and not told


def test_accelerators_are_told_one_after_the_other_each_by_its_own_limit():
    used = {"cuda:0": 9.0, "cuda:1": 19.0, "cuda:2": 1.0}
    limits = {"cuda:0": 8.0, "cuda:1": 16.0, "cuda:2": 8.0}
    watch = MemoryWatch(1e9, accelerators=lambda: [(name, used[name], limits[name]) for name in used])
    assert watch.check() == MemoryWarning(kind="cuda:0", used_mib=9.0, limit_mib=8.0)
    assert watch.check() == MemoryWarning(kind="cuda:1", used_mib=19.0, limit_mib=16.0)
    assert watch.check() is None
    used["cuda:0"] = 1.0
    assert watch.check() is None
    used["cuda:0"] = 8.5
    assert watch.check() == MemoryWarning(kind="cuda:0", used_mib=8.5, limit_mib=8.0)


def test_the_resident_size_grows_with_what_is_held():
    before = memory.resident_mib()
    held = np.ones(64 * MIB // 8)
    assert 60.0 < memory.resident_mib() - before < 100.0
    assert held.all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_resident_size_is_that_of_the_system():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert memory.resident_mib() == pytest.approx(int(status["VmRSS"].split()[0]) / 1024, rel=0.1)


def test_without_proc_the_peak_stands_in(monkeypatch):
    pytest.importorskip("resource")
    present = memory.resident_mib()
    monkeypatch.setattr(memory, "_STATM", "missing")
    assert 0.9 * present < memory.resident_mib() < 100 * present


def test_a_system_that_tells_nothing_is_told_and_accelerators_are_watched(monkeypatch):
    monkeypatch.setattr(memory, "resident_mib", lambda: None)
    with pytest.warns(RuntimeWarning, match="cannot be watched"):
        watch = MemoryWatch(accelerators=lambda: [("cuda:0", 2.0, 1.0)])
    assert watch.check() == MemoryWarning(kind="cuda:0", used_mib=2.0, limit_mib=1.0)
    assert watch.check() is None


def test_the_limit_is_90_percent_of_what_there_is(monkeypatch):
    monkeypatch.setattr(memory, "available_mib", lambda: 1000.0)
    assert MemoryWatch().limit_mib == pytest.approx(900.0)
    assert MemoryWatch(50.0).limit_mib == 50.0


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match="limit_mib is"):
        MemoryWatch(limit)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """``groups(membership, {file: limit})``: control groups as a system shows them."""

    def make(membership, limits):
        (tmp_path / "cgroup").write_text(membership)
        for name, text in limits.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "groups")
        return memory.available_mib()

    return make


def physical_mib():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{20 * MIB}\n"}, 20.0),
        ("0::/a/b\n", {"a/b/memory.max": f"{10 * MIB}\n", "a/memory.max": f"{20 * MIB}\n"}, 10.0),
        ("0::/gone/b\n", {"memory.max": f"{30 * MIB}\n"}, 30.0),
        ("0::/\n", {"memory.max": f"{30 * MIB}\n"}, 30.0),
        ("4:cpu,memory:/a\n1:cpu:/b\n", {"memory/a/memory.limit_in_bytes": f"{5 * MIB}\n"}, 5.0),
        ("1:cpu:/a\n", {"a/memory.max": f"{5 * MIB}\n"}, None),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_control_groups_of_both_versions_limit_what_there_is(groups, membership, limits, expected):
    assert groups(membership, limits) == pytest.approx(physical_mib() if expected is None else expected)


def test_without_control_groups_there_is_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "missing")
    assert memory.available_mib() == pytest.approx(physical_mib())
