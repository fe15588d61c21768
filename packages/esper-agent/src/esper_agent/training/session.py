"""One stretch of training in a run folder, from the beginning or from a checkpoint, to the saved model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from esper_env.tasks import task_dict
from esper_env.telemetry import JsonlSink, Sink, Telemetry
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from esper_agent.monitoring.callback import DiagnosticsCallback
from esper_agent.monitoring.payloads import CheckpointLoaded, CheckpointSaved
from esper_agent.ppo.ppo import FactoredRecurrentPPO, NonFiniteUpdateError
from esper_agent.sb3 import make_sb3_env
from esper_agent.settings.config_file import plain
from esper_agent.settings.named_values import training_env_settings
from esper_agent.settings.train import TrainSettings
from esper_agent.training.callbacks import CurvesRecorder, PeriodicEvaluation, StopOnInterrupt, TrainingMetricsCallback
from esper_agent.training.checkpoints import SaveCheckpoints, Saved
from esper_agent.training.environment_state import environment_parts
from esper_agent.training.event_log import EventLog
from esper_agent.training.outputs import run_logger
from esper_agent.training.run_folder import EPISODES, EVENTS, PROGRESS, save_model
from esper_agent.training.state import restore_training
from esper_agent.vectors import check_growth

#: Seeds of held-out evaluation episodes start here, far from those of training environments.
HELD_OUT_SEED = 1_000_000
#: Settings that a resumed run may change: they do not affect the training.
_FREE = ("out", "config", "progress", "device", "checkpoint_every", "telemetry", "anomalies")


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


@dataclass(frozen=True)
class Session:
    """An untrained model in its environment, with the settings of its training."""

    settings: TrainSettings
    model: FactoredRecurrentPPO
    env: VecNormalize
    env_kwargs: dict[str, Any]
    task: dict[str, Any]

    def learn(
        self, folder: Path, callbacks: Sequence[BaseCallback], start: Saved | None = None, sinks: Sequence[Sink] = ()
    ) -> Trained:
        """Train to the end and save the model.

        Args:
            folder: the run folder.
            callbacks: further callbacks of the training.
            start: the checkpoint to resume from.
            sinks: further sinks for events.

        Raises:
            CheckpointError: ``start`` does not fit. Nothing has changed.
        """
        settings, model = self.settings, self.model
        model.set_logger(run_logger(folder, PROGRESS))
        curves = CurvesRecorder(folder / EPISODES)
        total = settings.whole_rollouts
        hub: Telemetry = self.env.get_attr("telemetry")[0]
        diagnostics, log = DiagnosticsCallback(settings.anomalies, hub), EventLog(hub, folder / EVENTS)
        with ExitStack() as leaving:  # closes each, even if another one cannot be closed
            for close in (model.logger.close, curves.close, hub.close):
                leaving.callback(close)
            for sink in [*([JsonlSink(folder / EVENTS)] if settings.telemetry else []), *sinks]:
                hub.add_sink(sink)
            with StopOnInterrupt() as stop:
                watchers: list[BaseCallback] = [stop, TrainingMetricsCallback(), curves, diagnostics, log, *callbacks]
                if settings.eval_every:
                    held_out = settings.eval_every, settings.eval_episodes, HELD_OUT_SEED
                    watchers.append(PeriodicEvaluation(settings.env, *held_out, self.env_kwargs, stop))
                saver = SaveCheckpoints(folder, settings.checkpoint_every, watchers, fixed_settings(settings), start)
                saver.on_saved = partial(_emit_checkpoint, hub, CheckpointSaved)
                if start is not None:
                    restore_training(model, watchers, start.state)
                log.drop_later_events()
                if start is not None:
                    _emit_checkpoint(hub, CheckpointLoaded, start.path, start.timesteps)
                with _saved_on_failure(folder, model), diagnostics.reporting_divergence():
                    model.learn(
                        total - (start.timesteps if start else 0),
                        callback=[saver, *watchers],
                        progress_bar=settings.progress,
                        reset_num_timesteps=start is None,
                    )
                    model.logger.dump(model.num_timesteps)  # of the last round of updates
                complete = model.num_timesteps >= total and not saver.in_rollout
                # Inside the block, so that Ctrl-C does not interrupt the writing of the file.
                path = save_model(folder, model)
                if complete:  # after the model: a checkpoint of the last timestep marks the run as finished
                    saver.save()
        return Trained(
            folder,
            path,
            model,
            settings.env,
            curves.rows,
            self.env_kwargs,
            self.task["dataset_name"],
            signal=None if complete else stop.signal,
            resumed_from=start.timesteps if start else None,
        )


@contextmanager
def session(settings: TrainSettings) -> Iterator[Session]:
    """Yield the environment and the model of the settings; the environment is closed at the end.

    Raises:
        ValueError: settings that cannot be used, or an environment whose state cannot be saved (``CheckpointError``).
    """
    env_kwargs = training_env_settings(settings.env_settings, settings.ppo.gamma)
    monitored = make_sb3_env(settings.env, settings.num_envs, settings.seed, **env_kwargs)
    env = VecNormalize(monitored, norm_obs=False, norm_reward=settings.ppo.normalize_returns, gamma=settings.ppo.gamma)
    try:
        check_growth(env.observation_space, settings.env)
        if settings.checkpoint_every:
            environment_parts(env)
        model = make_model(settings, env)
        data = {name: env.get_attr(name)[0] for name in ("dataset_name", "data_digest")}
        task = task_dict(env.get_attr("task")[0]) | data
        yield Session(settings, model, env, env_kwargs, task)
    finally:
        env.close()


def _emit_checkpoint(
    hub: Telemetry, kind: type[CheckpointSaved] | type[CheckpointLoaded], path: Path, timesteps: int
) -> None:
    hub.emit(kind(path=str(path), timesteps=timesteps))


def fixed_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that a resumed run cannot change, as JSON values."""
    return {name: value for name, value in plain(settings).items() if name not in _FREE}


def make_model(settings: TrainSettings, env: VecNormalize) -> FactoredRecurrentPPO:
    """Return the untrained model."""
    return FactoredRecurrentPPO.from_settings(settings.ppo, env, seed=settings.seed, device=settings.device)


@contextmanager
def _saved_on_failure(folder: Path, model: FactoredRecurrentPPO) -> Iterator[None]:
    """Save the model if an unexpected error ends training, for example a full disk under the logger."""
    try:
        yield
    except NonFiniteUpdateError:  # the last good model is saved already
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Interrupted; {folder} has no model: resume with `esper train --resume {folder}`, or remove it"
        ) from None
    except Exception as error:
        with suppress(OSError):
            error.add_note(f"the model of timestep {model.num_timesteps} is saved as {save_model(folder, model)}")
        raise
