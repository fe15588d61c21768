"""Check on one minibatch that seeds in TRAINING do not affect their hosts.

This holds by construction, unless a custom module writes into its input, or a straight-through seed is not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Rehearsal(NamedTuple):
    """Losses (n,) of a minibatch's main pass, and the hosts' buffers, (n, ...) each, after it."""

    losses: Tensor
    buffers: Mapping[str, Tensor]


def breaches(isolated: Tensor, with_seeds: Rehearsal, without: Rehearsal) -> Tensor:
    """(n, 2) True if outputs, and running statistics, of a network depend on its seeds in TRAINING, bit for bit.

    ``isolated`` (n,) is True for networks with such seeds.
    """
    outputs = _differ(with_seeds.losses, without.losses)
    statistics = [_differ(value, without.buffers[name]) for name, value in with_seeds.buffers.items()]
    nowhere = torch.zeros_like(outputs)
    return torch.stack([outputs, torch.stack([nowhere, *statistics]).any(0)], dim=1) & isolated[:, None]


def _differ(first: Tensor, second: Tensor) -> Tensor:
    """(n,) True for rows that differ; NaN equals NaN."""
    same = (first == second) | ((first != first) & (second != second))
    return ~same.reshape(len(first), int(np.prod(first.shape[1:]))).all(1)
