"""Ways to run one piece of work for each of n networks: one after the other, or captured in CUDA graphs on streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

R = TypeVar("R")

#: Runs of a piece of work before it is captured, so that libraries have chosen their kernels and made their workspaces.
WARMUPS = 3

#: PyTorch hands out this many different streams of one priority; more of them would share.
MAX_STREAMS = 32


class Runner(Protocol):
    """Runs every piece of work once."""

    def __call__(self) -> Sequence[object]:
        """What each of them returned, in their order."""
        ...


class OneAfterTheOther(Generic[R]):
    """Calls each piece of work."""

    def __init__(self, works: Sequence[Callable[[], R]]) -> None:
        self._works = works

    def __call__(self) -> list[R]:
        return [work() for work in self._works]


class GraphsOnStreams(Generic[R]):
    """Each stream replays a CUDA graph of its share of the work, all streams at once. Needs a CUDA device.

    A piece of work must not wait for the device, and must read and write the same tensors each time; its results are
    overwritten by the next run. It is run a few times before it is captured: what trains has trained by then.
    """

    def __init__(self, works: Sequence[Callable[[], R]], streams: int, device: torch.device) -> None:
        self._device = device
        self._streams = [torch.cuda.Stream(device) for _ in range(min(streams, len(works)))]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        shares: list[list[R]] = []
        for index, stream in enumerate(self._streams):
            graph, results = self._captured(works[index :: len(self._streams)], stream)
            self._graphs.append(graph)
            shares.append(results)
        self._results = [shares[index % len(shares)][index // len(shares)] for index in range(len(works))]

    def _captured(
        self, works: Sequence[Callable[[], R]], stream: torch.cuda.Stream
    ) -> tuple[torch.cuda.CUDAGraph, list[R]]:
        """A graph of some work and its results.

        It is captured on the stream that will replay it, into a memory pool of its own: graphs that share a pool, or a
        stream's cuBLAS workspace, must not run at once.
        """
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUPS):
                for work in works:
                    work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            results = [work() for work in works]
        return graph, results

    def __call__(self) -> list[R]:
        current = torch.cuda.current_stream(self._device)
        for stream, graph in zip(self._streams, self._graphs, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                graph.replay()
        for stream in self._streams:
            current.wait_stream(stream)
        return self._results
