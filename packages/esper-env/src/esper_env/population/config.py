"""Settings of a population."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from esper_env.tasks.choices import FULL_PRECISION, SHADOW


@dataclass(frozen=True)
class PopulationConfig:
    """Settings of training and of the layout in shards.

    Hosts and seeds train by SGD with momentum, clipped per host and per seed.

    Attributes:
        batch_size: samples of a minibatch.
        batches_per_step: minibatches of an epoch.
        host_lr: learning rate of hosts.
        seed_lr: learning rate of seeds and gates.
        shard_size: networks that run together on one thread.
        batched: False if each shard holds a single network in its own layout.
        device: place of the networks and the data.
        isolation: the loss of a TRAINING seed. With "shadow", detached features pass the seed and the frozen rest of
            the network, so the seed learns from the effect that it will have. With "straight_through", the network
            adds s - stop(s). This loss is linear in the seed, so the seed's output magnitude is unconstrained.
        momentum: momentum factor.
        clip_norm: largest gradient norm of a host, or of a seed with its gate.
        dtype: type of parameters and updates.
        precision: precision of the passes, which may be lower.
        capture: "auto" captures the step of a minibatch on an accelerator; "off" never does.
        try_host: False for the hosts of the package's specs.
    """

    batch_size: int
    batches_per_step: int
    host_lr: float
    seed_lr: float
    shard_size: int
    batched: bool
    device: torch.device
    isolation: str = SHADOW
    momentum: float = 0.9
    clip_norm: float = 1.0
    dtype: torch.dtype = torch.float32
    precision: str = FULL_PRECISION
    capture: str = "auto"
    try_host: bool = True
