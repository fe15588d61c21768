"""Settings of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from esper_env.tasks.choices import ISOLATIONS, SHADOW


@dataclass(frozen=True)
class Optimisation:
    """SGD with momentum for hosts and seeds, clipped per host and per seed.

    Attributes:
        host_lr: learning rate of hosts.
        seed_lr: learning rate of seeds and gates.
        momentum: momentum factor.
        clip_norm: largest gradient norm of a host, or of a seed with its gate.
        isolation: the loss of a TRAINING seed. With "shadow", detached features pass the seed and the frozen rest of
            the network, so the seed learns from the effect that it will have. With "straight_through", the network
            adds s - stop(s). This loss is linear in the seed, so the seed's output magnitude is unconstrained.
        shadow_fraction: share of each minibatch in the shadow pass.
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
