"""A small convolutional classifier with slots behind, and optionally before, its pools."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper_env.checks import check_fields
from esper_env.hosts.protocol import SegmentedHost, SlotSpec, in_action_order
from esper_env.tasks.config import CNNSpec


class GlobalAveragePool(nn.Module):
    """Mean over space: (B, C, H, W) -> (B, C)."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class CNNHost(SegmentedHost):
    """Blocks of conv (no bias) -> BatchNorm -> ReLU -> optional 2x2 max-pool, then global average pool and linear.

    Block i has ``base_channels * 2**i`` channels and is followed by a pool while ``i < pool_layers``. Input is
    (B, in_channels, height, width), output (B, classes).

    ``surfaces="post"`` puts one slot behind each block (r0c0, r0c1, ...); "both" puts row 0 before the pool and row 1
    behind it. A higher ``norm_momentum`` makes evaluation less noisy while weights change fast and old statistics are
    stale. ``esper_env.CNNSpec`` describes the other arguments, but ``image_size`` may also be (height, width).
    ``slots`` are the ids of the slots to keep; None keeps all.

    Raises:
        ValueError: a number is out of its range, an even kernel, more pools than the image allows, an unknown surface
            or slot id.
    """

    topology = "cnn"

    def __init__(
        self,
        classes: int,
        n_blocks: int,
        base_channels: int,
        pool_layers: int,
        kernel: int,
        *,
        in_channels: int,
        image_size: int | tuple[int, int],
        surfaces: str = "post",
        norm_momentum: float = 0.1,
        slots: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        check_fields(
            CNNSpec,
            classes=classes,
            n_blocks=n_blocks,
            base_channels=base_channels,
            pool_layers=pool_layers,
            kernel=kernel,
            surfaces=surfaces,
        )
        _check_geometry(n_blocks, pool_layers, kernel, size)
        pieces: list[list[nn.Module]] = [[]]
        placed: list[SlotSpec] = []
        channels = in_channels
        for block in range(n_blocks):
            width = base_channels * 2**block
            pieces[-1] += [
                nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width, momentum=norm_momentum),
            ]
            channels = width
            pool: list[nn.Module] = [nn.MaxPool2d(2)] if block < pool_layers else []
            pooled = (size[0] // 2, size[1] // 2) if pool else size
            # Max-pooling and ReLU commute exactly, and pooling first leaves ReLU a quarter of the elements.
            ends = [("post-pool", 0, [*pool, nn.ReLU()], pooled)]
            if surfaces == "both":
                ends = [("pre-pool", 0, [nn.ReLU()], size), ("post-pool", 1, pool, pooled)]
            for surface, row, layers, size in ends:
                pieces[-1] += layers
                spec = SlotSpec(f"r{row}c{block}", width, surface, row, block, -1, (width, *size))
                if slots is None or spec.slot_id in slots:
                    placed.append(spec)
                    pieces.append([])
        pieces[-1] += [GlobalAveragePool(), nn.Linear(channels, classes)]
        self.segments = nn.ModuleList(nn.Sequential(*piece) for piece in pieces)
        self.slots, self.execution_order = in_action_order(placed, slots)
        _mix_signs(self.segments)
        _use_channels_last(self)


def _check_geometry(n_blocks: int, pool_layers: int, kernel: int, size: tuple[int, int]) -> None:
    if kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel}; expected an odd number so that the size is kept")
    if pool_layers > n_blocks:
        raise ValueError(f"pool_layers is {pool_layers}; expected 0 to n_blocks = {n_blocks}")
    if min(size) >> pool_layers < 2:
        raise ValueError(
            f"{pool_layers} pools shrink a {size[0]}x{size[1]} image below 2x2, where a seed has nothing to see; "
            f"use fewer pool_layers"
        )


def _mix_signs(segments: nn.ModuleList) -> None:
    """Alternate the signs of first-layer filters that are a single weight.

    Such a filter only scales the image, and max-pooling behind a negative one keeps the background. One in sixteen
    small hosts would have negative filters only and could not learn.
    """
    first = next(layer for layer in segments.modules() if isinstance(layer, nn.Conv2d))
    if first.weight[0].numel() == 1:
        with torch.no_grad():
            signs = torch.ones_like(first.weight)
            signs[1::2] = -1.0
            first.weight.copy_(first.weight.abs() * signs)


def _use_channels_last(module: nn.Module) -> None:
    """Store convolution weights in channels_last, the faster layout for CPU and accelerator convolutions."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
