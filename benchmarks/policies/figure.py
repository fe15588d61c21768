"""Figure of a policy study."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from esper_agent.evaluation.curves import running_mean
from esper_agent.evaluation.play import EpisodeRecord
from esper_env.persistence import replaced
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

LEARNED = "#1f4e9e"
#: Colours and dashes of the other policies, colour-blind safe and distinguishable in grey.
OTHERS = (
    ("#d55e00", (0, (5, 2))),
    ("#009e73", (0, (5, 2, 1, 2))),
    ("#5c3a1e", (0, (1, 1.2))),
    ("#cc79a7", (0, (9, 3))),
    ("#e0a100", (0, (5, 2, 1, 2, 1, 2))),
    ("#7f7f7f", (0, (2, 2))),
)
WINDOW = 50  # episodes in a running mean


def draw_comparison(
    summary: Mapping[str, Any], played: Mapping[str, Sequence[EpisodeRecord]], training: str, path: Path
) -> None:
    """Draw the figure: returns of every policy at the left, training curves at the right.

    Args:
        summary: content of summary.json.
        played: evaluated episodes by policy.
        training: text of training.csv.
        path: path of the PNG.
    """
    figure = Figure(figsize=(12, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_returns(left, summary, played)
    _draw_training(right, summary, training)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, handlelength=3.5)
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
    colours = [LEARNED, *(colour for colour, _ in _styles(list(estimates)[1:]).values())]
    for row, ((name, estimate), colour) in enumerate(zip(estimates.items(), colours, strict=True)):
        own = [records for key, records in played.items() if key == name or key.startswith(f"{name}-")]
        values = np.array([record.episode_return for records in own for record in records])
        heights = row + jitter.uniform(-0.25, 0.25, len(values))
        axis.plot(values, heights, ".", color=colour, markersize=2.5, alpha=0.35, zorder=1)
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
        # Parallel environments finish at the same timestep; draw the mean after the last of them.
        last = np.flatnonzero(np.diff(steps, append=np.inf) > 0)
        label = "learned, one line per training seed" if seed == summary["settings"]["seeds"][0] else None
        mean = running_mean(returns, WINDOW)[last]
        axis.plot(steps[last], mean, color=LEARNED, linewidth=1.2, alpha=0.8, label=label, zorder=3)
    estimates = summary["estimates"]["return"]
    for name, (colour, dashes) in _styles(list(estimates)[1:]).items():
        if name not in summary["settings"]["baselines"]:
            continue
        axis.axhline(estimates[name]["iqm"], color=colour, linewidth=1.6, linestyle=dashes, label=name, zorder=2)
    axis.set_xlabel("timesteps of training; the other policies at their interquartile mean")
    axis.set_ylabel(f"return, mean of {WINDOW} training episodes")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _styles(names: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Colour and dashes of each policy that is not learned."""
    return dict(zip(names, cycle(OTHERS), strict=False))
