"""The soak passes a sound environment and finds broken ones."""

import importlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from esper_env.population.snapshots import Mismatch, Snapshots
from esper_env.rules import lifecycle

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LITTLE = ["--num-envs", "4", "--env-settings", "batches_per_step=1", "batch_size=16", "horizon=12"]
OFTEN = ["--fault-share", "0.3", "--replay-share", "0.1", "--illegal-share", "0.3"]


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "soak", raising=False)
    return importlib.import_module("soak")


def run(soak, out, *arguments):
    """The exit code and the results."""
    code = soak.main(["--out", str(out), *LITTLE, *OFTEN, *arguments])
    return code, json.loads(out.read_text())


@pytest.mark.slow
def test_soak_passes_a_sound_environment(soak, tmp_path, capsys):
    code, result = run(soak, tmp_path / "soak.json", "--steps", "40")
    assert (code, result["mismatches"]) == (0, {})
    counts = result["counts"]
    faults = {name: count for name, count in counts.items() if name.startswith("fault: ")}
    assert len(faults) == 4
    assert result["faults"] == sum(faults.values())
    names = "episodes, illegal actions, rollbacks, faults rolled back at once, stretches played twice"
    for name in names.split(", "):
        assert counts[name] > 0, name
    assert counts["steps"] >= 40 * 4
    assert len(result["memory_mib"]["readings"]) == 20
    assert "mismatches" in capsys.readouterr().out


def test_soak_finds_a_rollback_that_restores_nothing(soak, tmp_path, capsys):
    with mock.patch.object(Snapshots, "restore", return_value=Mismatch((), ())):
        code, result = run(soak, tmp_path / "soak.json", "--steps", "12")
    assert code == 1
    assert "a tensor that differs from the snapshot" in result["mismatches"]
    assert "MISMATCH a tensor that differs from the snapshot" in capsys.readouterr().out


def test_soak_finds_a_seed_that_survives_a_rollback(soak, tmp_path):
    sound = lifecycle.roll_back

    def spare(table, before, rows, kept):
        return sound(table, before, rows, kept | before.is_live)

    with mock.patch.object(lifecycle, "roll_back", spare):
        code, result = run(soak, tmp_path / "soak.json", "--steps", "20")
    assert code == 1
    assert "a live seed after a rollback" in result["mismatches"]


def test_soak_finds_a_fault_that_changes_other_networks(soak, tmp_path):
    sound = Snapshots.restore

    def leak(self, structure, row):
        for values in self._shard.host.parameters.values():
            values.mul_(1.001)
        return sound(self, structure, row)

    with mock.patch.object(Snapshots, "restore", leak):
        code, result = run(soak, tmp_path / "soak.json", "--steps", "12")
    assert code == 1
    assert "other networks after a fault" in result["mismatches"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--minutes", "0"], "minutes is 0.0; expected a positive number"),
        (["--steps", "0"], "steps is 0; expected at least 1"),
        (["--num-envs", "1"], "num_envs is 1; expected at least 2"),
        (["--fault-share", "1.5"], "fault_share is 1.5; expected a share from 0 to 1"),
    ],
)
def test_soak_rejects_bad_settings(soak, tmp_path, arguments, words, capsys):
    assert soak.main(["--out", str(tmp_path / "soak.json"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("soak")
def test_differences_counts_arrays_that_differ():
    checks = importlib.import_module("soaking.checks")
    one = ({"a": np.array([1.0, np.nan, 3.0])}, np.array([1, 2, 3]))
    same = ({"a": np.array([1.0, np.nan, 3.0])}, np.array([1, 2, 3]))
    other = ({"a": np.array([1.0, np.nan, 4.0])}, np.array([0, 2, 3]))
    assert checks.differences(one, same) == 0
    assert checks.differences(one, other) == 2
    assert checks.differences(one, other, ignored=np.array([2])) == 1
    assert checks.differences(one, other, ignored=np.array([0, 2])) == 0
