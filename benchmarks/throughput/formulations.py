"""Time ways to run the convolutions of N networks, and whole training minibatches, side by side in one run.

    python benchmarks/throughput/formulations.py --out benchmarks/results/formulations-digits-cpu.json

Each network has its own weights and minibatch. A convolution is timed forward and backward, with features in the layout
of its formulation. The cases are the convolutions of the task's host, and of a conv_light seed at each slot. The host's
first convolution needs no input gradient. The time of a whole minibatch is that of an epoch, including sampling and
set-up, divided by its minibatches. A formulation that cannot run here has a row without a time. Formulations take
turns, round after round. Times are medians over rounds. A ratio is the median of the ratios of each round.

Exit codes: 0 done, 1 the file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from contenders import Contender, PlainLoop
from convolutions import FORMULATIONS, NEEDS_CUDA, Problem
from esper_agent.cli.main import OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import check_out, origin, run_script, write_json
from esper_agent.evaluation.tables import print_table
from esper_agent.settings.named_values import ConfigError, parse_env_settings
from esper_env.checks import POSITIVE, Interval, check
from esper_env.data import DataFamily, load_data
from esper_env.devices import resolve_device
from esper_env.tasks import TaskConfig, make_task
from layers import Case, cases
from rich.console import Console
from rich.table import Table
from runners import MAX_STREAMS, GraphsOnStreams, OneAfterTheOther, Runner
from timing import intra_op_threads, race, waiter
from tqdm import tqdm
from whole_steps import Engine, RunnerLoop

MEASURED, WHOLE_STEP, LOOP_PRECISION = "measured", "whole minibatch", "the loop trains in float32"
OWN_SETTINGS = ("batch_size", "device", "shard_size")  # set by this benchmark

#: The step to time, or the reason why it cannot run.
Entrant = Callable[[], object] | str


@dataclass(frozen=True)
class FormulationSettings:
    """Time ways to run the layers of many networks."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    env: str = "Esper-Digits-v0"
    """Task that provides the host and the slots."""
    env_settings: tuple[str, ...] = ()
    """Further settings of the environment as NAME=VALUE."""
    n: Annotated[int, Interval(2)] = 64
    """Number of networks, at least two, because this compares ways to run several."""
    batch_size: Annotated[int | None, tyro.conf.DisallowNone] = None
    """Samples of each network's minibatch, default the task's."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """float32; tf32: convolutions and matmuls in TF32 (CUDA); bfloat16: features in bfloat16, with float32 weights
    that every forward pass converts, as autocast does."""
    rounds: Annotated[int, POSITIVE] = 5
    """Turns of each formulation."""
    seconds: Annotated[float, POSITIVE] = 0.5
    """Approximate seconds of a turn; a turn has at least one step."""
    threads: Annotated[int, POSITIVE] = os.cpu_count() or 1
    """Intra-op threads on the CPU; for the engine, worker threads, one shard each."""
    streams: Annotated[int, Interval(1, MAX_STREAMS)] = 8
    """CUDA streams of the formulations that use several."""
    cudnn_benchmark: bool = False
    """Let cuDNN choose its fastest algorithm by trial."""

    def checked(self) -> FormulationSettings:
        """These settings, or a ``ConfigError``."""
        check(self)
        check_out(self.out)
        if self.precision == "tf32" and resolve_device(self.device).type != "cuda":
            raise ConfigError("`precision` is 'tf32', which needs a CUDA device; use 'float32', or another device")
        self.task()
        return self

    def task(self, **changes: Any) -> TaskConfig:
        """The task with these settings and ``changes``."""
        return make_task(self.env, **self.env_kwargs(), **changes)

    def env_kwargs(self) -> dict[str, Any]:
        """Settings of the environment by name."""
        given = parse_env_settings(self.env_settings)
        for name in set(given) & set(OWN_SETTINGS):
            raise ConfigError(
                f"env_settings contain {name!r}; use the flags --batch-size and --device, and leave the shards to the "
                "benchmark"
            )
        batch = {} if self.batch_size is None else {"batch_size": self.batch_size}
        return given | batch | {"device": self.device}


@contextmanager
def backends(settings: FormulationSettings, device: torch.device) -> Iterator[None]:
    """Set threads and library switches inside the context.

    By default, PyTorch runs convolutions in TF32 and matmuls in float32, which would not be comparable.
    """
    cudnn, matmul, tf32 = torch.backends.cudnn, torch.backends.cuda.matmul, settings.precision == "tf32"
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = tf32, tf32, settings.cudnn_benchmark
    chosen = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with chosen, intra_op_threads(settings.threads):
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def layer_entrants(
    case: Case, settings: FormulationSettings, batch_size: int, device: torch.device
) -> dict[str, Entrant]:
    """Formulations that apply to a case, by name."""
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    problem = Problem.random(case, settings.n, batch_size, device, dtype)
    entrants: dict[str, Entrant] = {}
    for name, formulation in FORMULATIONS.items():
        if not formulation.suits(case):
            continue
        obstacle = formulation.obstacle(case, device)
        if obstacle is not None:
            entrants[name] = obstacle
            continue
        works = formulation.prepare(problem).works
        on_streams = formulation.on_streams
        entrants[name] = GraphsOnStreams(works, settings.streams, device) if on_streams else OneAfterTheOther(works)
    return entrants


def step_contenders(settings: FormulationSettings, device: torch.device) -> dict[str, Callable[[], Contender] | str]:
    """Factories of the contenders of a whole minibatch, by name, or the reason why one cannot run."""
    kwargs, n = settings.env_kwargs(), settings.n
    precision = "bfloat16" if settings.precision == "bfloat16" else "float32"

    def plain_loop() -> PlainLoop:
        return PlainLoop(settings.env, n, settings.threads, **kwargs)

    def on_streams(works: Sequence[Callable[[], None]]) -> Runner:
        return GraphsOnStreams(works, settings.streams, device)

    makers: dict[str, Callable[[], Contender] | str] = {
        "engine, one shard": lambda: Engine(settings.task(shard_size=n, precision=precision), n),
        "engine, a shard for each network": lambda: Engine(settings.task(shard_size=1, precision=precision), n),
        "loop": plain_loop,
        "streams": lambda: RunnerLoop(plain_loop(), settings.task().batch_size, on_streams),
    }
    if settings.precision == "bfloat16":
        return makers | dict.fromkeys(("loop", "streams"), LOOP_PRECISION)
    return makers if device.type == "cuda" else makers | {"streams": NEEDS_CUDA}


def compare(
    case: str, entrants: Mapping[str, Entrant], settings: FormulationSettings, wait: Callable[[], object], parts: int
) -> list[dict[str, Any]]:
    """Rows of one case; a step has ``parts`` equal parts."""
    steps = {name: step for name, step in entrants.items() if not isinstance(step, str)}
    times = {name: np.array(own) / parts for name, own in race(steps, settings.rounds, settings.seconds, wait).items()}
    medians = {name: float(np.median(own)) for name, own in times.items()}
    fastest = min(medians, key=lambda name: medians[name], default=None)
    rows = []
    for name, entrant in entrants.items():
        row: dict[str, Any] = {"case": case, "formulation": name, "milliseconds": None, "ratio_to_fastest": None}
        row |= {"fastest": name == fastest, "status": f"not measured: {entrant}", "rounds": []}
        if name in times:
            row["milliseconds"] = 1e3 * medians[name]
            row["ratio_to_fastest"] = float(np.median(times[name] / times[fastest]))
            row |= {"status": MEASURED, "rounds": (1e3 * times[name]).tolist()}
        rows.append(row)
    return rows


def layer_rows(settings: FormulationSettings, device: torch.device) -> Iterator[dict[str, Any]]:
    """Rows of every convolution."""
    task = settings.task()
    for case in tqdm(cases(task), desc=settings.env, unit="case"):
        entrants = layer_entrants(case, settings, task.batch_size, device)
        yield from compare(case.name, entrants, settings, waiter(device), 1)


def step_rows(settings: FormulationSettings, device: torch.device) -> list[dict[str, Any]]:
    """Rows of a whole minibatch."""
    contenders: dict[str, Contender] = {}
    entrants: dict[str, Entrant] = {}
    try:
        for name, make in step_contenders(settings, device).items():
            if isinstance(make, str):
                entrants[name] = make
                continue
            contenders[name] = make()
            entrants[name] = contenders[name].step
        return compare(WHOLE_STEP, entrants, settings, waiter(device), settings.task().batches_per_step)
    finally:
        for contender in contenders.values():
            contender.close()


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the rows, grouped by case."""
    lines = Table()
    for column in ("case, formulation", "ms", "x fastest", ""):
        lines.add_column(column, justify="right" if column in ("ms", "x fastest") else "left", no_wrap=True)
    case = None
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            lines.add_section()
            lines.add_row(case, style="bold")
        if row["status"] == MEASURED:
            lines.add_row(
                f"  {row['formulation']}",
                f"{row['milliseconds']:,.3f}",
                f"{row['ratio_to_fastest']:.2f}",
                "fastest" if row["fastest"] else "",
            )
    return lines


def unmeasured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines about rows without a time: formulation, reason and number of cases."""
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] != MEASURED:
            missing.setdefault(f"{row['formulation']}, {row['status']}", []).append(row["case"])
    return [f"{name} ({len(own)} cases)" for name, own in missing.items()]


def measure(settings: FormulationSettings, flags: Sequence[str], console: Console) -> int:
    """Run every case, write the file and print the table."""
    task, device = settings.checked().task(), resolve_device(settings.device)
    load_data(task.dataset, task.data_dir, family=DataFamily(task.family))  # fail before anything is timed
    with backends(settings, device):
        rows = [*layer_rows(settings, device), *step_rows(settings, device)]
    content: dict[str, Any] = {
        **origin("benchmarks/throughput/formulations.py", flags),
        "env": settings.env,
        "env_settings": list(settings.env_settings),
        "n": settings.n,
        "batch_size": task.batch_size,
        "precision": settings.precision,
        "cudnn_benchmark": settings.cudnn_benchmark,
        "threads": settings.threads,
        "streams": settings.streams,
        "rows": rows,
    }
    content["machine"] += f"; run on {device}"
    write_json(content, settings.out)
    title = f"{settings.env}, {settings.n} networks, minibatches of {task.batch_size}, {settings.precision}"
    say(console, f"{title}, {content['machine']}")
    print_table(console, table(rows))
    for line in unmeasured(rows):
        say(console, line)
    say(console, f"Written to {settings.out}")
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_script(FormulationSettings, measure, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
