"""Defaults of every test: one thread for each process, property tests that draw the same examples every time, and
registries that are restored."""

import os
import zlib
from pathlib import Path

# Set before torch and NumPy load their thread pools, and inherited by the processes that tests start: the workers of
# pytest-xdist share the cores. tools/portable.py asks for more threads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = os.environ.get("ESPER_TEST_THREADS", "1")
# Figures are drawn to files; no test needs a display.
os.environ["MPLBACKEND"] = "Agg"
# Data that the user has fetched is not found: this folder does not exist.
os.environ["ESPER_DATA_DIR"] = str(Path(__file__).with_name("no-data"))

import gymnasium  # noqa: E402
import pytest  # noqa: E402
from esper_env.seeds import registry  # noqa: E402
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

pytest_plugins = ["small_networks"]  # in tests/support


def pytest_addoption(parser):
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="run one N-th of the selected tests")
    parser.addoption("--first", type=int, default=0, metavar="K", help="with --one-in: which N-th, from 0")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config, items):
    parts, part = config.getoption("--one-in"), config.getoption("--first")
    if parts == 1:
        return
    if parts < 1 or not 0 <= part < parts:
        raise pytest.UsageError(f"--one-in is {parts} and --first {part}; expected 1 or more, and less than --one-in")
    # By name, so that a new test moves no other test to another part.
    chosen = [zlib.crc32(item.nodeid.encode()) % parts == part for item in items]
    config.hook.pytest_deselected(items=[item for item, kept in zip(items, chosen, strict=True) if not kept])
    items[:] = [item for item, kept in zip(items, chosen, strict=True) if kept]


@pytest.fixture(autouse=True, scope="session")
def logs_of_stable_baselines3(tmp_path_factory):
    """Give models without a logger a temporary folder of pytest instead of a new one in the system's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.fixture
def own_tables():
    """Unregister tasks and blueprints that the test registered."""
    tables = [TASKS, gymnasium.registry, registry._SHAPES, *registry._REGISTRY.values()]
    topologies, before = dict(registry._REGISTRY), [dict(table) for table in tables]
    yield
    registry._REGISTRY.clear()
    registry._REGISTRY.update(topologies)
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)
