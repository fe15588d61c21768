"""The tensors of n copies of one module, stacked along a leading network dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from esper_env.extension_checks.construction import TRIAL_SEED, seeded_construction
from esper_env.population.recipe import Recipe, built_tensors

#: Tensors of some rows of a stack, by kind ("parameters", "momentum", "buffers") and name; each with a leading row.
RowTensors = dict[str, dict[str, Tensor]]


class RowStore:
    """Tensors with a row for each of n networks, on a device."""

    def __init__(self, tensors: RowTensors, device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def tensors(self) -> RowTensors:
        """Return the tensors themselves, by kind and name."""
        return self._tensors

    def read_rows(self, rows: Sequence[int]) -> RowTensors:
        """Return copies of some rows, in the order given."""
        index = self._index(rows)
        return {
            kind: {name: value.index_select(0, index) for name, value in named.items()}
            for kind, named in self.tensors().items()
        }

    @torch.no_grad()
    def write_rows(self, rows: Sequence[int], values: RowTensors) -> None:
        """Overwrite some rows, in place, with the kinds and names in ``values``; the others stay as they are."""
        index, own = self._index(rows), self.tensors()
        for kind, named in values.items():
            for name, value in named.items():
                own[kind][name].index_copy_(0, index, value.to(self._device))

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self._device)


class Stack(RowStore):
    """n copies of a module as stacked leaves, with the momentum of their optimizer.

    ``parameters``, ``momentum`` and ``buffers`` map qualified names to (n, ...) tensors. A row holds zeros until
    :meth:`reset` initialises it. ``template`` is a module to run with the tensors of any row; its own are never read.
    ``plain`` says that a module's draws do not depend on earlier ones, so that not every module has to be built.

    Raises:
        ValueError: PyTorch is set to break the sharing of parameters.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        rows: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        plain: bool = False,
    ) -> None:
        self._build, self._plain = build, plain
        self.rows, self.dtype = rows, dtype
        with seeded_construction(TRIAL_SEED):
            module = build()
        names = [name for name, _ in module.named_parameters()]
        self.template = module.to(device=device, dtype=dtype)
        if names != [name for name, _ in self.template.named_parameters()]:
            raise ValueError(
                f"a {type(module).__name__} loses the parameters that its layers share when PyTorch converts it; call "
                "torch.__future__.set_overwrite_module_params_on_conversion(False) before you make the environment"
            )
        self.template.requires_grad_(False)
        self.parameters = {name: _zeros(rows, value) for name, value in self.template.named_parameters()}
        self.momentum = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.buffers = {name: _zeros(rows, value) for name, value in self.template.named_buffers()}
        super().__init__({"parameters": self.parameters, "momentum": self.momentum, "buffers": self.buffers}, device)

    @property
    def size(self) -> int:
        """Trainable scalars of one copy."""
        return sum(value[0].numel() for value in self.parameters.values())

    @cached_property
    def _recipe(self) -> Recipe | None:
        return Recipe.of(self._build) if self._plain else None

    def values(self) -> dict[str, Tensor]:
        """Return parameters and buffers by qualified name."""
        return {**self.parameters, **self.buffers}

    def finite(self) -> Tensor:
        """(n,) True if all parameters and buffers of a copy are finite."""
        values = [value.reshape(self.rows, -1) for value in self.values().values() if value.is_floating_point()]
        return torch.cat(values, dim=1).isfinite().all(1)

    def reset(self, row: int, seed: int) -> None:
        """Initialise one row with a module built from ``seed``, and clear its momentum."""
        values = built_tensors(self._build, seed) if self._recipe is None else self._recipe.values(seed)
        for name, parameter in self.parameters.items():
            parameter[row].copy_(values[name])  # converts the dtype
            self.momentum[name][row].zero_()
        for name, buffer in self.buffers.items():
            buffer[row].copy_(values[name])

    def clear_momentum(self, rows: Sequence[int]) -> None:
        """Zero the momentum of some rows."""
        for value in self.momentum.values():
            value[list(rows)] = 0


def _zeros(rows: int, value: Tensor) -> Tensor:
    return torch.zeros((rows, *value.shape), dtype=value.dtype, device=value.device)
