"""Batching rules for sequences: run n copies of a module on features (n, B, T, width) as one.

A copy's samples and positions are rows of one matrix, so a linear layer of n networks is one batched matmul, and
attention sees n * B samples. ``RULES`` maps a layer type to its batched form. A module without a rule, such as a custom
seed, runs through ``torch.func.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper_env.hosts.attention import CausalSelfAttention, FlexCausalSelfAttention
from esper_env.hosts.transformer import Residual, TiedHead, TokenEmbedding
from esper_env.population.engine.vmapped import Tensors, register_rule, rule_of, run_mapped
from esper_env.seeds.blend import CausalBlendGate, causal_mean
from esper_env.seeds.transformer import LowRank, ScaledResidual, TokenNormSeed

#: (module, tensors, prefix of its names, features) -> features
Rule = Callable[..., Tensor]

RULES: dict[type[nn.Module], Rule] = {}
_rule = partial(register_rule, RULES)


def run(module: nn.Module, tensors: Tensors, x: Tensor, prefix: str = "") -> Tensor:
    """Run n copies of ``module`` on (n, B, T, width) features, or (n, B, T) tokens."""
    rule = rule_of(RULES, module)
    return run_mapped(module, tensors, prefix, x) if rule is None else rule(module, tensors, prefix, x)


def _per_feature(value: Tensor) -> Tensor:
    """(n, width) shaped to broadcast against (n, B, T, width)."""
    return value[:, None, None]


def _matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map (n, B, T, inputs) with (n, outputs, inputs) and (n, outputs) to (n, B, T, outputs)."""
    rows = x.flatten(1, 2)
    out = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)
    return out.view(*x.shape[:3], -1)


@_rule(nn.Sequential)
def _sequential(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    for name, child in module._modules.items():  # named_children skips repeated layers
        assert child is not None
        x = run(child, tensors, x, f"{prefix}{name}.")
    return x


@_rule(nn.ReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Identity)
def _elementwise(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:  # noqa: ARG001
    return module(x)  # type: ignore[no-any-return]


@_rule(nn.Linear)
def _linear(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    if x.dim() != 4:
        return run_mapped(module, tensors, prefix, x)
    bias = None if module.bias is None else tensors[prefix + "bias"]
    return _matmul(x, tensors[prefix + "weight"], bias)


@_rule(nn.LayerNorm)
def _layer_norm(module: nn.LayerNorm, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    if module.normalized_shape != x.shape[3:] or prefix + "weight" not in tensors or prefix + "bias" not in tensors:
        return run_mapped(module, tensors, prefix, x)
    weight, bias = (_per_feature(tensors[prefix + name]) for name in ("weight", "bias"))
    return F.layer_norm(x, x.shape[3:], eps=module.eps) * weight + bias


@_rule(CausalSelfAttention, FlexCausalSelfAttention)
def _attention(module: CausalSelfAttention, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    seen = module.mixed(_linear(module.inputs, tensors, f"{prefix}inputs.", x))
    return _linear(module.output, tensors, f"{prefix}output.", seen)


@_rule(Residual)
def _residual(module: Residual, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    return x + run(module.branch, tensors, x, f"{prefix}branch.")


@_rule(ScaledResidual)
def _scaled_residual(module: ScaledResidual, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    branch = run(module.branch, tensors, x, f"{prefix}branch.")
    return torch.addcmul(x, _per_feature(tensors[prefix + "scale"]), branch)


@_rule(TokenNormSeed)
def _norm_seed(module: TokenNormSeed, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    normed = _layer_norm(module.norm, tensors, f"{prefix}norm.", x)
    return torch.addcmul(x, _per_feature(torch.tanh(tensors[prefix + "gate"])), normed - x)


@_rule(LowRank)
def _low_rank(module: LowRank, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:  # noqa: ARG001
    return x + _matmul(_matmul(x, tensors[prefix + "down.weight"]), tensors[prefix + "up.weight"])


@_rule(TokenEmbedding)
def _embedding(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:  # noqa: ARG001
    table = tensors[prefix + "tokens.weight"]  # (n, vocab, width)
    first_row = torch.arange(0, table.shape[0] * table.shape[1], table.shape[1], device=x.device)
    embedded = F.embedding(x + first_row[:, None, None], table.flatten(0, 1))
    return embedded + tensors[prefix + "positions.weight"][:, None, : x.shape[-1]]


@_rule(TiedHead)
def _tied_head(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:  # noqa: ARG001
    return _matmul(x, tensors[prefix + "weight"])


@_rule(CausalBlendGate)
def _blend_gate(module: CausalBlendGate, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    hidden = F.silu(_linear(module.squeeze, tensors, f"{prefix}squeeze.", causal_mean(x)))
    return torch.sigmoid(_linear(module.excite, tensors, f"{prefix}excite.", hidden))
