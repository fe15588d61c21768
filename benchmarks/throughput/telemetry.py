"""Time telemetry: the same steps of the same networks with and without a sink.

    python benchmarks/throughput/telemetry.py --out benchmarks/results/telemetry-cpu.json

One vector plays a few steps without a sink, then from the same state with a sink that writes JSON lines to a temporary
folder, and again with a sink in full detail. The order changes from round to round. Actions are chosen off the clock,
by random legal growth and by the heuristic. The overhead is the ratio of two times of a round. Its interquartile mean
over the rounds is reported with a 95% bootstrap interval, for wall-clock time and for the CPU time of the process,
which includes the writing thread. Both are differences of large numbers. Therefore the CPU time of telemetry's own code
is measured as well: recording, emitting, isolation checks, encoding and writing, as a share of all other CPU time.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from esper_agent.cli.main import OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import check_out, origin, run_script, write_json
from esper_agent.evaluation.statistics import bootstrap_interval
from esper_agent.evaluation.tables import print_table
from esper_agent.policies.baselines import POLICIES
from esper_agent.settings.named_values import ConfigError
from esper_agent.vectors import make_vector
from esper_env.checks import NON_NEGATIVE, POSITIVE, check
from esper_env.telemetry import Detail, JsonlSink, MemoryWarning
from gymnasium.vector import AutoresetMode, VectorEnv
from rich.console import Console
from rich.table import Table
from timing import waiter
from tqdm import tqdm

#: Contenders: the detail of the events, or None without a sink.
CONTENDERS: dict[str, Detail | None] = {"no sink": None, "normal": Detail.NORMAL, "full": Detail.FULL}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: Seconds per step by clock, contender and round.
Times = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class TelemetrySettings:
    """Time telemetry."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    env: str = "Esper-Digits-v0"
    """Task."""
    policies: tuple[str, ...] = ("random", "heuristic")
    """Policies; `esper evaluate --help` lists them."""
    counts: tuple[int, ...] = (16, 32)
    """Numbers of networks."""
    rounds: Annotated[int, POSITIVE] = 50
    """Turns of each contender."""
    steps: Annotated[int, POSITIVE] = 4
    """Steps of a turn."""
    warmup: Annotated[int, NON_NEGATIVE] = 60
    """Steps with a sink before the first round, which include the first isolation check of each blueprint."""

    def checked(self) -> TelemetrySettings:
        """These settings, or a ``ConfigError``."""
        check(self)
        if not self.counts or min(self.counts) < 1:
            raise ConfigError(f"`counts` is {list(self.counts)}; expected one or more positive integers")
        if not self.policies or not set(self.policies) <= set(POLICIES):
            raise ConfigError(f"`policies` is {list(self.policies)}; expected one or more of {', '.join(POLICIES)}")
        check_out(self.out)
        return self


_FIRST = MemoryWarning(kind="resident", used_mib=0.0, limit_mib=1.0)


class OwnWork:
    """CPU seconds of telemetry's own code, over all threads."""

    def __init__(self, vector: Any, sinks: Iterable[JsonlSink]) -> None:
        self.seconds = 0.0
        growth = vector._growth
        owners: list[tuple[Any, tuple[str, ...]]] = [(growth.recorder, ("record_starts", "record_step", "record_ends"))]
        owners += [(sink, ("write",)) for sink in sinks]
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
    """A vector and a policy that play the same steps with each contender's sink."""

    def __init__(self, envs: VectorEnv, policy: str, folder: Path) -> None:
        self.envs = envs
        self.vector: Any = envs.unwrapped
        self.wait = waiter(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self.sinks = {name: JsonlSink(folder / name) for name, detail in CONTENDERS.items() if detail is not None}
        self.work = OwnWork(self.vector, self.sinks.values())
        self.forget()
        self._policy = POLICIES[policy](self.vector, 0)
        self._memory: Any = None
        self._observation, _ = envs.reset(seed=0)
        self._starts = np.ones(envs.num_envs, dtype=np.bool_)

    def forget(self) -> None:
        """Reset the counters."""
        self.own, self.cpu = (dict.fromkeys(CONTENDERS, 0.0) for _ in range(2))  # seconds of all turns
        self.events = dict.fromkeys(CONTENDERS, 0)

    def round(self, order: Sequence[str], steps: int) -> dict[str, dict[str, float]]:
        """Play the same steps with each contender; return seconds per step by contender and clock.

        Raises ``RuntimeError`` if the rewards differ.
        """
        before = self.vector.get_state()
        actions: list[Any] = []
        times, rewards = {}, set()
        for name in order:
            self.vector.set_state(before)
            times[name], earned = self._turn(name, actions, steps)
            rewards.add(earned)
        if len(rewards) > 1:
            raise RuntimeError("the contenders earned different rewards: telemetry changed what they do")
        return times

    def _turn(self, name: str, actions: list[Any], steps: int) -> tuple[dict[str, float], float]:
        """Play the actions, or choose them in the first turn. All events are on disk when the turn ends."""
        telemetry, sink, detail = self.vector.telemetry, self.sinks.get(name), CONTENDERS[name]
        if sink is not None and detail is not None:
            telemetry.detail = detail
            telemetry.add_sink(sink)
            telemetry.emit(_FIRST)  # starts the thread and opens the file
            telemetry.flush()
        elapsed, earned, choosing = dict.fromkeys(CLOCKS, 0.0), 0.0, not actions
        own, events = self.work.seconds, telemetry.next_id
        for index in range(steps):
            if choosing:
                actions.append(self._choose())
            start = self._now()
            observation, rewards, terminated, truncated, _ = self.envs.step(actions[index])
            if index == steps - 1:
                telemetry.flush()
            for clock, moment in self._now().items():
                elapsed[clock] += moment - start[clock]
            earned += float(rewards.sum())
            if choosing:
                self._observation, self._starts = observation, terminated | truncated
        self.own[name] += self.work.seconds - own
        self.cpu[name] += elapsed["cpu"]
        self.events[name] += telemetry.next_id - events
        if sink is not None:
            telemetry.remove_sink(sink)
        return {clock: seconds / steps for clock, seconds in elapsed.items()}, earned

    def _choose(self) -> Any:
        actions, self._memory = self._policy.predict(
            self._observation, state=self._memory, episode_start=self._starts, deterministic=True
        )
        return actions

    def _now(self) -> dict[str, float]:
        self.wait()
        return {clock: read() for clock, read in CLOCKS.items()}

    def own_share(self, name: str) -> float:
        """CPU time of telemetry's own code over all other CPU time."""
        return self.own[name] / (self.cpu[name] - self.own[name])


def race(player: Player, settings: TelemetrySettings, progress: tqdm[Any]) -> Times:
    """Play all rounds, rotating and reversing the order of the contenders."""
    times: Times = {clock: {name: [] for name in CONTENDERS} for clock in CLOCKS}
    names = list(CONTENDERS)
    for index in range(settings.rounds):
        first = index // 2 % len(names)
        order = (names[first:] + names[:first])[:: 1 if index % 2 == 0 else -1]
        for name, seconds in player.round(order, settings.steps).items():
            for clock in CLOCKS:
                times[clock][name].append(seconds[clock])
        progress.update()
    return times


def overheads(times: Times) -> dict[str, dict[str, dict[str, float]]]:
    """Share of a step that telemetry adds, with its interval, by contender and clock."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in CONTENDERS:
        for clock, rows in times.items():
            estimate = bootstrap_interval(np.array(rows[name]) / np.array(rows["no sink"]) - 1.0)
            found.setdefault(name, {})[clock] = asdict(estimate)
    return found


def measure_one(settings: TelemetrySettings, policy: str, count: int) -> dict[str, Any]:
    """Measure one policy with ``count`` networks."""
    envs = make_vector(settings.env, count, AutoresetMode.SAME_STEP)
    with closing(envs), tempfile.TemporaryDirectory() as folder:
        player = Player(envs, policy, Path(folder))
        for _ in range(settings.warmup):
            player.round(["normal"], 1)
        player.forget()
        title = f"{settings.env}, {policy}, n = {count}"
        with tqdm(total=settings.rounds, desc=title, unit="round") as progress:
            times = race(player, settings, progress)
        shares = overheads(times)
        contenders = {}
        for name in CONTENDERS:
            contenders[name] = {
                "milliseconds_per_step": {clock: 1e3 * float(np.median(times[clock][name])) for clock in CLOCKS},
                "overhead": shares[name],
                "own_work": player.own_share(name),
                "events_per_step": player.events[name] / (settings.rounds * settings.steps),
                "rounds": {clock: times[clock][name] for clock in CLOCKS},
            }
    return {"policy": policy, "n": count, "contenders": contenders}


def measure(settings: TelemetrySettings, flags: Sequence[str], console: Console) -> int:
    """Measure, write the file and print the table."""
    settings.checked()
    results = [measure_one(settings, policy, count) for policy in settings.policies for count in settings.counts]
    content = {
        **origin("benchmarks/throughput/telemetry.py", flags),
        "env": settings.env,
        "rounds": settings.rounds,
        "steps": settings.steps,
        "warmup": settings.warmup,
        "results": results,
    }
    write_json(content, settings.out)
    say(console, f"{settings.env}, {content['machine']}")
    print_table(console, table_of(results))
    say(console, f"Written to {settings.out}")
    return OK


def table_of(results: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the overheads in percent of a step, with their intervals."""
    lines = Table(caption="own work and overheads [95% interval]: % of a step")
    for column in ("policy", "n", "sink", "events a step", "ms a step", "own work", "wall", "CPU"):
        lines.add_column(column, justify="left" if column in ("policy", "sink") else "right")
    for result in results:
        for name, row in result["contenders"].items():
            shares = [
                f"{100 * share['value']:+.2f} [{100 * share['low']:+.2f}, {100 * share['high']:+.2f}]"
                for share in row["overhead"].values()
            ]
            wall = row["milliseconds_per_step"]["wall"]
            own = f"{100 * row['own_work']:.2f}"
            cells = [
                f"{row['events_per_step']:.1f}",
                f"{wall:.1f}",
                *([own, *shares] if name != "no sink" else [""] * 3),
            ]
            lines.add_row(result["policy"], str(result["n"]), name, *cells)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_script(TelemetrySettings, measure, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
