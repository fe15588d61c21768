"""``esper train``: train or resume, show the progress, and report the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from esper_env.suggestions import esper_command, shell_command
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from esper_agent.cli.commands import OK, SIGNALLED, ResumeSettings
from esper_agent.cli.console import new_console
from esper_agent.cli.progress import PATIENCE, say
from esper_agent.evaluation.tables import print_table, training_table
from esper_agent.monitoring.console import ConsoleSink
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.settings.train import TrainSettings
from esper_agent.training.callbacks import SingleThreadedPolicy
from esper_agent.training.checkpoints import checkpoint_paths
from esper_agent.training.run import Trained, resume, train
from esper_agent.training.run_folder import EPISODES, EVENTS, PROGRESS


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


def run_train(settings: TrainSettings, console: Console) -> int:
    """Train, print a report, and return the exit code."""
    bar, watchers = training_progress(console, settings.progress)
    sinks = [ConsoleSink(new_console(stderr=True))]
    return _summarise(train(replace(settings, progress=bar), watchers, sinks), console)


def run_resume(settings: ResumeSettings, console: Console) -> int:
    """Resume a run, print a report, and return the exit code."""
    bar, watchers = training_progress(console, settings.progress)
    sinks = [ConsoleSink(new_console(stderr=True))]
    return _summarise(resume(settings.resume, bar, settings.device, watchers, sinks), console)


def _summarise(trained: Trained, console: Console) -> int:
    if trained.episodes:
        print_table(console, training_table(trained.episodes, f"{trained.env} on {trained.dataset}"))
    done = f"{'Stopped after' if trained.interrupted else 'Trained for'} {trained.model.num_timesteps:,} timesteps"
    files = {
        "model": trained.model_path,
        "training episodes": trained.folder / EPISODES,
        "losses and metrics": trained.folder / PROGRESS,
        "to see their curves": shell_command("tensorboard", "--logdir", str(trained.folder)),
        **({"events": trained.folder / EVENTS} if (trained.folder / EVENTS).exists() else {}),
        "to evaluate it": esper_command("evaluate", "--policy", str(trained.folder), "--env", trained.env),
    }
    if trained.resumed_from is not None:
        done += f", resumed from {trained.resumed_from:,}"
    saved = checkpoint_paths(trained.folder)
    if trained.interrupted and saved:
        done += f"; the checkpoint of timestep {int(saved[0].stem):,} is saved"
        files["to resume it"] = esper_command("train", "--resume", str(trained.folder))
    console.print(done, soft_wrap=True)
    for label, text in files.items():
        console.print(f"  {label:20} {text}", soft_wrap=True, markup=False, highlight=False)
    return OK if trained.signal is None else SIGNALLED + trained.signal


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
