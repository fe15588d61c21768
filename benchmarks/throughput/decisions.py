"""How long the decision side of a step takes: masks, decoding, transitions, reward, observation of N networks.

    python benchmarks/throughput/decisions.py --out benchmarks/results/decisions-cpu.json

Uniformly random legal actions on a task whose training is cut to next to nothing. Times are medians over the calls of
the run, in milliseconds of a call for all networks together; all of it is NumPy on one core. The whole observation
contains legality, masks and features.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import esper_env  # noqa: F401  registers the ids
import gymnasium
import numpy as np
import tyro
from esper_agent.cli.main import OK, exit_code
from esper_agent.settings.config_file import ConfigError
from esper_agent.training.run_folder import package_versions
from esper_env.persistence import atomic
from esper_env.rules import lifecycle
from rich.console import Console
from rich.table import Table
from timing import machine
from tqdm import trange

#: As little training as a step can have.
LITTLE_TRAINING = {"batch_size": 2, "batches_per_step": 1}


@dataclass(frozen=True)
class DecisionSettings:
    """Time the decision side."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    env: str = "Esper-Digits-v0"
    """Task."""
    n: int = 64
    """Number of networks."""
    steps: int = 200
    """Steps of the run."""

    def checked(self) -> DecisionSettings:
        """These settings, or a ``ConfigError``."""
        if self.n < 1 or self.steps < 1:
            raise ConfigError(f"n is {self.n} and steps {self.steps}; expected at least 1 of both")
        if self.out.is_dir():
            raise ConfigError(f"out is {self.out}, a folder; expected the name of a file")
        return self


def parts_of(growth: Any) -> dict[str, tuple[Any, str]]:
    """Where each part of the decision side is found."""
    return {
        "decoding": (growth.rules, "decode"),
        "transitions": (lifecycle, "apply"),
        "reward": (growth._reward, "compute"),
        "masks, legality": (growth.rules, "legal"),
        "masks, marginal": (growth.rules, "marginal"),
        "masks, by op and slot": (growth.rules, "op_slot"),
        "features": (growth._builder, "features"),
        "whole observation": (growth, "observe"),
    }


def timed(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    """The function, the seconds of each call added to ``times``."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        times.append(time.perf_counter() - start)
        return result

    return wrapped


def play(settings: DecisionSettings) -> dict[str, dict[str, float]]:
    """Median milliseconds of each part, and how often a step calls it."""
    envs = gymnasium.make_vec(settings.env, num_envs=settings.n, **LITTLE_TRAINING)
    vector: Any = envs.unwrapped
    rng, times = np.random.default_rng(0), {}
    try:
        envs.reset(seed=0)
        with ExitStack() as patches:
            for name, (owner, method) in parts_of(vector._growth).items():
                times[name] = []
                patches.enter_context(mock.patch.object(owner, method, timed(getattr(owner, method), times[name])))
            for _ in trange(settings.steps, desc=settings.env, unit="step"):
                envs.step(vector.sample_valid_actions(rng))
    finally:
        envs.close()
    return {
        name: {"milliseconds": 1e3 * float(np.median(own)), "calls_per_step": len(own) / settings.steps}
        for name, own in times.items()
    }


def measure(settings: DecisionSettings, command: Sequence[str], console: Console) -> None:
    """Play, write the file, print the table."""
    parts = play(settings.checked())
    content = {
        "command": shlex.join(["python", "benchmarks/throughput/decisions.py", *command]),
        "env": settings.env,
        "n": settings.n,
        "steps": settings.steps,
        "machine": machine(),
        "versions": package_versions(),
        "parts": parts,
    }
    atomic.write_text(settings.out, json.dumps(content, indent=2) + "\n")
    console.print(f"{settings.env}, {settings.n} networks, {content['machine']}", highlight=False)
    lines = Table()
    for column in ("part", "ms a call", "calls a step"):
        lines.add_column(column, justify="left" if column == "part" else "right")
    for name, row in parts.items():
        lines.add_row(name, f"{row['milliseconds']:.3f}", f"{row['calls_per_step']:.1f}")
    console.print(lines)
    console.print(f"Written to {settings.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run(console: Console) -> int:
        measure(tyro.cli(DecisionSettings, description=__doc__, args=given), given, console)
        return OK

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
