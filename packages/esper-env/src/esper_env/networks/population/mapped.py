"""Copies of any module through ``torch.func.vmap``: what has no batching rule of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap


def run_mapped(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """Run n copies of a module, whose tensors are under ``prefix``, on (n, B, ...): the module sees (B, ...)."""
    own = {name: tensors[prefix + name] for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    # Mixed precision does not reach everything inside vmap: such modules run in the precision of their tensors.
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = next((value.dtype for value in own.values() if value.is_floating_point()), x.dtype)
        with torch.autocast(kind, enabled=False):
            return _mapped(module, own, x.to(dtype)).to(x.dtype)
    return _mapped(module, own, x)


def _mapped(module: nn.Module, own: Mapping[str, Tensor], x: Tensor) -> Tensor:
    out: Tensor = vmap(lambda state, value: functional_call(module, state, (value,)))(own, x)
    return out
