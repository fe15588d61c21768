"""Rows of a policy study's table, for the terminal and for docs/results.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

COLUMNS = ("policy", "return, IQM [95%]", "learned minus it [95%]", "test %", "parameters added", "fossilized", "WAIT")


def number(value: float | None, form: str) -> str:
    """Text of a number; empty if it is missing, that is NaN in memory or None in a file."""
    return "" if value is None or math.isnan(value) else format(value, form)


def interval(estimate: Mapping[str, float | None]) -> str:
    """Text of an estimate, with its interval if it has one."""
    low, high = (number(estimate[end], ".3f") for end in ("low", "high"))
    return f"{estimate['iqm']:.3f}" + (f" [{low}, {high}]" if low else "")


def comparison_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Cells of every policy in a summary.json."""
    estimates, made = summary["estimates"], []
    for name, described in summary["policies"].items():
        difference = estimates["learned_minus"].get(name)
        made.append(
            [
                name,
                interval(estimates["return"][name]),
                "" if difference is None else interval(difference),
                number(described["test_accuracy"], ".1f"),
                number(described["parameters_added"], ",.0f"),
                f"{described['fossilized']:.2f}",
                f"{described['wait_share']:.0%}",
            ]
        )
    return made
