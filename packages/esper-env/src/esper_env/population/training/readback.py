"""Results on their way from the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Readback:
    """A tensor that is copied to the host without waiting; reading it waits for the copy.

    Whatever is launched before the first read is waited for once, so that a step has one synchronisation.
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
        """The values as float64."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.double().numpy()
