"""``esper train`` from Python: one training run from its settings to its folder.

from esper_agent import TrainSettings, resume, train

trained = train(TrainSettings(out=Path("runs/digits"), total_timesteps=20_000))
trained = resume("runs/digits")  # after a crash
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esper_env.suggestions import esper_command
from esper_env.tasks import task_dict
from esper_env.telemetry import JsonlSink, Sink, Telemetry
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecNormalize

from esper_agent.monitoring.callback import DiagnosticsCallback
from esper_agent.monitoring.payloads import CheckpointLoaded, CheckpointSaved
from esper_agent.ppo.errors import NonFiniteUpdateError
from esper_agent.ppo.ppo import FactoredRecurrentPPO
from esper_agent.sb3 import make_sb3_env
from esper_agent.settings.config_file import plain, with_values
from esper_agent.settings.named_values import training_env_settings
from esper_agent.settings.train import HELD_OUT_SEED, TrainSettings
from esper_agent.training.callbacks import PeriodicEvaluation, StopOnInterrupt, TrainingMetricsCallback
from esper_agent.training.checkpoints import SaveCheckpoints, Saved, checkpoint_paths, latest_checkpoint
from esper_agent.training.outputs import CurvesRecorder, EventLog, ProgressFile, TensorBoardFile
from esper_agent.training.run_folder import (
    CONFIG,
    EPISODES,
    EVENTS,
    MODEL,
    PROGRESS,
    RUN_FILES,
    VERSIONS,
    RunError,
    create_run,
    locked,
    new_folder,
    package_versions,
    run_config,
    save_model,
)
from esper_agent.training.state import environment_parts, restore_training
from esper_agent.vectors import check_growth

__all__ = [
    "HELD_OUT_SEED",
    "Trained",
    "make_model",
    "resume",
    "train",
]

#: Settings that a resumed run may change: they affect the training by rounding at most.
_FREE = ("out", "config", "progress", "device", "workers", "checkpoint_every", "telemetry", "anomalies")


@dataclass(frozen=True)
class Trained:
    """The result of a training run."""

    folder: Path
    model_path: Path
    model: FactoredRecurrentPPO
    env: str  # task
    episodes: Sequence[dict[str, Any]]  # finished training episodes, as in episodes.csv
    env_kwargs: dict[str, Any]  # settings of the environment it was trained in
    dataset: str
    signal: int | None  # number of the signal that ended it before total_timesteps
    resumed_from: int | None = None  # timestep of the checkpoint from which it resumed

    @property
    def interrupted(self) -> bool:
        """True if a signal ended the run before total_timesteps."""
        return self.signal is not None


def train(settings: TrainSettings, callbacks: Sequence[BaseCallback] = (), sinks: Sequence[Sink] = ()) -> Trained:
    """Train with the given settings, which are checked before anything is written.

    Raises:
        ValueError: settings, a folder (``RunError``) or settings of the environment that cannot be used.
        NonFiniteUpdateError: training diverged; the last good model is in the folder.
        KeyboardInterrupt: a second Ctrl-C or SIGTERM; the message says how to resume.
    """
    settings = settings.checked()
    _check_callbacks(callbacks)
    with _model(settings, sinks) as model:
        if settings.workers == "auto":  # as many give the same bits when the run is resumed
            settings = replace(settings, workers=_of_env(model, "workers"))
        new_folder(settings.out, RUN_FILES)
        with locked(settings.out):
            data = {name: _of_env(model, name) for name in ("dataset_name", "data_digest")}
            # The display of progress is a setting of this process, not of the run.
            config = {name: value for name, value in plain(settings).items() if name != "progress"}
            create_run(settings.out, config, task_dict(_of_env(model, "task")) | data)
            return _learn(settings, model, callbacks)


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
    own = with_values(TrainSettings(out=place), config, str(place / CONFIG))
    settings = replace(own, out=place, progress=progress, device=device or own.device).checked()
    _check_callbacks(callbacks)
    with locked(place):
        start = latest_checkpoint(place, _fixed_settings(settings))
        _check_unfinished(settings, start)
        _warn_of_other_versions(place)
        with _model(settings, sinks) as model:
            return _learn(settings, model, callbacks, start)


def _check_callbacks(callbacks: Sequence[BaseCallback]) -> None:
    """Raise ``TypeError`` unless every callback is a ``BaseCallback``."""
    for callback in callbacks:
        if not isinstance(callback, BaseCallback):
            raise TypeError(f"{callback!r} is not a callback; expected a BaseCallback of Stable-Baselines3")


def _check_unfinished(settings: TrainSettings, start: Saved | None) -> None:
    """Raise ``RunError`` if a run is finished or saved no checkpoints; warn if its first one is still missing."""
    folder = settings.out
    if start is not None:
        if start.timesteps >= settings.whole_rollouts:
            raise RunError(
                f"{folder} is finished: all of its {start.timesteps:,} timesteps are done; to train for longer, start "
                "another run"
            )
        return
    if not settings.checkpoint_every and (folder / MODEL).exists():
        raise RunError(
            f"{folder} has a model but no checkpoint to resume from (it was trained without them); to start again, use "
            "another folder"
        )
    warnings.warn(f"{folder} has no checkpoint yet; training starts from the beginning", RuntimeWarning, stacklevel=3)


def _warn_of_other_versions(folder: Path) -> None:
    """Warn if the run started with other versions, which may compute something else."""
    try:
        before = json.loads((folder / VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    changed = [
        f"{name} {before.get(name)}, now {now}" for name, now in package_versions().items() if before.get(name) != now
    ]
    if changed:
        warnings.warn(
            f"{folder} started with {', '.join(changed)}; its results may differ from those of an uninterrupted run",
            RuntimeWarning,
            stacklevel=3,
        )


def _fixed_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that a resumed run cannot change, as JSON values by dotted name."""
    own = {name: value for name, value in plain(settings).items() if name not in _FREE}
    return own | {f"ppo.{name}": value for name, value in own.pop("ppo").items()}


@contextmanager
def _model(settings: TrainSettings, sinks: Sequence[Sink]) -> Iterator[FactoredRecurrentPPO]:
    """Yield the untrained model in its environment, whose events go to ``sinks``. It is closed at the end.

    Raises:
        TypeError: a value that is not a sink.
        ValueError: settings that cannot be used, or an environment whose state cannot be saved (``CheckpointError``).
    """
    env_kwargs = _env_kwargs(settings) | ({} if settings.workers == 1 else {"workers": settings.workers})
    monitored = make_sb3_env(settings.env, settings.num_envs, settings.seed, **env_kwargs)
    env = VecNormalize(monitored, norm_obs=False, norm_reward=settings.ppo.normalize_returns, gamma=settings.ppo.gamma)
    try:
        check_growth(env.observation_space, settings.env)
        if settings.checkpoint_every:
            environment_parts(env)
        model = make_model(settings, env)
        for sink in sinks:
            _of_env(model, "telemetry").add_sink(sink)
        yield model
    finally:
        env.close()


def _env_kwargs(settings: TrainSettings) -> dict[str, Any]:
    return training_env_settings(settings.env_settings, settings.ppo.gamma)


def make_model(settings: TrainSettings, env: VecNormalize) -> FactoredRecurrentPPO:
    """Return the untrained model."""
    return FactoredRecurrentPPO.from_settings(settings.ppo, env, seed=settings.seed, device=settings.device)


def _of_env(model: FactoredRecurrentPPO, name: str) -> Any:
    """An attribute of the environment."""
    env = model.get_env()
    assert env is not None
    return env.get_attr(name)[0]


def _learn(
    settings: TrainSettings,
    model: FactoredRecurrentPPO,
    callbacks: Sequence[BaseCallback],
    start: Saved | None = None,
) -> Trained:
    """Train to the end, from the beginning or from a checkpoint, and save the model in the run folder.

    Raises:
        CheckpointError: ``start`` does not fit; the model and the files are unchanged.
    """
    folder, total, env_kwargs = settings.out, settings.whole_rollouts, _env_kwargs(settings)
    model.set_logger(Logger(str(folder), [ProgressFile(folder / PROGRESS)]))
    curves = CurvesRecorder(folder / EPISODES)
    hub: Telemetry = _of_env(model, "telemetry")
    diagnostics, log = DiagnosticsCallback(settings.anomalies, hub), EventLog(hub, folder / EVENTS)
    # The stack closes each, even if another one cannot be closed. Saving and closing are inside the block of ``stop``,
    # so that a first signal does not interrupt them.
    with _resumable(settings), StopOnInterrupt() as stop, ExitStack() as leaving:
        for close in (model.logger.close, curves.log.close, hub.close):
            leaving.callback(close)
        if settings.telemetry:
            hub.add_sink(JsonlSink(folder / EVENTS))
        watchers: list[BaseCallback] = [stop, TrainingMetricsCallback(), curves, diagnostics, log, *callbacks]
        if settings.eval_every:
            held_out = settings.eval_every, settings.eval_episodes, HELD_OUT_SEED
            watchers.append(PeriodicEvaluation(settings.env, *held_out, env_kwargs, settings.workers, stop))
        saver = SaveCheckpoints(
            folder,
            settings.checkpoint_every,
            watchers,
            _fixed_settings(settings),
            start,
            lambda path, timesteps: hub.emit(CheckpointSaved(path=str(path), timesteps=timesteps)),
        )
        if start is not None:
            restore_training(model, watchers, start.state)
        # An interrupted run has logged its pending values at the timestep of a checkpoint within a rollout.
        within = start is not None and start.state["rollout"] != {}
        first_step = 0 if start is None else start.timesteps + (0 if within else 1)
        model.logger.output_formats.append(TensorBoardFile(folder, first_step))
        log.drop_later_events()
        if start is not None:
            hub.emit(CheckpointLoaded(path=str(start.path), timesteps=start.timesteps))
        with _saved_on_failure(folder, model), diagnostics.reporting_divergence():
            model.learn(
                total - (start.timesteps if start else 0),
                callback=[saver, *watchers],
                progress_bar=settings.progress,
                reset_num_timesteps=start is None,
            )
            model.logger.dump(model.num_timesteps)  # of the last round of updates
        complete = model.num_timesteps >= total and not saver.in_rollout and not saver.incomplete
        path = save_model(folder, model)
        if complete:  # after the model: a checkpoint of the last timestep marks the run as finished
            saver.save()
    return Trained(
        folder,
        path,
        model,
        settings.env,
        curves.log.rows,
        env_kwargs,
        _of_env(model, "dataset_name"),
        signal=None if complete else stop.signal,
        resumed_from=start.timesteps if start else None,
    )


@contextmanager
def _resumable(settings: TrainSettings) -> Iterator[None]:
    """Put how to resume the run into the message of a ``KeyboardInterrupt``."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"Interrupted; {_remedy(settings)}",)
        raise


def _remedy(settings: TrainSettings) -> str:
    """Return what an interrupted run has saved, and how to resume it."""
    folder, saved = settings.out, checkpoint_paths(settings.out)
    command = f"`{esper_command('train', '--resume', str(folder))}`"
    if saved:
        timesteps = int(saved[0].stem)
        if timesteps >= settings.whole_rollouts:
            return f"the training in {folder} is finished"
        return f"resume from the checkpoint of timestep {timesteps:,} with {command}"
    if settings.checkpoint_every or not (folder / MODEL).exists():
        return f"{folder} has no checkpoint: start from the beginning with {command}, or remove the folder"
    return f"the model is saved as {folder / MODEL}; without checkpoints, the run cannot be resumed"


@contextmanager
def _saved_on_failure(folder: Path, model: FactoredRecurrentPPO) -> Iterator[None]:
    """Save the model if an unexpected error ends training."""
    try:
        yield
    except NonFiniteUpdateError:  # the last good model is saved already
        raise
    except Exception as error:
        with suppress(OSError):
            error.add_note(f"the model of timestep {model.num_timesteps} is saved as {save_model(folder, model)}")
        raise
