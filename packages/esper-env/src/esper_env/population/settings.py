"""PyTorch's switches while networks are built, trained and measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_settings() -> Iterator[None]:
    """Set PyTorch's switches as networks need them, and restore the caller's on exit.

    Gradients are enabled, even if the caller steps the environment under ``no_grad``, and the caller's autocast is
    disabled. The calling thread uses one intra-op thread, because the shards are the parallelism. So results do not
    depend on the number of cores. And a process that has never run a parallel region can be forked, as Gymnasium's
    AsyncVectorEnv does.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
