"""Does a learned growth policy pay? Train over several seeds and compare with fixed policies on held-out episodes.

    python benchmarks/policies/study.py --out benchmarks/results/policies-digits-v0

Training seeds run side by side, one process and one thread each. The output folder gets

* episodes.csv: one line per evaluated episode, the raw results;
* training.csv: one line per finished training episode;
* summary.json: settings, data set, versions, machine, and every estimate with its interval;
* comparison.png: the returns of all policies, and the training curves.

A seed whose run folder is complete is not trained again, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from esper_agent import atomic
from esper_agent.evaluation import EpisodeRecord, run_episodes, write_csv
from esper_agent.runs import EPISODES, MODEL, PolicyByName
from esper_agent.statistics import Estimate, bootstrap_interval, crossed_bootstrap, interquartile_mean
from esper_agent.training import HELD_OUT_SEED
from figure import draw_comparison
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

LEARNED = "learned"
PACKAGES = ("esper-env", "esper-agent", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")


@dataclass(frozen=True)
class StudySettings:
    """Train FactoredRecurrentPPO over several seeds and compare it with policies that nobody trained."""

    out: Path
    """Folder of the results."""
    runs: Path = Path("runs/study")
    """Folder of the training runs, one folder a seed."""
    env: str = "Esper-Digits-v0"
    """Task to train and evaluate on."""
    total_timesteps: int = 40_960
    """Environment steps of each training run."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Training seeds."""
    episodes: int = 100
    """Held-out episodes of each policy, the same for all."""
    baselines: tuple[str, ...] = ("heuristic", "conv_light", "conv_heavy", "random", "wait")
    """Policies to compare with."""
    workers: int = 2
    """Processes at a time."""
    train_flags: tuple[str, ...] = ()
    """Further flags of `esper train`, the same for every seed."""


def train_seed(settings: StudySettings, seed: int) -> Path:
    """Train one seed in a process of its own, unless its run folder is complete."""
    folder = settings.runs / f"seed-{seed}"
    if (folder / MODEL).exists():
        return folder
    command = [sys.executable, "-m", "esper_agent.cli", "train", "--env", settings.env, "--out", str(folder)]
    # Environment i of a run starts from seed + i: seeds this far apart share no training episode.
    command += ["--seed", str(1000 * seed), "--total-timesteps", str(settings.total_timesteps), "--no-progress"]
    subprocess.run(
        [*command, *settings.train_flags],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    return folder


def play(settings: StudySettings, name: str, policy: str) -> list[EpisodeRecord]:
    """Held-out episodes of one policy, deterministic."""
    source = PolicyByName(policy, settings.env, HELD_OUT_SEED)
    return run_episodes(source, settings.env, settings.episodes, HELD_OUT_SEED, name=name, num_envs=20)


def estimates(learned: Sequence[list[EpisodeRecord]], fixed: Mapping[str, list[EpisodeRecord]]) -> dict[str, Any]:
    """Interquartile means of the returns, and of the paired differences learned minus other."""
    table = np.array([[record.episode_return for record in records] for records in learned])
    result: dict[str, Any] = {"return": {LEARNED: as_json(crossed_bootstrap(table))}, "learned_minus": {}}
    for name, records in fixed.items():
        returns = np.array([record.episode_return for record in records])
        result["return"][name] = as_json(bootstrap_interval(returns))
        result["learned_minus"][name] = as_json(crossed_bootstrap(table - returns))
    result["return_by_seed"] = [float(interquartile_mean(row)) for row in table]
    return result


def as_json(estimate: Estimate) -> dict[str, float]:
    """An estimate as plain numbers."""
    return {"iqm": estimate.value, "low": estimate.low, "high": estimate.high}


def describe(records: Sequence[EpisodeRecord]) -> dict[str, float]:
    """Means over episodes of what else is worth knowing."""
    return {
        "return_mean": float(np.mean([record.episode_return for record in records])),
        "return_std": float(np.std([record.episode_return for record in records], ddof=1)),
        "test_accuracy": float(np.mean([record.test_accuracy for record in records])),
        "parameters_added": float(np.mean([record.parameters_added for record in records])),
        "fossilized": float(np.mean([record.fossilized for record in records])),
        "wait_share": float(np.mean([record.wait_share for record in records])),
        "episodes": len(records),
    }


def table(summary: Mapping[str, Any], title: str) -> Table:
    """The comparison for the terminal."""
    rows = Table(title=title)
    for column in (
        "policy",
        "return, IQM [95%]",
        "learned minus it [95%]",
        "test %",
        "parameters",
        "fossilized",
        "WAIT",
    ):
        rows.add_column(column, justify="left" if column == "policy" else "right")
    for name, described in summary["policies"].items():
        difference = summary["estimates"]["learned_minus"].get(name)
        rows.add_row(
            name,
            interval(summary["estimates"]["return"][name]),
            "" if difference is None else interval(difference),
            f"{described['test_accuracy']:.1f}",
            f"{described['parameters_added']:,.0f}",
            f"{described['fossilized']:.2f}",
            f"{described['wait_share']:.0%}",
        )
    return rows


def interval(estimate: Mapping[str, float]) -> str:
    """An estimate in one cell."""
    return f"{estimate['iqm']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def main() -> None:
    """Run the study."""
    settings = tyro.cli(StudySettings, description=__doc__)
    console = Console()
    with ThreadPoolExecutor(settings.workers) as pool:
        jobs = [pool.submit(train_seed, settings, seed) for seed in settings.seeds]
        folders = [job.result() for job in tqdm(jobs, desc="training runs", unit="run")]
    names = [(f"{LEARNED}-{seed}", str(folder)) for seed, folder in zip(settings.seeds, folders, strict=True)]
    names += [(name, name) for name in settings.baselines]
    played = {name: play(settings, name, policy) for name, policy in tqdm(names, desc="evaluating", unit="policy")}
    learned = [played[name] for name, _ in names[: len(folders)]]
    fixed = {name: played[name] for name in settings.baselines}
    pooled = [replace(record, policy=LEARNED) for records in learned for record in records]
    write_csv([record for records in played.values() for record in records], settings.out / "episodes.csv")
    training = training_curves(settings, folders)
    atomic.write_text(settings.out / "training.csv", training)
    summary = {
        "command": "python benchmarks/policies/study.py " + " ".join(sys.argv[1:]),
        "settings": json.loads(json.dumps(asdict(settings), default=str)),
        "dataset": learned[0][0].dataset,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, no GPU used",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "estimates": estimates(learned, fixed),
        "policies": {name: describe(records) for name, records in {LEARNED: pooled, **fixed}.items()},
    }
    atomic.write_text(settings.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw_comparison(summary, played, training, settings.out / "comparison.png")
    title = (
        f"{settings.env} on {summary['dataset']}: {len(folders)} training seeds, {settings.episodes} held-out episodes"
    )
    console.print(table(summary, title))
    console.print(f"Written to {settings.out}")


def training_curves(settings: StudySettings, folders: Sequence[Path]) -> str:
    """The training episodes of every run as one CSV text, with the training seed in the first column."""
    lines: list[str] = []
    for seed, folder in zip(settings.seeds, folders, strict=True):
        header, *rows = (folder / EPISODES).read_text(encoding="utf-8").splitlines()
        lines = lines or [f"training_seed,{header}"]
        lines += [f"{seed},{row}" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
