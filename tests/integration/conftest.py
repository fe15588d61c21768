"""Benchmarks are scripts: a test adds their folder to the path and reloads their modules."""

import sys
from pathlib import Path

import pytest

THROUGHPUT = Path(__file__).resolve().parents[2] / "benchmarks" / "throughput"


@pytest.fixture
def throughput_modules(monkeypatch):
    """Make the modules of benchmarks/throughput/ importable."""
    monkeypatch.syspath_prepend(str(THROUGHPUT))
    for module in THROUGHPUT.glob("*.py"):
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
