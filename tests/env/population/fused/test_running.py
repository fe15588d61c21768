"""Compiled functions are cached on disk and recompiled when a source file changes. Long compilation is logged."""

import logging

import numpy as np
import pytest

pytest.importorskip("numba")
from esper_env.population.fused import compilation, running


def test_long_compilation_is_reported(monkeypatch, caplog):
    running.prepare(np.float32)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(running, "REPORTED_SECONDS", 60.0)
        running.prepare.__wrapped__(np.float32)
        assert caplog.messages == []
        monkeypatch.setattr(running, "REPORTED_SECONDS", 0.0)
        running.prepare.__wrapped__(np.float32)
    assert caplog.messages[-1].startswith("compiled the programs of networks in 0 s; other processes load them from ")


def test_kept_programs_belong_to_their_source_files():
    """numba's cache key has only the file of the function and the values of its closure."""
    (cell,) = running.run.py_func.__closure__
    assert cell.cell_contents == running._digest()


def test_functions_compile_where_no_folder_can_be_written(monkeypatch):
    from numba.core.dispatcher import Dispatcher

    def refuse(_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    double = compilation.entry_point(lambda x: 2 * x)
    assert double(3) == 6
