"""Agents, training and evaluation for esper-env.

Names are imported on first use: ``import esper_agent`` loads neither PyTorch nor Stable-Baselines3. The import
declares the events of training, so that ``esper_env.telemetry.read_events`` returns typed payloads.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from esper_agent.monitoring import payloads as _payloads  # noqa: F401 (declares the events of training)

if TYPE_CHECKING:
    from esper_agent.evaluation.play import EpisodeRecord, run_episodes
    from esper_agent.monitoring.callback import DiagnosticsCallback
    from esper_agent.monitoring.console import ConsoleSink
    from esper_agent.monitoring.detectors import AnomalySettings
    from esper_agent.policies.baselines import FixedPlanPolicy, Planting, RandomPolicy, WaitPolicy
    from esper_agent.policies.heuristic import Decision, HeuristicPolicy
    from esper_agent.policies.heuristic_config import HeuristicConfig
    from esper_agent.ppo.policy import FactoredLstmPolicy
    from esper_agent.ppo.ppo import FactoredRecurrentPPO
    from esper_agent.ppo.settings import PPOSettings
    from esper_agent.sb3 import GymVecEnv, make_sb3_env
    from esper_agent.settings.train import TrainSettings
    from esper_agent.training.callbacks import PeriodicEvaluation, TrainingMetricsCallback
    from esper_agent.training.run import resume, train
    from esper_agent.training.run_folder import load_run

__all__ = [
    "AnomalySettings",
    "ConsoleSink",
    "Decision",
    "DiagnosticsCallback",
    "EpisodeRecord",
    "FactoredLstmPolicy",
    "FactoredRecurrentPPO",
    "FixedPlanPolicy",
    "GymVecEnv",
    "HeuristicConfig",
    "HeuristicPolicy",
    "PPOSettings",
    "PeriodicEvaluation",
    "Planting",
    "RandomPolicy",
    "TrainSettings",
    "TrainingMetricsCallback",
    "WaitPolicy",
    "load_run",
    "make_sb3_env",
    "resume",
    "run_episodes",
    "train",
]

#: Module of each exported name.
_HOMES = {
    "FactoredRecurrentPPO": "ppo.ppo",
    "FactoredLstmPolicy": "ppo.policy",
    "HeuristicPolicy": "policies.heuristic",
    "HeuristicConfig": "policies.heuristic_config",
    "Decision": "policies.heuristic",
    "RandomPolicy": "policies.baselines",
    "WaitPolicy": "policies.baselines",
    "FixedPlanPolicy": "policies.baselines",
    "Planting": "policies.baselines",
    "GymVecEnv": "sb3",
    "make_sb3_env": "sb3",
    "EpisodeRecord": "evaluation.play",
    "run_episodes": "evaluation.play",
    "load_run": "training.run_folder",
    "train": "training.run",
    "resume": "training.run",
    "TrainSettings": "settings.train",
    "PPOSettings": "ppo.settings",
    "TrainingMetricsCallback": "training.callbacks",
    "PeriodicEvaluation": "training.callbacks",
    "DiagnosticsCallback": "monitoring.callback",
    "AnomalySettings": "monitoring.detectors",
    "ConsoleSink": "monitoring.console",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
