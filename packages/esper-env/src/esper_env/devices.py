"""Devices by name, and the memory of accelerators."""

from __future__ import annotations

import torch

from esper_env.telemetry.memory import MIB, SENSIBLE_SHARE, Accelerators

__all__ = ["memory_gauge", "resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first CUDA device, or the CPU on a machine without one.

    Raises:
        ValueError: a device that PyTorch does not know or that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"`device` is {name!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N' for a device of this machine, which has "
            f"{torch.cuda.device_count()} CUDA devices"
        ) from error
    return device


def memory_gauge(device: torch.device) -> Accelerators | None:
    """Return a function that reads the memory in use on a CUDA device; None for other devices."""
    if device.type != "cuda":
        return None

    def read() -> list[tuple[str, float, float]]:
        free, total = torch.cuda.mem_get_info(device)
        return [(str(device), (total - free) / MIB, SENSIBLE_SHARE * total / MIB)]

    return read
