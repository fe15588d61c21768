"""Initial values of modules from a seed, without building the modules.

Most of the time in which a module is built goes into Python objects that a population does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from esper_env.extension_checks.construction import TRIAL_SEED, seeded_construction
from esper_env.extension_checks.modes import OwnDraws, float32_by_default

_OPERATIONS = (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default)


class Draw(NamedTuple):
    """A random operation on a tensor of the module."""

    name: str
    operation: Any
    arguments: tuple[Any, ...]


class _Recorder(OwnDraws):  # type: ignore[no-untyped-call]
    """Records the random operations of a constructor."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.recorded: list[tuple[Any, tuple[Any, ...]]] = []

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before, self.drawn = self.drawn, False
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.drawn:
            self.recorded.append((func, tuple(args)))
        self.drawn |= before
        return result


class Recipe:
    """The draws and the constants that fill the tensors of a module."""

    def __init__(self, draws: Sequence[Draw], values: Mapping[str, Tensor], constants: Sequence[str]) -> None:
        drawn = {draw.name for draw in draws}
        self._draws, self._values = draws, values
        self._constants = {name: values[name].clone() for name in constants if name in drawn}

    @classmethod
    def of(cls, build: Callable[[], nn.Module]) -> Self | None:
        """Return the recipe of a constructor whose draws do not depend on earlier ones; None if there is none.

        Values that are computed from draws, such as orthogonal matrices, have no recipe.
        """
        with float32_by_default(), _Recorder(TRIAL_SEED) as recorder:
            module = build()
        values = _tensors(module)
        names = {value.data_ptr(): name for name, value in values.items()}
        draws = []
        for operation, arguments in recorder.recorded:
            name = names.get(arguments[0].data_ptr()) if operation in _OPERATIONS else None
            if name is None or arguments[0].shape != values[name].shape:
                return None
            draws.append(Draw(name, operation, arguments[1:]))
        others = [built_tensors(build, TRIAL_SEED + number) for number in (1, 2)]
        constants = [name for name, value in values.items() if torch.equal(value, others[0][name])]
        recipe = cls(draws, values, constants)
        same = (recipe.values(TRIAL_SEED + number) for number in (1, 2))
        fits = all(torch.equal(own[name], other[name]) for own, other in zip(same, others, strict=True) for name in own)
        return recipe if fits else None

    @torch.no_grad()
    def values(self, seed: int) -> Mapping[str, Tensor]:
        """Return the parameters and buffers of a module built from a seed; the next call overwrites them."""
        generator = torch.Generator().manual_seed(seed)
        for name, operation, arguments in self._draws:
            operation(self._values[name], *arguments, generator=generator)
        for name, value in self._constants.items():
            self._values[name].copy_(value)
        return self._values


def built_tensors(build: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module built from a seed, by qualified name."""
    with seeded_construction(seed):
        return _tensors(build())


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in [*module.named_parameters(), *module.named_buffers()]}
