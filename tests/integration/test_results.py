"""Pages of results: they match the result files, and summaries match the raw episodes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import report
from esper_env.tasks import TASKS
from scipy import stats

STUDIES = sorted((Path(__file__).resolve().parents[2] / "benchmarks" / "results").glob("*/summary.json"))
#: The study with enough training runs for a test of their means.
LARGE = next(path for path in STUDIES if path.parent.name == "policies-digits-v0-mask-gates-true")


def episodes(path):
    """Raw episodes of a study: {policy: {seed: row}}."""
    found = {}
    with path.with_name("episodes.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["policy"], {})[row["seed"]] = row
    return found


def runs_of(found, kind):
    """Episodes of each training run."""
    return [rows for name, rows in found.items() if name.startswith(f"{kind}-")]


def values(rows, column):
    return np.array([float(rows[seed][column]) for seed in sorted(rows)])


def test_pages_match_the_result_files():
    pages = report.pages()
    assert len(pages) == 3
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, "run: python benchmarks/report.py"
    assert {path.parent.name for path in STUDIES} >= {LARGE.parent.name, "policies-text-v0"}
    headroom = pages[report.HEADROOM_PAGE]
    assert [env_id for env_id in TASKS if f"## {env_id}\n" not in headroom] == []


def test_headroom_has_one_line_per_task(tmp_path):
    def write(name, env, settings=(), host=True, **accuracies):
        numbers = {"test_accuracy_std": 1.25, "parameters_added": 7}
        plans = {plan: numbers | {"test_accuracy_mean": value} for plan, value in accuracies.items()}
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
    summary, found = json.loads(path.read_text(encoding="utf-8")), episodes(path)
    assert len({frozenset(rows) for rows in found.values()}) == 1, "every policy plays the same episodes"
    for name, estimate in summary["estimates"]["return"].items():
        own = runs_of(found, name) or [found[name]]
        returns = np.sort(np.concatenate([values(rows, "return") for rows in own]))
        cut = len(returns) // 4
        assert returns[cut : len(returns) - cut].mean() == pytest.approx(estimate["iqm"], abs=1e-9)
        accuracy = np.mean([values(rows, "test_accuracy") for rows in own])
        assert accuracy == pytest.approx(summary["policies"][name]["test_accuracy"])


@pytest.mark.parametrize("other", ["random", "wait"])
def test_learned_policy_beats_waiting_and_chance(other):
    """Paired by episode, over the means of the training runs."""
    found = episodes(LARGE)
    baseline = values(found[other], "return")
    means = [(values(rows, "return") - baseline).mean() for rows in runs_of(found, "learned")]
    assert len(means) >= 5
    assert stats.ttest_1samp(means, 0.0, alternative="greater").pvalue < 0.025


@pytest.mark.parametrize("kind", ["learned", "likeliest"])
def test_no_training_run_collapses_to_waiting(kind):
    found = episodes(LARGE)
    assert len(runs_of(found, kind)) >= 5
    for rows in runs_of(found, kind):
        assert values(rows, "wait_share").mean() < 0.97
        assert values(rows, "fossilized").mean() > 0.5
        assert values(rows, "return").mean() > values(found["wait"], "return").mean() + 0.1
