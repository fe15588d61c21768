"""Copies between arrays and the device that do not wait for the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a tensor of an array without waiting for the device."""
    return torch.from_numpy(array).to(device, non_blocking=True)


class Readback:
    """A tensor on its way to an array; :meth:`numpy` waits for the copy.

    The first read also waits for everything launched before it, so a step synchronises once.
    """

    def __init__(self, values: Tensor) -> None:
        self._event: Any = None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(values.device))
        else:
            self._host = values.cpu()

    def numpy(self) -> NDArray[np.float64]:
        """Return the values as float64."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.double().numpy()
