"""The parameters that train during one epoch, as a single flat vector.

The set is fixed for an epoch. Its parameters are gathered from the stacks once, trained as leaves that lie in one
vector, and written back. Clipping, momentum and the update are then a handful of operations for any number of seeds.
Every tensor keeps its memory from epoch to epoch, as captured steps require.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper_env.population.stack import Stack
from esper_env.population.structure import IntArray
from esper_env.population.transfer import on_device


class Member(NamedTuple):
    """Rows of a stack that train; row i belongs to ``networks[i]`` and is clipped in unit ``units[i]``."""

    stack: Stack
    slot: int | None  # None: the hosts
    networks: IntArray  # (k,)
    rows: Tensor  # (k,) the same, on the device
    units: Tensor  # (k,)
    learning_rate: float
    trainable: Tensor  # (k,) bool
    buffers: dict[str, Tensor]  # copies of the rows' buffers, (k, ...) each; empty for hosts


VANISHING_NORM = 1e-7
EXPLODING_CLIP_MULTIPLE = 10.0


class WorkingSet:
    """Flat parameters, momentum and per-element learning rates; zeros until :meth:`load`.

    A unit is clipped by one norm: a network's host, or one of its seeds with its gate.
    """

    def __init__(self, members: list[Member], units: int, clip_norm: float, momentum: float) -> None:
        self._members = members
        self._clip_norm = clip_norm
        self._momentum_factor = momentum
        self._shapes = [
            [
                (name, torch.Size((len(member.rows), *value.shape[1:])))
                for name, value in member.stack.parameters.items()
            ]
            for member in members
        ]
        self._sizes = [shape.numel() for shapes in self._shapes for _, shape in shapes]
        units_of = [m.units for m, shapes in zip(members, self._shapes, strict=True) for _ in shapes]
        self._unit_of_piece = torch.cat(units_of)  # a piece is one row of a tensor
        shapes_of_all = [shape for shapes in self._shapes for _, shape in shapes]
        lengths = np.concatenate([np.full(shape[0], shape[1:].numel()) for shape in shapes_of_all])
        device, dtype = self._unit_of_piece.device, members[0].stack.dtype
        self._lengths = on_device(lengths, device)
        self._piece_of_element = on_device(np.repeat(np.arange(len(lengths)), lengths), device)
        self._unit_of_element = self._unit_of_piece.index_select(0, self._piece_of_element)
        flat = (torch.zeros(sum(self._sizes), dtype=dtype, device=device) for _ in range(4))
        self.theta, self.gradient, self._velocity, self._rate = flat
        #: each member's parameters, (k, ...) leaves that lie in the flat vector
        self.views = self._split(self.theta, self.gradient)
        self._no_norm = torch.zeros(units, dtype=dtype, device=device)
        self._norm_sum = torch.zeros(units + len(lengths), dtype=dtype, device=device)  # of units, then of pieces

    @torch.no_grad()
    def load(self) -> None:
        """Load parameters, momentum and trainable flags from the members, and reset the statistics."""
        values, moments, rates = [], [], []
        for member in self._members:
            rate = member.trainable.to(self._rate.dtype) * member.learning_rate
            for name, value in member.stack.parameters.items():
                values.append(value.index_select(0, member.rows).flatten())
                moments.append(member.stack.momentum[name].index_select(0, member.rows).flatten())
                rates.append(rate)
        self.gradient.zero_()  # left by an interrupted step
        torch.cat(values, out=self.theta)
        torch.cat(moments, out=self._velocity)
        torch.index_select(torch.cat(rates), 0, self._piece_of_element, out=self._rate)
        self._norm_sum.zero_()

    def _split(self, theta: Tensor, gradient: Tensor) -> list[dict[str, Tensor]]:
        """Leaves that lie in ``theta`` and accumulate their gradients in ``gradient``."""
        values, gradients = iter(torch.split(theta, self._sizes)), iter(torch.split(gradient, self._sizes))
        views = []
        for shapes in self._shapes:
            views.append({name: next(values).view(shape).detach().requires_grad_() for name, shape in shapes})
            for leaf in views[-1].values():
                leaf.grad = next(gradients).view(leaf.shape)
        return views

    @torch.no_grad()
    def step(self) -> None:
        """Take one step of clipped SGD with momentum, and clear the gradient."""
        gradient = self.gradient
        # "unsafe" skips a check of the lengths that would wait for the device in every minibatch.
        squared = torch.segment_reduce(gradient * gradient, "sum", lengths=self._lengths, unsafe=True)
        unit_squared = torch.index_add(self._no_norm, 0, self._unit_of_piece, squared)
        norms = torch.cat([unit_squared, squared]).sqrt_()
        self._norm_sum += norms
        scale = (self._clip_norm / (norms[: len(unit_squared)] + 1e-6)).clamp_(max=1.0)
        clipped = gradient * scale.index_select(0, self._unit_of_element)
        torch.add(clipped, self._velocity, alpha=self._momentum_factor, out=self._velocity)
        self.theta.addcmul_(self._velocity, self._rate, value=-1.0)
        gradient.zero_()

    @torch.no_grad()
    def write_back(self) -> None:
        """Store parameters and momentum in the stacks."""
        values = iter(torch.split(self.theta, self._sizes))
        moments = iter(torch.split(self._velocity, self._sizes))
        for member, shapes in zip(self._members, self._shapes, strict=True):
            for name, shape in shapes:
                member.stack.parameters[name].index_copy_(0, member.rows, next(values).view(shape))
                member.stack.momentum[name].index_copy_(0, member.rows, next(moments).view(shape))

    def statistics(self, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return columns (U,) for the ``steps`` steps since loading: 0 for units without a tensor.

        They are the mean gradient norm of each unit before clipping, the shares of its tensors whose mean norm vanishes
        and explodes (or is not finite), and its number of trainable scalars.
        """
        unit_norm, piece_norm = torch.split(self._norm_sum / steps, [len(self._no_norm), len(self._lengths)])
        pieces = self._by_unit(torch.ones_like(piece_norm)).clamp(min=1.0)
        vanishing = self._by_unit(piece_norm < VANISHING_NORM) / pieces
        exploding = self._by_unit(~(piece_norm <= EXPLODING_CLIP_MULTIPLE * self._clip_norm)) / pieces
        return unit_norm, vanishing, exploding, self._by_unit(self._lengths)

    def _by_unit(self, values: Tensor) -> Tensor:
        """(U,) sums over the pieces of each unit."""
        return torch.index_add(self._no_norm, 0, self._unit_of_piece, values.to(self._no_norm.dtype))
