"""Construction of modules from a seed, independent of PyTorch's global generators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: Seed of modules that are built to be tried, or as templates; no user is likely to choose it.
TRIAL_SEED = 0x6573706572


@contextmanager
def seeded_construction(seed: int) -> Iterator[None]:
    """Build modules from a seed without moving the global generator.

    Layers initialise themselves from PyTorch's default generator, whose state is restored on exit.
    """
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        with torch.device("cpu"):  # the user's default device would have another generator
            yield
    finally:
        torch.default_generator.set_state(state)


def build_reproducibly(build: Callable[[], nn.Module], what: str = "") -> nn.Module:
    """Build a module from a seed, twice, and check that the seed determines it.

    Args:
        build: builds the module.
        what: name of the module for errors, such as "blueprint 'mixer'".

    Raises:
        TypeError: the function does not return a module.
        ValueError: two modules built from the same seed differ or share parameters; the constructor seeds the generator
            itself; a parameter is frozen, complex or lazy.
    """
    built: list[dict[str, Tensor]] = []
    for _ in range(2):
        with seeded_construction(TRIAL_SEED):
            module = build()
            reseeded = torch.default_generator.initial_seed() != TRIAL_SEED
        if not isinstance(module, nn.Module):
            raise TypeError(f"the function that builds a network returned {module!r}; expected a torch.nn.Module")
        name, parameters = type(module).__name__, dict(module.named_parameters())
        subject = f"{what}: a {name}" if what else f"a {name}"
        if reseeded:
            raise ValueError(
                f"{subject} seeds PyTorch's default generator in its constructor, so every network would start from "
                "the same weights; remove torch.manual_seed from it"
            )
        unusable = [key for key, p in parameters.items() if is_lazy(p) or p.is_complex() or not p.requires_grad]
        if unusable:
            raise ValueError(
                f"{subject} has frozen, complex or lazy parameters ({', '.join(unusable[:5])}); every parameter is "
                "trained as real numbers: register constants as buffers, and give every layer its sizes"
            )
        built.append({**parameters, **dict(module.named_buffers())})
    first, second = built
    if {id(value) for value in first.values()} & {id(second[key]) for key in parameters}:
        raise ValueError(
            f"{subject} built twice has the same parameters twice; the function that builds it must create a new "
            "module each time"
        )
    differing = [key for key in first.keys() | second.keys() if not _same(first.get(key), second.get(key))]
    if differing:
        raise ValueError(
            f"{subject} built twice from the same seed has other values in {min(differing)}; its constructor must "
            "draw from PyTorch's default generator only (torch.nn.init, torch.randn)"
        )
    return module


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """True for tensors with equal values; NaN equals NaN."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
