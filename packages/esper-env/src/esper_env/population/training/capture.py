"""Capture of the step of a minibatch as a CUDA graph.

On an accelerator, launch overhead dominates a step of many small operations. A CUDA graph launches all of them at once.
A captured step works in place on fixed memory and must not depend on values. Whatever changes between epochs is written
into that memory before the next replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from esper_env.population.training.minibatches import Draw

Step = Callable[[Draw], None]


class CapturedStep:
    """Runs the first minibatch to warm up, captures the second one, and replays the graph from then on.

    If a step cannot be captured, for instance because a custom module waits for a value, it warns with a
    ``RuntimeWarning`` and runs operation by operation. Graphs can share a ``pool`` of memory, because one runs at a
    time and no result is read from it later.
    """

    def __init__(self, step: Step, device: torch.device, pool: Any) -> None:
        self._step, self._device, self._pool = step, device, pool
        self._inputs: Draw | None = None
        self._replay: Callable[[], None] | None = None
        self._stream: Any = None
        self.captures = 0

    def __call__(self, draw: Draw) -> None:
        """Run one minibatch, or replay the captured one."""
        if self._inputs is None:
            self._inputs = draw.clone()
            with self._on_own_stream():
                self._step(self._inputs)
            return
        self._inputs.copy_(draw)
        if self._replay is None:
            try:
                self._replay = self._capture(self._inputs)
                self.captures += 1
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                warnings.warn(
                    f"the training step cannot be captured ({reason}) and runs operation by operation; "
                    "capture='off' skips the attempt",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._replay = partial(self._step, self._inputs)
        self._replay()

    def _capture(self, inputs: Draw) -> Callable[[], None]:
        """Record the step without running it, and return a function that replays it."""
        # torch.cuda.graph would wait for the device and empty its memory cache each time.
        graph = torch.cuda.CUDAGraph()
        with self._on_own_stream():
            # "thread_local" lets other threads use the device meanwhile.
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                self._step(inputs)
            finally:
                graph.capture_end()

        def launch() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return launch

    @contextmanager
    def _on_own_stream(self) -> Iterator[None]:
        """Run in a separate stream, as capturing requires, ordered with the current one."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def captures_of(device: torch.device, capture: str) -> Callable[[Step], CapturedStep] | None:
    """Return a function that wraps a shard's step for capture; None if steps run operation by operation."""
    if capture == "off" or device.type != "cuda":
        return None
    return partial(CapturedStep, device=device, pool=torch.cuda.graph_pool_handle())
