"""Progress of a command: a bar on a terminal, and lines elsewhere, for example in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Number of lines about the episodes of one policy.
LINES = 10
#: Seconds without a line after which another line is printed.
PATIENCE = 60.0


def say(console: Console, text: str) -> None:
    """Print a line without markup or wrapping, unless it is empty."""
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


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
