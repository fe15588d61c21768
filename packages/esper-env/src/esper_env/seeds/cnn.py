"""Blueprints for convolutional hosts: (B, C, H, W) -> (B, C, H, W), close to the identity at birth.

Residual seeds have a per-channel LayerScale on a branch that does not end in ReLU. Every parameter then receives a
gradient from the first step, unlike a zero-initialised layer behind a normalisation and a ReLU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper_env.rules.heads import Blueprint
from esper_env.seeds.registry import add_built_in

LAYER_SCALE_INIT = 1e-3
BOTTLENECK_MIN_CHANNELS = 8
REDUCTION = 4


class LayerScaleResidual(nn.Module):
    """x + scale * branch(x) with one scale per channel: LayerScale (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, channels: int, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.scale = nn.Parameter(torch.full((channels,), LAYER_SCALE_INIT))

    @override
    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + self.scale.view(-1, 1, 1) * branch


class NormSeed(nn.Module):
    """x + tanh(gate) (GroupNorm(x) - x), which moves each channel from raw to normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.gate = nn.Parameter(torch.full((channels,), LAYER_SCALE_INIT))

    @override
    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return x + torch.tanh(self.gate).view(-1, 1, 1) * (normed - x)


class SqueezeExcite(nn.Module):
    """x * 2 sigmoid(W2 silu(W1 mean(x))): channel attention whose factor is 1.0 at birth (Hu et al. 2018).

    It uses SiLU, because a dead ReLU among as few as one hidden unit would kill the seed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)
        nn.init.normal_(self.excite.weight, std=LAYER_SCALE_INIT)
        nn.init.zeros_(self.excite.bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.squeeze(x.mean(dim=(2, 3))))
        return x * (2.0 * torch.sigmoid(self.excite(hidden)))[:, :, None, None]


def _conv(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)


def conv_small(channels: int) -> nn.Module:
    """One 1x1 convolution."""
    return LayerScaleResidual(channels, _conv(channels, channels, 1), _norm(channels))


def conv_light(channels: int) -> nn.Module:
    """One 3x3 convolution."""
    return LayerScaleResidual(channels, _conv(channels, channels, 3), _norm(channels))


def conv_heavy(channels: int) -> nn.Module:
    """Two 3x3 convolutions."""
    first, second = _conv(channels, channels, 3), _conv(channels, channels, 3)
    return LayerScaleResidual(channels, first, _norm(channels), nn.ReLU(), second, _norm(channels))


def depthwise(channels: int) -> nn.Module:
    """A depthwise 3x3 followed by a pointwise convolution."""
    spatial, pointwise = _conv(channels, channels, 3, groups=channels), _conv(channels, channels, 1)
    return LayerScaleResidual(channels, spatial, _norm(channels), nn.ReLU(), pointwise)


def bottleneck(channels: int) -> nn.Module:
    """1x1 -> 3x3 -> 1x1 at max(8, C/4) channels."""
    inner = max(BOTTLENECK_MIN_CHANNELS, channels // REDUCTION)
    return LayerScaleResidual(
        channels,
        _conv(channels, inner, 1),
        _norm(inner),
        nn.ReLU(),
        _conv(inner, inner, 3),
        _norm(inner),
        nn.ReLU(),
        _conv(inner, channels, 1),
    )


for _blueprint, _factory in {
    Blueprint.NORM: NormSeed,
    Blueprint.ATTENTION: SqueezeExcite,
    Blueprint.CONV_LIGHT: conv_light,
    Blueprint.DEPTHWISE: depthwise,
    Blueprint.BOTTLENECK: bottleneck,
    Blueprint.CONV_SMALL: conv_small,
    Blueprint.CONV_HEAVY: conv_heavy,
}.items():
    add_built_in(_blueprint, "cnn", _factory)
