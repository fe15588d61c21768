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


def build_reproducibly(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module from a seed, twice, and check that the seed determines it.

    Raises:
        TypeError: the function does not return a module.
        ValueError: two modules built from the same seed differ or share parameters; the constructor seeds the generator
            itself; a parameter is frozen, complex or lazy.
    """
    built: list[nn.Module] = []
    for _ in range(2):
        with seeded_construction(TRIAL_SEED):
            module: object = build()
            reseeded = torch.default_generator.initial_seed() != TRIAL_SEED
        if not isinstance(module, nn.Module):
            raise TypeError(f"the function that builds a network returned {module!r}; expected a torch.nn.Module")
        if reseeded:
            raise ValueError(
                f"the constructor of {type(module).__name__} seeds PyTorch's default generator, so every network would "
                "start from the same weights; remove torch.manual_seed from it"
            )
        _check_parameters(module)
        built.append(module)
    if {id(value) for value in built[0].parameters()} & {id(value) for value in built[1].parameters()}:
        raise ValueError(
            f"a {type(built[0]).__name__} built twice has the same parameters twice; the function that builds it must "
            "create a new module each time"
        )
    first, second = ({**dict(one.named_parameters()), **dict(one.named_buffers())} for one in built)
    differing = [name for name in first.keys() | second.keys() if not _same(first.get(name), second.get(name))]
    if differing:
        raise ValueError(
            f"a {type(built[0]).__name__} built twice from the same seed has other values in {min(differing)}; its "
            "constructor must draw from PyTorch's default generator only (torch.nn.init, torch.randn)"
        )
    return built[0]


def _check_parameters(module: nn.Module) -> None:
    """Reject parameters that cannot be trained as rows of real numbers."""
    lazy = [name for name, value in module.named_parameters() if is_lazy(value)]
    problems = {
        "lazy": (lazy, "give every layer its sizes"),
        "frozen": (
            [name for name, value in module.named_parameters() if not value.requires_grad],
            "every parameter is trained, so register constants as buffers (register_buffer)",
        ),
        "complex": (
            [name for name, value in module.named_parameters() if name not in lazy and value.is_complex()],
            "keep real and imaginary parts as two real parameters (torch.view_as_complex)",
        ),
    }
    for kind, (names, remedy) in problems.items():
        if names:
            raise ValueError(f"a {type(module).__name__} has {kind} parameters ({', '.join(names[:5])}); {remedy}")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
