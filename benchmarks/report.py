"""Write docs/results.md, docs/headroom.md and a part of docs/performance.md from the files in benchmarks/results/.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report_reliability
import report_settings
import report_speed
from esper_agent.ppo.settings import PPOSettings
from policies.rows import COLUMNS, comparison_rows, number

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE, HEADROOM_PAGE = ROOT / "docs" / "results.md", ROOT / "docs" / "headroom.md"
PERFORMANCE_PAGE = ROOT / "docs" / "performance.md"

HEAD = """# {title}

`python benchmarks/report.py` writes this page from the files in `benchmarks/results/`. The commands were run in the
root of the checkout; `python` is `.venv/bin/python`.
"""

STUDY = """
## Policies on {env}{settings}

{runs} of {timesteps:,} steps each, and {episodes} held-out episodes, the same for every policy. Dataset:
{dataset}. Machine: {machine}. Raw results: `benchmarks/results/{folder}/`. Command:

```
{command}
```

| {columns} |
|---|---|---|---|---|---|---|
{rows}

"learned" is the trained policies, whose actions are sampled as in training. "likeliest" is the same policies with their
most probable actions. IQM is the interquartile mean over runs and episodes. Intervals resample training runs and
episodes. By training run, the IQM return is {by_seed} with sampled actions, and {likeliest_by_seed} with the most
probable ones. {verdict}

![Returns and training curves](../benchmarks/results/{folder}/comparison.png)
"""

HEADROOM = """
## {env}{settings}

Dataset: {dataset}. Machine: {machine}. File: `benchmarks/results/{file}`. Command: `{command}`

| planted at the start | parameters | test % | epoch-to-epoch noise, points | stabilised | plateau | episodes |
|---|---|---|---|---|---|---|
{rows}
"""

HEADROOM_HEAD = """
## Headroom of the tasks

These networks wait through an episode, with seeds that are planted at its start and train from scratch with the host.
Accuracies are means ± standard deviations over the episodes. Plans within a standard deviation may rank differently on
other episodes. [All plans](headroom.md), with commands.

| task | dataset | host alone, test % | best plan, test % | parameters added | planted |
|---|---|---|---|---|---|
{rows}
"""

PLANS_HEAD = """
Plans behind the [headroom of the tasks](results.md#headroom-of-the-tasks). The noise is the standard deviation of the
change of validation accuracy over the last 12 epochs. "stabilised" and "plateau" are the shares of episodes in which
these signals occur.
"""

CALIBRATION = """
### Calibration of the procedural stand-in for CIFAR

Target ranges for the CIFAR tasks on the stand-in, and means over the episodes below.
Machine: {machine}. File: `benchmarks/results/{file}`. Command: `{command}`

| target | found | range | met | planted |
|---|---|---|---|---|
{rows}
"""


def verdict(differences: Mapping[str, Mapping[str, float | None]]) -> str:
    """Sentence that compares the learned policy with the others."""
    if not differences:
        return "Learned was compared with no other policy."
    if any(d["low"] is None for d in differences.values()):
        return (
            "One training run, or one episode, gives no intervals, so learned cannot be compared with "
            f"{', '.join(differences)}."
        )
    groups = {
        "better than": [name for name, d in differences.items() if d["low"] > 0],
        "worse than": [name for name, d in differences.items() if d["high"] < 0],
        "indistinguishable from": [name for name, d in differences.items() if d["low"] <= 0 <= d["high"]],
    }
    relations = [f"{relation} {', '.join(names)}" for relation, names in groups.items() if names]
    return f"Learned is {'; '.join(relations)}."


def study(folder: Path) -> str:
    """Section of one policy study."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    estimates, settings = summary["estimates"], summary["settings"]
    seeds, defaults = len(settings["seeds"]), vars(PPOSettings())
    trained = {name: value for name, value in summary["training"].items() if name in defaults}
    changed = [
        f"{name}={value}" for name, value in trained.items() if (value or defaults[name]) and value != defaults[name]
    ]
    return STUDY.format(
        env=settings["env"],
        settings="".join(f", {setting}" for setting in (*settings["env_settings"], *changed)),
        runs=f"{seeds} training run{'s' if seeds > 1 else ''}",
        timesteps=settings["total_timesteps"],
        episodes=settings["episodes"],
        dataset=summary["dataset"],
        machine=summary["machine"],
        folder=folder.name,
        command=summary["command"],
        columns=" | ".join(COLUMNS),
        rows=report_speed.lines(comparison_rows(summary)),
        by_seed=", ".join(f"{value:.3f}" for value in estimates["return_by_seed"]),
        likeliest_by_seed=", ".join(f"{value:.3f}" for value in estimates["likeliest_by_seed"]),
        verdict=verdict({name: d for name, d in estimates["learned_minus"].items() if name in settings["baselines"]}),
    )


def accuracy(numbers: Mapping[str, float | None]) -> str:
    """Text of mean and standard deviation over the episodes; the mean alone for one episode."""
    spread = numbers["test_accuracy_std"]
    return f"{numbers['test_accuracy_mean']:.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def headroom(file: Path) -> str:
    """Section of one headroom measurement."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for plan, numbers in content["plans"].items():
        rows.append(
            f"| {plan} | {numbers['parameters_added']:,} | {accuracy(numbers)} "
            f"| {numbers['late_noise_points']:.1f} | {numbers['stabilised_share']:.0%} "
            f"| {numbers['plateau_share']:.0%} | {numbers['episodes']} |"
        )
    return HEADROOM.format(
        env=content["env"],
        settings="".join(f", {setting}" for setting in content.get("env_settings", ())),
        dataset=content["dataset"],
        machine=content["machine"],
        file=file.name,
        command=content["command"],
        rows="\n".join(rows),
    )


def headroom_of_all(files: Sequence[Path]) -> str:
    """Section with the headroom of all tasks, one line per task over all its files."""
    tasks: dict[tuple[str, str], dict[str, Any]] = {}
    for content in (json.loads(file.read_text(encoding="utf-8")) for file in files):
        if not content.get("env_settings"):
            tasks.setdefault((content["env"], content["dataset"]), {}).update(content["plans"])
    rows = []
    for (env, dataset), plans in tasks.items():
        planted = {plan: numbers for plan, numbers in plans.items() if plan != "host alone"}
        if len(planted) == len(plans) or not planted:
            continue  # nothing to compare
        best = max(planted, key=lambda plan: planted[plan]["test_accuracy_mean"])
        alone, grown, added = accuracy(plans["host alone"]), accuracy(planted[best]), planted[best]["parameters_added"]
        rows.append(f"| {env} | {dataset} | {alone} | {grown} | {added:,} | {best} |")
    return HEADROOM_HEAD.format(rows="\n".join(rows))


def calibration(file: Path) -> str:
    """Section of the calibration."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for one in content["verdicts"]:
        found, met = number(one["value"], ".3g") or "none", "yes" if one["met"] else "no"
        rows.append(f"| {one['target']} | {found} | {one['low']:.3g} to {one['high']:.3g} | {met} | {one['plan']} |")
    return CALIBRATION.format(
        machine=content["machine"], file=file.name, command=content["command"], rows="\n".join(rows)
    )


def pages() -> dict[Path, str]:
    """Whole pages by file."""
    sections = [HEAD.format(title="Results")]
    sections += [study(folder.parent) for folder in sorted(RESULTS.glob("*/summary.json"))]
    tasks = sorted(RESULTS.glob("headroom-*.json"), key=lambda file: file.stem)
    sections.append(headroom_of_all(tasks))
    sections += [calibration(file) for file in sorted(RESULTS.glob("calibration-*.json"))]
    sections += report_speed.sections(RESULTS)
    sections += report_reliability.sections(RESULTS)
    planted = [HEAD.format(title="Headroom: all plans"), PLANS_HEAD, *map(headroom, tasks)]
    performance = report_settings.with_tables(PERFORMANCE_PAGE.read_text(encoding="utf-8"), RESULTS)
    return {PAGE: "".join(sections), HEADROOM_PAGE: "".join(planted), PERFORMANCE_PAGE: performance}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
        print(f"Written to {page.relative_to(ROOT)}")
