"""Inputs and comparisons that reveal what a module depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Samples of a trial: an odd number that few layers have as a size.
SAMPLES = 3
#: Largest change of a parameter, to reveal what a small value at birth hides.
SCRAMBLE = 0.5
#: Largest number of positions at which a sequence is cut to test for look-ahead.
MOST_CUTS = 32


def trial_samples(samples: Tensor) -> Tensor:
    """Return ``SAMPLES`` of the samples (B, ...), repeated if there are fewer."""
    return samples[torch.arange(SAMPLES, device=samples.device) % len(samples)]


def has_dropout(module: nn.Module) -> bool:
    """True if a layer of the module is dropout with a positive probability."""
    return any(isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0 for layer in module.modules())


@contextmanager
def watched_generator(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True once a default generator, of the CPU or the device, was drawn from.

    Both generators are restored on exit.
    """
    on_cuda = device.type == "cuda"

    def states() -> list[Tensor]:
        own = [torch.cuda.get_rng_state(device)] if on_cuda else []
        return [torch.default_generator.get_state(), *own]

    before = states()
    try:
        yield lambda: not all(map(torch.equal, states(), before))
    finally:
        torch.default_generator.set_state(before[0])
        if on_cuda:
            torch.cuda.set_rng_state(before[1], device)


def scrambled(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters far from birth, where a zero or small scale hides the layers behind it."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + SCRAMBLE * (2 * torch.rand(value.shape, generator=generator) - 1).to(value)
        for name, value in parameters.items()
    }


def cut_positions(length: int) -> list[int]:
    """Return the positions 1..length-1 of a sequence, or ``MOST_CUTS`` of them evenly spread."""
    count = min(length - 1, MOST_CUTS)
    return [1 + (length - 1) * index // count for index in range(count)]


def is_close(one: Tensor, other: Tensor) -> bool:
    """True if the tensors are equal up to rounding by another order of summation or an accelerator's precision."""
    tolerance = 1e-4 if one.device.type == "cpu" else 1e-2
    finite = other[other.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=tolerance * size, equal_nan=True)
