"""Contenders take turns, so that what else happens on the machine falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from esper_agent.cli.info import machine as machine  # for the benchmarks beside this file


def waiter(device: torch.device) -> Callable[[], object]:
    """What returns once the device has done all that it was given: a CUDA device works on behind the program's back."""
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def turn(step: Callable[[], object], steps: int, wait: Callable[[], object]) -> float:
    """Seconds per step over some steps, the device's work included."""
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - start) / steps


def race(
    contenders: Mapping[str, Callable[[], object]], rounds: int, seconds: float, wait: Callable[[], object]
) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round; a turn is as many steps as fit into ``seconds``, or one."""
    steps = {}
    for name, step in contenders.items():
        step()  # warm
        steps[name] = max(1, round(seconds / turn(step, 1, wait)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            times[name].append(turn(step, steps[name], wait))
    return times


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """PyTorch's operations use this many threads inside, and as many as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
