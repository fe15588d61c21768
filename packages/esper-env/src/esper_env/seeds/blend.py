"""Blend operators, which bring a seed's output into the host's features.

With h the host's features, s = seed(h), a = alpha in [0, 1] and g the gate. Every operator is the exact identity at
a = 0, keeps the dtype of h and has no data-dependent control flow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper_env.rules.heads import Operator

REDUCTION = 4

#: (host features, seed output, alpha, gate) -> blended features; alpha and gate broadcast against h.
BlendOperator = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _add(h: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None) -> Tensor:  # noqa: ARG001
    return torch.lerp(h, s, alpha)


def _multiply(h: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None) -> Tensor:  # noqa: ARG001
    return torch.addcmul(h, alpha * h, torch.tanh(s - h))


def _gate(h: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None) -> Tensor:
    if gate is None:
        raise ValueError("the GATE operator needs the gate's output")
    return torch.lerp(h, s, alpha * gate.to(h.dtype))


_OPERATORS: dict[int, BlendOperator] = {Operator.ADD: _add, Operator.MULTIPLY: _multiply, Operator.GATE: _gate}


def blend(operator: int, h: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None = None) -> Tensor:
    """Return the features h blended with a seed's output s by an ``Operator``; GATE needs the gate's output."""
    return _OPERATORS[operator](h, s.to(h.dtype), alpha.clamp(0.0, 1.0).to(h.dtype), gate)


class _Gate(nn.Module):
    """Layers C -> C/4 -> 1 on pooled features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, 1)


class BlendGate(_Gate):
    """Gate in (0, 1) per image, from spatially pooled features: (B, C, H, W) -> (B, 1, 1, 1)."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.squeeze(x.mean(dim=(2, 3))))
        return torch.sigmoid(self.excite(hidden))[:, :, None, None]


class CausalBlendGate(_Gate):
    """Gate in (0, 1) per position, from the mean up to and including it: (B, T, C) -> (B, T, 1)."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.squeeze(causal_mean(x)))
        return torch.sigmoid(self.excite(hidden))


def causal_mean(x: Tensor) -> Tensor:
    """Return the means (..., T, C) over each position and all before it."""
    counts = torch.arange(1, x.shape[-2] + 1, device=x.device, dtype=x.dtype)
    return x.cumsum(-2) / counts[:, None]


#: Gate of a slot, by the number of dimensions of its features per sample.
GATES: dict[int, Callable[[int], nn.Module]] = {3: BlendGate, 2: CausalBlendGate}
