"""One training run from its settings to its folder: what ``esper train`` does, callable from Python.

from esper_agent.training import TrainSettings, train

trained = train(TrainSettings(out=Path("runs/digits"), total_timesteps=20_000))
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from esper_env.rules.reward_config import GAMMA
from esper_env.tasks import task_dict
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from esper_agent.callbacks import CurvesRecorder, PeriodicEvaluation, StopOnInterrupt, TrainingMetricsCallback
from esper_agent.configuration import ConfigError, parse_assignments, plain, training_env_settings
from esper_agent.policy import check_logit_bias
from esper_agent.ppo import FactoredRecurrentPPO, NonFiniteUpdateError
from esper_agent.ranges import PPO_RANGES, RUN_RANGES, check_device, check_ranges
from esper_agent.runs import EPISODES, create_run, save_model
from esper_agent.sb3 import make_sb3_env

#: Seeds of held-out evaluation episodes start here, far from those of training environments.
HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class PPOSettings:
    """How the policy is updated."""

    learning_rate: float = 7e-4
    """Step size of Adam."""
    n_steps: int = 40
    """Steps of every environment in one rollout; a rollout holds n_steps x num_envs transitions."""
    batch_size: int = 160
    """Transitions in one minibatch."""
    n_epochs: int = 8
    """Passes over a rollout."""
    gamma: float = GAMMA
    """Discount, also of the normalisation of returns and of the potentials in the environment's reward."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_range: float = 0.2
    """Clip range of the probability ratios."""
    ent_coef: float = 0.03
    """Entropy coefficient at the start."""
    final_ent_coef: float = 0.0
    """Entropy coefficient at the end; it changes linearly in between."""
    vf_coef: float = 1.0
    """Weight of the value loss."""
    max_grad_norm: float = 10.0
    """Gradients are clipped to this norm."""
    target_kl: float | None = 0.04
    """A round of updates ends before a step once the policy is 1.5 times this far from the one that acted."""
    advantage_estimator: Literal["two_step", "sampled_op"] = "two_step"
    """two_step is unbiased; sampled_op cancels the signal of the op head and is there for comparison."""
    logit_bias: tuple[str, ...] = ()
    """Initial bias of the logits as HEAD.VALUE=BIAS, for example op.WAIT=-1 alpha_target.FULL=2; empty keeps the
    policy's own."""
    normalize_returns: bool = True
    """Scale rewards by the running deviation of the discounted return (VecNormalize)."""


@dataclass(frozen=True)
class TrainSettings:
    """Train a FactoredRecurrentPPO and leave a run folder: configuration, versions, model, normaliser, curves.

    Ctrl-C or SIGTERM ends the run at the next step and saves the model; a second one ends it at once.
    """

    out: Path
    """Folder of the run; it must not hold one yet."""
    env: str = "Esper-Digits-v0"
    """Task; `esper info` lists them."""
    total_timesteps: int = 20_000
    """Environment steps in all, rounded up to whole rollouts."""
    num_envs: int = 16
    """Environments that run at once."""
    seed: int = 0
    """Environment i starts from seed + i; the policy's initial weights and samples derive from it too."""
    device: str = "auto"
    """Where the policy is trained: auto, cpu, cuda or cuda:N."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict."""
    eval_every: int = 0
    """Play the deterministic policy on held-out episodes every so many timesteps and log it; 0 never does."""
    eval_episodes: int = 8
    """Episodes of each such evaluation."""
    progress: bool = True
    """Show a progress bar with the rate and the time left."""
    config: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """YAML or JSON file with these settings; flags given as well win."""
    ppo: Annotated[PPOSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=PPOSettings)

    def checked(self) -> TrainSettings:
        """These settings, or a ``ConfigError`` for a number that cannot work."""
        check_ranges({name: getattr(self, name) for name in RUN_RANGES})
        check_ranges({name: value for name, value in vars(self.ppo).items() if name in PPO_RANGES})
        check_device(self.device)
        parse_logit_bias(self.ppo.logit_bias)
        return self

    @property
    def rollout(self) -> int:
        """Timesteps of one rollout."""
        return self.num_envs * self.ppo.n_steps


@dataclass(frozen=True)
class Trained:
    """What a training run came to."""

    folder: Path
    model_path: Path
    model: FactoredRecurrentPPO
    episodes: Sequence[dict[str, Any]]  # finished training episodes, as in episodes.csv
    env_kwargs: dict[str, Any]  # settings of the environment it was trained in
    dataset: str
    signal: int | None  # that ended it before total_timesteps

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it before total_timesteps."""
        return self.signal is not None


def parse_logit_bias(assignments: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """``("op.WAIT=-1",)`` -> ``{"op": {"WAIT": -1}}``."""
    biases: dict[str, dict[str, float]] = {}
    for name, bias in parse_assignments(assignments).items():
        head, dot, value = name.partition(".")
        if not dot or isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            raise ConfigError(f"logit_bias {name}={bias} is not of the form HEAD.VALUE=BIAS, such as op.WAIT=-1")
        biases.setdefault(head, {})[value] = float(bias)
    check_logit_bias(biases)
    return biases


def train(settings: TrainSettings, callbacks: Sequence[BaseCallback] = ()) -> Trained:
    """Train as the settings say. Errors in them are raised before anything is written.

    Raises:
        ConfigError, RunError, ValueError: the settings, the folder or the environment's settings cannot be used.
        NonFiniteUpdateError: training diverged; the last good model is in the folder.
        KeyboardInterrupt: a second Ctrl-C.
    """
    settings.checked()
    env_kwargs = training_env_settings(settings.env_settings, settings.ppo.gamma)
    monitored = make_sb3_env(settings.env, settings.num_envs, settings.seed, **env_kwargs)
    env = VecNormalize(monitored, norm_obs=False, norm_reward=settings.ppo.normalize_returns, gamma=settings.ppo.gamma)
    try:
        model = make_model(settings, env)
        task = task_dict(env.get_attr("task")[0]) | {"dataset_name": env.get_attr("dataset_name")[0]}
        folder = create_run(settings.out, plain(settings), task)
        return _learn(settings, model, folder, env_kwargs, task["dataset_name"], callbacks)
    finally:
        env.close()


def make_model(settings: TrainSettings, env: VecNormalize) -> FactoredRecurrentPPO:
    """The untrained model."""
    ppo = settings.ppo
    return FactoredRecurrentPPO(
        "FactoredLstmPolicy",
        env,
        learning_rate=ppo.learning_rate,
        n_steps=ppo.n_steps,
        batch_size=ppo.batch_size,
        n_epochs=ppo.n_epochs,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
        clip_range=ppo.clip_range,
        ent_coef=LinearSchedule(ppo.ent_coef, ppo.final_ent_coef, 1.0),
        vf_coef=ppo.vf_coef,
        max_grad_norm=ppo.max_grad_norm,
        target_kl=ppo.target_kl,
        advantage_estimator=ppo.advantage_estimator,
        policy_kwargs={"logit_bias": parse_logit_bias(ppo.logit_bias)} if ppo.logit_bias else None,
        seed=settings.seed,
        device=settings.device,
    )


def _learn(
    settings: TrainSettings,
    model: FactoredRecurrentPPO,
    folder: Path,
    env_kwargs: dict[str, Any],
    dataset: str,
    callbacks: Sequence[BaseCallback],
) -> Trained:
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    curves = CurvesRecorder(folder / EPISODES)
    try:
        with StopOnInterrupt() as stop:
            watchers: list[BaseCallback] = [stop, TrainingMetricsCallback(), curves, *callbacks]
            if settings.eval_every:
                watchers.append(
                    PeriodicEvaluation(
                        settings.env, settings.eval_every, settings.eval_episodes, HELD_OUT_SEED, env_kwargs, stop
                    )
                )
            total = -(-settings.total_timesteps // settings.rollout) * settings.rollout
            with _saved_on_failure(folder, model):
                model.learn(total, callback=watchers, progress_bar=settings.progress)
                model.logger.dump(model.num_timesteps)  # of the last round of updates
            ended_by = stop.signal if model.num_timesteps < total else None
            # Still inside the block: a Ctrl-C must not tear the file that is being written.
            path = save_model(folder, model)
    finally:
        curves.close()
        model.logger.close()
    return Trained(folder, path, model, curves.rows, env_kwargs, dataset, ended_by)


@contextmanager
def _saved_on_failure(folder: Path, model: FactoredRecurrentPPO) -> Iterator[None]:
    """Save the model when something unforeseen ends training, a full disk under the logger for instance."""
    try:
        yield
    except NonFiniteUpdateError:  # has saved the last good one itself
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Interrupted; {folder} has no model: remove it, or give another folder") from None
    except Exception as error:
        with suppress(OSError):
            error.add_note(f"the model of timestep {model.num_timesteps} is saved as {save_model(folder, model)}")
        raise
