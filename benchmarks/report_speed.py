"""The sections of docs/results.md on speed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

HEAD = """
## Speed

Contenders take turns in one run; rates are medians over rounds, and "native faster by" is the median of the rounds' own
ratios. The plain loop trains the same hosts one after the other, an optimizer each, and does nothing else. The bare
loop trains them in the environment's own layout on one thread: "beside the bare loop" is what a whole step takes
without its evaluation, over what that loop takes. "Evaluation / training" are their shares of a step. Workload "host"
is networks that wait, "planted" has a conv_light seed in every slot.
"""

THROUGHPUT = """
### {env}, workload {workload}

Machine: {machine}. The plain loop has {threads} intra-op threads. File: `benchmarks/results/{file}`. Command:
`{command}`

| n | contender | environment steps/s | training samples/s | native faster by | training alone |
|---|---|---|---|---|---|
{rows}

| n | train | evaluate | observe | decide | rest | evaluation / training | beside the bare loop |
|---|---|---|---|---|---|---|---|
{shares}
"""

DECISIONS = """
### The decision side: {n} networks on {env}

NumPy on one core. Machine: {machine}. File: `benchmarks/results/{file}`. Command: `{command}`

| part | ms, all networks | calls a step |
|---|---|---|
{rows}
"""

FORMULATIONS = """
### Ways to run the layers of {n} networks: {env}

Forward and backward, minibatches of {batch_size}, {precision}, {threads} intra-op thread{plural}. Machine: {machine}.
File: `benchmarks/results/{file}`. Command: `{command}`

| layer | formulation | ms | over the fastest |
|---|---|---|---|
{rows}
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
        env=content["env"],
        workload=content["workload"],
        machine=content["machine"],
        threads=content["threads_of_the_plain_loop"],
        file=file.name,
        command=content["command"],
        rows=_lines(rows),
        shares=_lines(shares),
    )


def decisions(file: Path) -> str:
    """One run of the decision side."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        [name, f"{row['milliseconds']:.3f}", f"{row['calls_per_step']:.0f}"] for name, row in content["parts"].items()
    ]
    return DECISIONS.format(**{**content, "file": file.name, "rows": _lines(rows)})


def formulations(file: Path) -> str:
    """One table of formulations; what was not measured says so."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for row in content["rows"]:
        measured = row["milliseconds"] is not None
        name = f"**{row['formulation']}**" if row["fastest"] else row["formulation"]
        cells = [f"{row['milliseconds']:,.2f}", f"{row['ratio_to_fastest']:.2f}"] if measured else [row["status"], ""]
        rows.append([row["case"], name, *cells])
    plural = "" if content["threads"] == 1 else "s"
    return FORMULATIONS.format(**{**content, "file": file.name, "rows": _lines(rows), "plural": plural})


#: What each kind of file becomes, by the beginning of its name.
SECTIONS = {
    "throughput": throughput,
    "decisions": decisions,
    "formulations": formulations,
}


def sections(results: Path) -> list[str]:
    """Every section on speed."""
    made = [make(file) for kind, make in SECTIONS.items() for file in sorted(results.glob(f"{kind}-*.json"))]
    return [HEAD, *made] if made else []
