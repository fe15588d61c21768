"""Timing in turns, so that other load on the machine affects all contenders alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch


def waiter(device: torch.device) -> Callable[[], object]:
    """Return a function that waits for the device's pending work; CUDA devices run asynchronously."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def turn(step: Callable[[], object], steps: int, wait: Callable[[], object]) -> float:
    """Seconds per step, including the device's work."""
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - start) / steps


def race(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float,
    wait: Callable[[], object],
    unit: int = 1,
) -> dict[str, list[float]]:
    """Seconds per step of each contender, by round.

    A turn takes about ``seconds``. It has a multiple of ``unit`` steps, and at least ``unit``.
    """
    steps = {}
    for name, step in contenders.items():
        step()  # warm-up
        steps[name] = unit * max(1, round(seconds / (unit * turn(step, 1, wait))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            times[name].append(turn(step, steps[name], wait))
    return times


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's intra-op threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
