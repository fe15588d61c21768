"""Results of a race: rates, ratios, and the time shares of a native step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from bandwidth import bytes_per_minibatch
from contenders import Contender, Environments, Shares
from esper_env.devices import resolve_device
from esper_env.population import host_builder
from esper_env.tasks import TaskConfig
from rich.table import Table
from timing import race, waiter

NATIVE, LOOP, BARE = "native", "plain loop", "bare loop"
PARTS = ("train", "evaluate", "observe", "decide")
ELEMENT_SIZE = {"float32": 4, "bfloat16": 2}


def compare(
    task: TaskConfig,
    n: int,
    makers: Mapping[str, Callable[[], Contender]],
    rounds: int,
    seconds: float,
    bandwidth: float | None,
    unit: int = 1,
) -> dict[str, Any]:
    """Race all contenders with ``n`` networks.

    Args:
        task: task of all contenders.
        n: number of networks.
        makers: contenders by name.
        rounds: turns of each contender.
        seconds: approximate seconds of a turn.
        bandwidth: copy bandwidth of memory in bytes per second, or None.
        unit: a turn has a multiple of so many steps.
    """
    contenders: dict[str, Contender] = {}
    try:
        for name, make in makers.items():
            contenders[name] = make()
        wait = waiter(resolve_device(task.device))
        times = race({name: each.step for name, each in contenders.items()}, rounds, seconds, wait, unit)
        native = contenders[NATIVE]
        assert isinstance(native, Environments)
        shares = native.shares
        result: dict[str, Any] = {"n": n, "captures": native.captures, "native_steps": shares.steps}
        result |= {"native_engine": native.engine, "native_parts": native.parts, "native_seeds": native.seeds}
    finally:
        for contender in contenders.values():
            contender.close()
    samples = n * task.batch_size * task.batches_per_step
    rows = rates({name: np.array(own) for name, own in times.items()}, n, samples)
    result["contenders"] = rows
    result |= shares_of_a_step(rows, times, shares, samples)
    if bandwidth is not None:
        result["bandwidth"] = memory_limit(task, bandwidth, result["training_samples_per_second_while_training"])
    return result


def rates(times: Mapping[str, np.ndarray], n: int, samples: int) -> dict[str, dict[str, Any]]:
    """Return each contender's row from its seconds per step of ``n`` networks on ``samples`` training samples."""
    rows = {}
    for name, values in times.items():
        seconds = float(np.median(values))
        rows[name] = {
            "seconds_per_step": seconds,
            "env_steps_per_second": n / seconds,
            "training_samples_per_second": samples / seconds,
            "native_is_faster_by": float(np.median(values / times[NATIVE])),
            "rounds": values.tolist(),
        }
    return rows


def shares_of_a_step(
    rows: dict[str, dict[str, Any]], times: Mapping[str, Sequence[float]], shares: Shares, samples: int
) -> dict[str, Any]:
    """Time shares of a native step. Adds to the loops' rows the comparisons that account for their missing work."""
    whole = shares.seconds["step"]
    parts = {part: shares.seconds.get(part, 0.0) / whole for part in PARTS}
    if LOOP in rows:
        rows[LOOP]["native_trains_faster_by"] = rows[LOOP]["native_is_faster_by"] / parts["train"]
    if BARE in rows:
        without = np.array(times[NATIVE]) * (1.0 - parts["evaluate"])
        rows[BARE]["native_step_without_evaluation_over_it"] = float(np.median(without / np.array(times[BARE])))
    return {
        "training_samples_per_second_while_training": samples * shares.steps / shares.seconds["train"],
        "native_time_shares": parts | {"rest": 1.0 - sum(parts.values())},
        "evaluation_over_training": parts["evaluate"] / parts["train"],
    }


def memory_limit(task: TaskConfig, bandwidth: float, measured: float) -> dict[str, float]:
    """Training samples per second that memory bandwidth allows, and the measured share of them.

    The limit does not depend on the number of networks: n networks move n times the bytes for n times the samples.
    """
    spec = task.host
    shape = (spec.in_channels, spec.image_size, spec.image_size)
    size = bytes_per_minibatch(host_builder(task)(), task.batch_size, shape, ELEMENT_SIZE[task.precision])
    limit = bandwidth * task.batch_size / size
    return {"bytes_per_minibatch": size, "limit_samples_per_second": limit, "share": measured / limit}


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the rates."""
    lines = Table()
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
                f"{name} (engine {result['native_engine']})" if name == NATIVE else name,
                f"{row['env_steps_per_second']:,.1f}",
                f"{row['training_samples_per_second']:,.0f}",
                "" if name == NATIVE else faster,
            )
        lines.add_section()
    return lines


def shares_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the time shares of a native step."""
    lines = Table(title="A native step", title_justify="left")
    names = list(results[0]["native_time_shares"])
    for column in ("n", *names, "evaluate/train", "over bare loop", "seeds per network"):
        lines.add_column(column, justify="right")
    for result in results:
        bare = result["contenders"].get(BARE, {}).get("native_step_without_evaluation_over_it")
        lines.add_row(
            str(result["n"]),
            *(f"{result['native_time_shares'][name]:.0%}" for name in names),
            f"{result['evaluation_over_training']:.2f}",
            "" if bare is None else f"{bare:.2f}",
            f"{result['native_seeds']:.2f}",
        )
    return lines


def remarks(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Remarks that have no column in the tables."""
    lines = []
    for result in results:
        if result["captures"]:
            lines.append(f"n = {result['n']}: {result['captures']} captures in {result['native_steps']} steps")
        if "bandwidth" in result:
            share = result["bandwidth"]["share"]
            lines.append(f"n = {result['n']}: training runs at {share:.1%} of the limit set by memory bandwidth")
    return lines
