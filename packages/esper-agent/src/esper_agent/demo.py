"""A few minutes from nothing to a comparison: train on Esper-Digits-v0, then play the model against three policies.

    python -m esper_agent.demo

Leaves in demo/: the run folder with the model, episodes.csv (one line per evaluated episode), summary.csv and
training.png.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from esper_agent.callbacks import SingleThreadedPolicy
from esper_agent.cli import INTERRUPTED, OK, episode_bar, exit_code
from esper_agent.evaluation import EpisodeRecord, run_episodes, write_csv
from esper_agent.report.curves import plot_training
from esper_agent.report.tables import summarise_all, summary_table, write_summaries
from esper_agent.runs import CONFIG, PolicyByName, RunError
from esper_agent.training import HELD_OUT_SEED, Trained, TrainSettings, train

LEARNED = "learned"
OTHERS = ("heuristic", "random", "wait")


@dataclass(frozen=True)
class DemoSettings:
    """Train FactoredRecurrentPPO on a task, compare it with hand-written policies on held-out episodes, draw curves."""

    out: Path = Path("demo")
    """Folder for everything; the results of an earlier demo in it are replaced."""
    env: str = "Esper-Digits-v0"
    """Task to train and to evaluate on."""
    total_timesteps: int = 12_800
    """Environment steps of training."""
    episodes: int = 20
    """Held-out episodes of each policy, the same for all."""
    seed: int = 0
    """Seed of the training run."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example horizon=20."""
    progress: bool = True
    """Show progress bars."""


def run_demo(settings: DemoSettings, console: Console) -> int:
    """Train, evaluate, report; see the module."""
    run = settings.out / "run"
    clear(run)
    console.print(f"Training on {settings.env} for {settings.total_timesteps:,} timesteps; Ctrl-C stops and saves.")
    trained = train(_train_settings(settings, run), [SingleThreadedPolicy()])
    if trained.interrupted:
        console.print(f"Stopped; the model is saved as {trained.model_path}", soft_wrap=True)
        return INTERRUPTED
    results = {name: _play(name, trained, settings, console) for name in (LEARNED, *OTHERS)}
    summaries = summarise_all(results)
    everything = [record for records in results.values() for record in records]
    write_csv(everything, settings.out / "episodes.csv")
    write_summaries(summaries, settings.out / "summary.csv")
    dataset = everything[0].dataset
    title = f"{settings.env} on {dataset}: {settings.episodes} held-out episodes"
    figure = settings.out / "training.png"
    if trained.episodes:
        plot_training(
            trained.episodes,
            figure,
            title=f"FactoredRecurrentPPO on {settings.env} ({dataset})",
            baselines={name: results[name] for name in OTHERS},
        )
    console.print(summary_table(summaries, title))
    files = {
        "model": trained.model_path,
        "raw episodes": settings.out / "episodes.csv",
        "summary": settings.out / "summary.csv",
        "training curves": figure,
    }
    for label, path in files.items():
        if not path.exists():  # no training episode finished, so there are no curves
            continue
        console.print(f"  {label:16} {path}", soft_wrap=True)
    return OK


def clear(run: Path) -> None:
    """Remove the run of an earlier demo; anything else of that name is left alone and an error."""
    if not run.exists():
        return
    if not (run / CONFIG).is_file():
        raise RunError(f"{run} exists and is not a run; give another folder with --out")
    shutil.rmtree(run)


def _train_settings(settings: DemoSettings, run: Path) -> TrainSettings:
    return TrainSettings(
        out=run,
        env=settings.env,
        total_timesteps=settings.total_timesteps,
        seed=settings.seed,
        env_settings=settings.env_settings,
        progress=settings.progress,
    )


def _play(name: str, trained: Trained, settings: DemoSettings, console: Console) -> list[EpisodeRecord]:
    wanted = str(trained.folder) if name == LEARNED else name
    with episode_bar(name, settings.episodes, console) as advance:
        return run_episodes(
            PolicyByName(wanted, settings.env, HELD_OUT_SEED),
            settings.env,
            settings.episodes,
            HELD_OUT_SEED,
            name=name,
            num_envs=settings.episodes,
            env_kwargs=trained.env_kwargs,
            progress=advance,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code, as ``esper`` does."""

    def run(console: Console) -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        return run_demo(tyro.cli(DemoSettings, prog="python -m esper_agent.demo", args=arguments), console)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
