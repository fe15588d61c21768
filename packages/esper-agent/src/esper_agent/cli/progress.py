"""Progress of a command: a bar on a terminal, and lines elsewhere, for example in a log."""

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

#: Number of lines about the episodes of one policy.
LINES = 10
#: Seconds without a line after which another line is printed.
PATIENCE = 60.0


def say(console: Console, text: str) -> None:
    """Print a line without markup or wrapping, unless it is empty."""
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


class RolloutLines(BaseCallback):
    """Prints a line at the start of training, after every rollout, and after ``PATIENCE`` seconds without a line.

    Args:
        console: destination.
        clock: returns the time in seconds, from any start.
    """

    model: FactoredRecurrentPPO

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._console, self._clock = console, clock

    def _on_training_start(self) -> None:
        self._begin, self._first = self._clock(), self.num_timesteps
        self._reported = self._first
        rollout = self.model.n_steps * self.training_env.num_envs
        total, done = self.model._total_timesteps, f", {self._first:,} of them done" if self._first else ""
        self._say(f"Training for {total:,} timesteps{done}, in rollouts of {rollout:,}; Ctrl-C stops and saves.")

    def _on_step(self) -> bool:
        if self._clock() - self._said >= PATIENCE:
            self._report()
        return True

    def _on_rollout_end(self) -> None:
        if self._reported < self.num_timesteps:
            self._report()

    def _report(self) -> None:
        total, done = self.model._total_timesteps, self.num_timesteps
        rate = (done - self._first) / max(self._clock() - self._begin, 1e-9)
        mean = safe_mean([episode["r"] for episode in self.model.ep_info_buffer or ()])
        returns = "no episode finished" if math.isnan(mean) else f"mean return {mean:.2f}"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        self._say(
            f"{done:,} of {total:,} timesteps ({done / total:.0%}), {speed} timesteps/s, "
            f"{_duration((total - done) / rate)} left, {returns}"
        )
        self._reported = done

    def _say(self, text: str) -> None:
        say(self._console, text)
        self._said = self._clock()


def training_progress(console: Console, shown: bool) -> tuple[bool, list[BaseCallback]]:
    """Return whether a run shows a bar, which needs a terminal, and its callbacks, with lines elsewhere."""
    lines = [RolloutLines(console)] if shown and not console.is_terminal else []
    return shown and console.is_terminal, [SingleThreadedPolicy(), *lines]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def episode_progress(
    name: str, episodes: int, console: Console, shown: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """Show the progress of a policy's episodes.

    Args:
        name: name of the policy.
        episodes: total number of episodes.
        console: destination. A terminal shows a bar. Anything else gets ``LINES`` lines, and one more after every
            ``PATIENCE`` seconds without a line.
        shown: False shows nothing.
        clock: returns the time in seconds, from any start.

    Yields:
        A function that takes the number of newly finished episodes, to be called after every step.
    """
    if shown and not console.is_terminal:
        yield _episode_lines(name, episodes, console, clock)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(escape(name), total=episodes)
        yield lambda finished: bar.advance(task, finished)


def _episode_lines(name: str, episodes: int, console: Console, clock: Callable[[], float]) -> Callable[[int], None]:
    say(console, f"Playing {name}: {episodes:,} episode{'s' if episodes > 1 else ''}")
    done, steps, said = 0, 0, clock()

    def advance(finished: int) -> None:
        nonlocal done, steps, said
        before, done, steps = done, done + finished, steps + 1
        due = before * LINES // episodes < done * LINES // episodes or clock() - said >= PATIENCE
        if due and done < episodes:
            say(console, f"{name}: {done:,} of {episodes:,} episodes, after {steps:,} steps")
            said = clock()

    return advance
