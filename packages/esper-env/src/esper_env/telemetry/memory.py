"""Warning before the process or an accelerator runs out of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import psutil  # type: ignore[import-untyped]

from esper_env.checks import POSITIVE, check_value
from esper_env.telemetry.events import MemoryWarning

#: Default limit, as a share of the available memory.
SENSIBLE_SHARE = 0.9
#: A new crossing counts once memory has been below this share of the limit.
REARM_SHARE = 0.95

MIB = 2**20  # bytes
#: Memory limits of a Linux container, of control groups version 2 and 1. psutil does not read them.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
#: Returns (name, MiB in use, MiB up to which use is sensible) of each accelerator.
Accelerators = Callable[[], Iterable[tuple[str, float, float]]]


class MemoryWatch:
    """Reports each crossing of a memory limit once, and again after memory was below 95% of the limit.

    Args:
        limit_mib: limit of the resident size of this process and its workers; by default 90% of ``available_mib()``.
        accelerators: called by each check; returns (name, used MiB, limit MiB) of each accelerator.
        workers: ids of further processes whose memory counts, except what they share.

    Raises:
        ValueError: ``limit_mib`` is not a positive number.
    """

    def __init__(
        self,
        limit_mib: float | None = None,
        accelerators: Accelerators | None = None,
        workers: Sequence[int] = (),
    ) -> None:
        check_value("limit_mib", limit_mib, Annotated[float, POSITIVE] | None)
        self.limit_mib = SENSIBLE_SHARE * available_mib() if limit_mib is None else limit_mib
        self._accelerators = accelerators or tuple
        self._workers = workers
        self._reported: set[str] = set()

    def check(self) -> MemoryWarning | None:
        """Return the first unreported crossing, or None; later calls return the others."""
        resident = resident_mib() + private_mib(self._workers)
        for kind, used, limit in [("resident", resident, self.limit_mib), *self._accelerators()]:
            if used > limit and kind not in self._reported:
                self._reported.add(kind)
                return MemoryWarning(kind=kind, used_mib=used, limit_mib=limit)
            if used < REARM_SHARE * limit:
                self._reported.discard(kind)
        return None


def resident_mib() -> float:
    """Return the resident size of this process in MiB."""
    size: int = psutil.Process().memory_info().rss
    return size / MIB


def private_mib(processes: Iterable[int]) -> float:
    """Return the resident size of processes in MiB without the memory that they share, where the system reports it."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            memory = psutil.Process(process).memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    return total / MIB


def available_mib() -> float:
    """Return the memory of the machine in MiB, or the limit of the container if that is less."""
    limits: list[float] = [psutil.virtual_memory().total / MIB]
    for file in _CONTAINER_LIMITS:
        if file.exists() and (text := file.read_text().strip()) != "max":
            limits.append(int(text) / MIB)
    return min(limits)
