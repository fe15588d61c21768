"""Importing the package is cheap, and everything it offers is there."""

import subprocess
import sys

import esper_agent
import pytest


def test_importing_the_package_loads_neither_torch_nor_stable_baselines3():
    code = "import sys, esper_agent; print([name for name in ('torch', 'stable_baselines3') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", esper_agent.__all__)
def test_every_export_can_be_used(name):
    assert getattr(esper_agent, name).__name__ == name
    assert name in dir(esper_agent)


def test_a_misspelt_name_lists_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'HeuristicPolice'; it exports .*HeuristicPolicy"):
        esper_agent.HeuristicPolice  # noqa: B018
