"""What trains during one epoch, as a single flat vector.

Which parameters train is fixed for an epoch, so they are gathered once from the stacks, trained as views of one leaf,
and written back. Clipping, momentum and the update are then a handful of operations however many seeds there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from esper_env.networks.population.stack import Stack


class Member(NamedTuple):
    """Rows of a stack that train: ``units[i]`` is the clipping unit of ``rows[i]``."""

    stack: Stack
    rows: Tensor  # (k,)
    units: Tensor  # (k,)
    learning_rate: float
    trainable: Tensor  # (k,) bool


class GradientNorms(NamedTuple):
    """Gradient norms before clipping, averaged over the epoch's minibatches."""

    unit: Tensor  # (U,) norm of each unit
    vanishing: Tensor  # (U,) share of its tensors below the vanishing threshold
    exploding: Tensor  # (U,) share of its tensors above the exploding threshold, or not finite


VANISHING_NORM = 1e-7
EXPLODING_CLIP_MULTIPLE = 10.0


class WorkingSet:
    """Flat parameters, momentum and per-element learning rates of one epoch.

    A unit is what is clipped together: a network's host, or one of its seeds with its gate.
    """

    def __init__(self, members: list[Member], units: int, clip_norm: float, momentum: float) -> None:
        self._members = members
        self._units = units
        self._clip_norm = clip_norm
        self._momentum_factor = momentum
        self._shapes: list[list[tuple[str, torch.Size]]] = []
        pieces: list[Tensor] = []
        moments: list[Tensor] = []
        lengths: list[Tensor] = []
        units_of: list[Tensor] = []
        rates: list[Tensor] = []
        self._sizes: list[int] = []
        for member in members:
            shapes = []
            for name, value in member.stack.parameters.items():
                rows = value.index_select(0, member.rows)
                pieces.append(rows.reshape(-1))
                moments.append(member.stack.momentum[name].index_select(0, member.rows).reshape(-1))
                self._sizes.append(rows.numel())
                shapes.append((name, rows.shape))
                per_row = rows[0].numel()
                lengths.append(torch.full((len(rows),), per_row, dtype=torch.int64, device=rows.device))
                units_of.append(member.units)
                rate = member.trainable.to(rows.dtype) * member.learning_rate
                rates.append(rate.repeat_interleave(per_row))
            self._shapes.append(shapes)
        self.theta = torch.cat(pieces).requires_grad_()
        self._velocity = torch.cat(moments)
        self._rate = torch.cat(rates)
        self._lengths = torch.cat(lengths)  # elements of each (tensor, row)
        self._unit_of_tensor = torch.cat(units_of)
        self._unit_of_element = self._unit_of_tensor.repeat_interleave(self._lengths)
        zeros = self.theta.new_zeros(len(self._lengths))
        self._tensor_norm_sum, self._unit_norm_sum = zeros, self.theta.new_zeros(units)
        self._steps = 0

    def views(self) -> list[dict[str, Tensor]]:
        """Each member's parameters, (k, ...) views of the flat leaf."""
        flat = iter(torch.split(self.theta, self._sizes))
        return [{name: next(flat).view(shape) for name, shape in shapes} for shapes in self._shapes]

    @torch.no_grad()
    def step(self) -> None:
        """One step of clipped SGD with momentum from the leaf's gradient, which is cleared."""
        gradient = self.theta.grad
        assert gradient is not None
        # "unsafe" leaves out a check of the lengths, which would wait for the device in every minibatch.
        squared = torch.segment_reduce(gradient * gradient, "sum", lengths=self._lengths, unsafe=True)
        unit_squared = torch.zeros_like(self._unit_norm_sum).index_add_(0, self._unit_of_tensor, squared)
        unit_norm = unit_squared.sqrt()
        self._tensor_norm_sum += squared.sqrt()
        self._unit_norm_sum += unit_norm
        self._steps += 1
        scale = (self._clip_norm / (unit_norm + 1e-6)).clamp_(max=1.0)
        gradient *= scale.index_select(0, self._unit_of_element)
        self._velocity.mul_(self._momentum_factor).add_(gradient)
        self.theta.addcmul_(self._velocity, self._rate, value=-1.0)
        self.theta.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Store parameters and momentum in the stacks."""
        values = iter(torch.split(self.theta.detach(), self._sizes))
        moments = iter(torch.split(self._velocity, self._sizes))
        for member, shapes in zip(self._members, self._shapes, strict=True):
            for name, shape in shapes:
                member.stack.parameters[name].index_copy_(0, member.rows, next(values).view(shape))
                member.stack.momentum[name].index_copy_(0, member.rows, next(moments).view(shape))

    def gradient_norms(self) -> GradientNorms:
        """Mean norms over the steps so far; units without a tensor have zeros."""
        tensor_norm = self._tensor_norm_sum / max(1, self._steps)
        unit_norm = self._unit_norm_sum / max(1, self._steps)
        vanishing = tensor_norm < VANISHING_NORM
        exploding = ~(tensor_norm <= EXPLODING_CLIP_MULTIPLE * self._clip_norm)
        return GradientNorms(unit_norm, self._share(vanishing), self._share(exploding))

    def unit_sizes(self) -> Tensor:
        """(U,) trainable scalars of each unit."""
        lengths = self._lengths.to(self._unit_norm_sum.dtype)
        return torch.zeros_like(self._unit_norm_sum).index_add_(0, self._unit_of_tensor, lengths)

    def _share(self, flag: Tensor) -> Tensor:
        zeros = torch.zeros_like(self._unit_norm_sum)
        count = zeros.index_add(0, self._unit_of_tensor, torch.ones_like(self._tensor_norm_sum))
        return zeros.index_add(0, self._unit_of_tensor, flag.to(zeros.dtype)) / count.clamp(min=1.0)
