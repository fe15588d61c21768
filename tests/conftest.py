"""Defaults of every test: one thread for each process, property tests that draw the same examples every time, and
registries that are restored."""

import os

# Set before torch and NumPy load their thread pools, and inherited by the processes that tests start: the workers of
# pytest-xdist share the cores. tools/portable.py asks for more threads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Figures are drawn to files; no test needs a display.
os.environ["MPLBACKEND"] = "Agg"

import gymnasium  # noqa: E402
import pytest  # noqa: E402
from esper_env.networks.seeds import registry  # noqa: E402
from esper_env.tasks import TASKS  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# ESPER_HYPOTHESIS_EXAMPLES raises or lowers how many examples each property is tried on. Speed is not a property under
# test here, so neither a deadline nor the health check for slow data can fail a run on a busy machine.
settings.register_profile(
    "esper",
    derandomize=True,
    deadline=None,
    max_examples=int(os.environ.get("ESPER_HYPOTHESIS_EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("esper")


def pytest_addoption(parser):
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="run every N-th of the chosen tests only")
    parser.addoption("--first", type=int, default=0, metavar="K", help="with --one-in: begin with the K-th test")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    step, first = config.getoption("--one-in"), config.getoption("--first")
    chosen = items[first::step]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


@pytest.fixture
def own_tables():
    """Tasks and blueprints that are registered here are forgotten afterwards."""
    tables = [TASKS, gymnasium.registry, *registry._REGISTRY.values()]
    topologies, before = dict(registry._REGISTRY), [dict(table) for table in tables]
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(topologies)
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
