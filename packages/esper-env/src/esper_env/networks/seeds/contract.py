"""What a module must honour to be a seed, checked for all that a host is offered when its networks are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from esper_env.networks.construction import build_reproducibly, watched_generator
from esper_env.networks.hosts.protocol import SlotSpec
from esper_env.networks.seeds.registry import BlueprintEntry, offered_blueprints

REMEDY = "change the blueprint's factory"


def check_blueprints(topology: str, slots: Sequence[SlotSpec], dtype: torch.dtype) -> None:
    """Try every blueprint of a topology at every slot, on the CPU, so that no legal action fails later.

    Raises:
        ValueError: a factory fails, or makes what cannot be a seed; see :func:`check_seed`.
    """
    for slot in slots:
        for entry in offered_blueprints(topology):
            check_blueprint(entry, slot.shape, dtype, torch.device("cpu"))


@cache
def check_blueprint(entry: BlueprintEntry, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Try a blueprint on features of a shape, (C, H, W) or (T, C). What has passed is not tried again."""
    channels = shape[0] if len(shape) == 3 else shape[1]
    module = build_reproducibly(lambda: entry.build(channels))
    values = torch.linspace(-1.0, 1.0, 2 * math.prod(shape), device=device, dtype=dtype)
    check_seed(module.to(device=device, dtype=dtype), entry.name, values.view(2, *shape))


@torch.no_grad()
def check_seed(module: nn.Module, name: str, x: Tensor) -> None:
    """Try a freshly built seed on features ``x``, (B, C, H, W) or (B, T, C), which stay as they are.

    Raises:
        ValueError: the module fails on the features, changes their shape or dtype, writes into its input or its buffers
            (batch statistics, say), draws random numbers (dropout), which would couple networks, or looks ahead in a
            sequence.
    """
    if any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in module.modules()):
        raise ValueError(f"blueprint {name!r} has dropout, which draws from the global generator; {REMEDY}")
    if len(list(module.named_parameters())) < len(list(module.named_parameters(remove_duplicate=False))):
        raise ValueError(f"blueprint {name!r} uses a parameter in two places; {REMEDY} to give each its own")
    buffers = {key: value.clone() for key, value in module.named_buffers()}
    given = x.clone()
    with watched_generator(x.device) as drawn:
        try:
            out = module(given)
        except Exception as error:
            shape = tuple(x.shape)
            raise ValueError(f"blueprint {name!r} cannot run on {shape} {x.dtype} ({error}); {REMEDY}") from error
        if drawn():
            raise ValueError(f"blueprint {name!r} draws from the global generator when it runs; {REMEDY}")
    if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"blueprint {name!r} turns {tuple(x.shape)} {x.dtype} into {got}; {REMEDY} to keep both")
    if not torch.equal(given, x):
        raise ValueError(
            f"blueprint {name!r} writes into its input, which the host still needs; {REMEDY} (inplace=False)"
        )
    for key, value in module.named_buffers():
        if not torch.equal(value, buffers[key]):
            raise ValueError(
                f"blueprint {name!r} writes into its buffer {key!r}; seeds keep no statistics: {REMEDY} to normalise "
                "with GroupNorm or LayerNorm"
            )
    if x.dim() == 3:
        changed = x.clone()
        changed[:, -1] += 1.0
        if not torch.allclose(module(changed)[:, :-1], out[:, :-1], rtol=0.0, atol=1e-6):
            raise ValueError(
                f"blueprint {name!r} looks ahead: what it makes of the first positions depends on the last one; "
                f"{REMEDY} so that a position sees itself and what came before"
            )
