"""Building modules from a seed, whatever PyTorch's global generators do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def seeded_construction(seed: int) -> Iterator[None]:
    """Build modules from a seed without moving the global generator.

    Layers initialise themselves from PyTorch's default generator; its state is put back on leaving.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        with torch.device("cpu"):  # whatever the user's default device is: its generator is not this one
            yield
    finally:
        torch.default_generator.set_state(state)


def build_reproducibly(build: Callable[[], nn.Module]) -> nn.Module:
    """A module, built from seed 0, and built once more to see that the seed decides what it holds.

    Raises:
        TypeError: what is built is no module.
        ValueError: two modules built from the same seed differ; a parameter is frozen.
    """
    made: list[nn.Module] = []
    for _ in range(2):
        with seeded_construction(0):
            module: object = build()
        if not isinstance(module, nn.Module):
            raise TypeError(f"what builds a network returned {module!r}; expected a torch.nn.Module")
        made.append(module)
    first, second = ({**dict(one.named_parameters()), **dict(one.named_buffers())} for one in made)
    differing = [name for name in first.keys() | second.keys() if not _same(first.get(name), second.get(name))]
    if differing:
        raise ValueError(
            f"a {type(made[0]).__name__} built twice from the same seed has other values in {min(differing)}; its "
            "constructor has to draw from PyTorch's default generator (torch.nn.init, torch.randn) and nowhere else"
        )
    frozen = [name for name, value in made[0].named_parameters() if not value.requires_grad]
    if frozen:
        raise ValueError(
            f"a {type(made[0]).__name__} has the frozen parameters {', '.join(frozen[:5])}; every parameter is "
            "trained: make what is not to be trained a buffer (register_buffer)"
        )
    return made[0]


@contextmanager
def watched_generator(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Yields what tells whether a device's default generator has been drawn from; it is put back on leaving."""
    on_cuda = device.type == "cuda"

    def state() -> Tensor:
        return torch.cuda.get_rng_state(device) if on_cuda else torch.default_generator.get_state()

    before = state()
    try:
        yield lambda: not torch.equal(state(), before)
    finally:
        if on_cuda:
            torch.cuda.set_rng_state(before, device)
        else:
            torch.default_generator.set_state(before)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
