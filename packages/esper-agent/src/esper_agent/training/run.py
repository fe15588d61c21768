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
from esper_agent.training.session import HELD_OUT_SEED, Trained, lasting, make_model, session

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
    """Go on with a run that ended before its time, from its latest checkpoint, under its own settings.

    The result equals that of an uninterrupted run (docs/environment.md, "Reproducibility"). A run
    that has no checkpoint yet starts from the beginning. Both are so whatever ended it, and a ``RuntimeWarning`` says
    what is out of the ordinary: no checkpoint, one that cannot be read, other versions.

    Args:
        folder: of the run.
        progress: show a progress bar.
        device: where to train; None is the run's own setting.
        callbacks: those that ``train`` was given: the ones with a state take up theirs.
        sinks: where events go besides the folder of the run.

    Raises:
        RunError, ConfigError: the folder holds no run, one that is finished, or one that is being trained.
        CheckpointError: no checkpoint can be read, or they do not fit the configuration.
        NonFiniteUpdateError, KeyboardInterrupt: as of ``train``.
    """
    place, config = run_config(folder)
    own = TrainSettings(out=place)
    own = with_values(own, config, str(place / CONFIG))
    settings = replace(own, out=place, progress=progress, device=device or own.device)
    settings.check()  # and nothing else: a run goes on with the settings that it has
    with locked(place):
        start = latest_checkpoint(place, lasting(settings))
        _check_unfinished(place, settings, start, kept="checkpoint_every" in config and own.checkpoint_every > 0)
        _tell_versions(place)
        with session(settings) as learner:
            return learner.learn(place, callbacks, start, sinks)


def _check_unfinished(folder: Path, settings: TrainSettings, start: Saved | None, kept: bool) -> None:
    """``RunError`` for a run that has nothing to go on with; a warning for one that has nothing to go on from."""
    if start is not None and start.timesteps >= settings.whole_rollouts:
        raise RunError(
            f"{folder} is finished: all of its {start.timesteps:,} timesteps are done; to train for longer, begin "
            "another run"
        )
    if start is None and not kept and (folder / MODEL).exists():
        raise RunError(
            f"{folder} has a model but no checkpoint to go on from (it was trained without them); to train anew, give "
            "another folder"
        )
    if start is None:
        warnings.warn(
            f"{folder} has no checkpoint yet; training starts from the beginning", RuntimeWarning, stacklevel=3
        )


def _tell_versions(folder: Path) -> None:
    """A warning when the run began with other versions: what it becomes may differ then."""
    try:
        before = json.loads((folder / VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    now = package_versions()
    if not isinstance(before, dict):
        changed = f"versions that are not known ({VERSIONS} cannot be read)"
    else:
        changed = ", ".join(
            f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]
        )
    if changed:
        warnings.warn(
            f"{folder} began with {changed}; it may not become what it would have",
            RuntimeWarning,
            stacklevel=3,
        )
