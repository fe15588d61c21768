"""Blend operators: how a seed's output enters the host's features.

With h the host's features, x the seed's input (the same tensor, or a detached copy of it), s = seed(x), a = alpha in
[0, 1] and g the gate. Every operator is the exact identity at a = 0, keeps the dtype of h and has no data-dependent
control flow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from esper_env.rules.heads import Operator

REDUCTION = 4

#: (host features, seed input, seed output, alpha, gate) -> blended features; alpha and gate broadcast against h.
BlendOperator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]

_OPERATORS: dict[int, BlendOperator] = {}


def register_operator(operator: int, blend: BlendOperator) -> None:
    """Add a blend operator; a taken value is a ``ValueError``."""
    if operator in _OPERATORS:
        raise ValueError(f"operator {operator} is already registered; choose another value")
    _OPERATORS[int(operator)] = blend


def blend(operator: int, h: Tensor, x: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None = None) -> Tensor:
    """Blend by operator value; an unknown operator is a ``ValueError``."""
    if operator not in _OPERATORS:
        raise ValueError(f"operator {operator} is not registered; known: {sorted(_OPERATORS)}")
    return _OPERATORS[operator](h, x, s.to(h.dtype), alpha.clamp(0.0, 1.0).to(h.dtype), gate)


def _add(h: Tensor, x: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None) -> Tensor:  # noqa: ARG001
    return torch.lerp(h, s, alpha)


def _multiply(h: Tensor, x: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None) -> Tensor:  # noqa: ARG001
    return torch.addcmul(h, alpha * h, torch.tanh(s - x))


def _gate(h: Tensor, x: Tensor, s: Tensor, alpha: Tensor, gate: Tensor | None) -> Tensor:  # noqa: ARG001
    if gate is None:
        raise ValueError("the GATE operator needs the gate's output")
    return torch.lerp(h, s, alpha * gate.to(h.dtype))


register_operator(Operator.ADD, _add)
register_operator(Operator.MULTIPLY, _multiply)
register_operator(Operator.GATE, _gate)


class _Gate(nn.Module):
    """From pooled features through C -> C/4 -> 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, 1)


class BlendGate(_Gate):
    """One gate in (0, 1) for each image, from spatially pooled features: (B, C, H, W) -> (B, 1, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.squeeze(x.mean(dim=(2, 3))))
        return torch.sigmoid(self.excite(hidden))[:, :, None, None]


class CausalBlendGate(_Gate):
    """One gate in (0, 1) for each position, from the mean over it and what came before: (B, T, C) -> (B, T, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.squeeze(causal_mean(x)))
        return torch.sigmoid(self.excite(hidden))


def causal_mean(x: Tensor) -> Tensor:
    """(..., T, C) means over each position and all before it."""
    counts = torch.arange(1, x.shape[-2] + 1, device=x.device, dtype=x.dtype)
    return x.cumsum(-2) / counts[:, None]


#: The gate of a slot, by the number of dimensions of its features without samples.
GATES: dict[int, Callable[[int], nn.Module]] = {3: BlendGate, 2: CausalBlendGate}
