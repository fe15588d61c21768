"""Worker processes: their settings, the division of networks among them, and the error for one that has ended."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Annotated, Literal

from esper_env.checks import POSITIVE, check_value, is_integer

__all__ = ["WORKER_TIMEOUT", "WorkerError", "Workers", "available_cores", "check_workers", "divide", "resolve_workers"]

#: Default timeout of a request in seconds, far beyond any step of the package's own tasks.
WORKER_TIMEOUT = 600.0

#: Annotation of a number of worker processes.
Workers = Annotated[int, POSITIVE] | Literal["auto"]


class WorkerError(ChildProcessError):
    """A worker process has ended or does not answer. Its environment is closed; make a new one."""


def check_workers(workers: object, timeout: object, count: int) -> None:
    """Raise ``ValueError`` unless ``count`` networks can be spread over so many workers with this timeout."""
    check_value("workers", workers, Workers)
    check_value("worker_timeout", timeout, Annotated[float, POSITIVE] | None)
    if is_integer(workers) and workers > count:
        raise ValueError(f"`workers` is {workers}, for {count} environments; expected at most one for each")
    if workers != 1 and os.name != "posix":
        raise ValueError(f"`workers` is {workers!r}; worker processes need Linux or macOS: omit `workers`")


def resolve_workers(workers: int | str, count: int, device: str) -> int:
    """Return the number of workers; "auto" is one per core, at most ``count``, or 1 on a ``device`` but "cpu"."""
    if workers != "auto":
        return int(workers)
    return min(available_cores(), count) if device == "cpu" else 1


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def divide(count: int, shard_size: int, workers: int) -> tuple[int, list[slice]]:
    """Divide ``count`` networks in shards of at most ``shard_size``, and the shards among up to ``workers`` processes.

    Returns the size of the shards, all but the last of which are equal, and the networks of each process. The processes
    have equally many shards, or one more. A single process keeps the size.
    """
    if workers > 1:  # a multiple of shards of one size, so that all processes have as much to do
        shards = workers * -(-count // (shard_size * workers))
        shard_size = -(-count // shards)
    shards = -(-count // shard_size)
    workers = min(workers, shards)
    bounds = [min(shards * worker // workers * shard_size, count) for worker in range(workers + 1)]
    return shard_size, [slice(*pair) for pair in pairwise(bounds)]
