"""How the step of a minibatch is carried out: operation by operation, or as a captured graph.

On an accelerator a step of many small operations is bound by launching them. A CUDA graph launches all of them at once.
What is captured works in place, on memory that stays: nothing in it may depend on values, and what changes from epoch
to epoch is written into that memory before the next replay.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from esper_env.population.training.minibatches import Draw
from esper_env.tasks.choices import CAPTURE_MODES

Step = Callable[[Draw], None]


class Runner(Protocol):
    """Carries out the same step again and again, on other minibatches."""

    captures: int

    def __call__(self, draw: Draw) -> None:
        """Carry the step out."""
        ...


NewRunner = Callable[[Step], Runner]


class Eager:
    """Operation by operation."""

    captures = 0

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self, draw: Draw) -> None:
        self._step(draw)


class Captured(ABC):
    """The first minibatch runs as it is, to warm up; the second is captured; from then on the graph is replayed.

    A step that cannot be captured, because a user's module waits for a value for instance, is a ``RuntimeWarning`` and
    runs operation by operation.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._inputs: Draw | None = None
        self._replay: Callable[[], None] | None = None
        self.captures = 0

    def __call__(self, draw: Draw) -> None:
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
        """Carry the step out as capturing will."""

    @abstractmethod
    def capture(self, inputs: Draw) -> Callable[[], None]:
        """Record the step without carrying it out, and return what replays it."""


class CudaGraph(Captured):
    """A step as a CUDA graph.

    Graphs can share a ``pool`` of memory: one runs at a time, and none leaves anything in it that is read later.
    """

    def __init__(self, step: Step, device: torch.device, pool: Any) -> None:
        super().__init__(step)
        self._device, self._pool = device, pool
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm_up(self, inputs: Draw) -> None:
        with self._on_own_stream():
            self._step(inputs)

    def capture(self, inputs: Draw) -> Callable[[], None]:
        """Without ``torch.cuda.graph``, which waits for the device and empties its cache of memory every time."""
        graph = torch.cuda.CUDAGraph()
        with self._on_own_stream():
            # "thread_local": what other threads do with the device meanwhile is theirs.
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
        """Capturing needs a stream of its own, which waits for what came before; what follows waits for it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def _cuda_graphs(device: torch.device) -> NewRunner:
    return partial(CudaGraph, device=device, pool=torch.cuda.graph_pool_handle())


#: What makes the runners of a shard, by type of device; elsewhere steps run operation by operation.
CAPTURES: dict[str, Callable[[torch.device], NewRunner]] = {"cuda": _cuda_graphs}


def runners(device: torch.device, capture: str) -> NewRunner:
    """What makes runners for a shard on a device.

    Raises:
        ValueError: a mode of capture that is not known.
    """
    if capture not in CAPTURE_MODES:
        raise ValueError(f"capture is {capture!r}; expected one of {CAPTURE_MODES}")
    return CAPTURES[device.type](device) if capture == "auto" and device.type in CAPTURES else Eager
