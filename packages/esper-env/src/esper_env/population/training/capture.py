"""Runners of the step of a minibatch: operation by operation, or as a captured graph.

On an accelerator, launch overhead dominates a step of many small operations. A CUDA graph launches all of them at once.
A captured step works in place on fixed memory and must not depend on values. Whatever changes between epochs is written
into that memory before the next replay.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from typing_extensions import override

from esper_env.population.training.minibatches import Draw
from esper_env.tasks.choices import CAPTURE_MODES

Step = Callable[[Draw], None]


class Runner:
    """Runs a step operation by operation."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.captures = 0

    def __call__(self, draw: Draw) -> None:
        """Run one minibatch, or replay the captured one."""
        """Run the step on a minibatch."""
        self._step(draw)


NewRunner = Callable[[Step], Runner]


class CapturingRunner(Runner):
    """Runs the first minibatch to warm up, captures the second one, and replays the graph from then on.

    If a step cannot be captured, for instance because a custom module waits for a value, the runner warns with a
    ``RuntimeWarning`` and runs operation by operation.
    """

    def __init__(self, step: Step) -> None:
        super().__init__(step)
        self._inputs: Draw | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, draw: Draw) -> None:
        """Run one minibatch, or replay the captured one."""
        if self._inputs is None:
            self._inputs = draw.clone()
            self.warm_up(self._inputs)
            return
        self._inputs.copy_(draw)
        if self._replay is None:
            self._replay = self._captured(self._inputs)
        self._replay()

    def _captured(self, inputs: Draw) -> Callable[[], None]:
        try:
            replay = self.capture(inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            warnings.warn(
                f"the training step cannot be captured ({reason}) and runs operation by operation; "
                "capture='off' leaves the attempt out",
                RuntimeWarning,
                stacklevel=2,
            )
            return partial(self._step, inputs)
        self.captures += 1
        return replay

    @abstractmethod
    def warm_up(self, inputs: Draw) -> None:
        """Run the step in the same way as capturing does."""

    @abstractmethod
    def capture(self, inputs: Draw) -> Callable[[], None]:
        """Record the step without running it, and return a function that replays it."""


class CudaGraph(CapturingRunner):
    """Captures the step as a CUDA graph.

    Graphs can share a ``pool`` of memory, because one runs at a time and no result is read from it later.
    """

    def __init__(self, step: Step, device: torch.device, pool: Any) -> None:
        super().__init__(step)
        self._device, self._pool = device, pool
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @override
    def warm_up(self, inputs: Draw) -> None:
        with self._on_own_stream():
            self._step(inputs)

    @override
    def capture(self, inputs: Draw) -> Callable[[], None]:
        # torch.cuda.graph would wait for the device and empty its memory cache each time.
        graph = torch.cuda.CUDAGraph()
        with self._on_own_stream():
            # "thread_local" lets other threads use the device meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                self._step(inputs)
            finally:
                graph.capture_end()
        return partial(self._launch, graph)

    def _launch(self, graph: torch.cuda.CUDAGraph) -> None:
        with torch.cuda.device(self._device):
            graph.replay()

    @contextmanager
    def _on_own_stream(self) -> Iterator[None]:
        """Run in a separate stream, as capturing requires, ordered with the current one."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def _cuda_graphs(device: torch.device) -> NewRunner:
    return partial(CudaGraph, device=device, pool=torch.cuda.graph_pool_handle())


#: Functions that make the runners of a shard, by type of device; other devices run operation by operation.
CAPTURES: dict[str, Callable[[torch.device], NewRunner]] = {"cuda": _cuda_graphs}


def new_runner(device: torch.device, capture: str) -> NewRunner:
    """Return a function that makes the runners of a shard.

    Raises:
        ValueError: ``capture`` is an unknown mode.
    """
    if capture not in CAPTURE_MODES:
        raise ValueError(f"capture is {capture!r}; expected one of {CAPTURE_MODES}")
    return CAPTURES[device.type](device) if capture == "auto" and device.type in CAPTURES else Runner
