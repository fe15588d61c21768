"""Copies between arrays and the device that do not wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Waits for an array that a device computes.
Readback = Callable[[], NDArray[np.float64]]


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a tensor of an array without waiting for the device."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def read_back(values: Tensor) -> Readback:
    """Start to copy a tensor, and return a function that waits for the copy and returns it as an array.

    The first wait also covers everything launched before it, so a step synchronises once.
    """
    if values.device.type != "cuda":
        return values.cpu().double().numpy
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(values.device))

    def wait() -> NDArray[np.float64]:
        event.synchronize()
        return host.double().numpy()

    return wait
