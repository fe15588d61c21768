"""Building modules from a seed, whatever PyTorch's global generators do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: What modules are built from to be tried: not a seed that anybody chooses.
TRIAL_SEED = 0x6573706572
#: What is added, at most, to every parameter to see what a small one at birth hides.
SCRAMBLE = 0.5
#: At how many places a sequence is cut to see whether a module looks ahead, at most.
MOST_CUTS = 32


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
    """A module, built from a seed, and built once more to see that the seed decides what it holds.

    Raises:
        TypeError: what is built is no module.
        ValueError: two modules built from the same seed differ, or are the same one; they are built from a seed of
            their own; a parameter is frozen, complex, or has no shape yet.
    """
    made: list[nn.Module] = []
    for _ in range(2):
        with seeded_construction(TRIAL_SEED):
            module: object = build()
            reseeded = torch.default_generator.initial_seed() != TRIAL_SEED
        if not isinstance(module, nn.Module):
            raise TypeError(f"what builds a network returned {module!r}; expected a torch.nn.Module")
        if reseeded:
            raise ValueError(
                f"building a {type(module).__name__} seeds PyTorch's default generator, so that every network begins "
                "with the same weights; leave torch.manual_seed out of it"
            )
        _check_parameters(module)
        made.append(module)
    if {id(value) for value in made[0].parameters()} & {id(value) for value in made[1].parameters()}:
        raise ValueError(
            f"a {type(made[0]).__name__} built twice has the same parameters twice; what builds it has to make a new "
            "module every time"
        )
    first, second = ({**dict(one.named_parameters()), **dict(one.named_buffers())} for one in made)
    differing = [name for name in first.keys() | second.keys() if not _same(first.get(name), second.get(name))]
    if differing:
        raise ValueError(
            f"a {type(made[0]).__name__} built twice from the same seed has other values in {min(differing)}; its "
            "constructor has to draw from PyTorch's default generator (torch.nn.init, torch.randn) and nowhere else"
        )
    return made[0]


def _check_parameters(module: nn.Module) -> None:
    """``ValueError`` for parameters that cannot be trained as rows of real numbers."""
    lazy = [name for name, value in module.named_parameters() if is_lazy(value)]
    troubles = {
        "that get their shape when they are first used": (lazy, "give every layer its sizes"),
        "that are frozen": (
            [name for name, value in module.named_parameters() if not value.requires_grad],
            "every parameter is trained: make what is not to be trained a buffer (register_buffer)",
        ),
        "that are complex": (
            [name for name, value in module.named_parameters() if name not in lazy and value.is_complex()],
            "keep real and imaginary parts as two real ones (torch.view_as_complex)",
        ),
    }
    for what, (names, remedy) in troubles.items():
        if names:
            raise ValueError(f"a {type(module).__name__} has parameters {what} ({', '.join(names[:5])}); {remedy}")


def drops(layer: nn.Module) -> bool:
    """Whether a layer is dropout that drops something."""
    return isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0


@contextmanager
def watched_generator(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Yields what tells whether the default generator, of the CPU or the device, has been drawn from.

    Both are put back on leaving.
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
    """The parameters far from where they begin: a scale that is zero or small at birth would hide what is behind it."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value + SCRAMBLE * (2 * torch.rand(value.shape, generator=generator) - 1).to(value)
        for name, value in parameters.items()
    }


def cuts(length: int) -> list[int]:
    """Positions 1..length-1 of a sequence, all or an even choice of them."""
    count = min(length - 1, MOST_CUTS)
    return [1 + (length - 1) * index // count for index in range(count)]


def alike(one: Tensor, other: Tensor) -> bool:
    """Equal within what another order of summation, or an accelerator's shorter numbers, makes of it."""
    tolerance = 1e-4 if one.device.type == "cpu" else 1e-2
    finite = other[other.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=tolerance * size, equal_nan=True)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
