"""The demonstration: train, play the model and other policies, and report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from esper_env.checks import check
from esper_env.persistence import check_folder, write_text
from gymnasium.vector import AutoresetMode
from rich.console import Console

from esper_agent.cli.commands import OK, SIGNALLED
from esper_agent.cli.play import BENCHMARK_FILES
from esper_agent.cli.progress import episode_progress, say
from esper_agent.cli.train import training_progress
from esper_agent.evaluation.curves import plot_training
from esper_agent.evaluation.play import EpisodeRecord, run_episodes, write_csv
from esper_agent.evaluation.tables import print_summaries, summarise_all
from esper_agent.settings.config_file import plain
from esper_agent.settings.demo import DemoSettings
from esper_agent.settings.named_values import parse_env_settings
from esper_agent.settings.train import TrainSettings
from esper_agent.training.run import HELD_OUT_SEED, Trained, train
from esper_agent.training.run_folder import PolicyByName, RunError, is_leftover, remove_leftovers
from esper_agent.vectors import make_vector

#: Files and the run folder in the demo folder.
MARKER, RUN = "demo.yaml", "run"
FILES = EPISODES_CSV, SUMMARY_CSV, FIGURE = (*BENCHMARK_FILES, "training.png")

LEARNED = "learned"
#: Fixed plans for each kind of host.
PLANS = {"cnn": ("conv_light", "conv_heavy"), "transformer": ("attention", "mlp")}


def run_demo(settings: DemoSettings, _flags: Sequence[str], console: Console) -> int:
    """Train, evaluate and report; return the exit code."""
    check(settings)
    wanted = _train_settings(settings)
    make_vector(settings.env, 1, AutoresetMode.DISABLED, **parse_env_settings(settings.env_settings)).close()
    check_folder(settings.out)
    clear(settings.out)
    write_text(settings.out / MARKER, yaml.safe_dump(plain(settings), sort_keys=False))
    say(console, f"Training on {settings.env}. The results will be in the folder {settings.out}.")
    bar, watchers = training_progress(console, settings.progress)
    trained = train(replace(wanted, progress=bar), watchers)
    if trained.signal is not None:
        say(console, f"Stopped; the model is saved as {trained.model_path}")
        return SIGNALLED + trained.signal
    try:
        return compare(settings, trained, console)
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"Interrupted; the model is saved as {trained.model_path}",)
        raise


def compare(settings: DemoSettings, trained: Trained, console: Console) -> int:
    """Play the model and the other policies on the same episodes, and report."""
    env = trained.model.get_env()
    plans = PLANS.get(env.get_attr("topology")[0], ()) if env else ()
    others = ("heuristic", *plans, "random", "wait")
    results = {name: _play(name, trained, settings, console) for name in (LEARNED, *others)}
    summaries = summarise_all(results)
    everything = [record for records in results.values() for record in records]
    write_csv(everything, settings.out / EPISODES_CSV)
    write_csv(summaries, settings.out / SUMMARY_CSV)
    dataset = everything[0].dataset
    title = f"{settings.env} on {dataset}: {settings.episodes} held-out episodes"
    figure = settings.out / FIGURE
    if trained.episodes:
        plot_training(
            trained.episodes,
            figure,
            title=f"FactoredRecurrentPPO on {settings.env} ({dataset})",
            baselines={name: results[name] for name in others},
        )
    print_summaries(console, summaries, title)
    files = {
        "model": trained.model_path,
        "raw episodes": settings.out / EPISODES_CSV,
        "summary": settings.out / SUMMARY_CSV,
        "training curves": figure,
    }
    for label, path in files.items():
        if path.exists():  # no curves if no training episode finished
            say(console, f"  {label:16} {path}")
    return OK


def clear(out: Path) -> None:
    """Remove the results of an earlier demo. Raises ``RunError`` for a folder that no demo made."""
    if not out.exists():
        return
    is_empty = out.is_dir() and all(is_leftover(path, [MARKER]) for path in out.iterdir())
    if not is_empty and not (out / MARKER).is_file():
        raise RunError(f"{out} exists and is not the folder of a demo; give another folder with --out")
    remove_leftovers(out, [MARKER])
    if (out / RUN).exists():
        shutil.rmtree(out / RUN)
    for name in (*FILES, MARKER):
        (out / name).unlink(missing_ok=True)


def _train_settings(settings: DemoSettings) -> TrainSettings:
    return TrainSettings(
        out=settings.out / RUN,
        env=settings.env,
        total_timesteps=settings.total_timesteps,
        seed=settings.seed,
        env_settings=settings.env_settings,
    ).checked()


def _play(name: str, trained: Trained, settings: DemoSettings, console: Console) -> list[EpisodeRecord]:
    wanted = str(trained.folder) if name == LEARNED else name
    with episode_progress(name, settings.episodes, console, settings.progress) as advance:
        return run_episodes(
            PolicyByName(wanted, settings.env, HELD_OUT_SEED),
            settings.env,
            settings.episodes,
            HELD_OUT_SEED,
            name=name,
            num_envs=settings.episodes,
            env_kwargs=trained.env_kwargs,
            deterministic=False,
            progress=advance,
        )
