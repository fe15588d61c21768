"""Host segments in the form in which they are evaluated: each BatchNorm is folded into the convolution before it.

In eval mode, BatchNorm multiplies a channel by a constant and adds another. The factor is multiplied into the weights
of the convolution. The constant is added after the pooling, which leaves a quarter of the values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper_env.population.engine.vmapped import Tensors, is_normed_conv, is_plain


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """Add a constant to x; without gradients it does so in place, so no other tensor may share the memory of x."""
    shift = shift.to(x.dtype)  # differs in mixed precision
    return x + shift if torch.is_grad_enabled() else x.add_(shift)


class Rectifier(nn.Module):
    """ReLU; without gradients it works in place, so it must follow a layer of ``OWN_RESULT``."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x, inplace=not torch.is_grad_enabled())


class ChannelShift(nn.Module):
    """Adds a constant to each channel of (B, C, H, W) behind a convolution, see :func:`shifted`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return shifted(x, self.shift[:, None, None])


#: Layers whose result is neither their input nor a view of it.
OWN_RESULT = (ChannelShift, nn.Conv2d, nn.MaxPool2d)


class InferenceForm:
    """A module that computes the same as a host segment in eval mode, faster.

    A plain ``nn.Sequential`` is folded; any other segment is used as it is. ``module`` runs with the result of
    ``tensors``.
    """

    def __init__(self, segment: nn.Module) -> None:
        self.module = segment
        self._folds: list[tuple[str, str, float]] = []  # names of convolution and BatchNorm, and its epsilon
        if is_plain(segment, nn.Sequential):
            layers = [(name, layer) for name, layer in segment._modules.items() if layer is not None]  # with repeats
            self.module = self._folded(layers)

    def tensors(self, own: Tensors) -> Tensors:
        """Return the module's tensors from the segment's, each with a leading network dimension."""
        if not self._folds:
            return own
        result = dict(own)
        for conv, norm, eps in self._folds:
            mean, variance, weight, bias = (
                result.pop(f"{norm}.{name}") for name in ("running_mean", "running_var", "weight", "bias")
            )
            del result[f"{norm}.num_batches_tracked"]
            factor = weight * torch.rsqrt(variance + eps)  # (n, C)
            result[f"{conv}.weight"] = result[f"{conv}.weight"] * factor[:, :, None, None, None]
            result[f"{norm}.shift"] = torch.addcmul(bias, factor, mean, value=-1)
        return result

    def _folded(self, children: list[tuple[str, nn.Module]]) -> nn.Sequential:
        form = nn.Sequential()
        while children:
            name, child = children.pop(0)
            behind_own = len(form) > 0 and any(is_plain(form[-1], kind) for kind in OWN_RESULT)
            in_place = is_plain(child, nn.ReLU) and behind_own
            form.add_module(name, Rectifier() if in_place else child)
            if not children or not is_normed_conv(child, children[0][1]):
                continue
            norm_name, norm = children.pop(0)
            assert isinstance(norm, nn.BatchNorm2d)
            self._folds.append((name, norm_name, norm.eps))
            if children and is_plain(children[0][1], nn.MaxPool2d):
                form.add_module(*children.pop(0))
            shift = ChannelShift(norm.num_features).requires_grad_(False)
            form.add_module(norm_name, shift.to(norm.weight))
        return form
