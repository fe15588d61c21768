"""Causal blueprints for Transformer hosts: (B, T, width) -> (B, T, width), close to the identity at birth."""

from __future__ import annotations

from functools import partial
from math import gcd

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper_env.hosts.attention import CausalSelfAttention, FlexCausalSelfAttention
from esper_env.rules.heads import Blueprint
from esper_env.seeds.cnn import LAYER_SCALE_INIT
from esper_env.seeds.registry import BlueprintFactory, add_built_in

HEADS = 4  # at most; fewer if they do not divide the width
LORA_RANK, LORA_LARGE_RANK = 8, 32
MLP_SMALL_EXPANSION, MLP_EXPANSION = 2, 4


class ScaledResidual(nn.Module):
    """x + scale * branch(x) with one scale per feature: LayerScale (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.scale = nn.Parameter(torch.full((width,), LAYER_SCALE_INIT))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, self.scale, self.branch(x))


class TokenNormSeed(nn.Module):
    """x + tanh(gate) (LayerNorm(x) - x), which moves each feature from raw to normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Parameter(torch.full((width,), LAYER_SCALE_INIT))

    @override
    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return torch.addcmul(x, torch.tanh(self.gate), normed - x)


class LowRank(nn.Module):
    """x + up(down(x)) at a low rank: LoRA (Hu et al. 2021, arXiv:2106.09685).

    The second matrix is small at birth, not zero, so that the first one learns from the first step.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.up.weight, std=LAYER_SCALE_INIT)

    @override
    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.up(self.down(x))
        return x + branch


def attention(width: int) -> nn.Module:
    """Causal self-attention with four heads, or two or one where four do not divide the width."""
    return ScaledResidual(width, nn.LayerNorm(width), CausalSelfAttention(width, gcd(width, HEADS)))


def flex_attention(width: int) -> nn.Module:
    """Equivalent of ``attention`` with PyTorch's flex attention, where that can train."""
    return ScaledResidual(width, nn.LayerNorm(width), FlexCausalSelfAttention(width, gcd(width, HEADS)))


def perceptron(width: int, expansion: int) -> nn.Module:
    """A perceptron with ``expansion`` times the width as its hidden units."""
    inner = expansion * width
    return ScaledResidual(width, nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


_FACTORIES: dict[Blueprint, BlueprintFactory] = {
    Blueprint.NORM: TokenNormSeed,
    Blueprint.ATTENTION: attention,
    Blueprint.LORA: partial(LowRank, rank=LORA_RANK),
    Blueprint.LORA_LARGE: partial(LowRank, rank=LORA_LARGE_RANK),
    Blueprint.MLP_SMALL: partial(perceptron, expansion=MLP_SMALL_EXPANSION),
    Blueprint.MLP: partial(perceptron, expansion=MLP_EXPANSION),
    Blueprint.FLEX_ATTENTION: flex_attention,
}
for _blueprint, _factory in _FACTORIES.items():
    add_built_in(_blueprint, "transformer", _factory)
