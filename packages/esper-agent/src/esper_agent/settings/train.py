"""Settings of ``esper train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from esper_env.checks import NON_NEGATIVE, POSITIVE, SEED, check
from esper_env.data import DataFamily, absolute_dataset, absolute_path
from esper_env.paths import user_path
from esper_env.tasks import TASKS
from esper_env.workers import Workers

from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.ppo.settings import PPOSettings
from esper_agent.settings.config_file import expand_paths
from esper_agent.settings.named_values import NamedValues, named_values
from esper_agent.vectors import find_id

DEFAULT_TASK = "Esper-Digits-v0"
#: Seeds of held-out evaluation episodes start here, far from those of training environments.
HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a FactoredRecurrentPPO and of the run folder that its training writes."""

    out: Path
    """Folder of the run; it must not hold a run yet."""
    env: str = DEFAULT_TASK
    """Task; `esper info` lists them."""
    total_timesteps: Annotated[int, POSITIVE] = 20_000
    """Total environment steps, rounded up to whole rollouts."""
    num_envs: Annotated[int, POSITIVE] = 16
    """Environments that run at once."""
    workers: Workers = 1
    """Processes that the environments are spread over; auto for one per core."""
    seed: Annotated[int, SEED] = 0
    """Environment i starts from seed + i; the policy's initial weights and samples derive from it too."""
    device: str = "auto"
    """Device of the policy: auto, cpu, cuda or cuda:N."""
    env_settings: NamedValues = field(default_factory=dict)
    """Settings of the environment as NAME=VALUE, for example horizon=20 gates=strict."""
    eval_every: Annotated[int, NON_NEGATIVE] = 0
    """Timesteps between evaluations of the greedy policy on held-out episodes; 0 for none."""
    eval_episodes: Annotated[int, POSITIVE] = 8
    """Episodes of each evaluation."""
    checkpoint_every: Annotated[int, NON_NEGATIVE] = 640
    """Timesteps between checkpoints, rounded up to whole rollouts; 0 for none."""
    telemetry: bool = True
    """Write events of the networks and of the policy to the folder `events` of the run."""
    progress: bool = True
    """Show the rate and the remaining time: a bar on a terminal, lines elsewhere."""
    config: Annotated[Path | None, tyro.conf.DisallowNone] = None
    """YAML or JSON file with these settings and with `anomalies`, the thresholds of the diagnostics; flags win."""
    ppo: Annotated[PPOSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=PPOSettings)
    anomalies: Annotated[AnomalySettings, tyro.conf.Suppress] = field(default_factory=AnomalySettings)

    def __post_init__(self) -> None:
        object.__setattr__(self, "env_settings", named_values("env_settings", self.env_settings))
        expand_paths(self)

    def checked(self) -> TrainSettings:
        """Return these settings with absolute paths of data, so that the run can be evaluated from any folder.

        Raises:
            ValueError: a value outside its range, a device that this machine lacks, or an unknown environment.
        """
        from esper_env.devices import resolve_device  # loads PyTorch, which these settings do not need

        check(self)
        resolve_device(self.device)
        return replace(self, env_settings=absolute_paths(self.env, self.env_settings))

    @property
    def whole_rollouts(self) -> int:
        """``total_timesteps``, rounded up to whole rollouts."""
        rollout = self.num_envs * self.ppo.n_steps
        return -(-self.total_timesteps // rollout) * rollout


def absolute_paths(env_id: str, env_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an environment with absolute paths of its text and data folder; names of datasets stay."""
    values = dict(env_settings)
    task = TASKS.get(find_id(env_id)) if values.keys() & {"dataset", "data_dir"} else None
    if task is None:
        return values
    if isinstance(values.get("dataset"), str) and values["dataset"]:  # the environment rejects empty ones
        values["dataset"] = absolute_dataset(values["dataset"], DataFamily(task.family))
    if isinstance(values.get("data_dir"), str) and values["data_dir"]:
        values["data_dir"] = str(user_path(absolute_path(values["data_dir"])))
    return values
