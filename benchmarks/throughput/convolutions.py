"""Ways to run a convolution of n networks forward and backward, each network with its own weights and minibatch.

``FORMULATIONS`` maps names to formulations. Each keeps its features in its own layout and is timed from features to
features in that layout; rearrangements in between count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from esper_env.population.engine import images as batched
from layers import Case
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

#: Largest map, in pixels, for which the unrolled matrix is timed: four times what the engine unrolls.
UNROLL_TRIED_PIXELS = 4 * batched.UNROLL_MAX_PIXELS

NEEDS_CUDA, TOO_LARGE = "needs a CUDA device", "too large a map"


class Passed(NamedTuple):
    """Results of a forward and a backward pass."""

    output: Tensor  # (n, B, O, H, W), or the same in a formulation's own layout
    weight_gradient: Tensor  # (n, O, I, k, k)
    input_gradient: Tensor | None  # as the input, (n, B, I, H, W); None in front of images


@dataclass(frozen=True)
class Problem:
    """A case with values. The dtype of the features is that of the computation; weights are float32."""

    case: Case
    weight: Tensor  # (n, O, I, k, k)
    features: Tensor  # (n, B, I, H, W)
    output_gradient: Tensor  # (n, B, O, H, W)

    @classmethod
    def random(cls, case: Case, n: int, samples: int, device: torch.device, dtype: torch.dtype) -> Problem:
        """Draw features and gradients of ``dtype``, and scaled weights, from a fixed seed."""
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device)
        weight = normal(n, case.outputs, case.inputs, case.kernel, case.kernel)
        features = normal(n, samples, case.inputs, case.height, case.width)
        gradient = normal(n, samples, case.outputs, case.height, case.width)
        scale = 1.0 / math.sqrt(weight[0, 0].numel())
        return cls(case, weight * scale, features.to(dtype), gradient.to(dtype))


class Prepared(NamedTuple):
    """A formulation on a problem: functions to run, and ``standard``, which converts their results."""

    works: Sequence[Callable[[], Passed]]  # one for all networks, or one for each
    standard: Callable[[Sequence[Passed]], Passed]


class Layout(NamedTuple):
    """Conversions to a layout of networks, channels and samples, and back."""

    of: Callable[[Tensor], Tensor]  # from (n, B, C, H, W), contiguous
    back: Callable[[Tensor, int], Tensor]  # inverse, given n


SAMPLES_FIRST = Layout(  # (B, n*C, H, W)
    lambda x: x.transpose(0, 1).flatten(1, 2).contiguous(), lambda x, n: x.unflatten(1, (n, -1)).transpose(0, 1)
)
SAMPLES_LAST = Layout(  # (n, C, H, W, B)
    lambda x: x.permute(0, 2, 3, 4, 1).contiguous(), lambda x, _n: x.permute(0, 4, 1, 2, 3)
)
NETWORKS_FIRST = Layout(lambda x: x.contiguous(), lambda x, _n: x)  # (n, B, C, H, W)

Forward = Callable[[Tensor, Tensor], Tensor]


def _passes(forward: Forward, weight: Tensor, x: Tensor, gradient: Tensor) -> Passed:
    """Run forward, then backward to the weights and, if x requires a gradient, to x.

    Weights are converted to the dtype of x, as autocast does; ``vmap`` does not support autocast everywhere.
    """
    output = forward(weight.to(x.dtype), x)
    wanted = (weight, x) if x.requires_grad else (weight,)
    weight_gradient, *rest = torch.autograd.grad(output, wanted, gradient)
    return Passed(output.detach(), weight_gradient, rest[0] if rest else None)


def _leaf(value: Tensor, wants_gradient: bool = True) -> Tensor:
    return value.detach().requires_grad_(wants_gradient)


def _stacked(layout: Layout, forward: Forward) -> Callable[[Problem], Prepared]:
    """All networks in one call."""

    def prepare(problem: Problem) -> Prepared:
        n, wanted = len(problem.weight), problem.case.input_gradient
        weight, x = _leaf(problem.weight), _leaf(layout.of(problem.features), wanted)
        gradient = layout.of(problem.output_gradient)

        def standard(results: Sequence[Passed]) -> Passed:
            output, weight_gradient, input_gradient = results[0]
            back = None if input_gradient is None else layout.back(input_gradient, n)
            return Passed(layout.back(output, n), weight_gradient, back)

        return Prepared([partial(_passes, forward, weight, x, gradient)], standard)

    return prepare


def _one_by_one(problem: Problem) -> Prepared:
    """One call per network, in channels_last for kernels wider than 1x1, which is the faster layout."""
    wide, wanted = problem.case.kernel > 1, problem.case.input_gradient
    memory_format = torch.channels_last if wide else torch.contiguous_format

    def own(value: Tensor) -> Tensor:
        return value.contiguous(memory_format=memory_format)

    works = [
        partial(_passes, _convolution, _leaf(own(weight)), _leaf(own(x), wanted), own(gradient))
        for weight, x, gradient in zip(problem.weight, problem.features, problem.output_gradient, strict=True)
    ]

    def standard(results: Sequence[Passed]) -> Passed:
        outputs, weight_gradients, input_gradients = zip(*results, strict=True)
        stacked = torch.stack(input_gradients) if wanted else None
        return Passed(torch.stack(outputs), torch.stack(weight_gradients), stacked)

    return Prepared(works, standard)


def _convolution(weight: Tensor, x: Tensor) -> Tensor:
    """(O, I, k, k) on (B, I, H, W)"""
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def _grouped(weight: Tensor, x: Tensor) -> Tensor:
    """On (B, n*I, H, W)"""
    return F.conv2d(x, weight.flatten(0, 1), padding=weight.shape[-1] // 2, groups=len(weight))


def _unfolded(weight: Tensor, x: Tensor) -> Tensor:
    """On (n, I, H, W, B).

    Columns and samples form one axis of W*B pixels whose neighbours are B apart, so ``unfold`` returns
    (n, I*k*k, H*W*B) without a transposition.
    """
    n, inputs, height, width, samples = x.shape
    kernel = weight.shape[-1]
    pad = kernel // 2
    rows = x.view(n, inputs, height, width * samples)
    columns = F.unfold(rows, kernel, dilation=(1, samples), padding=(pad, pad * samples))
    return torch.bmm(weight.flatten(2), columns).view(n, -1, height, width, samples)


def _by_unrolled_matrix(weight: Tensor, x: Tensor) -> Tensor:
    """The engine's rule for small maps, on (n, I, H, W, B)."""
    return batched._conv_by_matrix(batched._unrolled(weight, *x.shape[2:4], 1), x, 1)


def _engine(weight: Tensor, x: Tensor) -> Tensor:
    """The engine's rule for 1x1 kernels, on (n, I, H, W, B)."""
    outputs, inputs = weight.shape[1:3]
    layer = nn.Conv2d(inputs, outputs, 1, bias=False, device="meta")  # only its geometry matters
    return batched.run(layer, {"weight": weight}, x, training=True)


@dataclass(frozen=True)
class Formulation:
    """A way to run a convolution, and its limits."""

    prepare: Callable[[Problem], Prepared]
    kernels: str = "any"  # "any", "1x1", "wider"
    max_pixels: int | None = None
    on_streams: bool = False  # runs in CUDA graphs on several streams

    def suits(self, case: Case) -> bool:
        """True if the formulation applies to the case's kernel."""
        return self.kernels == "any" or (self.kernels == "1x1") == (case.kernel == 1)

    def obstacle(self, case: Case, device: torch.device) -> str | None:
        """Reason why the case cannot run on this device, or None."""
        if self.max_pixels is not None and case.height * case.width > self.max_pixels:
            return TOO_LARGE
        return NEEDS_CUDA if self.on_streams and device.type != "cuda" else None


FORMULATIONS: dict[str, Formulation] = {
    "grouped convolution": Formulation(_stacked(SAMPLES_FIRST, _grouped)),
    "grouped convolution, samples last": Formulation(
        _stacked(SAMPLES_LAST, lambda weight, x: batched._conv_grouped(weight, x, 1))
    ),
    "unfold + batched matmul": Formulation(_stacked(SAMPLES_LAST, _unfolded), "wider"),
    "unrolled matrix + batched matmul": Formulation(
        _stacked(SAMPLES_LAST, _by_unrolled_matrix), "wider", UNROLL_TRIED_PIXELS
    ),
    "batched matmul": Formulation(_stacked(SAMPLES_LAST, _engine), "1x1"),
    "vmap": Formulation(_stacked(NETWORKS_FIRST, vmap(_convolution))),
    "loop": Formulation(_one_by_one),
    "streams": Formulation(_one_by_one, on_streams=True),
}
