"""Pages of results: they match the result files, and summaries match the raw episodes."""

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from esper_env.tasks import TASKS
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "benchmarks" / "results").glob("*/summary.json"))
#: Studies with enough training runs for a test of their means.
LARGE = [path for path in STUDIES if len(json.loads(path.read_text(encoding="utf-8"))["settings"]["seeds"]) >= 5]


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("report")


def test_pages_match_the_result_files(report):
    pages = report.pages()
    assert len(pages) == 2
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, "run: python benchmarks/report.py"
    headroom = next(text for page, text in pages.items() if page.name == "headroom.md")
    assert [env_id for env_id in TASKS if f"## {env_id}\n" not in headroom] == []


def test_headroom_has_one_line_per_task(report, tmp_path):
    def write(name, env, settings=(), host=True, **accuracies):
        plans = {
            plan: {"test_accuracy_mean": value, "test_accuracy_std": 1.25, "parameters_added": 7}
            for plan, value in accuracies.items()
        }
        if host:
            plans["host alone"] = {"test_accuracy_mean": 40.0, "test_accuracy_std": None, "parameters_added": 0}
        content = {"env": env, "dataset": "data", "env_settings": settings, "plans": plans}
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path / name

    files = [
        write("a.json", "A-v0", norm=50.0),
        write("b.json", "B-v0", lora=30.0),
        write("a-grown.json", "A-v0", both=61.25),
        write("c.json", "C-v0", host=False, norm=50.0),
        write("d.json", "D-v0"),
        write("a-half.json", "A-v0", ["precision=bfloat16"], other=99.0),
    ]
    *_, first, second = report.headroom_of_all(files).rstrip().splitlines()
    assert first == "| A-v0 | data | 40.0 | 61.2 ± 1.2 | 7 | both |"
    assert second == "| B-v0 | data | 40.0 | 30.0 ± 1.2 | 7 | lora |"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_summary_matches_the_raw_episodes(path):
    summary = json.loads(path.read_text(encoding="utf-8"))
    with (path.parent / "episodes.csv").open(encoding="utf-8") as file:
        episodes = list(csv.DictReader(file))
    seeds = {}
    for name, estimate in summary["estimates"]["return"].items():
        own = [row for row in episodes if row["policy"] == name or row["policy"].startswith(f"{name}-")]
        returns = np.sort([float(row["return"]) for row in own])
        cut = len(returns) // 4
        assert returns[cut : len(returns) - cut].mean() == pytest.approx(estimate["iqm"], abs=1e-9)
        accuracy = np.mean([float(row["test_accuracy"]) for row in own])
        assert accuracy == pytest.approx(summary["policies"][name]["test_accuracy"])
        seeds[name] = {row["seed"] for row in own}
    assert len(set(map(frozenset, seeds.values()))) == 1, "every policy plays the same episodes"


def rows_by_policy(path):
    """Return {policy: {seed: row}} of the raw episodes of a study."""
    found = {}
    with (path.parent / "episodes.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["policy"], {})[row["seed"]] = row
    return found


def test_a_large_study_of_digits_and_a_study_of_text_exist():
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in STUDIES]
    assert {summary["settings"]["env"] for summary in summaries} >= {"Esper-Digits-v0", "Esper-Text-v0"}
    assert [path.parent.name for path in LARGE] == ["policies-digits-v0"]


@pytest.mark.parametrize("other", ["random", "wait"])
@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.parent.name)
def test_learned_policy_beats_waiting_and_chance(path, other):
    """Paired by episode, over the means of the training runs."""
    table = rows_by_policy(path)
    baseline = {seed: float(row["return"]) for seed, row in table[other].items()}
    means = [
        np.mean([float(row["return"]) - baseline[seed] for seed, row in rows.items()])
        for name, rows in table.items()
        if name.startswith("learned-")
    ]
    assert len(means) >= 5
    assert stats.ttest_1samp(means, 0.0, alternative="greater").pvalue < 0.025


@pytest.mark.parametrize("actions", ["learned", "likeliest"])
@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.parent.name)
def test_no_training_run_collapses_to_waiting(path, actions):
    table = rows_by_policy(path)
    runs = [rows for name, rows in table.items() if name.startswith(f"{actions}-")]
    assert len(runs) >= 5

    def mean(rows, column):
        return np.mean([float(row[column]) for row in rows.values()])

    for rows in runs:
        assert mean(rows, "wait_share") < 0.97
        assert mean(rows, "fossilized") > 0.5
        assert mean(rows, "return") > mean(table["wait"], "return") + 0.1
