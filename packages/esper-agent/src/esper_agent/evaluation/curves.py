"""Training curves: return and test accuracy over timesteps, with baselines as horizontal lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from esper_env.persistence import replaced
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray

from esper_agent.evaluation.play import EpisodeRecord
from esper_agent.evaluation.statistics import bootstrap_interval

#: Panels: axis label -> (column of the training episodes, attribute of the evaluated episodes).
PANELS = {
    "return": ("return", "episode_return"),
    "test accuracy, %": ("test_accuracy", "test_accuracy"),
}
#: Training episodes in the running mean, fewer at the start.
WINDOW = 50
_TRAINING, _RAW = "#1f4e9e", "#9db8e0"
#: Colour-blind safe, and distinct from the blue of the training curve.
_BASELINES = ("#d55e00", "#009e73", "#7f7f7f", "#cc79a7", "#e0a100", "#5c3a1e")


def plot_training(
    episodes: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    title: str,
    baselines: Mapping[str, Sequence[EpisodeRecord]] | None = None,
) -> None:
    """Draw the training curves to a PNG file.

    Args:
        episodes: finished training episodes in order, rows of ``CurvesRecorder``.
        path: path of the PNG.
        title: title of the figure.
        baselines: evaluated policies, each a horizontal line at its mean with its 95% bootstrap interval as a band.

    Raises:
        ValueError: there are no episodes.
    """
    if not episodes:
        raise ValueError("there are no finished training episodes to draw; train for more timesteps")
    figure = Figure(figsize=(11, 4.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS))
    for axis, (label, (column, attribute)) in zip(axes, PANELS.items(), strict=True):
        _draw_training(axis, episodes, column)
        for colour, (name, records) in zip(cycle(_BASELINES), (baselines or {}).items(), strict=False):
            _draw_baseline(axis, name, [getattr(record, attribute) for record in records], colour)
        axis.set_xlabel("timesteps")
        axis.set_ylabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left")
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    if baselines:
        legend.set_title(
            "dashed: mean of the evaluated episodes, with its 95% interval", prop=FontProperties(size="small")
        )
    with replaced(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_training(axis: Axes, episodes: Sequence[Mapping[str, Any]], column: str) -> None:
    known = [episode for episode in episodes if episode[column] is not None]  # truncated episodes have no accuracy
    if not known:
        return
    steps = np.array([episode["timesteps"] for episode in known], dtype=float)
    values = np.array([episode[column] for episode in known], dtype=float)
    axis.plot(steps, values, ".", color=_RAW, markersize=2.5, label="training episode", zorder=1)
    # Parallel environments finish at the same timestep; draw the mean after the last of them.
    last = np.flatnonzero(np.append(np.diff(steps) > 0, True))
    label = f"training, mean of {min(WINDOW, len(values))} episodes"
    mean = running_mean(values, WINDOW)[last]
    axis.plot(steps[last], mean, color=_TRAINING, linewidth=2, label=label, zorder=3)


def _draw_baseline(axis: Axes, name: str, values: Sequence[float | None], colour: str) -> None:
    known = [value for value in values if value is not None]
    if not known:
        return
    estimate = bootstrap_interval(known, np.mean)
    axis.axhline(estimate.value, color=colour, linewidth=1.4, linestyle="--", label=name, zorder=2)
    if np.isfinite(estimate.low):
        axis.axhspan(estimate.low, estimate.high, color=colour, alpha=0.15, linewidth=0, zorder=0)


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of each value and up to ``window - 1`` values before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
