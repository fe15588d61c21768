"""Settings of a population."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PopulationConfig:
    """Settings of training and of the layout in shards.

    Hosts and seeds train by SGD with momentum, clipped per host and per seed. ``isolation`` selects the
    loss of a TRAINING seed. With "shadow", detached features pass through the seed and the frozen rest of the network,
    so the seed learns from the effect that it will have. With "straight_through", the network adds s - stop(s). This
    loss is linear in the seed, so the seed's output magnitude is unconstrained.
    """

    batch_size: int
    batches_per_step: int
    host_lr: float
    seed_lr: float  # of seeds and gates
    shard_size: int  # networks that run together on one thread
    batched: bool  # False: each shard holds a single network in its own layout
    device: torch.device
    isolation: str
    dtype: torch.dtype
    precision: str  # of the passes; parameters and updates stay in ``dtype``
    engine: str  # "torch", "fused", or "auto" for the latter where it can run
    capture: str  # "auto" captures the step of a minibatch on an accelerator; "off" never does
    try_host: bool  # False: the host is one of the package's specs
    momentum: float = 0.9
    clip_norm: float = 1.0  # largest gradient norm of a host, or of a seed with its gate
