"""Progress of a command: a bar on a terminal, and lines elsewhere, as in a file or a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.training.callbacks import SingleThreadedPolicy

#: Maximum number of lines about the episodes of one policy.
MOST_LINES = 10


def say(console: Console, text: str) -> None:
    """Print a line without markup or wrapping, unless it is empty."""
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


class RolloutLines(BaseCallback):
    """Prints a line at the start of training, and one after every rollout.

    Args:
        console: destination.
        clock: seconds of a clock, whose differences matter.
    """

    model: FactoredRecurrentPPO

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console, self._clock = console, clock

    def _on_training_start(self) -> None:
        self._begin, self._first = self._clock(), self.num_timesteps
        rollout = self.model.n_steps * self.training_env.num_envs
        total, done = self.model._total_timesteps, f", {self._first:,} of them done" if self._first else ""
        say(
            self._console,
            f"Training for {total:,} timesteps{done}, in rollouts of {rollout:,}; Ctrl-C stops and saves.",
        )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        total, done = self.model._total_timesteps, self.num_timesteps
        rate = (done - self._first) / max(self._clock() - self._begin, 1e-9)
        mean = safe_mean([episode["r"] for episode in self.model.ep_info_buffer or ()])
        returns = "no episode finished" if math.isnan(mean) else f"mean return {mean:.2f}"
        say(
            self._console,
            f"{done:,} of {total:,} timesteps ({done / total:.0%}), {rate:,.0f} timesteps/s, "
            f"{_duration((total - done) / rate)} left, {returns}",
        )


def training_progress(console: Console, shown: bool) -> tuple[bool, list[BaseCallback]]:
    """Return whether a run shows a bar, which needs a terminal, and its callbacks, with lines elsewhere."""
    lines = [RolloutLines(console)] if shown and not console.is_terminal else []
    return shown and console.is_terminal, [SingleThreadedPolicy(), *lines]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def episode_progress(name: str, episodes: int, console: Console, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show the progress of a policy's episodes.

    Args:
        name: of the policy.
        episodes: total number of episodes.
        console: destination; a terminal shows a bar, anything else at most ``MOST_LINES`` lines.
        shown: False shows nothing.

    Yields:
        A function that takes the number of newly finished episodes.
    """
    if shown and not console.is_terminal:
        yield _episode_lines(name, episodes, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(escape(name), total=episodes)
        yield lambda finished: bar.advance(task, finished)


def _episode_lines(name: str, episodes: int, console: Console) -> Callable[[int], None]:
    say(console, f"Playing {name}: {episodes:,} episode{'s' if episodes > 1 else ''}")
    done = 0

    def advance(finished: int) -> None:
        nonlocal done
        before, done = done, done + finished
        if before * MOST_LINES // episodes < done * MOST_LINES // episodes and done < episodes:
            say(console, f"{name}: {done:,} of {episodes:,} episodes")

    return advance
