"""Benchmarks are scripts: their folder is put on the path for a test, and their modules are loaded anew."""

import sys
from pathlib import Path

import pytest

THROUGHPUT = Path(__file__).resolve().parents[2] / "benchmarks" / "throughput"


@pytest.fixture
def throughput_modules(monkeypatch):
    """The modules of benchmarks/throughput/ can be imported."""
    monkeypatch.syspath_prepend(str(THROUGHPUT))
    for module in THROUGHPUT.glob("*.py"):
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
