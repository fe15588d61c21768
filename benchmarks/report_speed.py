"""The sections of docs/results.md on speed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEAD = """
## Speed

Contenders take turns in one run; rates are medians over rounds. An environment step is one of one network, so a step of
a vector counts n times; training samples are those of the hosts. "Native faster by" is the median of the rounds' own
ratios, above 1 where native is the faster one; "training alone" is the same for the part of a native step that trains.

* native: the vector environment. A shard of networks (up to 32 of Digits, 1 of CIFAR) takes a thread, so 32 Digits
  networks use one core and 64 use two.
* plain loop: trains the same hosts one after the other, an optimizer each, clipped alike, and does nothing else.
* bare loop: trains them in the environment's own layout, without clipping, on one thread whatever n is.
* SyncVectorEnv, AsyncVectorEnv: Gymnasium's, over single environments of this package.

Workloads: "host" is networks that wait, so that all contenders train the same; "planted" has a conv_light seed in every
slot; "growing" is uniformly random legal actions. Seeds cost time whatever trains them, and the more kinds of them
there are at once, the less there is to be shared.

A median leaves out the one step in an episode that also measures the committed network and starts the next; it takes
about twice as long. Of a native step, "observe" is the observations, "decide" the policy, "rest" all other work of the
environment. "Evaluation / training" is the ratio of these two; "without evaluation / bare loop" is what a step takes
without its evaluation, over what the bare loop takes: below 1 it is quicker.
"""

THROUGHPUT = """
### {env}, workload {workload}

Machine: {machine}. The plain loop has {threads} intra-op threads. File: `benchmarks/results/{file}`. Command:
`{command}`

| n | contender | environment steps/s | training samples/s | native faster by | training alone |
|---|---|---|---|---|---|
{rows}

| n | train | evaluate | observe | decide | rest | evaluation / training | without evaluation / bare loop |
|---|---|---|---|---|---|---|---|
{shares}
"""

DECISIONS = """
### The decision side: {n} networks on {env}

Uniformly random legal actions, NumPy on one core. The whole observation contains legality, masks and features.
Machine: {machine}. File: `benchmarks/results/{file}`. Command: `{command}`

| part | ms a call, all networks | calls a step |
|---|---|---|
{rows}
"""

FORMULATIONS = """
### Ways to run the layers of {n} networks: {env}

Forward and backward, minibatches of {batch_size}, {precision}, {threads} intra-op thread{plural}. Each cell is a time
over that of the fastest, which is bold; a dash is where a way does not apply. Not measured here: {missing}. Machine:
{machine}. File: `benchmarks/results/{file}`. Command: `{command}`

| layer | fastest, ms | {names} |
|---|---|{rule}
{rows}
"""

NO_ACCELERATOR = """
No machine with an accelerator was at hand: what is said above is of CPUs, and no figure of a GPU is measured yet.
"""


def _lines(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def throughput(file: Path) -> str:
    """One throughput run."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows, shares = [], []
    for result in content["results"]:
        for name, row in result["contenders"].items():
            faster = "" if name == "native" else f"{row['native_is_faster_by']:.2f}"
            alone = row.get("native_trains_faster_by")
            rows.append(
                [
                    str(result["n"]),
                    name,
                    f"{row['env_steps_per_second']:,.1f}",
                    f"{row['training_samples_per_second']:,.0f}",
                    faster,
                    "" if alone is None else f"{alone:.2f}",
                ]
            )
        parts = result["native_time_shares"]
        bare = result["contenders"].get("bare loop", {}).get("native_step_without_evaluation_over_it")
        shares.append(
            [
                str(result["n"]),
                *(f"{parts[name]:.0%}" for name in ("train", "evaluate", "observe", "decide", "rest")),
                f"{result['evaluation_over_training']:.2f}",
                "" if bare is None else f"{bare:.2f}",
            ]
        )
    return THROUGHPUT.format(
        env=", ".join([content["env"], *content["env_settings"]]),
        workload=content["workload"],
        machine=content["machine"],
        threads=content["threads_of_the_plain_loop"],
        file=file.name,
        command=content["command"],
        rows=_lines(rows),
        shares=_lines(shares),
    ) + "".join(_remarks(result) for result in content["results"])


def _remarks(result: Mapping[str, Any]) -> str:
    """What only accelerators have."""
    said = ""
    if result["captures"]:
        said += f"\nAt n = {result['n']}, {result['captures']} captures in {result['native_steps']} steps.\n"
    if "bandwidth" in result:
        said += f"\nAt n = {result['n']}, {result['bandwidth']['share']:.1%} of the limit set by memory bandwidth.\n"
    return said


def decisions(file: Path) -> str:
    """One run of the decision side."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        [name, f"{row['milliseconds']:.3f}", f"{row['calls_per_step']:.0f}"] for name, row in content["parts"].items()
    ]
    return DECISIONS.format(**{**content, "file": file.name, "rows": _lines(rows)})


def formulations(file: Path) -> str:
    """One table of formulations: a row for each layer, a column for each way, and what was not measured."""
    content = json.loads(file.read_text(encoding="utf-8"))
    cases: dict[str, dict[str, Any]] = {}
    for row in content["rows"]:
        cases.setdefault(row["case"], {})[row["formulation"]] = row
    names = list(dict.fromkeys(name for own in cases.values() for name in own))
    missing = {name: row["status"] for own in cases.values() for name, row in own.items() if not row["rounds"]}
    measured = [name for name in names if any(own.get(name, {}).get("rounds") for own in cases.values())]
    rows = []
    for case, own in cases.items():
        fastest = next(row["milliseconds"] for row in own.values() if row["fastest"])
        rows.append([case, f"{fastest:,.2f}", *(_ratio(own.get(name)) for name in measured)])
    said = "; ".join(f"{name} ({status.removeprefix('not measured: ')})" for name, status in missing.items())
    return FORMULATIONS.format(
        **{**content, "file": file.name, "rows": _lines(rows), "names": " | ".join(measured)},
        plural="" if content["threads"] == 1 else "s",
        missing=said or "nothing",
        rule="---|" * len(measured),
    )


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None or not row["rounds"]:
        return "-"
    ratio = f"{row['ratio_to_fastest']:.2f}"
    return f"**{ratio}**" if row["fastest"] else ratio


#: What each kind of file becomes, by the beginning of its name.
SECTIONS = {
    "throughput": throughput,
    "decisions": decisions,
    "formulations": formulations,
}


def sections(results: Path) -> list[str]:
    """Every section on speed."""
    files = {kind: sorted(results.glob(f"{kind}-*.json")) for kind in SECTIONS}
    made = [SECTIONS[kind](file) for kind, own in files.items() for file in own]
    machines = [json.loads(file.read_text(encoding="utf-8"))["machine"] for own in files.values() for file in own]
    if made and all("no GPU" in machine for machine in machines):
        made.append(NO_ACCELERATOR)
    return [HEAD, *made] if made else []
