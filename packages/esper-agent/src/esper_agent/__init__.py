"""Agents, training and evaluation for esper-env.

Nothing heavy is imported until it is used: ``import esper_agent`` loads neither torch nor Stable-Baselines3.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "FactoredRecurrentPPO": "ppo",
    "FactoredLstmPolicy": "policy",
    "HeuristicPolicy": "heuristic",
    "HeuristicConfig": "heuristic_config",
    "Decision": "heuristic",
    "RandomPolicy": "baselines",
    "WaitPolicy": "baselines",
    "FixedPlanPolicy": "baselines",
    "Planting": "baselines",
    "GymVecEnv": "sb3",
    "make_sb3_env": "sb3",
    "EpisodeRecord": "evaluation",
    "run_episodes": "evaluation",
    "load_run": "runs",
    "TrainingMetricsCallback": "callbacks",
    "PeriodicEvaluation": "callbacks",
    "DiagnosticsCallback": "diagnostics_callback",
    "AnomalySettings": "diagnostics",
    "ConsoleSink": "console_sink",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it exports {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
