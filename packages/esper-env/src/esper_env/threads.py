"""Threads in which environments compute, where the settings of the calling thread have no effect.

Many settings belong to a thread: PyTorch's modes of gradients, inference and autocast, its default device, its other
modes, transforms of functions, hooks on saved tensors, the current CUDA device and stream; the processor's flushing of
denormal numbers; NumPy's handling of floating-point errors. In a thread of this module, all of them have their
defaults. An operation runs on one core, because shards of networks already run in parallel.

The threads belong to the process and serve every environment. They start when they are needed, and then wait for more
calls. A forked process starts its own. No operation runs on several cores, so a process that has only used environments
can be forked, as Gymnasium's AsyncVectorEnv does.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

#: Upper bound of threads, never reached: a thread that waits for others must get them.
_MOST_THREADS = 2**16


class _Place(threading.local):
    """The caller's number of ``cores``, in a thread of this module; None in other threads."""

    cores: int | None = None


_place = _Place()


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to run in a thread of this module; called from such a thread, it runs directly.

    The caller waits until the function ends, even after an interrupt, so that nothing changes afterwards. If no thread
    can start, because the interpreter ends or the system has too many threads, the function runs in the caller's.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _place.cores is not None:
            return function(*args, **kwargs)
        running: Future[R] = Future()
        try:
            if not _started(running, torch.get_num_threads(), partial(function, *args, **kwargs)):
                return function(*args, **kwargs)
            running.exception()
        finally:
            if not running.cancel():  # after an interrupt: cancel a call that has not begun, or wait for it
                running.exception()
        try:
            return running.result()
        finally:
            del running  # the error refers to this frame

    return call


def callers_cores() -> int:
    """Return the number of cores that PyTorch uses for an operation in the thread that called the environment."""
    return torch.get_num_threads() if _place.cores is None else _place.cores


def side_by_side(work: Callable[[int], R], count: int, lanes: int) -> list[R]:
    """Return ``work(0)`` to ``work(count - 1)``, computed by up to ``lanes`` threads, one of which is the caller's.

    Raises the first error after all calls have ended.
    """
    waiting = deque(range(count))
    results: list[Future[R]] = [Future() for _ in waiting]

    def run_lane() -> None:
        while waiting:
            try:
                index = waiting.popleft()
            except IndexError:  # another lane was faster
                return
            try:
                results[index].set_result(work(index))
            except BaseException as error:
                results[index].set_exception(error)

    others: list[Future[None]] = [Future() for _ in range(min(lanes, count) - 1)]
    others = [other for other in others if _started(other, callers_cores(), run_lane)]
    run_lane()
    for other in others:
        other.result()
    return [result.result() for result in results]


def _started(running: Future[R], cores: int, call: Callable[[], R]) -> bool:
    """Submit a call for a caller that uses ``cores`` cores; return False if no thread can start."""
    try:
        _pool.submit(_run, running, cores, call)
    except RuntimeError:
        return not running.cancel()  # another thread may have taken it
    return True


def _run(running: Future[R], cores: int, call: Callable[[], R]) -> None:
    if not running.set_running_or_notify_cancel():
        return
    _place.cores = cores
    try:
        running.set_result(call())
    except BaseException as error:
        running.set_exception(error)
    finally:
        del running, call  # an error refers to this frame


def _prepare() -> None:
    """Give a new thread the settings that it inherits from the process or from the thread that started it."""
    torch.set_flush_denormal(False)
    with _starting:
        cores = torch.get_num_threads()
        if cores > 1:
            torch.set_num_threads(1)
            # This is also the number for threads that start later; the number of this thread stays 1.
            other = threading.Thread(target=torch.set_num_threads, args=(cores,))
            other.start()
            other.join()


def _start_over() -> None:
    """Begin without threads, as a new process has none."""
    global _pool, _starting
    _pool = ThreadPoolExecutor(_MOST_THREADS, "esper-env", _prepare)
    _starting = threading.Lock()


_pool: ThreadPoolExecutor
_starting: threading.Lock
_start_over()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
