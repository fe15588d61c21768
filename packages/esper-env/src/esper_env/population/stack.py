"""The parameters of n copies of one module, stacked: every tensor has a leading network dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from esper_env.extension_checks.construction import build_reproducibly, seeded_construction

#: Tensors of some rows of a stack, by kind ("parameters", "momentum", "buffers") and name; each with a leading row.
RowTensors = dict[str, dict[str, Tensor]]


class RowStore(ABC):
    """Tensors with a row for each of n networks, on a device."""

    _device: torch.device

    @abstractmethod
    def tensors(self) -> RowTensors:
        """The tensors themselves, by kind and name."""

    def read_rows(self, rows: Sequence[int]) -> RowTensors:
        """Copies of some rows, in the order given."""
        index = self._index(rows)
        return {
            kind: {name: value.index_select(0, index) for name, value in part.items()}
            for kind, part in self.tensors().items()
        }

    @torch.no_grad()
    def write_rows(self, rows: Sequence[int], values: RowTensors) -> None:
        """Overwrite some rows, in place, with the kinds and names in ``values``; the others stay as they are."""
        index, own = self._index(rows), self.tensors()
        for kind, part in values.items():
            for name, value in part.items():
                own[kind][name].index_copy_(0, index, value)

    def _index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self._device)


class Stack(RowStore):
    """n copies of a module as stacked leaves, with their optimizer momentum.

    ``parameters``, ``momentum`` and ``buffers`` map qualified names to (n, ...) tensors. A row holds zeros until
    :meth:`reset` gives it a freshly initialised module's values.
    """

    def __init__(self, build: Callable[[], nn.Module], rows: int, device: torch.device, dtype: torch.dtype) -> None:
        self._build = build
        self.rows, self.dtype, self._device = rows, dtype, device
        self.template = build_reproducibly(build).to(device=device, dtype=dtype)
        # The template only lends its code: its own tensors are never read.
        self.template.requires_grad_(False)
        self.parameters: dict[str, Tensor] = {}
        for name, parameter in self.template.named_parameters():
            self.parameters[name] = _rows_like(rows, parameter)
        self.momentum = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.buffers = {name: _rows_like(rows, value) for name, value in self.template.named_buffers()}

    @property
    def size(self) -> int:
        """Trainable scalars of one copy."""
        return sum(value[0].numel() for value in self.parameters.values())

    def values(self) -> dict[str, Tensor]:
        """Parameters and buffers by qualified name: what a copy computes with."""
        return {**self.parameters, **self.buffers}

    def finite(self) -> Tensor:
        """(n,) whether everything that a copy computes with is finite."""
        values = [value.reshape(self.rows, -1) for value in self.values().values() if value.is_floating_point()]
        return torch.cat(values, dim=1).isfinite().all(1)

    def reset(self, row: int, seed: int) -> None:
        """Give one row the values of a module built from ``seed``, and zero momentum."""
        with seeded_construction(seed):
            module = self._build().to(dtype=self.dtype)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                self.parameters[name][row].copy_(parameter)
                self.momentum[name][row].zero_()
            for name, buffer in module.named_buffers():
                self.buffers[name][row].copy_(buffer)

    def tensors(self) -> RowTensors:
        """The stacked tensors themselves, by kind and name."""
        return {"parameters": self.parameters, "momentum": self.momentum, "buffers": self.buffers}

    def clear_momentum(self, rows: Iterable[int]) -> None:
        """Forget the optimizer's momentum of some rows."""
        index = list(rows)
        for value in self.momentum.values():
            value[index] = 0


def _rows_like(rows: int, value: Tensor) -> Tensor:
    return torch.zeros((rows, *value.shape), dtype=value.dtype, device=value.device)
