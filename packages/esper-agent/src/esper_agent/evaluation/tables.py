"""Summaries of evaluated policies, as numbers for files and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from esper_agent.evaluation.statistics import Estimate, bootstrap_interval, paired_difference

if TYPE_CHECKING:  # its module loads PyTorch
    from esper_agent.evaluation.play import EpisodeRecord


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over episodes; NaN if there are too few."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean and sample deviation, NaN where there are too few values."""
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)) if len(values) else math.nan, deviation)


@dataclass(frozen=True)
class Summary:
    """Summary of one policy."""

    policy: str
    dataset: str
    episodes: int
    episode_return: Spread
    test_accuracy: Spread
    committed_val_accuracy: Spread
    parameters_added: Spread
    return_iqm: Estimate  # interquartile mean with its 95% bootstrap interval
    return_difference: Estimate  # mean return minus the reference's, paired by episode seed; NaN for the reference
    wait_share: float
    fossilized: float  # mean per episode

    def row(self) -> dict[str, Any]:
        """Flat columns for CSV or JSON, such as ``return_mean``; missing numbers are None."""
        row: dict[str, Any] = {}
        for field, value in vars(self).items():
            name = field.removeprefix("episode_")
            parts = vars(value).items() if isinstance(value, Spread | Estimate) else None
            row |= {name: value} if parts is None else {f"{name}_{part}": number for part, number in parts}
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()}


def summarise(records: Sequence[EpisodeRecord], reference: Sequence[EpisodeRecord] | None = None) -> Summary:
    """Summarise one policy; with ``reference`` including the paired difference of the returns."""
    returns = [record.episode_return for record in records]
    difference = Estimate(math.nan, math.nan, math.nan)
    if reference is not None:
        if [record.seed for record in records] != [record.seed for record in reference]:
            raise ValueError(
                "the episodes of the two policies have different seeds; evaluate both with the same --seed"
            )
        difference = paired_difference(returns, [record.episode_return for record in reference])
    return Summary(
        policy=records[0].policy,
        dataset=records[0].dataset,
        episodes=len(records),
        episode_return=Spread.of(returns),
        test_accuracy=Spread.of(_known(record.test_accuracy for record in records)),
        committed_val_accuracy=Spread.of(_known(record.committed_val_accuracy for record in records)),
        parameters_added=Spread.of(_known(record.parameters_added for record in records)),
        return_iqm=bootstrap_interval(returns),
        return_difference=difference,
        wait_share=float(np.mean([record.wait_share for record in records])),
        fossilized=float(np.mean([record.fossilized for record in records])),
    )


def summarise_all(results: Mapping[str, Sequence[EpisodeRecord]], reference: str | None = None) -> list[Summary]:
    """Summarise every policy, compared with the policy named ``reference``."""
    base = results[reference] if reference is not None else None
    return [summarise(records, None if name == reference else base) for name, records in results.items()]


def _known(values: Iterable[float | None]) -> list[float]:
    """Values of the episodes that reached the horizon."""
    return [value for value in values if value is not None]


NOTE = (
    "± is the standard deviation over episodes. IQM is the mean of the middle half of the episodes; brackets are 95% "
    "bootstrap intervals."
)


#: Columns before a cell that does not fit beside its heading.
_INDENT = 4


def print_summaries(console: Console, summaries: Sequence[Summary], title: str) -> None:
    """Print the table of policies."""
    print_table(console, summary_table(summaries, title))


def print_table(console: Console, table: Table) -> None:
    """Print a table or, if the terminal is too narrow for it, a block of lines per row. Nothing is cut off."""
    for column in table.columns:
        if column.no_wrap:  # which Rich ignores when it measures
            texts = [Text.from_markup(str(text)) for text in (column.header, *column.cells)]
            column.min_width = max(line.cell_len for text in texts for line in text.split())
    if console.measure(table, options=console.options.update(max_width=1000)).minimum <= console.width:
        console.print(table)
        return
    say = partial(console.print, highlight=False)
    if table.title:
        say(table.title)
    others = table.columns[1:]
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        say(Text.from_markup(f"\n{name}", style="bold"), soft_wrap=True)
        for column, cell in zip(others, cells, strict=True):
            if cell:
                _print_cell(console, " ".join(str(column.header).split()), str(cell), wraps=not column.no_wrap)
    if table.caption:
        say(f"\n{table.caption}", style="dim italic")


def _print_cell(console: Console, heading: str, cell: str, wraps: bool) -> None:
    """Print a heading and its cell in one line or, if the console is too narrow, the cell in lines below."""
    line = Text.from_markup(f"  {heading:26} {cell}")
    if line.cell_len <= console.width:
        console.print(line, highlight=False)
        return
    console.print(f"  {heading}", highlight=False, soft_wrap=True)
    text = Text.from_markup(cell)
    lines = text.wrap(console, max(console.width - _INDENT, 1)) if wraps else [text]
    for part in lines:
        console.print(Text(" " * _INDENT) + part, highlight=False, soft_wrap=True)


def _cells(summary: Summary) -> dict[str, str]:
    """Cells of a policy, by heading."""
    cells = {
        "return": _spread(summary.episode_return, 2),
        "return\nIQM": _estimate(summary.return_iqm),
        "test\naccuracy, %": _spread(summary.test_accuracy, 1),
        "parameters\nadded": _spread(summary.parameters_added, 0),
        "WAIT\n%": f"{100 * summary.wait_share:.0f}",
    }
    if not math.isnan(summary.return_difference.value):
        cells["return minus\nfirst policy"] = _estimate(summary.return_difference, signed=True)
    return cells


def summary_table(summaries: Sequence[Summary], title: str) -> Table:
    """Table with one line per policy, and a column of differences if a summary has one."""
    table = Table(title=escape(title), title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.caption = NOTE
    rows = [_cells(summary) for summary in summaries]
    headings = max(rows, key=len)  # the reference has no difference
    table.add_column("policy", overflow="fold", min_width=10, max_width=28)  # paths of runs can be long
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for summary, cells in zip(summaries, rows, strict=True):
        table.add_row(escape(summary.policy), *(cells.get(heading, "") for heading in headings))
    return table


RECENT = 50  # episodes
#: Columns of training episodes, and their digits.
_TRAINING = {"return": 2, "test_accuracy": 1, "parameters_added": 0}


def training_table(episodes: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Table of the first and the last training episodes, rows of ``CurvesRecorder``."""
    count = min(RECENT, max(1, len(episodes) // 2))
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("training episodes", no_wrap=True)
    for heading in ("return", "test\naccuracy, %", "parameters\nadded", "WAIT\n%"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = {f"first {count}": episodes[:count], f"last {count} of {len(episodes)}": episodes[-count:]}
    for label, some in rows.items():
        spreads = {name: Spread.of(_known(episode[name] for episode in some)) for name in _TRAINING}
        waits = Spread.of([100 * episode["wait_share"] for episode in some])
        table.add_row(label, *(_spread(spreads[name], digits) for name, digits in _TRAINING.items()), _spread(waits, 0))
    return table


def _spread(spread: Spread, digits: int) -> str:
    if math.isnan(spread.mean):
        return "not known"
    mean = f"{spread.mean:,.{digits}f}"
    return mean if math.isnan(spread.std) else f"{mean} ± {spread.std:,.{digits}f}"


def _estimate(estimate: Estimate, signed: bool = False) -> str:
    form = "+.2f" if signed else ".2f"
    value = format(estimate.value, form)
    return value if math.isnan(estimate.low) else f"{value} [{estimate.low:{form}}, {estimate.high:{form}}]"
