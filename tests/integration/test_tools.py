"""Tools for contributors: portable runs, comparisons of two checkouts, and the list of mutations."""

import importlib.util
import io
import os
from pathlib import Path
from types import SimpleNamespace

import checkout_scenarios as scenarios
import compare_checkouts as compare
import compare_speed as speed
import mutate
import numpy as np
import portable
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def calls(monkeypatch):
    """Commands and environments of portable.py; ``calls.statuses`` are the exit statuses to return."""
    made = SimpleNamespace(commands=[], statuses=iter(()))

    def run(command, environment):
        made.commands.append((list(command), environment))
        return next(made.statuses, 0)

    monkeypatch.setattr(portable, "run", run)
    monkeypatch.setattr(portable, "capability", lambda _environment: "AVX2")
    monkeypatch.setattr(portable.platform, "machine", lambda: "x86_64")
    return made


def test_portable_every_variant_meets_every_level_of_each_library():
    made = portable.variants(short=False, every=True)
    assert len(set(made)) == 18
    for third in range(3):
        for threads in (1, 2):
            here = [variant for variant in made if variant.third() == third and variant.threads == threads]
            assert {variant.aten for variant in here} == {variant.onednn for variant in here} == {"own", "AVX2", "SSE4"}


def test_portable_environment_replaces_other_levels(monkeypatch):
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX512_CORE")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    environment = portable.Variant("SSE4", "own", 2).environment()
    assert environment["ATEN_CPU_CAPABILITY"] == "default"
    assert environment["ESPER_TEST_THREADS"] == "2"
    assert not {"DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA"} & environment.keys()


@pytest.mark.parametrize(
    ("statuses", "code"), [((0, 0, 0, 0), 0), ((0, 1, 0, 0), 1), ((0, 5, 0, 0), 0), ((5, 5, 5, 5), 1), ((4,), 1)]
)
def test_portable_exit_code_follows_the_variants(calls, capsys, statuses, code):
    calls.statuses = iter(statuses)
    assert portable.main(["-k", "x"]) == code
    assert len(calls.commands) == len(statuses)
    assert all(command[-2:] == ["-k", "x"] for command, _ in calls.commands)
    capsys.readouterr()


def test_portable_rejects_another_marker_and_skips_other_architectures(calls, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        portable.main(["-m", "slow"])
    assert "use -k or --quick" in capsys.readouterr().err
    monkeypatch.setattr(portable.platform, "machine", lambda: "aarch64")
    assert portable.main(["--short"]) == 0
    assert "skipped: this machine is aarch64" in capsys.readouterr().out
    assert calls.commands == []


def one_in(parts, part, items):
    """Select a part of the tests as tests/conftest.py does; return the deselected ones."""
    spec = importlib.util.spec_from_file_location("conftest_of_all", ROOT / "tests" / "conftest.py")
    conftest, deselected = importlib.util.module_from_spec(spec), []
    spec.loader.exec_module(conftest)
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    options = {"--one-in": parts, "--first": part}
    conftest.pytest_collection_modifyitems(SimpleNamespace(getoption=options.get, hook=hook), items)
    return deselected


def test_one_in_runs_each_test_in_exactly_one_part():
    tests = [SimpleNamespace(nodeid=f"test_{number}") for number in range(50)]
    parts = [list(tests) for _ in range(3)]
    deselected = [len(one_in(3, part, items)) for part, items in enumerate(parts)]
    assert sorted(item.nodeid for part in parts for item in part) == sorted(item.nodeid for item in tests)
    assert [len(part) for part in parts] == [50 - count for count in deselected]
    assert min(map(len, parts)) > 5


@pytest.mark.parametrize(("parts", "part"), [(0, 0), (3, 3), (3, -1)])
def test_one_in_rejects_missing_parts(parts, part):
    with pytest.raises(pytest.UsageError, match="--one-in is"):
        one_in(parts, part, [])


def test_speed_players_take_turns_in_changing_order(monkeypatch):
    turns = []

    def seconds_per_step(player, steps):
        turns.append((player.folder, steps))
        return {"old": 0.2, "new": 0.1}[player.folder]

    monkeypatch.setattr(speed.Player, "seconds_per_step", seconds_per_step)
    times = speed.race(speed.Player("old", None), speed.Player("new", None), rounds=3, seconds=1.0)
    assert times == [(0.2, 0.1)] * 3
    assert turns[4:] == [(name, 5) for name in ("old", "new", "new", "old", "old", "new")]


def test_speed_report_has_medians_and_ratios_of_rounds():
    line = speed.report("x", 4, [(2.0, 1.0), (4.0, 4.0), (8.0, 5.0)])
    assert line.split() == ["x", "1.0", "1.0", "1.600", "[1.000,", "2.000]"]


@pytest.mark.slow
def test_speed_plays_this_checkout_and_reports_a_failing_one(monkeypatch):
    case = speed.Case("Esper-Digits-v0", 2, True, {"batches_per_step": 1, "horizon": 3})
    orders, answers = io.StringIO("1\n4\n"), io.StringIO()
    speed.play(case, orders, answers)
    assert len([float(line) for line in answers.getvalue().split()]) == 2
    monkeypatch.setattr(speed, "environment", lambda _folder, _threads: {"PATH": os.environ["PATH"]})
    with speed.player(ROOT, "no-such-case", 1) as player, pytest.raises(speed.ComparisonError, match="failed"):
        player.seconds_per_step(1)


def recorded(value):
    record = {}
    scenarios.note(record, "x", value)
    return record


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (0.0, -0.0),
        (np.float32(1), np.float64(1)),
        (np.zeros(2), np.zeros((2, 1))),
        (None, "None"),
        ([1], (1,)),
        ({"a": 1}, {"a": 1, "b": {}}),
    ],
    ids=repr,
)
def test_compare_reports_different_values(left, right):
    assert compare.differences(recorded(left), recorded(right))
    assert compare.differences(recorded(left), recorded(left)) == []


def test_compare_treats_equal_nan_and_strings_of_other_widths_as_equal():
    assert compare.differences({"x": np.array([np.nan])}, {"x": np.array([np.nan])}) == []
    assert compare.differences({"x": np.array("a", dtype="U1")}, {"x": np.array("a", dtype="U9")}) == []


def test_compare_knows_every_scenario_and_rejects_names_without_a_checkout(tmp_path):
    assert set(compare.SCENARIOS) == set(scenarios.SCENARIOS)
    for name, message in ((str(tmp_path), "has no folder"), ("no-such-revision", "neither a folder nor a revision")):
        with pytest.raises(compare.ComparisonError, match=message), compare.checkout(name):
            pass


def test_scenarios_break_only_the_host():
    weight, other = np.ones((2, 3)), np.ones((2, 3))
    state = {"population": {"seeds": {"host": other}, "host": {"momentum": {"weight": other}, "p": {"weight": weight}}}}
    scenarios.break_first_network(state)
    assert np.isnan(weight[0]).all()
    assert np.isfinite(weight[1]).all()
    assert np.isfinite(other).all()
    with pytest.raises(scenarios.ScenarioError, match="no weight of a host"):
        scenarios.break_first_network({})


def test_mutations_fit_the_sources():
    """Each text occurs once in the sources, and each test file exists."""
    mutations = mutate.read_list(mutate.LIST)
    assert len(mutations) == 43
    assert mutate.find_places(mutate.ROOT, mutations).keys() == {mutation.name for mutation in mutations}
