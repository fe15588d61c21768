"""Time the vector environment against plain loops and Gymnasium's vectors, side by side in one run.

    python benchmarks/throughput/throughput.py --out benchmarks/results/throughput-digits-cpu.json

The contenders are:

* native: the vector environment;
* plain loop: trains the same hosts one by one, each with its own clipped optimizer, and does nothing else;
* bare loop: trains them in the environment's own layout on one thread, without clipping;
* engine E, K workers: the vector environment with each engine in --engines, and with its networks in K processes, for
  each number in --workers that n allows, and with both;
* SyncVectorEnv and AsyncVectorEnv of Gymnasium, over single environments. AsyncVectorEnv starts a process per network.

They take turns of a few steps, round after round. Under the workloads "growing" and "policy", a turn has whole
episodes, because the number of seeds changes in an episode; --env-settings horizon=N makes them shorter. Times are
medians over rounds. A ratio is the median of the ratios of each round. Run it on an idle machine; the defaults take
several minutes.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from bandwidth import copy_bandwidth
from comparison import BARE, LOOP, NATIVE, compare, remarks, shares_table, table
from contenders import BareLoop, Contender, Environments, PlainLoop
from esper_agent.cli.main import OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import check_out, origin, run_script, write_json
from esper_agent.evaluation.tables import print_table
from esper_agent.settings.named_values import ConfigError, parse_env_settings
from esper_env.checks import POSITIVE, check
from esper_env.devices import resolve_device
from esper_env.tasks import make_task
from rich.console import Console
from tqdm import tqdm
from workloads import POLICY, Workload, make_workload

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
    workload: Literal["host", "growing", "planted", "policy"] = "host"
    """host: always WAIT, so all contenders train the same networks. growing: uniformly random legal actions.
    planted: a conv_light seed in every slot from the start. policy: sampled actions of a FactoredRecurrentPPO, as in
    training."""
    policy: Annotated[Path | None, tyro.conf.DisallowNone, tyro.conf.arg(metavar="RUN")] = None
    """Run folder of the policy of the workload "policy"; by default it is untrained, with seed 0."""
    rivals: tuple[Literal["loop", "bare", "sync", "async"], ...] = ("loop", "bare", "sync", "async")
    """Rivals. The loops train hosts only and do not take part in other workloads."""
    engines: tuple[Literal["torch", "fused"], ...] = ()
    """Engines of further vector environments."""
    workers: tuple[int, ...] = ()
    """Numbers of processes of further vector environments, with each engine."""
    rounds: Annotated[int, POSITIVE] = 5
    """Turns of each contender."""
    seconds: Annotated[float, POSITIVE] = 2.0
    """Approximate seconds of a turn; a turn has at least one step."""
    threads: Annotated[int, POSITIVE] = os.cpu_count() or 1
    """Intra-op threads of the plain loop."""
    bandwidth: bool = False
    """Also measure the copy bandwidth of memory, and report the share of that limit that training reaches."""

    def checked(self) -> ThroughputSettings:
        """These settings, or a ``ConfigError``."""
        check(self)
        if not self.counts or min(self.counts) < 1:
            raise ConfigError(f"`counts` is {list(self.counts)}; expected one or more positive integers")
        if any(workers < 2 for workers in self.workers):
            raise ConfigError(f"`workers` is {list(self.workers)}; expected integers of at least 2")
        if self.policy is not None and self.workload != POLICY:
            raise ConfigError(
                f"`policy` is {str(self.policy)!r}, but the workload {self.workload!r} has another policy; add "
                "--workload policy, or leave out --policy"
            )
        vectors = set(self.rivals) - set(HOST_ONLY) or self.engines or self.workers
        if self.workload != "host" and not vectors:
            raise ConfigError(
                f"`rivals` is {list(self.rivals)}, which only train hosts; add sync, async, --engines or --workers"
            )
        if self.bandwidth and self.workload != "host":
            raise ConfigError("the limit of memory bandwidth is that of hosts; leave out --bandwidth, or --workload")
        check_out(self.out)
        return self


def makers(settings: ThroughputSettings, n: int, workload: Workload) -> dict[str, Callable[[], Contender]]:
    """Factories of the contenders, by name."""
    kwargs = parse_env_settings(settings.env_settings)
    rivals: dict[str, tuple[str, Callable[[], Contender]]] = {
        "loop": (LOOP, lambda: PlainLoop(settings.env, n, settings.threads, **kwargs)),
        "bare": (BARE, lambda: BareLoop(settings.env, n, **kwargs)),
        "sync": ("SyncVectorEnv", lambda: Environments(settings.env, n, workload, "sync", **kwargs)),
        "async": ("AsyncVectorEnv", lambda: Environments(settings.env, n, workload, "async", **kwargs)),
    }
    chosen = [name for name in settings.rivals if settings.workload == "host" or name not in HOST_ONLY]
    vectors: dict[str, Callable[[], Contender]] = {}
    for engine in (None, *settings.engines):
        own = kwargs if engine is None else kwargs | {"engine": engine}
        for workers in (1, *settings.workers):
            if workers <= n:
                name = vector_name(engine, workers)
                vectors[name] = partial(Environments, settings.env, n, workload, None, workers, **own)
    return vectors | {rivals[name][0]: rivals[name][1] for name in chosen}


def vector_name(engine: str | None, workers: int) -> str:
    """Return the name of a vector environment by what differs from native."""
    differences = [f"engine {engine}"] * (engine is not None) + [f"{workers} workers"] * (workers > 1)
    return ", ".join(differences) or NATIVE


def measure(settings: ThroughputSettings, flags: Sequence[str], console: Console) -> int:
    """Run every case, write the file and print the tables."""
    try:
        task = make_task(settings.checked().env, **parse_env_settings(settings.env_settings))
    except TypeError as error:  # an unknown setting
        raise ConfigError(str(error)) from None
    workload = make_workload(settings.workload, settings.env, settings.policy and str(settings.policy))
    unit = task.horizon if workload.whole_episodes else 1
    bandwidth = copy_bandwidth(resolve_device(task.device)) if settings.bandwidth else None
    results = []
    for n in tqdm(settings.counts, desc=settings.env, unit="case"):
        contenders = makers(settings, n, workload)
        results.append(compare(task, n, contenders, settings.rounds, settings.seconds, bandwidth, unit))
    content: dict[str, Any] = {
        **origin("benchmarks/throughput/throughput.py", flags),
        "env": settings.env,
        "env_settings": list(settings.env_settings),
        "workload": settings.workload,
        "policy": workload.description,
        "whole_episodes": workload.whole_episodes,
        "threads": torch.get_num_threads(),
        "threads_of_the_plain_loop": settings.threads,
        "copy_bandwidth_bytes_per_second": bandwidth,
        "results": results,
    }
    content["machine"] += f"; run on {resolve_device(task.device)}"
    write_json(content, settings.out)
    policy = [workload.description] if workload.description else []
    say(console, ", ".join([settings.env, *settings.env_settings, f"workload {settings.workload}", *policy]))
    say(console, content["machine"])
    print_table(console, table(results))
    print_table(console, shares_table(results))
    for remark in remarks(results):
        say(console, remark)
    say(console, f"Written to {settings.out}")
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_script(ThroughputSettings, measure, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
