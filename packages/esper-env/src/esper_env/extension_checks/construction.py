"""Construction of modules from a seed, independent of PyTorch's default generators and of its default dtype."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from esper_env.extension_checks.modes import OwnDraws, float32_by_default

#: Seed of modules that are built to be tried, or as templates; no user is likely to choose it.
TRIAL_SEED = 0x6573706572
#: Methods of a generator that decide what it draws next.
_SEEDING = ("manual_seed", "seed", "set_state", "graphsafe_set_state", "set_offset")


@contextmanager
def seeded_construction(seed: int) -> Iterator[None]:
    """Context in which a module gets the weights that it would get after ``torch.manual_seed(seed)``.

    The process's default generators do not change, and its default dtype has no effect.
    """
    with float32_by_default(), OwnDraws(seed):
        yield


def build_reproducibly(build: Callable[[], nn.Module], what: str = "") -> nn.Module:
    """Build a module from a seed, twice, and check that the seed determines it.

    Args:
        build: builds the module.
        what: name of the module for errors, such as "blueprint 'mixer'".

    Raises:
        TypeError: the function does not return a module.
        ValueError: two modules built from the same seed differ or share parameters; the function seeds a default
            generator; a parameter is frozen, complex or lazy.
    """
    built: list[dict[str, Tensor]] = []
    for _ in range(2):
        module = _built_without_seeding(build, what)
        if not isinstance(module, nn.Module):
            raise TypeError(f"the function that builds a network returned {module!r}; expected a torch.nn.Module")
        name, parameters = type(module).__name__, dict(module.named_parameters())
        subject = f"{what}: a {name}" if what else f"a {name}"
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


def _built_without_seeding(build: Callable[[], nn.Module], what: str) -> nn.Module:
    """Build from the trial seed, and raise ``ValueError`` if that seeds a default generator, before it changes.

    The generators belong to the process, so their states do not show which thread has seeded them. Calls are watched
    instead, in a new thread, which no profiler watches.
    """
    places: list[str] = []

    def watch(frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call" or function.__name__ not in _SEEDING:
            return
        if getattr(function, "__self__", None) in (torch.default_generator, *torch.cuda.default_generators):
            while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("torch."):
                frame = frame.f_back
            places.append(f"{what}: {frame.f_code.co_qualname}" if what else frame.f_code.co_qualname)
            raise ValueError(f"{places[0]} seeds PyTorch's default generator")

    def work() -> nn.Module:
        sys.setprofile(watch)
        with seeded_construction(TRIAL_SEED):
            return build()

    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(work)
    if places:
        raise ValueError(
            f"{places[0]} seeds PyTorch's default generator, which the whole process shares; remove "
            "torch.manual_seed from it, and draw constants from a torch.Generator"
        )
    return built.result()


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """True for tensors with equal values; NaN equals NaN."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
