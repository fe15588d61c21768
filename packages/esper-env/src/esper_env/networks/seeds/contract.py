"""What a module must honour to be a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper_env.networks.construction import watched_generator

REMEDY = "change the blueprint's factory"


@torch.no_grad()
def check_seed(module: nn.Module, name: str, x: Tensor) -> None:
    """Try a freshly built seed on features ``x``, (B, C, H, W) or (B, T, C), which stay as they are.

    Raises:
        ValueError: the module fails on the features, changes their shape or dtype, writes into its input or its buffers
            (batch statistics, say), draws random numbers (dropout), mixes samples, which would couple networks or
            minibatches, or looks ahead in a sequence.
    """
    if any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in module.modules()):
        raise ValueError(f"blueprint {name!r} has dropout, which draws from the global generator; {REMEDY}")
    if len(list(module.named_parameters())) < len(list(module.named_parameters(remove_duplicate=False))):
        raise ValueError(f"blueprint {name!r} uses a parameter in two places; {REMEDY} to give each its own")
    buffers = {key: value.clone() for key, value in module.named_buffers()}
    given = x.clone()
    untouched = given._version
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
    if given._version != untouched:
        raise ValueError(
            f"blueprint {name!r} writes into its input, which the host still needs; {REMEDY} (inplace=False)"
        )
    for key, value in module.named_buffers():
        if not torch.equal(value, buffers[key]):
            raise ValueError(
                f"blueprint {name!r} writes into its buffer {key!r}; seeds keep no statistics: {REMEDY} to normalise "
                "with GroupNorm or LayerNorm"
            )
    if not torch.allclose(module(x[:1]), out[:1], rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"blueprint {name!r} mixes samples: what it makes of the first one depends on the others; {REMEDY} so that "
            "each sample is seen alone"
        )
    if x.dim() == 3:
        changed = x.clone()
        changed[:, -1] += 1.0
        if not torch.allclose(module(changed)[:, :-1], out[:, :-1], rtol=0.0, atol=1e-6):
            raise ValueError(
                f"blueprint {name!r} looks ahead: what it makes of the first positions depends on the last one; "
                f"{REMEDY} so that a position sees itself and what came before"
            )
