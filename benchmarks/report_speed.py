"""Sections of docs/results.md on speed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HEAD = """
## Speed

Contenders take turns in one run, and rates are medians over rounds. An environment step is a step of one network, so a
step of a vector counts n times. Training samples are those of the hosts. "Native faster by" is the median of the ratios
of each round, above 1 if native is faster. "Training alone" is the same for the training part of a native step.

* native: the vector environment in one process, with its engine. The threads share the networks of the engine "fused"
  (compiled programs), and the shards of the engine "torch" (up to 32 networks of Digits, 1 of CIFAR).
* engine E, K workers: the same with another engine, or with its networks in K processes.
* plain loop: trains the same hosts one by one, each with its own clipped optimizer, and does nothing else.
* bare loop: trains them in the layout of the engine "torch" on one thread, without clipping.
* SyncVectorEnv and AsyncVectorEnv: Gymnasium's vectors over single environments of this package.

Under the workload "host", networks wait, so all contenders train the same networks. Under "planted", every slot has a
conv_light seed. Under "growing", the policy draws uniformly random legal actions. Under "policy", the actions are
sampled as in training, from a FactoredRecurrentPPO that is untrained, or the model of a run. Seeds cost time in every
contender, and with the engine "torch", networks with different seeds share less work.

The last step of an episode also measures the committed network and starts the next episode, and takes about twice as
long. Medians leave it out, except where a turn has whole episodes. Of a native step, "observe" is the observations,
"decide" the policy, and "rest" all other work of the environment. "Without evaluation / bare loop" is the time of a
native step without its evaluation, over that of the bare loop; below 1, native is faster. "Seeds" is the mean number of
seeds in a network.
"""

THROUGHPUT = """
### {env}, workload {workload}

Machine: {machine}. {threads}{turns} File: `benchmarks/results/{file}`. Command:
`{command}`

| n | contender | environment steps/s | training samples/s | native faster by | training alone |
|---|---|---|---|---|---|
{rows}

| n | train | evaluate | observe | decide | rest | evaluation / training | without evaluation / bare loop | seeds |
|---|---|---|---|---|---|---|---|---|
{shares}
"""

DECISIONS = """
### Decision side: {n} networks on {env}

Uniformly random legal actions, NumPy on one core. The whole observation contains legality, masks and features.
Machine: {machine}. File: `benchmarks/results/{file}`. Command: `{command}`

| part | ms per call, all networks | calls per step |
|---|---|---|
{rows}
"""

FORMULATIONS = """
### Ways to run the layers of {n} networks: {env}

Forward and backward, minibatches of {batch_size}, {precision}, {threads} intra-op thread{plural}. Each cell is a time
over that of the fastest way, which is bold. A dash marks a way that does not apply. Not measured here: {missing}.
Machine: {machine}. File: `benchmarks/results/{file}`. Command: `{command}`

| layer | fastest, ms | {names} |
|---|---|{rule}
{rows}
"""

NO_ACCELERATOR = """
These figures are from CPUs; GPU performance has not been measured.
"""


def lines(rows: Iterable[Iterable[str]]) -> str:
    """Rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def throughput(file: Path) -> str:
    """Section of one throughput run."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows, shares = [], []
    for result in content["results"]:
        for name, row in result["contenders"].items():
            faster = "" if name == "native" else f"{row['native_is_faster_by']:.2f}"
            alone = row.get("native_trains_faster_by")
            rows.append(
                [
                    str(result["n"]),
                    vector_name(name, result),
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
                f"{result['native_seeds']:.2f}" if "native_seeds" in result else "",
            ]
        )
    return THROUGHPUT.format(
        env=", ".join([content["env"], *content["env_settings"]]),
        workload=", ".join([content["workload"], *filter(None, [content.get("policy")])]),
        machine=content["machine"],
        threads=_threads(content),
        turns=" A turn has whole episodes." if content.get("whole_episodes") else "",
        file=file.name,
        command=content["command"],
        rows=lines(rows),
        shares=lines(shares),
    ) + "".join(_remarks(result) for result in content["results"])


def vector_name(name: str, result: Mapping[str, Any]) -> str:
    """Return the name of a contender, with the engine of native where it is recorded."""
    return f"native (engine {result['native_engine']})" if name == "native" and "native_engine" in result else name


def _threads(content: Mapping[str, Any]) -> str:
    """Sentence on the threads of the environments, where they are recorded, and of the plain loop."""
    loop = f"the plain loop has {content['threads_of_the_plain_loop']} intra-op threads."
    if "threads" not in content:
        return loop.capitalize()
    return f"Environments have {content['threads']} threads; {loop}"


def _remarks(result: Mapping[str, Any]) -> str:
    """Remarks on captures and memory bandwidth, which only accelerators have."""
    remarks = ""
    if result["captures"]:
        remarks += f"\nAt n = {result['n']}, {result['captures']} captures in {result['native_steps']} steps.\n"
    if "bandwidth" in result:
        remarks += f"\nAt n = {result['n']}, {result['bandwidth']['share']:.1%} of the limit set by memory bandwidth.\n"
    return remarks


def decisions(file: Path) -> str:
    """Section of one run of the decision side."""
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        [name, f"{row['milliseconds']:.3f}", f"{row['calls_per_step']:.0f}"] for name, row in content["parts"].items()
    ]
    return DECISIONS.format(**{**content, "file": file.name, "rows": lines(rows)})


def formulations(file: Path) -> str:
    """Section of one run of formulations: a row per layer, a column per formulation."""
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
    reasons = "; ".join(f"{name} ({status.removeprefix('not measured: ')})" for name, status in missing.items())
    return FORMULATIONS.format(
        **{**content, "file": file.name, "rows": lines(rows), "names": " | ".join(measured)},
        plural="" if content["threads"] == 1 else "s",
        missing=reasons or "nothing",
        rule="---|" * len(measured),
    )


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None or not row["rounds"]:
        return "-"
    ratio = f"{row['ratio_to_fastest']:.2f}"
    return f"**{ratio}**" if row["fastest"] else ratio


#: Section of each kind of file, by the prefix of its name.
SECTIONS = {
    "throughput": throughput,
    "decisions": decisions,
    "formulations": formulations,
}


def sections(results: Path) -> list[str]:
    """All sections on speed."""
    files = {kind: sorted(results.glob(f"{kind}-*.json")) for kind in SECTIONS}
    made = [SECTIONS[kind](file) for kind, own in files.items() for file in own]
    machines = [json.loads(file.read_text(encoding="utf-8"))["machine"] for own in files.values() for file in own]
    if made and all("no GPU" in machine for machine in machines):
        made.append(NO_ACCELERATOR)
    return [HEAD, *made] if made else []
