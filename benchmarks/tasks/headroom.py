"""How much a task leaves to growth: accuracy of the host alone and of hosts with seeds in place from the start.

    python benchmarks/tasks/headroom.py --env Esper-Digits-v0 --out benchmarks/results/headroom-digits-v0.json

Every network waits through its episode, so what differs is only what was planted in it at the start and trained from
scratch with it. Also measured: the noise of the validation accuracy from one epoch to the next at the end of the
episode, and in how many episodes the signals that a policy may wait for are ever given.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from esper_agent.cli.main import OK, exit_code
from esper_agent.policies.baselines import WaitPolicy
from esper_agent.settings.config_file import ConfigError, parse_env_settings
from esper_agent.training.run_folder import package_versions
from esper_agent.vectors import make_vector
from esper_env.persistence import atomic
from esper_env.population.build import resolve_device
from esper_env.rules.observation_view import ObservationView
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

AT_ONCE = 16  # episodes that run at once, at most
HOST = "host alone"  # name of the plan without seeds
LATE = 12  # epochs at the end over which noise is measured


@dataclass(frozen=True)
class HeadroomSettings:
    """Train static networks on a task and write down how good they become."""

    out: Path
    """JSON file of the results; one that is there is replaced."""
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
    env_settings: tuple[str, ...] = ()
    """Further settings of the environment as NAME=VALUE, such as precision=bfloat16."""

    def checked(self) -> HeadroomSettings:
        """These settings, or a ``ConfigError`` for those that cannot work."""
        for name, bound in {"episodes": 1, "seed": 0}.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {bound}")
        if not self.plans or len(set(self.plans)) < len(self.plans):
            raise ConfigError(f"plans are {list(self.plans)}; expected at least one, none twice")
        if self.out.is_dir():
            raise ConfigError(f"out is {self.out}, a folder; give the path of a JSON file")
        present = next(path for path in self.out.absolute().parents if path.exists())
        if not present.is_dir() or not os.access(present, os.W_OK):
            raise ConfigError(f"out is {self.out}, but {present} is not a folder to write to; give another path")
        return self


def parse_plan(plan: str) -> dict[str, str]:
    """ "r0c0=norm,r0c1=norm" -> {"r0c0": "norm", "r0c1": "norm"}"""
    plantings: dict[str, str] = {}
    for planting in plan.split(",") if plan else ():
        slot, _, blueprint = planting.partition("=")
        if not slot or not blueprint or slot in plantings:
            raise ConfigError(
                f"plan {plan!r} has {planting!r}; expected SLOT=BLUEPRINT joined by commas, each slot once, "
                "such as r0c0=conv_light,r0c1=norm"
            )
        plantings[slot] = blueprint
    return plantings


def check_plans(envs: Any, plans: Sequence[dict[str, str]], seed: int) -> None:
    """``ConfigError`` for a plan that the environments cannot start from; no episode is played."""
    for plan in plans:
        try:
            envs.reset(seed=seed, options={"topology": plan})
        except (ValueError, TypeError) as error:
            spelled = ",".join(f"{slot}={blueprint}" for slot, blueprint in plan.items())
            raise ConfigError(f"plan {spelled!r}: {error}") from None


def measure(envs: Any, plan: dict[str, str], seed: int, count: int) -> dict[str, Any]:
    """One episode with the plan's seeds in place in each of the first ``count`` environments; the others run idly."""
    task, policy = envs.unwrapped.task, WaitPolicy()
    observations, _ = envs.reset(seed=seed, options={"topology": plan})
    accuracies, plateau = [], np.zeros(envs.num_envs)
    for _ in range(task.horizon):
        actions, _ = policy.predict(observations)
        observations, _, _, _, infos = envs.step(actions)
        accuracies.append(infos["val_accuracy"])
        view = ObservationView(observations["features"], len(envs.unwrapped.slot_ids), task.horizon)
        plateau = np.maximum(plateau, view.plateau_epochs)
    curve = np.array(accuracies)[:, :count]  # (horizon, count)
    return {
        "test_accuracy": infos["test_accuracy"][:count],
        "val_accuracy": curve[-1],
        "late_changes": np.diff(curve[-LATE:], axis=0),
        "parameters_added": int(infos["parameters_added"][0]),
        "stabilised": view.host_stabilised[:count],
        "plateau": plateau[:count] >= 3,
        "curve": curve,
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
        "val_accuracy_curve": np.concatenate([one["curve"] for one in rounds], axis=1).mean(axis=1).round(2).tolist(),
        "episodes": len(test),
    }


def measure_plans(envs: Any, settings: HeadroomSettings) -> dict[str, dict[str, Any]]:
    """Every plan over the episodes; the last round may have environments to spare."""
    plans = [parse_plan(plan) for plan in settings.plans]
    check_plans(envs, plans, settings.seed)
    end = settings.seed + settings.episodes
    results = {}
    bar = tqdm(list(zip(settings.plans, plans, strict=True)), desc=settings.env, unit="plan")
    for name, plan in bar:
        starts = range(settings.seed, end, envs.num_envs)
        rounds = [measure(envs, plan, start, min(envs.num_envs, end - start)) for start in starts]
        results[name or HOST] = summarise(rounds)
        bar.set_postfix_str(f"{name or HOST}: {results[name or HOST]['test_accuracy_mean']:.1f}%")
    return results


def headroom(settings: HeadroomSettings, command: Sequence[str], console: Console) -> None:
    """Measure every plan, write the results down and print a table."""
    for plan in settings.checked().plans:
        parse_plan(plan)
    rounds = -(-settings.episodes // AT_ONCE)
    kwargs = {"dataset": settings.dataset, **parse_env_settings(settings.env_settings)}
    envs: Any = make_vector(settings.env, -(-settings.episodes // rounds), AutoresetMode.DISABLED, **kwargs)
    try:
        results = measure_plans(envs, settings)
        device = resolve_device(envs.unwrapped.task.device).type
        content = {
            "command": shlex.join(["python", "benchmarks/tasks/headroom.py", *command]),
            "env": settings.env,
            "env_settings": list(settings.env_settings),
            "dataset": envs.unwrapped.dataset_name,
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, {device} device",
            "versions": package_versions(),
            "cuda": torch.cuda.is_available(),
            "plans": results,
        }
    finally:
        envs.close()
    atomic.write_text(settings.out, json.dumps(content, indent=2, allow_nan=False) + "\n")
    console.print(table(content, settings.episodes))
    console.print(f"Written to {settings.out}", soft_wrap=True)


def table(content: dict[str, Any], episodes: int) -> Table:
    """The results for the terminal."""
    rows = Table(title=f"{content['env']} on {content['dataset']}, {episodes} episodes each")
    for column in ("planted", "parameters", "test %", "late noise", "stabilised", "plateau"):
        rows.add_column(column, justify="left" if column == "planted" else "right", overflow="fold")
    for plan, row in content["plans"].items():
        spread = "" if row["test_accuracy_std"] is None else f" ± {row['test_accuracy_std']:.1f}"
        rows.add_row(
            plan,
            f"{row['parameters_added']:,}",
            f"{row['test_accuracy_mean']:.1f}{spread}",
            f"{row['late_noise_points']:.1f}",
            f"{row['stabilised_share']:.0%}",
            f"{row['plateau_share']:.0%}",
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run(console: Console) -> int:
        headroom(tyro.cli(HeadroomSettings, description=__doc__, args=given), given, console)
        return OK

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
