"""Summaries of evaluated policies: numbers for files, a table for the terminal."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from esper_agent.atomic import replaced
from esper_agent.evaluation import EpisodeRecord
from esper_agent.statistics import Estimate, bootstrap_interval, paired_difference


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over episodes; the deviation of one episode is NaN."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), deviation)


@dataclass(frozen=True)
class Summary:
    """One policy over its episodes."""

    policy: str
    episodes: int
    episode_return: Spread
    interquartile_return: Estimate  # interquartile mean with its 95% bootstrap interval
    test_accuracy: Spread
    committed_val_accuracy: Spread
    parameters_added: Spread
    wait_share: float
    fossilized: float  # mean seeds an episode
    difference: Estimate | None = None  # mean return minus that of the reference, paired by episode seed

    def row(self) -> dict[str, Any]:
        """Flat columns for a CSV file or JSON; a missing number is None."""
        row: dict[str, Any] = {"policy": self.policy, "episodes": self.episodes}
        spreads = {
            "return": self.episode_return,
            "test_accuracy": self.test_accuracy,
            "committed_val_accuracy": self.committed_val_accuracy,
            "parameters_added": self.parameters_added,
        }
        for name, spread in spreads.items():
            row |= {f"{name}_mean": spread.mean, f"{name}_std": spread.deviation}
        estimates = {"return_iqm": self.interquartile_return, "return_difference": self.difference}
        for name, estimate in estimates.items():
            for part in ("value", "low", "high"):
                row[f"{name}_{part}"] = None if estimate is None else getattr(estimate, part)
        row |= {"wait_share": self.wait_share, "fossilized": self.fossilized}
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()}


def summarise(records: Sequence[EpisodeRecord], reference: Sequence[EpisodeRecord] | None = None) -> Summary:
    """The numbers of one policy; with ``reference`` also how its return differs on the same episode seeds."""
    returns = [record.episode_return for record in records]
    difference = None
    if reference is not None:
        if [record.seed for record in records] != [record.seed for record in reference]:
            raise ValueError("the episodes of the two policies have other seeds; evaluate both with the same --seed")
        difference = paired_difference(returns, [record.episode_return for record in reference])
    return Summary(
        policy=records[0].policy,
        episodes=len(records),
        episode_return=Spread.of(returns),
        interquartile_return=bootstrap_interval(returns),
        test_accuracy=Spread.of([record.test_accuracy for record in records]),
        committed_val_accuracy=Spread.of([record.committed_val_accuracy for record in records]),
        parameters_added=Spread.of([record.parameters_added for record in records]),
        wait_share=float(np.mean([record.wait_share for record in records])),
        fossilized=float(np.mean([record.fossilized for record in records])),
        difference=difference,
    )


def summarise_all(results: Mapping[str, Sequence[EpisodeRecord]], reference: str | None = None) -> list[Summary]:
    """One summary per policy, each compared with the policy named ``reference``."""
    base = results[reference] if reference is not None else None
    return [summarise(records, None if name == reference else base) for name, records in results.items()]


def summary_table(summaries: Sequence[Summary], title: str) -> Table:
    """A rich table, one line per policy; with a column of differences where a summary has one."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.caption = "± is the standard deviation over episodes; brackets are 95% bootstrap intervals"
    table.add_column("policy", overflow="fold", min_width=10, max_width=28)  # a run's path may be long
    headings = ["return", "return\nIQM", "test\naccuracy, %", "parameters\nadded", "WAIT\n%"]
    compared = any(summary.difference is not None for summary in summaries)
    for heading in [*headings, "return minus\nfirst policy"] if compared else headings:
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    for summary in summaries:
        cells = [
            summary.policy,
            _spread(summary.episode_return, 2),
            _estimate(summary.interquartile_return),
            _spread(summary.test_accuracy, 1),
            _spread(summary.parameters_added, 0),
            f"{100 * summary.wait_share:.0f}",
        ]
        if compared:
            cells.append("" if summary.difference is None else _estimate(summary.difference, signed=True))
        table.add_row(*cells)
    return table


def write_summaries(summaries: Sequence[Summary], path: str | Path) -> None:
    """One CSV line per policy; the file appears complete or not at all."""
    with replaced(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(summaries[0].row()))
        writer.writeheader()
        writer.writerows(summary.row() for summary in summaries)


def _spread(spread: Spread, digits: int) -> str:
    mean = f"{spread.mean:,.{digits}f}"
    return mean if math.isnan(spread.deviation) else f"{mean} ± {spread.deviation:,.{digits}f}"


def _estimate(estimate: Estimate, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    value = format(estimate.value, form)
    return value if math.isnan(estimate.low) else f"{value} [{estimate.low:{form}}, {estimate.high:{form}}]"
