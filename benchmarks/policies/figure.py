"""The figure of a policy study."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from esper_agent.atomic import replaced
from esper_agent.evaluation import EpisodeRecord
from esper_agent.report.curves import running_mean
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, GREY = "#1f4e9e", "#7f7f7f"
WINDOW = 50  # episodes in a running mean


def draw_comparison(
    summary: Mapping[str, Any], played: Mapping[str, Sequence[EpisodeRecord]], training: str, path: Path
) -> None:
    """Left: return of every policy, each episode a dot, the interquartile mean with its interval. Right: training."""
    figure = Figure(figsize=(12, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_returns(left, summary, played)
    _draw_training(right, summary, training)
    settings = summary["settings"]
    figure.suptitle(
        f"{settings['env']} on {summary['dataset']}: {len(settings['seeds'])} training seeds, "
        f"{settings['episodes']} held-out episodes",
        x=0.01,
        ha="left",
    )
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_returns(axis: Axes, summary: Mapping[str, Any], played: Mapping[str, Sequence[EpisodeRecord]]) -> None:
    estimates = summary["estimates"]["return"]
    jitter = np.random.default_rng(0)
    for row, (name, estimate) in enumerate(estimates.items()):
        own = [records for key, records in played.items() if key == name or key.startswith(f"{name}-")]
        values = np.array([record.episode_return for records in own for record in records])
        heights = row + jitter.uniform(-0.25, 0.25, len(values))
        colour = BLUE if row == 0 else GREY
        axis.plot(values, heights, ".", color=colour, markersize=2.5, alpha=0.25, zorder=1)
        error = [[estimate["iqm"] - estimate["low"]], [estimate["high"] - estimate["iqm"]]]
        axis.errorbar(estimate["iqm"], row, xerr=error, fmt="o", color="black", markersize=5, capsize=4, zorder=2)
    axis.set_yticks(range(len(estimates)), list(estimates))
    axis.invert_yaxis()
    axis.set_xlabel("return of an episode; interquartile mean with its 95% interval")
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_training(axis: Axes, summary: Mapping[str, Any], training: str) -> None:
    rows = list(csv.DictReader(io.StringIO(training)))
    for seed in summary["settings"]["seeds"]:
        own = [row for row in rows if row["training_seed"] == str(seed)]
        steps = np.array([float(row["timesteps"]) for row in own])
        returns = np.array([float(row["return"]) for row in own])
        label = "learned, one line a seed" if seed == summary["settings"]["seeds"][0] else None
        axis.plot(steps, running_mean(returns, WINDOW), color=BLUE, linewidth=1.2, alpha=0.8, label=label)
    for style, (name, estimate) in zip(
        ("--", "-.", ":", (0, (1, 3)), (0, (6, 3))), list(summary["estimates"]["return"].items())[1:], strict=False
    ):
        axis.axhline(estimate["iqm"], color="black", linewidth=1, linestyle=style, label=name)
    axis.set_xlabel("timesteps")
    axis.set_ylabel(f"return, mean of {WINDOW} training episodes")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
