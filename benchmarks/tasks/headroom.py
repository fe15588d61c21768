"""Measure the headroom of a task: accuracy of the host alone, and of hosts with seeds planted at the start.

    python benchmarks/tasks/headroom.py --env Esper-Digits-v0 --out benchmarks/results/headroom-digits-v0.json

Every network waits through its episode, so networks differ only in their planted seeds, which train from scratch with
the host. Also measured are the noise of the validation accuracy between late epochs, and the share of episodes in which
the signals "stabilised" and "plateau" occur.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from esper_agent.cli.main import OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import check_out, origin, run_script, write_json
from esper_agent.evaluation.tables import print_table
from esper_agent.policies.baselines import WaitPolicy
from esper_agent.settings.named_values import ConfigError, parse_env_settings
from esper_agent.vectors import make_vector
from esper_env.checks import POSITIVE, SEED, check
from esper_env.devices import resolve_device
from esper_env.rules import ObservationView
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

AT_ONCE = 16  # episodes at once, at most
HOST = "host alone"  # name of the plan without seeds
LATE = 12  # epochs at the end over which noise is measured


@dataclass(frozen=True)
class HeadroomSettings:
    """Train static networks on a task and record their accuracies."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    env: str = "Esper-Digits-v0"
    """Task; `esper info` lists them."""
    episodes: Annotated[int, POSITIVE] = 32
    """Episodes of each network."""
    seed: Annotated[int, SEED] = 1000
    """Seed of the first episode."""
    plans: tuple[str, ...] = ("", "r0c0=conv_light", "r0c1=conv_light", "r0c2=conv_light", "r0c0=conv_heavy")
    """Seeds planted at the start, as SLOT=BLUEPRINT joined by commas; an empty text is the host alone."""
    dataset: str = "auto"
    """Dataset, as for gymnasium.make."""
    env_settings: tuple[str, ...] = ()
    """Further settings of the environment as NAME=VALUE, such as precision=bfloat16."""

    def checked(self) -> HeadroomSettings:
        """These settings, or a ``ConfigError``."""
        check(self)
        if not self.plans or len(set(self.plans)) < len(self.plans):
            raise ConfigError(f"`plans` is {list(self.plans)}; expected one or more distinct plans")
        check_out(self.out)
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
    """Raise ``ConfigError`` for a plan that the environments reject; no episode is played."""
    for plan in plans:
        try:
            envs.reset(seed=seed, options={"topology": plan})
        except (ValueError, TypeError) as error:
            spelled = ",".join(f"{slot}={blueprint}" for slot, blueprint in plan.items())
            raise ConfigError(f"plan {spelled!r}: {error}") from None


def measure(envs: Any, plan: dict[str, str], seed: int, count: int) -> dict[str, Any]:
    """Play one episode with a plan; results are those of the first ``count`` environments."""
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
    """Statistics over all episodes of a plan."""
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
    """Measure every plan over all episodes; the last round may have spare environments."""
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


def run(settings: HeadroomSettings, flags: Sequence[str], console: Console) -> int:
    """Measure every plan, write the file and print the table."""
    for plan in settings.checked().plans:
        parse_plan(plan)
    rounds = -(-settings.episodes // AT_ONCE)
    kwargs = {"dataset": settings.dataset, **parse_env_settings(settings.env_settings)}
    envs: Any = make_vector(settings.env, -(-settings.episodes // rounds), AutoresetMode.DISABLED, **kwargs)
    try:
        results = measure_plans(envs, settings)
        content: dict[str, Any] = {
            **origin("benchmarks/tasks/headroom.py", flags),
            "env": settings.env,
            "env_settings": list(settings.env_settings),
            "dataset": envs.unwrapped.dataset_name,
            "plans": results,
        }
        content["machine"] += f"; run on {resolve_device(envs.unwrapped.task.device)}"
    finally:
        envs.close()
    write_json(content, settings.out)
    print_table(console, table(content, settings.episodes))
    say(console, f"Written to {settings.out}")
    return OK


def table(content: dict[str, Any], episodes: int) -> Table:
    """Table of the results."""
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
    """Run the benchmark and return its exit code."""
    return run_script(HeadroomSettings, run, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
