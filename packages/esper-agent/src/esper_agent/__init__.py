"""Agents, training and evaluation for esper-env.

Names are imported on first use: ``import esper_agent`` loads neither PyTorch nor Stable-Baselines3. The import
declares the events of training, so that ``esper_env.telemetry.read_events`` returns typed payloads.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from esper_agent.monitoring import payloads as _payloads  # noqa: F401 (declares the events of training)

_EXPORTS = {
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

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
