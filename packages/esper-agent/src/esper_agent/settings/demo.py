"""Settings of the demonstration."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from esper_env.checks import POSITIVE, SEED

from esper_agent.settings.named_values import NamedValues
from esper_agent.settings.train import DEFAULT_TASK


@dataclass(frozen=True)
class DemoSettings:
    """Train FactoredRecurrentPPO on a task, compare it with other policies on held-out episodes, and draw curves."""

    out: Path = Path("demo")
    """Folder of the results; those of an earlier demo are replaced."""
    env: str = DEFAULT_TASK
    """Task of training and evaluation."""
    total_timesteps: Annotated[int, POSITIVE] = 51_200
    """Environment steps of training."""
    episodes: Annotated[int, POSITIVE] = 20
    """Held-out episodes of each policy, the same for all."""
    seed: Annotated[int, SEED] = 0
    """Seed of the training run."""
    env_settings: NamedValues = field(default_factory=dict)
    """Settings of the environment as NAME=VALUE, for example horizon=20."""
    progress: bool = True
    """Show the progress: bars on a terminal, lines elsewhere."""
