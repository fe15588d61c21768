"""Exports of the package."""

import esper_agent
import pytest


@pytest.mark.parametrize("name", esper_agent.__all__)
def test_export_is_available(name):
    assert getattr(esper_agent, name).__name__ == name
    assert name in dir(esper_agent)


def test_misspelt_export_lists_the_names():
    with pytest.raises(AttributeError, match=r"no attribute 'HeuristicPolice'; it exports .*HeuristicPolicy"):
        esper_agent.HeuristicPolice  # noqa: B018
