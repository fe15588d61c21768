"""How fast N networks grow at once, against the ways one would do it otherwise, timed side by side in one run.

    python benchmarks/throughput/throughput.py --out benchmarks/results/throughput-digits-cpu.json

Contenders: the native vector environment; a plain loop that trains the same hosts one after the other with an optimizer
each, and does nothing else; Gymnasium's SyncVectorEnv and AsyncVectorEnv over single environments. They take turns, a
few steps each, round after round, so that what else happens on the machine falls on all alike. Times are medians over
rounds, and a ratio is the median of the rounds' own ratios.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from contenders import Contender, Environments, PlainLoop
from esper_agent import atomic
from esper_agent.cli import OK, exit_code
from esper_agent.configuration import ConfigError, parse_env_settings
from esper_agent.runs import package_versions
from esper_env.networks.build import resolve_device
from esper_env.tasks import make_task
from rich.console import Console
from rich.table import Table
from timing import machine, race, waiter
from tqdm import tqdm

NATIVE, LOOP = "native", "plain loop"
PARTS = ("train", "evaluate", "observe", "decide")


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
    workload: Literal["host", "growing"] = "host"
    """host: always WAIT, so all contenders do the same training. growing: uniformly random legal actions."""
    rivals: tuple[Literal["loop", "sync", "async"], ...] = ("loop", "sync", "async")
    """What to compare with. The loop trains hosts only, so it is left out of the growing workload."""
    rounds: int = 5
    """Times that each contender has its turn."""
    seconds: float = 2.0
    """About how long a turn lasts; at least one step."""
    threads: int = os.cpu_count() or 1
    """Intra-op threads of the plain loop."""

    def checked(self) -> ThroughputSettings:
        """These settings, or a ``ConfigError``."""
        if not self.counts or min(self.counts) < 1:
            raise ConfigError(f"counts are {list(self.counts)}; expected one or more of at least 1")
        if self.rounds < 1 or self.threads < 1 or not self.seconds > 0:
            raise ConfigError("rounds, threads and seconds must be at least 1, 1 and above 0")
        if self.out.is_dir():
            raise ConfigError(f"out is {self.out}, a folder; expected the name of a file")
        return self


def makers(settings: ThroughputSettings, n: int) -> dict[str, Callable[[], Contender]]:
    """How to make each contender, by name."""
    kwargs = parse_env_settings(settings.env_settings)
    workload = settings.workload
    rivals: dict[str, tuple[str, Callable[[], Contender]]] = {
        "loop": (LOOP, lambda: PlainLoop(settings.env, n, settings.threads, **kwargs)),
        "sync": ("SyncVectorEnv", lambda: Environments(settings.env, n, workload, "sync", **kwargs)),
        "async": ("AsyncVectorEnv", lambda: Environments(settings.env, n, workload, "async", **kwargs)),
    }
    chosen = [name for name in settings.rivals if not (name == "loop" and workload != "host")]
    native = {NATIVE: lambda: Environments(settings.env, n, workload, None, **kwargs)}
    return native | {rivals[name][0]: rivals[name][1] for name in chosen}


def compare(settings: ThroughputSettings, n: int) -> dict[str, Any]:
    """All contenders at one number of networks."""
    task = make_task(settings.env, **parse_env_settings(settings.env_settings))
    samples = n * task.batch_size * task.batches_per_step
    contenders: dict[str, Contender] = {}
    try:
        for name, make in makers(settings, n).items():
            contenders[name] = make()
        wait = waiter(resolve_device(task.device))
        times = race({name: each.step for name, each in contenders.items()}, settings.rounds, settings.seconds, wait)
        native = contenders[NATIVE]
        assert isinstance(native, Environments)
        shares = native.shares
    finally:
        for contender in contenders.values():
            contender.close()
    whole = shares.seconds["step"]
    parts = {part: shares.seconds.get(part, 0.0) / whole for part in PARTS}
    own = np.array(times[NATIVE])
    rows = {}
    for name, values in times.items():
        seconds = float(np.median(values))
        rows[name] = {
            "seconds_per_step": seconds,
            "env_steps_per_second": n / seconds,
            "training_samples_per_second": samples / seconds,
            "native_is_faster_by": float(np.median(np.array(values) / own)),
            "rounds": values,
        }
    rows[NATIVE]["training_samples_per_second_while_training"] = samples / (shares.seconds["train"] / shares.steps)
    if LOOP in rows:
        train = shares.seconds["train"] / whole
        rows[LOOP]["native_trains_faster_by"] = rows[LOOP]["native_is_faster_by"] / train
    return {"n": n, "contenders": rows, "native_time_shares": parts | {"rest": 1.0 - sum(parts.values())}}


def table(results: Sequence[Mapping[str, Any]], title: str) -> Table:
    """The results for the terminal."""
    lines = Table(title=title, title_justify="left")
    columns = ("n", "contender", "env steps/s", "samples/s", "native faster by")
    for column in columns:
        lines.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    for result in results:
        for name, row in result["contenders"].items():
            faster = f"{row['native_is_faster_by']:.2f}"
            if "native_trains_faster_by" in row:
                faster += f" (training {row['native_trains_faster_by']:.2f})"
            lines.add_row(
                str(result["n"]),
                name,
                f"{row['env_steps_per_second']:,.1f}",
                f"{row['training_samples_per_second']:,.0f}",
                "" if name == NATIVE else faster,
            )
        lines.add_section()
    return lines


def share_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the time of a native step goes, a line for each number of networks."""
    return [
        f"Of a native step at n = {result['n']}: "
        + ", ".join(f"{part} {share:.0%}" for part, share in result["native_time_shares"].items())
        for result in results
    ]


def measure(settings: ThroughputSettings, command: Sequence[str], console: Console) -> None:
    """Run every case, write the file, print the table."""
    settings.checked()
    results = [compare(settings, n) for n in tqdm(settings.counts, desc=settings.env, unit="case")]
    content = {
        "command": shlex.join(["python", "benchmarks/throughput/throughput.py", *command]),
        "env": settings.env,
        "env_settings": list(settings.env_settings),
        "workload": settings.workload,
        "threads_of_the_plain_loop": settings.threads,
        "machine": machine(),
        "versions": package_versions(),
        "results": results,
    }
    atomic.write_text(settings.out, json.dumps(content, indent=2) + "\n")
    console.print(table(results, f"{settings.env}, workload {settings.workload}, {content['machine']}"))
    for line in share_lines(results):
        console.print(line, highlight=False)
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
