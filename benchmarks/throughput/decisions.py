"""Time the decision side of a step: masks, decoding, transitions, reward and observation of N networks.

    python benchmarks/throughput/decisions.py --out benchmarks/results/decisions-cpu.json

The policy draws uniformly random legal actions, with minimal training. Times are medians over the calls of the run, in
milliseconds per call for all networks. All of it is NumPy on one core. The whole observation contains legality, masks
and features.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import esper_env  # noqa: F401  registers the ids
import gymnasium
import numpy as np
from esper_agent.cli.main import OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import check_out, origin, run_script, write_json
from esper_agent.evaluation.tables import print_table
from esper_env.checks import POSITIVE, check
from esper_env.rules import lifecycle
from rich.console import Console
from rich.table import Table
from tqdm import trange

#: The least training that a step can have.
LITTLE_TRAINING = {"batch_size": 2, "batches_per_step": 1}


@dataclass(frozen=True)
class DecisionSettings:
    """Time the decision side."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    env: str = "Esper-Digits-v0"
    """Task."""
    n: Annotated[int, POSITIVE] = 64
    """Number of networks."""
    steps: Annotated[int, POSITIVE] = 200
    """Steps of the run."""


def parts_of(growth: Any) -> dict[str, tuple[Any, str]]:
    """Owner and method of each part of the decision side."""
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
    """Return the function with the seconds of each call added to ``times``."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        times.append(time.perf_counter() - start)
        return result

    return wrapped


def play(settings: DecisionSettings) -> dict[str, dict[str, float]]:
    """Median milliseconds of each part, and its calls per step."""
    envs = gymnasium.make_vec(settings.env, num_envs=settings.n, autoreset_mode="SameStep", **LITTLE_TRAINING)
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


def measure(settings: DecisionSettings, flags: Sequence[str], console: Console) -> int:
    """Play, write the file and print the table."""
    check(settings)
    check_out(settings.out)
    parts = play(settings)
    content = {
        **origin("benchmarks/throughput/decisions.py", flags),
        "env": settings.env,
        "n": settings.n,
        "steps": settings.steps,
        "parts": parts,
    }
    write_json(content, settings.out)
    say(console, f"{settings.env}, {settings.n} networks, {content['machine']}")
    lines = Table()
    for column in ("part", "ms a call", "calls a step"):
        lines.add_column(column, justify="left" if column == "part" else "right")
    for name, row in parts.items():
        lines.add_row(name, f"{row['milliseconds']:.3f}", f"{row['calls_per_step']:.1f}")
    print_table(console, lines)
    say(console, f"Written to {settings.out}")
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_script(DecisionSettings, measure, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
