"""The sections of docs/results.md on what telemetry costs and what a soak survived."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TELEMETRY = """
### What telemetry costs: {env}

A vector plays {steps} steps without a sink, is put back, and plays them again with a sink that writes files, and again
in full detail, in changing order, {rounds} times. The overhead is what the sink adds to a step, in percent:
interquartile means of the rounds' own ratios [95% bootstrap intervals]; CPU is the time of the whole process, the
writing thread included. Own work is the CPU time that telemetry's own code takes in both threads, in percent of all
other CPU time: a small number measured directly, where the overheads are differences of large ones.
Machine: {machine}. File: `benchmarks/results/{file}`.
Command: `{command}`

| policy | n | sink | events a step | ms a step | own work | overhead, wall | overhead, CPU |
|---|---|---|---|---|---|---|---|
{rows}
"""

SOAK = """
### A soak: {env}, {num_envs} networks, {minutes:.0f} minutes

Random legal and illegal actions, with faults put into the networks; every step is checked, faulty ones against the same
step without the fault, and stretches of steps are played twice. Machine: {machine}. File: `benchmarks/results/{file}`.
Command: `{command}`

| what | count |
|---|---|
{rows}

Memory grew by {growth:+.1f} MiB between the first and the last tenth of the readings, which begin after a fifth of the
time, at {first:,.0f} MiB.
"""


def _lines(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _share(share: Mapping[str, float]) -> str:
    return f"{100 * share['value']:+.2f} [{100 * share['low']:+.2f}, {100 * share['high']:+.2f}]"


def telemetry(file: Path) -> str:
    """One run of the telemetry benchmark."""
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
    return TELEMETRY.format(**{**content, "file": file.name, "rows": _lines(rows)})


def soak(file: Path) -> str:
    """One soak."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    counts = {name.replace("_", " "): f"{count:,}" for name, count in content["counts"].items()}
    mismatches = f"{sum(content['mismatches'].values()):,}"
    memory = content["memory_mib"]
    return SOAK.format(
        **{**content, "file": file.name},
        minutes=content["seconds"] / 60,
        rows=_lines([*counts.items(), ("mismatches", mismatches)]),
        growth=memory["growth"],
        first=memory["readings"][0],
    )


#: What each kind of file becomes, by the beginning of its name.
SECTIONS = {"telemetry": telemetry, "soak": soak}


def sections(results: Path) -> list[str]:
    """Every section on reliability."""
    made = [make(file) for kind, make in SECTIONS.items() for file in sorted(results.glob(f"{kind}-*.json"))]
    return ["\n## Over long runs\n", *made] if made else []
