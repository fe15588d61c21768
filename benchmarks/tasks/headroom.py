"""How much a task leaves to growth: accuracy of the host alone and of hosts with seeds in place from the start.

    python benchmarks/tasks/headroom.py --env Esper-Digits-v0 --out benchmarks/results/headroom-digits-v0.json

Every network waits through its episode, so what differs is only what was planted in it at the start and trained from
scratch with it. Also measured: the noise of the validation accuracy from one epoch to the next at the end of the
episode, and in how many episodes the signals that a policy may wait for are ever given.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import esper_env  # noqa: F401  registers the ids
import gymnasium
import numpy as np
import torch
import tyro
from esper_agent import atomic
from esper_agent.baselines import WaitPolicy
from esper_env.rules.observation_view import ObservationView
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

LATE = 12  # epochs at the end over which noise is measured
PACKAGES = ("esper-env", "torch", "numpy")


@dataclass(frozen=True)
class HeadroomSettings:
    """Train static networks on a task and write down how good they become."""

    out: Path
    """JSON file of the results."""
    env: str = "Esper-Digits-v0"
    """Task; `esper info` lists them."""
    episodes: int = 32
    """Episodes of each network."""
    seed: int = 1000
    """Seed of the first episode."""
    plans: tuple[str, ...] = ("", "r0c0=conv_light", "r0c1=conv_light", "r0c2=conv_light", "r0c0=conv_heavy")
    """Seeds planted from the start, as SLOT=BLUEPRINT joined by commas; empty is the host alone."""
    dataset: str = "auto"
    """Data set, as for gymnasium.make."""


def parse_plan(plan: str) -> dict[str, str]:
    """ "r0c0=norm,r0c1=norm" -> {"r0c0": "norm", "r0c1": "norm"}"""
    return dict(planting.split("=", 1) for planting in plan.split(",") if planting)


def measure(envs: Any, plan: dict[str, str], seed: int) -> dict[str, Any]:
    """One episode of every environment with the plan's seeds in place."""
    task, policy = envs.unwrapped.task, WaitPolicy()
    observations, _ = envs.reset(seed=seed, options={"topology": plan})
    accuracies, plateau = [], np.zeros(envs.num_envs)
    for _ in range(task.horizon):
        actions, _ = policy.predict(observations)
        observations, _, _, _, infos = envs.step(actions)
        accuracies.append(infos["val_accuracy"])
        view = ObservationView(observations["features"], len(envs.unwrapped.slot_ids), task.horizon)
        plateau = np.maximum(plateau, view.plateau_epochs)
    curve = np.array(accuracies)  # (horizon, N)
    return {
        "test_accuracy": infos["test_accuracy"],
        "val_accuracy": curve[-1],
        "late_changes": np.diff(curve[-LATE:], axis=0),
        "parameters_added": int(infos["parameters_added"][0]),
        "stabilised": view.host_stabilised,
        "plateau": plateau >= 3,
        "curve": curve.mean(axis=1),
    }


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers over all episodes of a plan."""
    test = np.concatenate([one["test_accuracy"] for one in rounds])
    return {
        "parameters_added": rounds[0]["parameters_added"],
        "test_accuracy_mean": float(test.mean()),
        "test_accuracy_std": float(test.std(ddof=1)) if len(test) > 1 else None,
        "val_accuracy_mean": float(np.concatenate([one["val_accuracy"] for one in rounds]).mean()),
        "late_noise_points": float(np.concatenate([one["late_changes"] for one in rounds], axis=1).std()),
        "stabilised_share": float(np.concatenate([one["stabilised"] for one in rounds]).mean()),
        "plateau_share": float(np.concatenate([one["plateau"] for one in rounds]).mean()),
        "val_accuracy_curve": np.mean([one["curve"] for one in rounds], axis=0).round(2).tolist(),
        "episodes": len(test),
    }


def main() -> None:
    """Measure every plan and print a table."""
    settings = tyro.cli(HeadroomSettings, description=__doc__)
    count = min(settings.episodes, 16)
    envs = gymnasium.make_vec(
        settings.env, num_envs=count, autoreset_mode=AutoresetMode.DISABLED.value, dataset=settings.dataset
    )
    results = {}
    for plan in tqdm(settings.plans, desc=settings.env, unit="plan"):
        starts = range(settings.seed, settings.seed + settings.episodes, count)
        results[plan or "host alone"] = summarise([measure(envs, parse_plan(plan), start) for start in starts])
    table = Table(title=f"{settings.env} on {envs.unwrapped.dataset_name}, {settings.episodes} episodes each")
    for column in ("planted", "parameters", "test %", "late noise", "stabilised", "plateau"):
        table.add_column(column, justify="left" if column == "planted" else "right")
    for plan, row in results.items():
        spread = "" if row["test_accuracy_std"] is None else f" ± {row['test_accuracy_std']:.1f}"
        table.add_row(
            plan,
            f"{row['parameters_added']:,}",
            f"{row['test_accuracy_mean']:.1f}{spread}",
            f"{row['late_noise_points']:.1f}",
            f"{row['stabilised_share']:.0%}",
            f"{row['plateau_share']:.0%}",
        )
    content = {
        "command": "python benchmarks/tasks/headroom.py " + " ".join(sys.argv[1:]),
        "env": settings.env,
        "dataset": envs.unwrapped.dataset_name,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {envs.unwrapped.task.device} device",
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "cuda": torch.cuda.is_available(),
        "plans": results,
    }
    envs.close()
    atomic.write_text(settings.out, json.dumps(content, indent=2) + "\n")
    console = Console()
    console.print(table)
    console.print(f"Written to {settings.out}")


if __name__ == "__main__":
    main()
