"""How networks are trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from esper_env.tasks.choices import ISOLATIONS, SHADOW


@dataclass(frozen=True)
class Optimisation:
    """How hosts and seeds are trained: SGD with momentum, clipped per host and per seed.

    ``isolation`` is what a TRAINING seed learns from. "shadow": the detached features of a ``shadow_fraction`` of each
    minibatch go on through the frozen rest of the network with the seed on, so it feels the effect it will have.
    "straight_through": h + (s - stop(s)), whose loss is linear in the seed, so that nothing holds it back.
    """

    host_lr: float
    seed_lr: float
    momentum: float = 0.9
    clip_norm: float = 1.0
    isolation: str = SHADOW
    shadow_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("host_lr", "seed_lr", "clip_norm"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum is {self.momentum}; expected 0 or more and below 1")
        if self.isolation not in ISOLATIONS:
            raise ValueError(f"isolation is {self.isolation!r}; expected one of {ISOLATIONS}")
        if not 0.0 < self.shadow_fraction <= 1.0:
            raise ValueError(f"shadow_fraction is {self.shadow_fraction}; expected above 0, at most 1")
