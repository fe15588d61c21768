"""Calibrate the procedural stand-in for CIFAR: measure the CIFAR tasks on it and judge their difficulty.

    python benchmarks/tasks/calibration.py --out benchmarks/results/calibration-cifar.json

`benchmarks/tasks/headroom.py` measures, into files beside the result: on Esper-CIFAR-v0 every blueprint alone in every
slot, and topologies with a seed in every slot; on both Esper-CIFAR-v0 and Esper-CIFAR-Impaired-v0 the host alone. There
are targets for three test accuracies. Further targets ensure that no single seed explains the gain of growth: the best
single seed stays two standard errors of the difference below the best topology, and several blueprints and slots help.

Exit codes: 0 all targets met, 1 a target missed or an unwritable file, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import headroom
from esper_agent.cli.main import FAILED, OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import check_out, origin, run_script, write_json
from esper_agent.evaluation.tables import print_table
from esper_agent.settings.named_values import ConfigError
from esper_env.checks import Interval, check
from esper_env.seeds import offered_blueprints
from headroom import HOST, HeadroomSettings
from rich.console import Console
from rich.table import Table

#: Measurements: {plan: {"test_accuracy_mean": %, ...}}.
Plans = Mapping[str, Mapping[str, Any]]

SLOTS = ("r0c0", "r0c1", "r0c2")
BLUEPRINTS = tuple(entry.name for entry in offered_blueprints("cnn"))
SINGLE = tuple(f"{slot}={blueprint}" for blueprint in BLUEPRINTS for slot in SLOTS)
#: Seeds in every slot, front to back.
GROWN = (
    "r0c0=conv_light,r0c1=conv_light,r0c2=conv_light",
    "r0c0=conv_heavy,r0c1=conv_heavy,r0c2=conv_light",
    "r0c0=conv_heavy,r0c1=conv_heavy,r0c2=conv_heavy",
)

DATASET = "procedural-cifar"  # dataset_name
TASK, IMPAIRED = "Esper-CIFAR-v0", "Esper-CIFAR-Impaired-v0"


@dataclass(frozen=True)
class Measurement:
    """A file of measurements: the plans of a task. The verdicts need those of ``judged``."""

    file: str
    env: str
    judged: tuple[str, ...]
    unjudged: tuple[str, ...] = ()

    def plans(self) -> tuple[str, ...]:
        """Plans for `headroom.py`."""
        return ("", *self.judged, *self.unjudged)


def measurements() -> tuple[Measurement, ...]:
    """All measurements."""
    return (
        Measurement("headroom-cifar-v0.json", TASK, (*GROWN, *SINGLE)),
        Measurement("headroom-cifar-impaired-v0.json", IMPAIRED, (), ("r0c0=conv_light", GROWN[2])),
    )


#: Target ranges of test accuracies in percent.
HOST_ALONE, BEST_GROWN, IMPAIRED_ALONE = (40.0, 50.0), (65.0, 75.0), (18.0, 25.0)
STANDARD_ERRORS = 2  # of the difference between the best single seed and the best topology
#: Share of the best topology's gain over the host from which a single seed counts as helpful.
LEAST_OF_SEVERAL = 0.25
SEVERAL_BLUEPRINTS, SEVERAL_SLOTS = 3, 2
ONE_SEED = f"best single seed, share of the best topology's gain; at most all but {STANDARD_ERRORS} standard errors"


@dataclass(frozen=True)
class CalibrationSettings:
    """Measure the CIFAR tasks on the procedural stand-in and judge their difficulty."""

    out: Path
    """JSON file of the verdicts; the measurements go beside it, as headroom-cifar-v0.json and
    headroom-cifar-impaired-v0.json."""
    episodes: Annotated[int, Interval(2)] = 4
    """Episodes of each network, at least two, because the verdicts need the spread."""
    judge_only: bool = False
    """Judge existing files without measuring."""


def measure(settings: CalibrationSettings, console: Console) -> None:
    """Write all measurements."""
    for one in measurements():
        file, episodes = settings.out.parent / one.file, settings.episodes
        chosen = HeadroomSettings(out=file, env=one.env, episodes=episodes, plans=one.plans(), dataset="procedural")
        command = ["--env", one.env, "--dataset", "procedural", "--episodes", str(episodes)]
        headroom.run(chosen, [*command, "--out", str(file), "--plans", *one.plans()], console)


def judge(augmented: Plans, impaired: Plans) -> list[dict[str, Any]]:
    """Compare every target with the measurements of the two tasks.

    Without a gain of any topology over the host, there are no shares: the largest share is None.
    """
    accuracy = {plan: float(row["test_accuracy_mean"]) for plan, row in augmented.items()}
    host = accuracy[HOST]
    best = max(GROWN, key=accuracy.__getitem__)
    gain = accuracy[best] - host
    shares = {plan: (accuracy[plan] - host) / gain for plan in SINGLE} if gain > 0 else {}
    one = max(shares, key=shares.__getitem__, default="")
    helpful = [plan.split("=") for plan, share in shares.items() if share >= LEAST_OF_SEVERAL]
    slots, blueprints = (len({pair[side] for pair in helpful}) for side in (0, 1))
    alone = float(impaired[HOST]["test_accuracy_mean"])
    most = 1 - STANDARD_ERRORS * _error_of_difference(augmented[best], augmented[one]) / gain if one else 0.0
    return [
        _verdict("host alone, test %", HOST, host, *HOST_ALONE),
        _verdict("best topology, test %", best, accuracy[best], *BEST_GROWN),
        _verdict("impaired host alone, test %", HOST, alone, *IMPAIRED_ALONE),
        _verdict(ONE_SEED, one, shares.get(one), 0.0, most),
        _verdict(_several("blueprints"), "", blueprints, SEVERAL_BLUEPRINTS, len(BLUEPRINTS)),
        _verdict(_several("slots"), "", slots, SEVERAL_SLOTS, len(SLOTS)),
    ]


def _several(what: str) -> str:
    return f"{what} of which a single seed brings at least {LEAST_OF_SEVERAL:.0%} of that gain"


def _error_of_difference(*rows: Mapping[str, Any]) -> float:
    """Standard error of the difference of two means, as in Welch's test; episodes count as independent."""
    return math.sqrt(sum(row["test_accuracy_std"] ** 2 / row["episodes"] for row in rows))


def _verdict(target: str, plan: str, value: float | None, low: float, high: float) -> dict[str, Any]:
    met = value is not None and low <= value <= high
    return {"target": target, "plan": plan, "value": value, "low": low, "high": high, "met": met}


def measured(file: Path, env: str, plans: Sequence[str]) -> dict[str, Any]:
    """Read a file of measurements.

    Raises ``ConfigError`` unless it has all these plans, measured on the task with the unchanged stand-in.
    """
    again = "measure again, without --judge-only"
    if not file.is_file():
        raise ConfigError(f"{file} does not exist; {again}")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for name, expected in {"env": env, "dataset": DATASET, "env_settings": []}.items():
        if content.get(name) != expected:
            raise ConfigError(f"{file} has {name} {content.get(name)!r}; expected {expected!r}; {again}")
    lacking = [plan for plan in plans if content["plans"].get(plan, {}).get("episodes", 0) < 2]
    if lacking:
        raise ConfigError(f"{file} lacks two episodes of {', '.join(map(repr, lacking))}; {again}")
    return content


def run(settings: CalibrationSettings, flags: Sequence[str], console: Console) -> int:
    """Measure, judge, write the verdicts and print them; return the exit code."""
    check(settings)
    if settings.out.is_dir() or settings.out.name in [one.file for one in measurements()]:
        raise ConfigError(f"`out` is {settings.out}; expected a JSON file other than those of the measurements")
    check_out(settings.out)
    if not settings.judge_only:
        measure(settings, console)
    found = {one.env: measured(settings.out.parent / one.file, one.env, (HOST, *one.judged)) for one in measurements()}
    verdicts = judge(*(found[env]["plans"] for env in (TASK, IMPAIRED)))
    content = {
        **origin("benchmarks/tasks/calibration.py", flags),
        "measured": [one.file for one in measurements()],
        "machine": found[TASK]["machine"],  # that of the measurements
        "verdicts": verdicts,
    }
    write_json(content, settings.out)
    print_table(console, table(verdicts))
    say(console, f"Written to {settings.out}")
    return OK if all(verdict["met"] for verdict in verdicts) else FAILED


def table(verdicts: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the verdicts."""
    rows = Table(title="Calibration of the procedural stand-in")
    for column in ("target", "found", "range", "met", "planted"):
        rows.add_column(column, justify="right" if column in ("found", "range") else "left", overflow="fold")
    for one in verdicts:
        met = "yes" if one["met"] else "no"
        value = "none" if one["value"] is None else f"{one['value']:.3g}"
        rows.add_row(one["target"], value, f"{one['low']:.3g} to {one['high']:.3g}", met, one["plan"])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_script(CalibrationSettings, run, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())
