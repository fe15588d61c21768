"""Kernels and the functions that Python calls."""

import re

import numpy as np
import pytest

pytest.importorskip("numba")
from esper_env.population.fused.compilation import entry_point
from esper_env.population.fused.convolutions import convolve
from numba.core.dispatcher import Dispatcher


def test_entry_points_call_kernels_of_their_own(monkeypatch):
    """Otherwise the process that compiles calls kernels that round differently from those in the cached result."""
    monkeypatch.setattr(Dispatcher, "enable_caching", lambda _: None)

    @entry_point
    def twice(x, w, y, size):
        convolve(x, w, y, 1, 1, 1, 1, len(x), size, False)
        convolve(y, w, x, 1, 1, 1, 1, len(x), size, False)

    x, w, y = np.ones(16, np.float32), np.full(1, 3, np.float32), np.zeros(16, np.float32)
    twice(x, w, y, 1)
    assert x.tolist() == [9.0] * 16
    (code,) = twice.inspect_llvm().values()
    assert re.findall(r"^define (\w+) .*@_ZN9esper_env\w*convolve", code, re.MULTILINE) == ["internal"]
