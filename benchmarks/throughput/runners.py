"""Ways to run one function per network: serially, or captured in CUDA graphs on several streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

R = TypeVar("R")

#: Runs before the capture, in which libraries choose kernels and allocate workspaces.
WARMUPS = 3

#: PyTorch has this many distinct streams per priority.
MAX_STREAMS = 32


class Runner(Protocol):
    """Runs every function once."""

    def __call__(self) -> Sequence[object]:
        """Return their results in order."""
        ...


class OneAfterTheOther(Generic[R]):
    """Calls the functions serially."""

    def __init__(self, works: Sequence[Callable[[], R]]) -> None:
        self._works = works

    def __call__(self) -> list[R]:
        return [work() for work in self._works]


class GraphsOnStreams(Generic[R]):
    """Streams that replay CUDA graphs concurrently, each with its share of the functions. Needs a CUDA device.

    A function must not wait for the device and must use the same tensors in each call. The next run overwrites its
    results. Each function runs ``WARMUPS`` times before the capture, so networks have already trained.
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
        """Capture a graph on the stream that will replay it; return the graph and its results.

        Each graph has its own memory pool: graphs that share a pool or a cuBLAS workspace must not run concurrently.
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
