"""Host segments as they are evaluated: each BatchNorm folded into the convolution in front of it.

In eval mode BatchNorm multiplies a channel by a constant and adds one. The factor goes into the convolution's weights
once, not into every image's features, and the addition behind the pooling, where a quarter of the values is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from esper_env.population.engine.vmapped import is_plain

Tensors = Mapping[str, Tensor]


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """x plus a constant; without gradients in place, so what is given must be a result of its own."""
    shift = shift.to(x.dtype)  # in mixed precision the features' own
    return x + shift if torch.is_grad_enabled() else x.add_(shift)


class Rectifier(nn.Module):
    """ReLU; without gradients in place, so it must stand behind one of ``OWN_RESULT``."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x, inplace=not torch.is_grad_enabled())


class ChannelShift(nn.Module):
    """(B, C, H, W) plus a constant for each channel, behind a convolution: see :func:`shifted`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return shifted(x, self.shift[:, None, None])


#: Layers whose result is never their input, nor a view of it.
OWN_RESULT = (ChannelShift, nn.Conv2d, nn.MaxPool2d)


class _Fold(NamedTuple):
    """Names of a convolution and of the BatchNorm behind it, and the constant in its denominator."""

    conv: str
    norm: str
    eps: float


class InferenceForm:
    """A module that computes in eval mode what a host segment does, and how its tensors follow from the segment's.

    Segments other than an ``nn.Sequential`` of library layers stay as they are.
    """

    def __init__(self, segment: nn.Module) -> None:
        self.module = segment
        self._folds: list[_Fold] = []
        if type(segment) is nn.Sequential:
            layers = [(name, layer) for name, layer in segment._modules.items() if layer is not None]  # with repeats
            self.module = self._folded(layers)

    def tensors(self, own: Tensors) -> Tensors:
        """The form's parameters and buffers from those of the segment, each with its leading network dimension."""
        if not self._folds:
            return own
        result = dict(own)
        for fold in self._folds:
            mean, variance, weight, bias = (
                result.pop(f"{fold.norm}.{name}") for name in ("running_mean", "running_var", "weight", "bias")
            )
            del result[f"{fold.norm}.num_batches_tracked"]
            factor = weight * torch.rsqrt(variance + fold.eps)  # (n, C)
            kernel = result[f"{fold.conv}.weight"]
            result[f"{fold.conv}.weight"] = kernel * factor[:, :, None, None, None]
            result[f"{fold.norm}.shift"] = torch.addcmul(bias, factor, mean, value=-1)
        return result

    def _folded(self, children: list[tuple[str, nn.Module]]) -> nn.Sequential:
        form = nn.Sequential()
        while children:
            name, child = children.pop(0)
            in_place = is_plain(child, nn.ReLU) and len(form) > 0 and _makes_its_own(form[-1])
            form.add_module(name, Rectifier() if in_place else child)
            if not children or not _can_fold(child, children[0][1]):
                continue
            norm_name, norm = children.pop(0)
            assert isinstance(norm, nn.BatchNorm2d)
            self._folds.append(_Fold(name, norm_name, norm.eps))
            if children and is_plain(children[0][1], nn.MaxPool2d):
                form.add_module(*children.pop(0))
            shift = ChannelShift(norm.num_features).requires_grad_(False)
            form.add_module(norm_name, shift.to(norm.weight))
        return form


def _makes_its_own(layer: nn.Module) -> bool:
    return any(is_plain(layer, kind) for kind in OWN_RESULT)


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        is_plain(conv, nn.Conv2d)
        and conv.bias is None
        and is_plain(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.track_running_stats
    )
