"""The figures in the docs are those of the files they are said to come from."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from esper_env.tasks import TASKS
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "benchmarks" / "results").glob("*/summary.json"))
#: Those of enough training runs to say more of than what they came to.
LARGE = [path for path in STUDIES if len(json.loads(path.read_text(encoding="utf-8"))["settings"]["seeds"]) >= 5]


def load_report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_study_of_each_kind_of_host():
    """Of the heuristic and the learned policy; the one that the demonstration's claims rest on is a large one."""
    tasks = {}
    for path in STUDIES:
        summary = json.loads(path.read_text(encoding="utf-8"))
        tasks[summary["settings"]["env"]] = summary["policies"].keys()
    assert {"Esper-Digits-v0", "Esper-Text-v0"} <= tasks.keys()
    assert all({"learned", "heuristic", "wait", "random"} <= policies for policies in tasks.values())
    assert [path.parent.name for path in LARGE] == ["policies-digits-v0"]


def test_the_pages_of_results_are_made_from_the_result_files(monkeypatch):
    pages = load_report(monkeypatch).pages()
    assert len(pages) == 2
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, "run: python benchmarks/report.py"


def test_host_alone_and_grown_are_in_the_docs_for_every_task():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## What a task leaves to growth")
    lines = [line.split(" | ") for line in section.partition("###")[0].splitlines() if line.startswith("| Esper-")]
    assert sorted(cells[0].removeprefix("| ") for cells in lines) == sorted(TASKS)
    for _, _, alone, grown, *_ in lines:
        assert float(grown.split()[0]) > float(alone.split()[0]), "numbers, and something is left to growth"


def test_a_task_has_one_line_over_all_its_files(monkeypatch, tmp_path):
    report = load_report(monkeypatch)

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
def test_a_studys_summary_follows_from_its_raw_episodes(path):
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


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.parent.name)
def test_the_learned_policy_beats_waiting_and_chance(path):
    """An independent look at the raw episodes: paired by episode, over the means of the training runs."""
    with (path.parent / "episodes.csv").open(encoding="utf-8") as file:
        episodes = list(csv.DictReader(file))
    table = {}
    for row in episodes:
        table.setdefault(row["policy"], {})[row["seed"]] = float(row["return"])
    runs = [name for name in table if name.startswith("learned-")]
    assert len(runs) >= 5
    for other in ("random", "wait"):
        means = [np.mean([table[run][seed] - table[other][seed] for seed in table[other]]) for run in runs]
        assert stats.ttest_1samp(means, 0.0, alternative="greater").pvalue < 0.025


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("actions", ["learned", "likeliest"])
def test_no_training_run_ends_in_waiting(path, actions):
    """Neither the policy as it was trained nor its likeliest actions."""
    with (path.parent / "episodes.csv").open(encoding="utf-8") as file:
        episodes = list(csv.DictReader(file))
    waiting = np.mean([float(row["return"]) for row in episodes if row["policy"] == "wait"])
    runs = {row["policy"] for row in episodes if row["policy"].startswith(f"{actions}-")}
    assert len(runs) >= 5
    for run in runs:
        own = [row for row in episodes if row["policy"] == run]
        assert np.mean([float(row["wait_share"]) for row in own]) < 0.97
        assert np.mean([float(row["fossilized"]) for row in own]) > 0.5
        assert np.mean([float(row["return"]) for row in own]) > waiting + 0.1
