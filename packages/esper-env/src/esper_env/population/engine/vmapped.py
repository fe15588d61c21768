"""Batching rules by the type of a module, and ``torch.func.vmap`` for what has none of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

R = TypeVar("R")
L = TypeVar("L", bound=nn.Module)


def entered(rules: dict[type[nn.Module], R], *types: type[nn.Module]) -> Callable[[R], R]:
    """A decorator that makes a function the rule of these types."""

    def enter(rule: R) -> R:
        rules.update(dict.fromkeys(types, rule))
        return rule

    return enter


def hooked(module: nn.Module) -> bool:
    """Whether something is called before or behind the module, which rules and folding would pass over."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def is_plain(layer: nn.Module, kind: type[L]) -> TypeGuard[L]:
    """Whether a layer is exactly of a type, and nothing is hooked to it."""
    return type(layer) is kind and not hooked(layer)


def rule_of(rules: Mapping[type[nn.Module], R], module: nn.Module) -> R | None:
    """The rule of a module's type, if the module has one and nothing is hooked to it."""
    return None if hooked(module) else rules.get(type(module))


def run_mapped(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """Run n copies of a module, whose tensors are under ``prefix``, on (n, B, ...): the module sees (B, ...)."""
    own = {name: tensors[prefix + name] for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    # Mixed precision does not reach everything inside vmap: such modules run in the precision of their tensors.
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = next((value.dtype for value in own.values() if value.is_floating_point()), x.dtype)
        with torch.autocast(kind, enabled=False):
            if not x.is_floating_point():  # tokens
                return _mapped(module, own, x)
            return _mapped(module, own, x.to(dtype)).to(x.dtype)
    return _mapped(module, own, x)


def _mapped(module: nn.Module, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    out: Tensor = vmap(lambda state, value: functional_call(module, state, (value,)))(own, x)
    return out
