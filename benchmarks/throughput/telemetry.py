"""What telemetry costs: steps of the same networks with and without a sink, in turns.

    python benchmarks/throughput/telemetry.py --out benchmarks/results/telemetry-cpu.json

Three vectors start from the same seeds and play the same random legal actions: one without a sink, one that writes JSON
lines to a temporary folder, one that does so in full detail. They take turns at blocks of steps, in another order each
round. The overhead is a ratio of blocks of the same round; the median over the rounds is given, with the quartiles.
Wall-clock time is what a run takes longer; the process's CPU time includes the thread that writes. Both are differences
of large numbers. So the CPU time of telemetry's own work is taken as well: telling and emitting, checking isolation,
and encoding and writing in the other thread, as a share of the rest of the process's CPU time.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import esper_env  # noqa: F401  registers the ids
import gymnasium
import numpy as np
import torch
import tyro
from esper_agent.cli import OK, exit_code
from esper_agent.configuration import ConfigError
from esper_agent.runs import package_versions
from esper_env import atomic
from esper_env.telemetry import Detail, JsonlSink, read_events
from rich.console import Console
from rich.table import Table
from timing import machine, waiter
from tqdm import tqdm

#: What takes turns: the detail of what is written, None where no sink is attached.
CONTENDERS: dict[str, Detail | None] = {"no sink": None, "normal": Detail.NORMAL, "full": Detail.FULL}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: Seconds per step of each round, by clock and contender.
Times = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class TelemetrySettings:
    """Time telemetry."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    env: str = "Esper-Digits-v0"
    """Task."""
    counts: tuple[int, ...] = (16, 32)
    """Numbers of networks."""
    rounds: int = 40
    """Blocks of each vector."""
    steps: int = 4
    """Steps of a block."""
    warmup: int = 10
    """Steps of each vector before the first block, in which blueprints are seen for the first time."""

    def checked(self) -> TelemetrySettings:
        """These settings, or a ``ConfigError``."""
        for name in ("rounds", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.warmup < 0:
            raise ConfigError(f"warmup is {self.warmup}; expected 0 or more")
        if not self.counts or min(self.counts) < 1:
            raise ConfigError(f"counts is {self.counts}; expected at least one number of networks, each at least 1")
        if self.out.is_dir():
            raise ConfigError(f"out is {self.out}, a folder; expected the name of a file")
        return self


class OwnWork:
    """CPU seconds of telemetry's own work, in whichever thread it is done."""

    def __init__(self, vector: Any, sink: JsonlSink) -> None:
        self.seconds = 0.0
        growth = vector._growth
        owners: list[tuple[Any, tuple[str, ...]]] = [(growth.recorder, ("began", "tell", "ended")), (sink, ("write",))]
        owners += [(trainers, ("_breached",)) for trainers in growth._population._trainers]
        for owner, names in owners:
            for name in names:
                setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start

        return timed


class Player:
    """A vector that plays random legal actions from a generator of its own."""

    def __init__(self, env_id: str, count: int, detail: Detail | None, folder: Path) -> None:
        self.envs = gymnasium.make_vec(env_id, num_envs=count)
        self.vector: Any = self.envs.unwrapped
        self.wait = waiter(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.folder = folder
        self._rng = np.random.default_rng(0)
        self.own: OwnWork | None = None
        self.cpu = 0.0  # seconds of all blocks
        if detail is not None:
            self.vector.telemetry.detail = detail
            self.own = OwnWork(self.vector, self.vector.telemetry.add_sink(JsonlSink(folder)))
        self.envs.reset(seed=0)
        self.returned = 0.0  # sum of all rewards: equal actions have equal ones

    def block(self, steps: int) -> dict[str, float]:
        """Seconds per step of a block by clock; the events are on disk when it ends."""
        self.wait()
        start = {clock: read() for clock, read in CLOCKS.items()}
        for _ in range(steps):
            _, rewards, *_ = self.envs.step(self.vector.sample_valid_actions(self._rng))
            self.returned += float(rewards.sum())
        self.vector.telemetry.flush()
        self.wait()
        elapsed = {clock: read() - start[clock] for clock, read in CLOCKS.items()}
        self.cpu += elapsed["cpu"]
        return {clock: seconds / steps for clock, seconds in elapsed.items()}

    @property
    def own_share(self) -> float:
        """Telemetry's own CPU time over that of everything else."""
        return 0.0 if self.own is None else self.own.seconds / (self.cpu - self.own.seconds)


@contextmanager
def players(settings: TelemetrySettings, count: int) -> Iterator[dict[str, Player]]:
    """The contenders, closed afterwards, with their files in a temporary folder."""
    playing: dict[str, Player] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, detail in CONTENDERS.items():
                playing[name] = Player(settings.env, count, detail, Path(folder) / name)
            yield playing
        finally:
            for player in playing.values():
                player.envs.close()


def race(playing: Mapping[str, Player], settings: TelemetrySettings, progress: tqdm[Any]) -> Times:
    """Blocks in turns, each round in the order after that of the round before, and every other one backwards."""
    times: Times = {clock: {name: [] for name in playing} for clock in CLOCKS}
    names = list(playing)
    for index in range(settings.rounds):
        first = index // 2 % len(names)
        order = (names[first:] + names[:first])[:: 1 if index % 2 == 0 else -1]
        for name in order:
            for clock, seconds in playing[name].block(settings.steps).items():
                times[clock][name].append(seconds)
        progress.update()
    return times


def overheads(times: Times) -> dict[str, dict[str, dict[str, float]]]:
    """By contender and clock: the median share of a step that telemetry adds, and its quartiles."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in CONTENDERS:
        for clock, rows in times.items():
            ratios = np.array(rows[name]) / np.array(rows["no sink"]) - 1.0
            low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
            found.setdefault(name, {})[clock] = {"median": median, "quartile_1": low, "quartile_3": high}
    return found


def measure_count(settings: TelemetrySettings, count: int) -> dict[str, Any]:
    """The result for one number of networks."""
    with players(settings, count) as playing:
        for player in playing.values():
            if settings.warmup:
                player.block(settings.warmup)
            player.cpu = 0.0
            if player.own is not None:
                player.own.seconds = 0.0
        with tqdm(total=settings.rounds, desc=f"{settings.env}, n = {count}", unit="round") as progress:
            times = race(playing, settings, progress)
        if len({player.returned for player in playing.values()}) > 1:
            raise RuntimeError("the vectors did not play the same episodes: telemetry changed what they do")
        shares = overheads(times)
        played = settings.warmup + settings.rounds * settings.steps
        contenders = {}
        for name, player in playing.items():
            written = len(list(read_events(player.folder))) if CONTENDERS[name] is not None else 0
            contenders[name] = {
                "milliseconds_per_step": {clock: 1e3 * float(np.median(times[clock][name])) for clock in CLOCKS},
                "overhead": shares[name],
                "own_work": player.own_share,
                "events_per_step": written / played,
                "rounds": {clock: times[clock][name] for clock in CLOCKS},
            }
    return {"n": count, "contenders": contenders}


def measure(settings: TelemetrySettings, command: Sequence[str], console: Console) -> None:
    """Play, write the file, print the table."""
    results = [measure_count(settings, count) for count in settings.checked().counts]
    content = {
        "command": shlex.join(["python", "benchmarks/throughput/telemetry.py", *command]),
        "env": settings.env,
        "rounds": settings.rounds,
        "steps": settings.steps,
        "warmup": settings.warmup,
        "machine": machine(),
        "versions": package_versions(),
        "results": results,
    }
    atomic.write_text(settings.out, json.dumps(content, indent=2) + "\n")
    console.print(f"{settings.env}, {content['machine']}", highlight=False)
    console.print(table_of(results))
    console.print(f"Written to {settings.out}")


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    """The overheads in percent of a step, with their quartiles."""
    lines = Table(caption="own work and overheads, median (quartiles): % of a step")
    for column in ("n", "sink", "events a step", "ms a step", "own work", "wall", "CPU"):
        lines.add_column(column, justify="left" if column == "sink" else "right")
    for result in results:
        for name, row in result["contenders"].items():
            shares = [
                f"{100 * share['median']:+.2f} ({100 * share['quartile_1']:+.2f}, {100 * share['quartile_3']:+.2f})"
                for share in row["overhead"].values()
            ]
            wall = row["milliseconds_per_step"]["wall"]
            own = f"{100 * row['own_work']:.2f}"
            cells = [
                f"{row['events_per_step']:.1f}",
                f"{wall:.1f}",
                *([own, *shares] if name != "no sink" else [""] * 3),
            ]
            lines.add_row(str(result["n"]), name, *cells)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run(console: Console) -> int:
        measure(tyro.cli(TelemetrySettings, description=__doc__, args=given), given, console)
        return OK

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
