"""Whether the process, or an accelerator, is about to run out of memory."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from esper_env.telemetry.payloads import MemoryWarning

#: Share of the memory that is there above which a warning is due, unless a limit is given.
SENSIBLE_SHARE = 0.9
#: Share of a limit below which a new crossing counts.
REARM_SHARE = 0.95

_MIB = 2**20
_STATM = "/proc/self/statm"
_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")
#: Gives (name, MiB in use, limit in MiB) for each accelerator.
Accelerators = Callable[[], Iterable[tuple[str, float, float]]]


class MemoryWatch:
    """Says once when memory passes a limit, and again only after it was below 95% of the limit.

    What is watched is the resident size of this process; where the system has no /proc it is the largest one so far,
    which never falls. A system that tells neither costs a ``RuntimeWarning``, and only accelerators are watched there.

    Args:
        limit_mib: of the resident size; by default 90% of what the machine has or the control group allows.
        accelerators: called by each check; gives (name, used MiB, limit MiB) for each.

    Raises:
        ValueError: a limit that is not a positive number.
    """

    def __init__(self, limit_mib: float | None = None, accelerators: Accelerators | None = None) -> None:
        if limit_mib is not None and not (math.isfinite(limit_mib) and limit_mib > 0):
            raise ValueError(f"limit_mib is {limit_mib!r}; give a positive number, or None for 90% of what is there")
        available = available_mib()
        self.limit_mib = limit_mib if limit_mib is not None or available is None else SENSIBLE_SHARE * available
        self._accelerators = accelerators
        self._reported: set[str] = set()
        if self.limit_mib is None or resident_mib() is None:
            self.limit_mib = None
            warnings.warn("the memory of this process cannot be watched on this system", RuntimeWarning, stacklevel=2)

    def check(self) -> MemoryWarning | None:
        """The first crossing that was not told yet; when several things cross at once, the next checks tell the others.

        Cheap enough for every step: a few microseconds besides what ``accelerators`` takes.
        """
        for kind, used, limit in self._measure():
            if used > limit and kind not in self._reported:
                self._reported.add(kind)
                return MemoryWarning(kind=kind, used_mib=used, limit_mib=limit)
            if used < REARM_SHARE * limit:
                self._reported.discard(kind)
        return None

    def _measure(self) -> Iterator[tuple[str, float, float]]:
        resident = None if self.limit_mib is None else resident_mib()
        if resident is not None and self.limit_mib is not None:
            yield "resident", resident, self.limit_mib
        if self._accelerators is not None:
            yield from self._accelerators()


def resident_mib() -> float | None:
    """The resident size of this process; without /proc the largest so far; None where the system does not say."""
    try:
        descriptor = os.open(_STATM, os.O_RDONLY)
    except OSError:
        return _peak_mib()
    try:
        return int(os.read(descriptor, 128).split()[1]) * _PAGE_MIB
    finally:
        os.close(descriptor)


def available_mib() -> float | None:
    """The memory of the machine, or what the control groups of this process allow if that is less; None if unknown."""
    known = [*_physical_mib(), *_cgroup_limits_mib()]
    return min(known, default=None)


def _peak_mib() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _physical_mib() -> Iterator[float]:
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        yield os.sysconf("SC_PHYS_PAGES") * _PAGE_MIB


def _cgroup_limits_mib() -> Iterator[float]:
    """The limits of the control groups that the process is in, and of those around them; of versions 1 and 2."""
    try:
        memberships = _CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in memberships:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            yield from _limits_above(_CGROUPS, group, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_above(_CGROUPS / "memory", group, "memory.limit_in_bytes")


def _limits_above(root: Path, group: str, name: str) -> Iterator[float]:
    """Limits from a group up to the root. In a container, groups outside it are not there and not its own limit."""
    inner = root / group.lstrip("/")
    for folder in (inner, *inner.parents):
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            text = "max"
        if text != "max":
            yield int(text) / _MIB
        if folder == root:
            return


_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / _MIB if hasattr(os, "sysconf") else math.nan
