"""Batching rules by the type of a module, and ``torch.func.vmap`` for modules without a rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

R = TypeVar("R")
L = TypeVar("L", bound=nn.Module)

#: Parameters and buffers by qualified name, each with a leading network dimension.
Tensors = Mapping[str, Tensor]


def register_rule(rules: dict[type[nn.Module], R], *types: type[nn.Module]) -> Callable[[R], R]:
    """Return a decorator that makes a function the rule of these types."""

    def register(rule: R) -> R:
        rules.update(dict.fromkeys(types, rule))
        return rule

    return register


def has_hooks(module: nn.Module) -> bool:
    """True if the module has hooks, which rules and folding would skip."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def is_plain(layer: nn.Module, kind: type[L]) -> TypeGuard[L]:
    """True if a layer is exactly of a type and has no hooks."""
    return type(layer) is kind and not has_hooks(layer)


def is_normed_conv(conv: nn.Module, norm: nn.Module) -> bool:
    """Return True for a convolution without bias and an ordinary BatchNorm after it, which can be merged."""
    return (
        is_plain(conv, nn.Conv2d)
        and conv.bias is None
        and is_plain(norm, nn.BatchNorm2d)
        and norm.affine
        and norm.track_running_stats
    )


def rule_of(rules: Mapping[type[nn.Module], R], module: nn.Module) -> R | None:
    """Return the rule of a module's type; None if it has none, or if the module has hooks."""
    return None if has_hooks(module) else rules.get(type(module))


def run_mapped(module: nn.Module, tensors: Tensors, prefix: str, x: Tensor) -> Tensor:
    """Run n copies of a module on (n, B, ...) by ``vmap``; their tensors have names that begin with ``prefix``."""
    own = {name: tensors[prefix + name] for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return _mapped(module, own, x)
    # Autocast does not reach every operation inside vmap, so the module runs in the precision of its tensors.
    with torch.autocast(kind, enabled=False):
        if not x.is_floating_point():  # tokens
            return _mapped(module, own, x)
        dtype = next((value.dtype for value in own.values() if value.is_floating_point()), x.dtype)
        return _mapped(module, own, x.to(dtype)).to(x.dtype)


def _mapped(module: nn.Module, own: Tensors, x: Tensor) -> Tensor:
    out: Tensor = vmap(lambda state, value: functional_call(module, state, (value,)))(own, x)
    return out
