"""``esper train`` from Python: one training run from its settings to its folder.

from esper_agent import TrainSettings, resume, train

trained = train(TrainSettings(out=Path("runs/digits"), total_timesteps=20_000))
trained = resume("runs/digits")  # after a crash
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from esper_env.telemetry import Sink
from stable_baselines3.common.callbacks import BaseCallback

from esper_agent.ppo.settings import PPOSettings
from esper_agent.settings.config_file import plain, with_values
from esper_agent.settings.train import TrainSettings
from esper_agent.training.checkpoints import Saved, latest_checkpoint
from esper_agent.training.run_folder import (
    CONFIG,
    MODEL,
    RUN_FILES,
    VERSIONS,
    RunError,
    create_run,
    new_folder,
    package_versions,
    run_config,
)
from esper_agent.training.run_lock import locked
from esper_agent.training.session import HELD_OUT_SEED, Trained, fixed_settings, make_model, session

__all__ = [
    "HELD_OUT_SEED",
    "PPOSettings",
    "TrainSettings",
    "Trained",
    "make_model",
    "resume",
    "train",
]


def train(settings: TrainSettings, callbacks: Sequence[BaseCallback] = (), sinks: Sequence[Sink] = ()) -> Trained:
    """Train with the given settings, which are checked before anything is written.

    Raises:
        ValueError: settings, a folder (``RunError``) or settings of the environment that cannot be used.
        NonFiniteUpdateError: training diverged; the last good model is in the folder.
        KeyboardInterrupt: a second Ctrl-C.
    """
    settings = settings.checked()
    with session(settings) as learner:
        folder = new_folder(settings.out, RUN_FILES, "a run")
        with locked(folder):
            create_run(folder, plain(settings), learner.task)
            return learner.learn(folder, callbacks, sinks=sinks)


def resume(
    folder: str | Path,
    progress: bool = True,
    device: str | None = None,
    callbacks: Sequence[BaseCallback] = (),
    sinks: Sequence[Sink] = (),
) -> Trained:
    """Resume an unfinished run from its latest checkpoint, with its own settings.

    The result equals that of an uninterrupted run; see "Reproducibility" in docs/environment.md. A run without a
    checkpoint starts from the beginning. A ``RuntimeWarning`` reports a missing or unreadable checkpoint and other
    versions of the packages.

    Args:
        folder: the run folder.
        progress: show a progress bar.
        device: the device to train on; None uses the run's own setting.
        callbacks: the callbacks that were given to ``train``; those with a state continue from it.
        sinks: further sinks for events.

    Raises:
        RunError, ConfigError: the folder holds no run, or one that is finished or is being trained.
        CheckpointError: no checkpoint is readable, or they do not fit the configuration.
        NonFiniteUpdateError, KeyboardInterrupt: as in ``train``.
    """
    place, config = run_config(folder)
    own = TrainSettings(out=place)
    own = with_values(own, config, str(place / CONFIG))
    settings = replace(own, out=place, progress=progress, device=device or own.device)
    settings.check()
    with locked(place):
        start = latest_checkpoint(place, fixed_settings(settings))
        _check_unfinished(place, settings, start, kept="checkpoint_every" in config and own.checkpoint_every > 0)
        _check_versions(place)
        with session(settings) as learner:
            return learner.learn(place, callbacks, start, sinks)


def _check_unfinished(folder: Path, settings: TrainSettings, start: Saved | None, kept: bool) -> None:
    """Raise ``RunError`` if a run is finished or saved no checkpoints; warn if its first one is still missing."""
    if start is not None and start.timesteps >= settings.whole_rollouts:
        raise RunError(
            f"{folder} is finished: all of its {start.timesteps:,} timesteps are done; to train for longer, start "
            "another run"
        )
    if start is None and not kept and (folder / MODEL).exists():
        raise RunError(
            f"{folder} has a model but no checkpoint to resume from (it was trained without them); to start again, use "
            "another folder"
        )
    if start is None:
        warnings.warn(
            f"{folder} has no checkpoint yet; training starts from the beginning", RuntimeWarning, stacklevel=3
        )


def _check_versions(folder: Path) -> None:
    """Warn if the run started with other versions, which may compute something else."""
    try:
        before = json.loads((folder / VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    now = package_versions()
    if not isinstance(before, dict):
        changed = f"unknown versions ({VERSIONS} cannot be read)"
    else:
        changed = ", ".join(
            f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]
        )
    if changed:
        warnings.warn(
            f"{folder} started with {changed}; its results may differ from those of an uninterrupted run",
            RuntimeWarning,
            stacklevel=3,
        )
