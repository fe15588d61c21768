"""Tools for contributors: portable runs, comparisons of two checkouts, and the list of mutations."""

import importlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def _tools_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def load(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def portable(monkeypatch):
    """The tool without child processes: ``calls`` records commands, ``statuses`` has their exit statuses."""
    module = load("portable")
    module.calls, module.statuses = [], iter(())

    def run(command, environment):
        module.calls.append((list(command), environment))
        return next(module.statuses, 0)

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "capability", lambda _environment: "AVX2")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    return module


def test_portable_every_variant_meets_every_level_of_each_library(portable):
    made = portable.variants(short=False, every=True)
    assert len(set(made)) == 18
    for third in range(3):
        for threads in (1, 2):
            here = [variant for variant in made if variant.third() == third and variant.threads == threads]
            assert {variant.aten for variant in here} == {variant.onednn for variant in here} == {"own", "AVX2", "SSE4"}


def test_portable_environment_replaces_other_levels(portable, monkeypatch):
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX512_CORE")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    environment = portable.Variant("SSE4", "own", 2).environment()
    assert environment["ATEN_CPU_CAPABILITY"] == "default"
    assert environment["ESPER_TEST_THREADS"] == "2"
    assert not {"DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"} & environment.keys()


@pytest.mark.parametrize(
    ("statuses", "code"), [((0, 0, 0, 0), 0), ((0, 1, 0, 0), 1), ((0, 5, 0, 0), 0), ((5, 5, 5, 5), 1), ((4,), 1)]
)
def test_portable_exit_code_follows_the_variants(portable, capsys, statuses, code):
    portable.statuses = iter(statuses)
    assert portable.main(["-k", "x"]) == code
    assert len(portable.calls) == len(statuses)
    assert all(command[-2:] == ["-k", "x"] for command, _ in portable.calls)
    capsys.readouterr()


def test_portable_rejects_another_marker(portable, capsys):
    with pytest.raises(SystemExit) as error:
        portable.main(["-m", "slow"])
    assert error.value.code == 2
    assert "use -k or --quick" in capsys.readouterr().err
    assert portable.calls == []


def test_portable_skips_other_architectures(portable, monkeypatch, capsys):
    monkeypatch.setattr(portable.platform, "machine", lambda: "aarch64")
    assert portable.main(["--short"]) == 0
    assert "skipped: this machine is aarch64" in capsys.readouterr().out
    assert portable.calls == []


def test_one_in_runs_each_test_in_exactly_one_part():
    conftest = load("../tests/conftest")
    names, deselected = [f"test_{number}" for number in range(50)], []
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    parts = []
    for part in range(3):
        items = [SimpleNamespace(nodeid=name) for name in names]
        options = {"--one-in": 3, "--first": part}
        conftest.pytest_collection_modifyitems(SimpleNamespace(getoption=options.get, hook=hook), items)
        parts.append([item.nodeid for item in items])
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert len(deselected) == 2 * len(names)
    assert min(map(len, parts)) > 5


@pytest.mark.parametrize(("parts", "part"), [(0, 0), (3, 3), (3, -1)])
def test_one_in_rejects_missing_parts(parts, part):
    options = {"--one-in": parts, "--first": part}
    with pytest.raises(pytest.UsageError, match="--one-in is"):
        load("../tests/conftest").pytest_collection_modifyitems(SimpleNamespace(getoption=options.get), [])


@pytest.fixture
def scenarios():
    return importlib.import_module("checkout_scenarios")


@pytest.fixture
def compare():
    return importlib.import_module("compare_checkouts")


@pytest.fixture
def speed():
    return importlib.import_module("compare_speed")


def test_speed_players_take_turns_in_changing_order(speed):
    class Player:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def seconds_per_step(self, steps):
            turns.append((self.name, steps))
            return self.seconds

    turns = []
    times = speed.race(Player("old", 0.2), Player("new", 0.1), rounds=3, seconds=1.0)
    assert times == [(0.2, 0.1)] * 3
    assert turns[4:] == [(name, 5) for name in ("old", "new", "new", "old", "old", "new")]


def test_speed_report_has_medians_and_ratios_of_rounds(speed):
    line = speed.report("x", 4, [(2.0, 1.0), (4.0, 4.0), (8.0, 5.0)])
    assert line.split() == ["x", "1.0", "1.0", "1.600", "[1.000,", "2.000]"]


@pytest.mark.slow
def test_speed_plays_this_checkout_and_reports_a_failing_one(speed, monkeypatch):
    case = speed.Case("Esper-Digits-v0", 2, True, {"batches_per_step": 1, "horizon": 3})
    orders, answers = io.StringIO("1\n4\n"), io.StringIO()
    speed.play(case, orders, answers)
    assert len([float(line) for line in answers.getvalue().split()]) == 2
    monkeypatch.setattr(speed, "environment", lambda _folder, _threads: {"PATH": os.environ["PATH"]})
    with speed.player(TOOLS, "no-such-case", 1) as player, pytest.raises(speed.ComparisonError, match="failed"):
        player.seconds_per_step(1)


def test_compare_plays_every_scenario(compare, scenarios):
    assert set(compare.SCENARIOS) == set(scenarios.SCENARIOS)


def recorded(scenarios, value):
    record = {}
    scenarios.note(record, "x", value)
    return record


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 2),
        (1, 1.0),
        (0.0, -0.0),
        (np.float32(1), np.float64(1)),
        (np.zeros(2), np.zeros((2, 1))),
        (None, "None"),
        ({}, []),
        ([1], (1,)),
        ({"a": 1}, {"a": 1, "b": {}}),
        ("ab", "ac"),
    ],
    ids=repr,
)
def test_compare_reports_different_values(compare, scenarios, left, right):
    assert compare.differences(recorded(scenarios, left), recorded(scenarios, right))
    assert compare.differences(recorded(scenarios, left), recorded(scenarios, left)) == []


def test_compare_treats_equal_nan_and_strings_of_other_widths_as_equal(compare):
    assert compare.differences({"x": np.array([np.nan])}, {"x": np.array([np.nan])}) == []
    assert compare.differences({"x": np.array("a", dtype="U1")}, {"x": np.array("a", dtype="U9")}) == []


def test_compare_rejects_folders_and_names_without_a_checkout(compare, tmp_path):
    for name, message in ((str(tmp_path), "has no folder"), ("no-such-revision", "neither a folder nor a revision")):
        with pytest.raises(compare.ComparisonError, match=message), compare.checkout(name):
            pass


def test_scenarios_break_only_the_host(scenarios):
    weight, other = np.ones((2, 3)), np.ones((2, 3))
    state = {"population": {"seeds": {"host": other}, "host": {"momentum": {"weight": other}, "p": {"weight": weight}}}}
    scenarios.break_first_network(state)
    assert np.isnan(weight[0]).all()
    assert np.isfinite(weight[1]).all()
    assert np.isfinite(other).all()
    with pytest.raises(scenarios.ScenarioError, match="no weight of a host"):
        scenarios.break_first_network(json.loads("{}"))


def test_mutations_fit_the_sources(monkeypatch):
    """Each text occurs once in the sources, and each test file exists."""
    spec = importlib.util.spec_from_file_location("mutate", TOOLS / "mutate.py")
    mutate = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutate", mutate)  # its dataclasses look themselves up there
    spec.loader.exec_module(mutate)
    mutations = mutate.read_list(mutate.LIST)
    assert len(mutations) == 40
    assert mutate.find_places(mutate.ROOT, mutations).keys() == {mutation.name for mutation in mutations}
