"""Memory limits: one report per crossing, and the limit of a container."""

import os

import numpy as np
import psutil
import pytest
from esper_env.telemetry import MemoryWarning, MemoryWatch, memory
from hypothesis import given
from hypothesis import strategies as st

MIB = 2**20
#: Beyond the largest process id.
NO_PROCESS = 2**30


@given(sizes=st.lists(st.sampled_from([50.0, 94.9, 95.0, 100.0, 100.1, 200.0]), max_size=20))
def test_crossing_is_reported_once_until_memory_was_below_95_percent(sizes):
    present = iter(sizes)
    armed = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "resident_mib", lambda: 1.0)
        watch = MemoryWatch(100.0)
        patch.setattr(memory, "resident_mib", lambda: next(present))
        for size in sizes:
            warns = armed and size > 100.0
            expected = MemoryWarning(kind="resident", used_mib=size, limit_mib=100.0) if warns else None
            assert watch.check() == expected
            armed = (armed or size < 95.0) and not warns


def test_accelerators_are_reported_one_per_check_by_their_own_limits():
    used = {"cuda:0": 9.0, "cuda:1": 19.0, "cuda:2": 1.0}
    limits = {"cuda:0": 8.0, "cuda:1": 16.0, "cuda:2": 8.0}
    watch = MemoryWatch(1e9, accelerators=lambda: [(name, used[name], limits[name]) for name in used])
    reported = [watch.check() for _ in range(3)]
    assert reported[:2] == [
        MemoryWarning(kind=name, used_mib=used[name], limit_mib=limits[name]) for name in list(used)[:2]
    ]
    assert reported[2] is None


def test_resident_size_grows_with_allocations():
    before = memory.resident_mib()
    held = np.ones(64 * MIB // 8)
    assert 60.0 < memory.resident_mib() - before < 100.0
    assert held.all()


def test_workers_count_without_what_they_share():
    own = psutil.Process().memory_info()
    assert 0 < memory.private_mib([os.getpid()]) < own.rss / MIB
    assert memory.private_mib([os.getpid()] * 2) > 1.5 * memory.private_mib([os.getpid()])
    assert memory.private_mib([NO_PROCESS]) == 0
    limit = memory.resident_mib() + 0.5 * memory.private_mib([os.getpid()])
    assert MemoryWatch(limit).check() is None
    assert MemoryWatch(limit, workers=[os.getpid()]).check().kind == "resident"


def test_watch_rejects_non_positive_limits():
    for limit in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`limit_mib` is .*; expected a positive number"):
            MemoryWatch(limit)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [(["20971520\n"], 20.0), (["max\n"], None), (["9223372036854771712\n"], None), (["max\n", "5242880\n"], 5.0)],
)
def test_default_limit_is_90_percent_of_the_memory_of_the_machine_or_container(tmp_path, monkeypatch, limits, expected):
    files = [tmp_path / str(number) for number in range(2)]
    for file, limit in zip(files, limits, strict=False):
        file.write_text(limit)
    monkeypatch.setattr(memory, "_CONTAINER_LIMITS", files)
    machine = psutil.virtual_memory().total / MIB
    assert MemoryWatch().limit_mib == pytest.approx(0.9 * (machine if expected is None else expected))
