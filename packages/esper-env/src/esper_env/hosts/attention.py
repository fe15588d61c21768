"""Causal self-attention, through PyTorch's scaled_dot_product_attention or its flex attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override


class CausalSelfAttention(nn.Module):
    """Causal multi-head attention (Vaswani et al. 2017): (..., T, width) -> (..., T, width); heads divide the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)  # to queries, keys and values
        self.output = nn.Linear(width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.mixed(self.inputs(x)))
        return out

    def mixed(self, inputs: Tensor) -> Tensor:
        """Attend and concatenate the heads: (..., T, 3 width) -> (..., T, width)."""
        *leading, length, _ = inputs.shape
        split = inputs.reshape(-1, length, 3, self.heads, inputs.shape[-1] // (3 * self.heads))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = self.attend(query, key, value)
        return attended.transpose(1, 2).reshape(*leading, length, -1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to this and earlier positions; every tensor is (B, heads, T, d / heads)."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class FlexCausalSelfAttention(CausalSelfAttention):
    """The same through flex attention, unless :func:`flex_obstacle` returns a reason against it."""

    @override
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if flex_obstacle(query.device, query.shape[-1], query.dtype) is None:
            return _flex_attention(query, key, value)
        return super().attend(query, key, value)


@lru_cache(maxsize=64)
def flex_obstacle(device: torch.device, head_width: int = 16, dtype: torch.dtype = torch.float32) -> str | None:
    """Return the reason that flex attention cannot be used on a device, or None.

    On a CPU it has no backward pass. On other devices it is tried once and must agree with
    scaled_dot_product_attention.
    """
    if device.type == "cpu":
        return "flex attention cannot train on a CPU"
    x = torch.linspace(-1.0, 1.0, 64 * head_width, device=device, dtype=dtype).view(1, 2, 32, head_width)
    results = []
    try:
        for attend in (partial(F.scaled_dot_product_attention, is_causal=True), _flex_attention):
            query = x.clone().requires_grad_()
            with torch.enable_grad():
                out = attend(query, query.sin(), query.cos())
                (gradient,) = torch.autograd.grad(out.square().sum(), query)
            results.append(torch.cat([out.detach().flatten(), gradient.flatten()]))
    except Exception as error:  # such as a missing compiler, an old device, or an unsupported width
        return f"flex attention fails on {device}: {str(error).splitlines()[0][:100] if str(error) else type(error)}"
    worst = float((results[0] - results[1]).abs().max())
    return None if worst < 1e-2 else f"flex attention is off by {worst:.2g} on {device}"


def _flex_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _compiled()(query, key, value, block_mask=_causal_mask(query.shape[-2], query.device))


@cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


@lru_cache(maxsize=16)
def _causal_mask(length: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda _b, _h, query, key: query >= key, None, None, length, length, device=device)
