"""Settings of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from esper_env.checks import POSITIVE, Interval, OneOf, check
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
    """

    host_lr: Annotated[float, POSITIVE]
    seed_lr: Annotated[float, POSITIVE]
    momentum: Annotated[float, Interval(0, 1, "[)")] = 0.9
    clip_norm: Annotated[float, POSITIVE] = 1.0
    isolation: Annotated[str, OneOf(ISOLATIONS)] = SHADOW

    def __post_init__(self) -> None:
        check(self)
