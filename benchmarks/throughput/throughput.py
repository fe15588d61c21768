"""How fast N networks grow at once, against the ways one would do it otherwise, timed side by side in one run.

    python benchmarks/throughput/throughput.py --out benchmarks/results/throughput-digits-cpu.json

Contenders: the native vector environment; a plain loop that trains the same hosts one after the other with an optimizer
each, clipped as in the environment, and does nothing else; a bare loop that trains them in the environment's own layout
on one thread, without clipping; Gymnasium's SyncVectorEnv and AsyncVectorEnv over single environments. They take turns,
a few steps each, round after round. Times are medians over rounds, and a ratio is the median of the rounds' own ratios.

Run it on an idle machine: a loop with several intra-op threads suffers most from a busy one. AsyncVectorEnv starts a
process for each network. The defaults take several minutes.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from bandwidth import copy_bandwidth
from comparison import BARE, LOOP, NATIVE, compare, remarks, shares_table, table
from contenders import BareLoop, Contender, Environments, PlainLoop
from esper_agent.cli.main import OK, exit_code
from esper_agent.settings.config_file import ConfigError, parse_env_settings
from esper_agent.training.run_folder import package_versions
from esper_env.persistence import atomic
from esper_env.population.build import resolve_device
from esper_env.tasks import make_task
from rich.console import Console
from timing import machine
from tqdm import tqdm

HOST_ONLY = ("loop", "bare")


@dataclass(frozen=True)
class ThroughputSettings:
    """Time the environment and its rivals."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    env: str = "Esper-Digits-v0"
    """Task."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE."""
    counts: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of networks."""
    workload: Literal["host", "growing", "planted"] = "host"
    """host: always WAIT, so all contenders do the same training. growing: uniformly random legal actions.
    planted: a conv_light seed in every slot from the start."""
    rivals: tuple[Literal["loop", "bare", "sync", "async"], ...] = ("loop", "bare", "sync", "async")
    """What to compare with. The loops train hosts only, so they are left out of the other workloads."""
    rounds: int = 5
    """Times that each contender has its turn."""
    seconds: float = 2.0
    """About how long a turn lasts; at least one step."""
    threads: int = os.cpu_count() or 1
    """Intra-op threads of the plain loop."""
    bandwidth: bool = False
    """Also measure how fast memory is copied, and say what share of that limit training reaches: for accelerators."""

    def checked(self) -> ThroughputSettings:
        """These settings, or a ``ConfigError``."""
        if not self.counts or min(self.counts) < 1:
            raise ConfigError(f"counts are {list(self.counts)}; expected one or more of at least 1")
        for name in ("rounds", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"seconds are {self.seconds}; expected a number above 0")
        if self.workload != "host" and set(self.rivals) == set(HOST_ONLY) & set(self.rivals):
            raise ConfigError(f"rivals are {list(self.rivals)}, which train hosts only; name sync or async as well")
        if self.bandwidth and self.workload != "host":
            raise ConfigError("the limit of memory bandwidth is that of hosts; leave out --bandwidth, or --workload")
        if self.out.is_dir():
            raise ConfigError(f"out is {self.out}, a folder; expected the name of a file")
        return self


def makers(settings: ThroughputSettings, n: int) -> dict[str, Callable[[], Contender]]:
    """How to make each contender, by name."""
    kwargs = parse_env_settings(settings.env_settings)
    workload = settings.workload
    rivals: dict[str, tuple[str, Callable[[], Contender]]] = {
        "loop": (LOOP, lambda: PlainLoop(settings.env, n, settings.threads, **kwargs)),
        "bare": (BARE, lambda: BareLoop(settings.env, n, **kwargs)),
        "sync": ("SyncVectorEnv", lambda: Environments(settings.env, n, workload, "sync", **kwargs)),
        "async": ("AsyncVectorEnv", lambda: Environments(settings.env, n, workload, "async", **kwargs)),
    }
    chosen = [name for name in settings.rivals if workload == "host" or name not in HOST_ONLY]
    native = {NATIVE: lambda: Environments(settings.env, n, workload, None, **kwargs)}
    return native | {rivals[name][0]: rivals[name][1] for name in chosen}


def measure(settings: ThroughputSettings, command: Sequence[str], console: Console) -> None:
    """Run every case, write the file, print the table."""
    try:
        task = make_task(settings.checked().env, **parse_env_settings(settings.env_settings))
    except TypeError as error:  # a setting that no task has
        raise ConfigError(str(error)) from None
    bandwidth = copy_bandwidth(resolve_device(task.device)) if settings.bandwidth else None
    results = []
    for n in tqdm(settings.counts, desc=settings.env, unit="case"):
        results.append(compare(task, n, makers(settings, n), settings.rounds, settings.seconds, bandwidth))
    content = {
        "command": shlex.join(["python", "benchmarks/throughput/throughput.py", *command]),
        "env": settings.env,
        "env_settings": list(settings.env_settings),
        "workload": settings.workload,
        "threads_of_the_plain_loop": settings.threads,
        "copy_bandwidth_bytes_per_second": bandwidth,
        "machine": f"{machine()}; run on {resolve_device(task.device)}",
        "versions": package_versions(),
        "results": results,
    }
    atomic.write_text(settings.out, json.dumps(content, indent=2) + "\n")
    console.print(", ".join([settings.env, *settings.env_settings, f"workload {settings.workload}"]), highlight=False)
    console.print(content["machine"], highlight=False)
    console.print(table(results))
    console.print(shares_table(results))
    for remark in remarks(results):
        console.print(remark, highlight=False)
    console.print(f"Written to {settings.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run(console: Console) -> int:
        measure(tyro.cli(ThroughputSettings, description=__doc__, args=given), given, console)
        return OK

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
