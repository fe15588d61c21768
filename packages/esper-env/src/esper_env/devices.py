"""How much memory of an accelerator is in use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from esper_env.telemetry.memory import SENSIBLE_SHARE

_MIB = 2**20
#: Gives (name, MiB in use, MiB that are sensible) of each accelerator.
Gauge = Callable[[], list[tuple[str, float, float]]]


def memory_gauge(device: torch.device) -> Gauge | None:
    """What reads the memory of a CUDA device, whoever uses it; None for other devices."""
    return partial(_cuda_memory, device) if device.type == "cuda" else None


def _cuda_memory(device: torch.device) -> list[tuple[str, float, float]]:
    free, total = torch.cuda.mem_get_info(device)
    return [(str(device), (total - free) / _MIB, SENSIBLE_SHARE * total / _MIB)]
