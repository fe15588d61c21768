"""Compilation of functions for one network, and the simplest of them.

Features are flat arrays in the order (C, H, W, B). Samples come last, so a row of an image is W * B contiguous values.
A forward kernel overwrites its output unless its docstring has ``+=``. A backward kernel adds to the gradients of its
input and its parameters. ``n`` is a number of contiguous values of a channel.

Sums are computed in a different order than in PyTorch, and products are fused with sums. Non-finite values stay
non-finite.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit

#: Everything that speeds up sums without assuming that numbers are finite.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile, on its first call, a function that other compiled functions call."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(function, error_model="numpy", fastmath=_FAST, **options)


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile a function on its first call, and release the interpreter lock while it runs.

    The result is cached on disk if a folder is writable.
    """
    compiled = njit(function, nogil=True, error_model="numpy", fastmath=_FAST)
    with suppress(RuntimeError):
        compiled.enable_caching()
    return compiled


@kernel
def clear(x: Any, n: int) -> None:
    """Set the first n values of x to zero."""
    zero = x.dtype.type(0)
    for j in range(n):
        x[j] = zero


@kernel
def copy(x: Any, y: Any, n: int) -> None:
    """Copy the first n values of x to y."""
    for j in range(n):
        y[j] = x[j]
