"""Generated part of docs/performance.md: speed of the settings to choose from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from report_speed import lines, vector_name

#: Lines of the page around the generated part.
BEGIN, END = "<!-- python benchmarks/report.py writes from here -->", "<!-- to here -->"

#: Contenders that are not settings of the vector environment.
RIVALS = ("plain loop", "bare loop", "SyncVectorEnv", "AsyncVectorEnv")
#: Parts of a native step that its threads share.
SHARED = ("train", "evaluate")
#: Numbers of cores of machines that were not measured.
LARGER = (8, 64)

NOTHING = """
`benchmarks/results/` has no measurement of the workload "policy" yet; `benchmarks/throughput/throughput.py` makes one.
"""

TABLES = """
Measured with {threads}, in turns, under the workload "policy" ([results.md](results.md#speed) describes it and names
the files). The fastest settings of each measurement are bold. "Times native" is the speed over that of the first line,
which has the default settings, apart from those named with the task.

| task, policy | `num_envs` | settings | environment steps/s | times native |
|---|---|---|---|---|
{rows}

**Not measured: {larger} cores.** All threads share training and evaluation; the rest of a step runs on one. That limits
the speed on more cores, even if these share their part as well as those of the measurement. The limits below are
multiples of the measured speed of "native". They leave out the updates of the policy, which also run on one core.

| task, policy | `num_envs` | share of a step on one thread | {limits} |
|---|---|---|{rule}
{limited}
"""


def settings_tables(results: Path) -> str:
    """Tables of all measurements of the workload "policy"."""
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("throughput-*.json"))]
    contents = [content for content in contents if content["workload"] == "policy"]
    if not contents:
        return NOTHING
    measured = [(content, result) for content in contents for result in content["results"]]
    counts = sorted({content["threads"] for content in contents})
    return TABLES.format(
        threads=f"{' or '.join(map(str, counts))} thread{'' if counts == [1] else 's'}",
        rows=lines(row for content, result in measured for row in _speeds(content, result)),
        larger=" and ".join(map(str, LARGER)),
        limits=" | ".join(f"at most, on {cores} cores" for cores in LARGER),
        rule="---|" * len(LARGER),
        limited=lines(_limits(content, result) for content, result in measured),
    )


def _task(content: Mapping[str, Any]) -> str:
    return ", ".join([content["env"], *content["env_settings"], content["policy"]])


def _speeds(content: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[list[str]]:
    """Row of each setting, by the medians that all have of the same rounds."""
    rows = {name: row for name, row in result["contenders"].items() if name not in RIVALS}
    fastest = min(rows, key=lambda name: rows[name]["native_is_faster_by"])
    for name, row in rows.items():
        cells = [vector_name(name, result), f"{row['env_steps_per_second']:,.1f}"]
        cells.append(f"{1 / row['native_is_faster_by']:.2f}")
        yield [_task(content), str(result["n"]), *(f"**{cell}**" if name == fastest else cell for cell in cells)]


def _limits(content: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    shared = sum(result["native_time_shares"][part] for part in SHARED)
    limits = [speed_limit(shared, result["native_parts"], content["threads"], cores) for cores in LARGER]
    return [_task(content), str(result["n"]), f"{1 - shared:.0%}", *(f"{limit:.1f}" for limit in limits)]


def speed_limit(shared: float, parts: int, threads: int, cores: int) -> float:
    """Return the largest speed on ``cores`` cores, as a multiple of that on ``threads`` threads (Amdahl's law).

    Args:
        shared: share of a step, measured on ``threads`` threads, that the threads divide.
        parts: pieces of it; a thread runs one at a time.
        threads: threads of the measurement.
        cores: cores, with a thread each.
    """
    turns, turns_measured = (-(-parts // count) for count in (cores, threads))
    return 1 / (1 - shared + shared * turns / turns_measured)


def with_tables(page: str, results: Path) -> str:
    """Return the page with its generated part written again.

    Raises:
        ValueError: the page does not have both lines around the generated part.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks a line of its generated part; expected {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{settings_tables(results)}\n{END}{after}"
