"""Checks of a module before it is used as a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from esper_env.extension_checks.probes import cut_positions, has_dropout, is_close, scrambled, watched_generator

REMEDY = "change the blueprint's factory"


@torch.no_grad()
def check_seed(module: nn.Module, name: str, x: Tensor) -> None:
    """Try a freshly built seed on features ``x``, (B, C, H, W) or (B, T, C) with B > 1, which stay unchanged.

    Raises:
        ValueError: the module fails on the features, changes their shape or dtype, writes into its input or its
            buffers, draws random numbers, mixes samples, or looks ahead in a sequence.
    """
    if has_dropout(module):
        raise ValueError(f"blueprint {name!r} has dropout, which draws from the global generator; {REMEDY}")
    if len(list(module.named_parameters())) < len(list(module.named_parameters(remove_duplicate=False))):
        raise ValueError(f"blueprint {name!r} uses a parameter in two places; {REMEDY} to give each its own")
    _check_run(module, name, x)
    born: dict[str, Tensor] = dict(module.named_parameters())
    checks = [_check_samples, _check_order] if x.dim() == 3 else [_check_samples]
    for check in checks:  # the second one relies on the first
        for parameters in (born, scrambled(born)):
            check(module, name, parameters, x)


def _check_run(module: nn.Module, name: str, x: Tensor) -> None:
    """Check that one pass succeeds, keeps the shape, and changes nothing else."""
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


def _check_samples(module: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> None:
    """Check that each sample's output is independent of the rest of the batch."""
    batch = functional_call(module, parameters, (x,))
    for place in range(len(x)):
        try:
            single = functional_call(module, parameters, (x[place : place + 1],))
        except Exception as error:
            raise ValueError(f"blueprint {name!r} cannot run on a single sample ({error}); {REMEDY}") from error
        if single.shape != x[:1].shape or not is_close(single[0], batch[place]):
            raise ValueError(
                f"blueprint {name!r} mixes samples: its output for one depends on the others; {REMEDY} to process each "
                "sample independently"
            )


def _check_order(module: nn.Module, name: str, parameters: dict[str, Tensor], x: Tensor) -> None:
    """Check that no position of a sequence depends on a later one, whether those fall or rise."""
    before = functional_call(module, parameters, (x[:1],))[0]
    places = cut_positions(x.shape[1])
    for change in (1.0, -1.0, 50.0, -50.0):
        changed = x[:1].repeat(len(places), 1, 1)
        for sequence, cut in zip(changed, places, strict=True):
            sequence[cut:] += change
        for sequence, cut in zip(functional_call(module, parameters, (changed,)), places, strict=True):
            if not is_close(sequence[:cut], before[:cut]):
                raise ValueError(
                    f"blueprint {name!r} looks ahead: its output before position {cut} depends on later positions; "
                    f"{REMEDY} so that a position depends on itself and earlier ones only"
                )
