"""Batching rules for images: run n copies of a module, each with its own parameters, as one.

A module is written once, for one network. Here its copies run on features of layout (n, C, H, W, B): network, channel,
row, column, sample. With the samples last, a 1x1 convolution is one batched matmul, BatchNorm sees plain (n*C, H*W*B)
rows, and pooling runs along contiguous samples. A 3x3 convolution on a small map is a batched matmul with its unrolled
matrix. Nothing is copied in between. Vectors are (n, F, B).

``RULES`` maps a layer type to its batched form. A module without a rule, such as a custom seed, runs through
``torch.func.vmap``, which is correct for any module and slower for small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper_env.hosts.cnn import GlobalAveragePool
from esper_env.population.engine.vmapped import Tensors, is_normed_conv, is_plain, register_rule, rule_of, run_mapped
from esper_env.population.evaluation.inference import ChannelShift, Rectifier, shifted
from esper_env.seeds.blend import BlendGate
from esper_env.seeds.cnn import LayerScaleResidual, NormSeed, SqueezeExcite

#: (module, tensors, prefix of its names, features, training) -> features
Rule = Callable[..., Tensor]

#: Above this many pixels the unrolled matrix of a convolution costs more than a grouped convolution.
UNROLL_MAX_PIXELS = 16

#: From this many output values on, the statistics of a convolution of one channel are faster to derive from its input.
GREY_MIN_VALUES = 1 << 17

RULES: dict[type[nn.Module], Rule] = {}
_rule = partial(register_rule, RULES)


def run(module: nn.Module, tensors: Tensors, x: Tensor, *, training: bool, prefix: str = "") -> Tensor:
    """Run n copies of ``module`` on (n, C, H, W, B) or (n, F, B); ``training`` selects the BatchNorm statistics."""
    rule = rule_of(RULES, module)
    if rule is None:
        return _vmapped(module, tensors, prefix, x, training)
    return rule(module, tensors, prefix, x, training)


def _vmapped(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    module.train(training)
    return run_mapped(module, tensors, prefix, x.movedim(-1, 1)).movedim(1, -1).contiguous()


def _per_channel(value: Tensor, like: Tensor) -> Tensor:
    """(n, C) shaped to broadcast against (n, C, ..., B)."""
    return value.view(*value.shape, *(1,) * (like.dim() - 2))


@_rule(nn.Sequential)
def _sequential(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    children = [(name, child) for name, child in module._modules.items() if child is not None]  # repeats included
    while children:
        name, child = children.pop(0)
        if training and children and _is_grey_start(child, children[0][1], x):
            norm_name, norm = children.pop(0)
            assert isinstance(norm, nn.BatchNorm2d)
            x, shift = _grey_start(f"{prefix}{name}.", norm, f"{prefix}{norm_name}.", tensors, x)
            if children and is_plain(children[0][1], nn.MaxPool2d):  # pool first, then add to fewer values
                x = _max_pool(children.pop(0)[1], tensors, "", x, training)
            x.add_(shift)
        else:
            x = run(child, tensors, x, training=training, prefix=f"{prefix}{name}.")
    return x


@_rule(nn.ReLU, Rectifier, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Identity)
def _elementwise(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:  # noqa: ARG001
    return module(x)  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def _taps(kernel: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(k*k, H*W*H*W) one-hot: 1 where output pixel p reads input pixel q through that tap ("same" padding)."""
    taps = torch.zeros(kernel, kernel, height, width, height, width, dtype=dtype, device=device)
    pad = kernel // 2
    for i in range(kernel):
        for j in range(kernel):
            for row in range(max(0, pad - i), min(height, height + pad - i)):
                for col in range(max(0, pad - j), min(width, width + pad - j)):
                    taps[i, j, row, col, row + i - pad, col + j - pad] = 1.0
    return taps.view(kernel * kernel, -1)


@_rule(nn.Conv2d)
def _conv2d(module: nn.Conv2d, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    weight = tensors[prefix + "weight"]  # (n, O, I/groups, k, k)
    kernel, groups = module.kernel_size[0], module.groups
    if not _keeps_size(module) or not (groups == 1 or groups == module.in_channels == module.out_channels):
        return _vmapped(module, tensors, prefix, x, training)
    if kernel == 1 and groups == 1:
        out = torch.bmm(weight.flatten(2), x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
    elif x.shape[2] * x.shape[3] <= UNROLL_MAX_PIXELS:
        height, width = x.shape[2:4]
        make = partial(_unrolled, weight, height, width, groups)
        out = _conv_by_matrix(_kept(tensors, f"{prefix}weight for {height}x{width}", make), x, groups)
    else:
        out = _conv_grouped(weight, x, groups)
    if module.bias is not None:
        out = out + _per_channel(tensors[prefix + "bias"], out)
    return out


def _keeps_size(module: nn.Conv2d) -> bool:
    """True for an ordinary convolution with an odd square kernel that reads zeros around the map."""
    kernel = module.kernel_size[0]
    return (
        kernel % 2 == 1
        and module.kernel_size == (kernel, kernel)
        and module.padding == (kernel // 2, kernel // 2)
        and module.stride == module.dilation == (1, 1)
        and module.padding_mode == "zeros"
    )


def _kept(tensors: Tensors, name: str, make: Callable[[], Tensor]) -> Tensor:
    """Compute a tensor that depends on tensors alone; while evaluating, compute it once and keep it among them."""
    if torch.is_grad_enabled() or not isinstance(tensors, dict):
        return make()
    if name not in tensors:
        tensors[name] = make()
    return tensors[name]  # type: ignore[no-any-return]


def _unrolled(weight: Tensor, height: int, width: int, groups: int) -> Tensor:
    """The matrix from input to output pixels: (n, O*p, I*p), or (n*O, p, p) for a depthwise convolution."""
    n, outputs, pixels = *weight.shape[:2], height * width
    taps = _taps(weight.shape[-1], height, width, weight.dtype, weight.device)
    matrix = (weight.reshape(-1, taps.shape[0]) @ taps).view(n, outputs, -1, pixels, pixels)  # (n, O, I/groups, p, q)
    if groups == 1:
        return matrix.transpose(2, 3).reshape(n, outputs * pixels, -1)
    return matrix.reshape(n * outputs, pixels, pixels)


def _conv_by_matrix(matrix: Tensor, x: Tensor, groups: int) -> Tensor:
    """A convolution on a small map as one matmul with its unrolled matrix."""
    n, channels, height, width, samples = x.shape
    rows = (n, channels * height * width) if groups == 1 else (n * channels, height * width)
    return torch.bmm(matrix, x.reshape(*rows, samples)).view(n, -1, height, width, samples)


def _conv_grouped(weight: Tensor, x: Tensor, groups: int) -> Tensor:
    """A convolution as one grouped convolution over all networks' channels."""
    n, channels, height, width, samples = x.shape
    outputs, kernel = weight.shape[1], weight.shape[-1]
    stacked = x.permute(4, 0, 1, 2, 3).reshape(samples, n * channels, height, width)
    out = F.conv2d(stacked, weight.flatten(0, 1), padding=kernel // 2, groups=n * groups)
    return out.view(samples, n, outputs, height, width).permute(1, 2, 3, 4, 0).contiguous()


@_rule(nn.BatchNorm2d)
def _batch_norm(module: nn.BatchNorm2d, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    if module.momentum is None or not module.track_running_stats:
        return _vmapped(module, tensors, prefix, x, training)
    rows = x.reshape(1, x.shape[0] * x.shape[1], -1)
    mean, variance, weight, bias = (
        None if (value := tensors.get(prefix + name)) is None else value.reshape(-1)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    if training:
        tensors[prefix + "num_batches_tracked"].add_(1)
    return F.batch_norm(rows, mean, variance, weight, bias, training, module.momentum, module.eps).view(x.shape)


def _is_grey_start(conv: Any, norm: Any, x: Tensor) -> bool:
    """True if a 1x1 convolution of grey images and the BatchNorm behind it are worth running as one matmul."""
    return (
        is_normed_conv(conv, norm)
        and norm.momentum is not None
        and (conv.kernel_size, conv.in_channels, conv.groups) == ((1, 1), 1, 1)
        and _keeps_size(conv)
        and not x.requires_grad
        and conv.out_channels * x.numel() >= GREY_MIN_VALUES
    )


def _grey_start(
    conv_prefix: str, norm: nn.BatchNorm2d, norm_prefix: str, tensors: Tensors, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a 1x1 convolution of one channel with weights that the BatchNorm behind it has scaled.

    The statistics of the output follow from those of the input, which needs no gradient. Returns the features
    (n, O, H, W, B), and the shift (n, O, 1, 1, 1) to add to them.
    """
    kernel, columns = tensors[conv_prefix + "weight"].flatten(2), x.flatten(2)  # (n, O, 1), (n, 1, H*W*B)
    # Normalised images have a mean that is small against their deviation, so E x^2 - (E x)^2 cancels little.
    mean = columns.mean(2, keepdim=True)  # (n, 1, 1)
    variance = torch.baddbmm(mean.square(), columns, columns.mT, beta=-1, alpha=1 / columns.shape[2])
    mean, variance = kernel * mean, kernel.square() * variance  # (n, O, 1), of the output
    count = columns.shape[2]
    assert norm.momentum is not None
    tensors[norm_prefix + "num_batches_tracked"].add_(1)
    tensors[norm_prefix + "running_mean"].lerp_(mean.detach().squeeze(2), norm.momentum)
    tensors[norm_prefix + "running_var"].lerp_(variance.detach().squeeze(2) * (count / (count - 1)), norm.momentum)
    factor = tensors[norm_prefix + "weight"].unsqueeze(2) * torch.rsqrt(variance + norm.eps)
    shift = torch.addcmul(tensors[norm_prefix + "bias"].unsqueeze(2), factor, mean, value=-1)
    out = torch.bmm(factor * kernel, columns).view(x.shape[0], -1, *x.shape[2:])
    return out, shift[..., None, None]


@_rule(ChannelShift)
def _channel_shift(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:  # noqa: ARG001
    return shifted(x, _per_channel(tensors[prefix + "shift"], x))


def _standardised(x: Tensor, eps: float) -> Tensor:
    """Each sample of (n, C, H, W, B) less its mean, over its deviation."""
    rows = x.flatten(1, -2)  # (n, C*H*W, B)
    if torch.is_grad_enabled():  # PyTorch's backward pass is worth the two transpositions
        samples = rows.transpose(1, 2)
        return F.layer_norm(samples, samples.shape[2:], eps=eps).transpose(1, 2).reshape(x.shape)
    centred = rows - rows.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    return centred.mul_(torch.rsqrt(variance + eps)).view(x.shape)


@_rule(nn.GroupNorm)
def _group_norm(module: nn.GroupNorm, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    if module.num_groups != 1 or not module.affine or x.dim() != 5:
        return _vmapped(module, tensors, prefix, x, training)
    weight, bias = (_per_channel(tensors[prefix + name], x) for name in ("weight", "bias"))
    # A product and a sum, because addcmul is not vectorised when it broadcasts over rows.
    return (_standardised(x, module.eps) * weight).add_(bias)


@_rule(nn.MaxPool2d)
def _max_pool(module: nn.MaxPool2d, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    halving = (module.kernel_size, module.stride, module.padding, module.dilation) == (2, 2, 0, 1)
    if not halving or module.ceil_mode:
        return _vmapped(module, tensors, prefix, x, training)
    channels_last = x.flatten(0, 1).permute(0, 3, 1, 2)  # (n*C, B, H, W), samples contiguous
    pooled = F.max_pool2d(channels_last, 2)
    samples_last = pooled.permute(0, 2, 3, 1).contiguous()
    return samples_last.view(*x.shape[:2], *samples_last.shape[1:])


@_rule(GlobalAveragePool)
def _average(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:  # noqa: ARG001
    return x.mean(dim=(2, 3))


@_rule(nn.Linear)
def _linear(module: nn.Linear, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    if x.dim() != 3:
        return _vmapped(module, tensors, prefix, x, training)
    if module.bias is None:
        return torch.bmm(tensors[prefix + "weight"], x)
    return torch.baddbmm(tensors[prefix + "bias"].unsqueeze(2), tensors[prefix + "weight"], x)


@_rule(LayerScaleResidual)
def _layer_scale(module: LayerScaleResidual, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    branch = run(module.branch, tensors, x, training=training, prefix=f"{prefix}branch.")
    return torch.addcmul(x, _per_channel(tensors[prefix + "scale"], x), branch)


@_rule(NormSeed)
def _norm_seed(module: NormSeed, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:
    normed = run(module.norm, tensors, x, training=training, prefix=f"{prefix}norm.")
    return torch.addcmul(x, _per_channel(torch.tanh(tensors[prefix + "gate"]), x), normed - x)


def _pooled_mlp(module: SqueezeExcite | BlendGate, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    """Map pooled features (n, C, H, W, B) to (n, outputs, B)."""
    hidden = F.silu(_linear(module.squeeze, tensors, f"{prefix}squeeze.", x.mean(dim=(2, 3)), False))
    return _linear(module.excite, tensors, f"{prefix}excite.", hidden, False)


@_rule(SqueezeExcite)
def _squeeze_excite(module: SqueezeExcite, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:  # noqa: ARG001
    return x * (2.0 * torch.sigmoid(_pooled_mlp(module, tensors, prefix, x)))[:, :, None, None, :]


@_rule(BlendGate)
def _blend_gate(module: BlendGate, tensors: Tensors, prefix: str, x: Tensor, training: bool) -> Tensor:  # noqa: ARG001
    return torch.sigmoid(_pooled_mlp(module, tensors, prefix, x))[:, :, None, None, :]
