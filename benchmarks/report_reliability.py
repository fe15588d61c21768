"""Sections of docs/results.md on the cost of telemetry and on soaks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report_speed import lines

TELEMETRY = """
### Cost of telemetry: {env}

In each of {rounds} rounds, a vector plays the same {steps} steps without a sink, with a sink that writes files, and
with a sink in full detail, in changing order. The overhead is what the sink adds to a step, in percent: the
interquartile mean of the ratios of each round [95% bootstrap interval]. CPU is the time of the whole process, including
the writing thread. Own work is the CPU time of telemetry's own code in both threads, in percent of all other CPU time.
It is a small number measured directly, while the overheads are differences of large numbers. Machine: {machine}. File:
`benchmarks/results/{file}`. Command: `{command}`

| policy | n | sink | events a step | ms a step | own work | overhead, wall | overhead, CPU |
|---|---|---|---|---|---|---|---|
{rows}
"""

SOAK = """
### Soak: {env}, {num_envs} networks, {minutes:.0f} minutes

Random legal and illegal actions, with injected faults. Every step is checked. A step with faults is compared with the
same step without them, and stretches of steps are played twice. Machine: {machine}. File: `benchmarks/results/{file}`.
Command: `{command}`

| what | count |
|---|---|
{rows}

Memory grew by {growth:+.1f} MiB between the first and the last tenth of the readings. These begin after a fifth of the
time, at {first:,.0f} MiB.
"""


def _share(share: Mapping[str, float | None]) -> str:
    if share["low"] is None or share["high"] is None or share["value"] is None:
        return "no interval"  # of a single round
    return f"{100 * share['value']:+.2f} [{100 * share['low']:+.2f}, {100 * share['high']:+.2f}]"


def telemetry(file: Path) -> str:
    """Section of one run of the telemetry benchmark."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for result in content["results"]:
        for name, row in result["contenders"].items():
            own = f"{100 * row['own_work']:.2f}"
            shares = [own, *(_share(row["overhead"][clock]) for clock in ("wall", "cpu"))]
            shares = shares if name != "no sink" else [""] * 3
            milliseconds = row["milliseconds_per_step"]["wall"]
            who = [result["policy"], str(result["n"]), name]
            rows.append([*who, f"{row['events_per_step']:.0f}", f"{milliseconds:.1f}", *shares])
    return TELEMETRY.format(**{**content, "file": file.name, "rows": lines(rows)})


def soak(file: Path) -> str:
    """Section of one soak."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    counts = {name.replace("_", " "): f"{count:,}" for name, count in content["counts"].items()}
    mismatches = f"{sum(content['mismatches'].values()):,}"
    memory = content["memory_mib"]
    return SOAK.format(
        **{**content, "file": file.name},
        minutes=content["seconds"] / 60,
        rows=lines([*counts.items(), ("mismatches", mismatches)]),
        growth=memory["growth"],
        first=memory["readings"][0],
    )


#: Section of each kind of file, by the prefix of its name.
SECTIONS = {"telemetry": telemetry, "soak": soak}


def sections(results: Path) -> list[str]:
    """All sections on reliability."""
    made = [make(file) for kind, make in SECTIONS.items() for file in sorted(results.glob(f"{kind}-*.json"))]
    return ["\n## Over long runs\n", *made] if made else []
