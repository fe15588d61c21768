"""What ``esper train`` can be told, and which of it makes sense."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
import yaml
from esper_env.data.catalog import DataFamily, absolute_dataset, absolute_path
from esper_env.rules.reward_config import GAMMA
from esper_env.tasks import TASKS

from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.ppo.policy import check_logit_bias
from esper_agent.settings.config_file import ConfigError, parse_assignments
from esper_agent.settings.ranges import PPO_RANGES, RUN_RANGES, check_device, check_ranges
from esper_agent.vectors import find_id


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

    Ctrl-C or SIGTERM ends the run at the next step and saves the model; a second one ends it at once. However it ended,
    `esper train --resume RUN` goes on with it; only --device and --progress can be given as well.
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
    checkpoint_every: int = 640
    """Save the state of the training every so many timesteps, rounded up to whole rollouts; 0 never does."""
    telemetry: bool = True
    """Write what happens to the networks and to the policy as events to the folder `events` of the run."""
    progress: bool = True
    """Show a progress bar with the rate and the time left."""
    config: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """YAML or JSON file with these settings; flags given as well win."""
    ppo: Annotated[PPOSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=PPOSettings)
    anomalies: Annotated[AnomalySettings, tyro.conf.OmitArgPrefixes] = field(default_factory=AnomalySettings)

    def checked(self) -> TrainSettings:
        """These settings with the paths of data made absolute, so that the run can be played from any folder.

        Raises ``ConfigError`` for a number that cannot work, ``ValueError`` for an environment that is not known.
        """
        self.check()
        return replace(self, env_settings=absolute_paths(self.env, self.env_settings))

    def check(self) -> None:
        """``ConfigError`` for a number that cannot work."""
        check_ranges({name: getattr(self, name) for name in RUN_RANGES})
        check_ranges({name: value for name, value in vars(self.ppo).items() if name in PPO_RANGES})
        try:
            self.anomalies.checked()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        check_device(self.device)
        parse_logit_bias(self.ppo.logit_bias)

    @property
    def rollout(self) -> int:
        """Timesteps of one rollout."""
        return self.num_envs * self.ppo.n_steps

    @property
    def whole_rollouts(self) -> int:
        """total_timesteps, rounded up."""
        return -(-self.total_timesteps // self.rollout) * self.rollout


def absolute_paths(env_id: str, env_settings: tuple[str, ...]) -> tuple[str, ...]:
    """Settings of an environment with the path of a text and the folder of the data made absolute; names stay."""
    given = parse_assignments(env_settings)
    task = TASKS.get(find_id(env_id)) if given.keys() & {"dataset", "data_dir"} else None
    if task is None:
        return env_settings
    values = dict(given)
    if isinstance(given.get("dataset"), str):
        values["dataset"] = absolute_dataset(given["dataset"], DataFamily(task.family))
    if isinstance(given.get("data_dir"), str) and given["data_dir"]:
        values["data_dir"] = str(absolute_path(given["data_dir"]))
    return tuple(
        assignment if values[name] == given[name] else f"{name}={_as_yaml(values[name])}"
        for assignment, name in zip(env_settings, given, strict=True)
    )


def _as_yaml(path: str) -> str:
    """An absolute path as YAML reads it back, on one line, in quotes where it has more than letters and the like."""
    if re.fullmatch(r"/[\w/.+@-]*", path):
        return path
    return yaml.safe_dump(path, default_style='"', allow_unicode=True, width=math.inf).removesuffix("\n")


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
