"""Translation of modules and of networks into programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from esper_env.hosts.cnn import GlobalAveragePool
from esper_env.population.engine.vmapped import register_rule, rule_of
from esper_env.population.fused import instructions as ins
from esper_env.seeds.blend import BlendGate
from esper_env.seeds.cnn import LayerScaleResidual, NormSeed, SqueezeExcite


class NotCompilableError(ValueError):
    """A module has no kernel."""


class Features(NamedTuple):
    """A buffer of features (C, H, W, B); ``place`` is its first index in the working memory."""

    place: int
    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """H * W."""
        return self.height * self.width


@dataclass(frozen=True)
class Tensors:
    """Places of a module's tensors in a network's parameters and statistics, by qualified name."""

    parameters: Mapping[str, int]
    stats: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.parameters[name]


@dataclass(frozen=True)
class Mode:
    """Mode of a module: batch statistics if ``training``, gradients of its parameters if ``parameters``."""

    training: bool
    parameters: bool = False


class Program:
    """A program under construction, for batches of ``samples`` samples."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.size = 0  # values of working memory in use
        self.most = 0  # largest ``size`` so far
        self.scratch = 1  # values of scratch memory
        self._lines: list[list[int]] = []
        self._constants: list[tuple[float, float]] = []

    def buffer(self, channels: int, height: int = 1, width: int = 1) -> Features:
        """Reserve memory for features."""
        features = Features(self.size, channels, height, width)
        self._reserve(channels * height * width * self.samples)
        return features

    def memory(self, values: int) -> int:
        """Reserve memory for a number of values; return its place."""
        place = self.size
        self._reserve(values)
        return place

    def _reserve(self, values: int) -> None:
        self.size += -(-values // 16) * 16  # a buffer begins at a cache line
        self.most = max(self.most, self.size)

    def release(self, size: int) -> None:
        """Let later buffers overwrite the memory after the first ``size`` values."""
        self.size = size

    def emit(
        self,
        operation: int,
        x: Features,
        y: Features,
        *,
        z: int = 0,
        gate: int = 0,
        first: int = 0,
        second: int = 0,
        index: int = 0,
        groups: int = 1,
        size: int = 1,
        flags: int = 0,
        eps: float = 0.0,
        factor: float = 1.0,
    ) -> Features:
        """Append an instruction; return ``y``."""
        fields = {
            ins.OPERATION: operation,
            ins.X: x.place,
            ins.Z: z,
            ins.Y: y.place,
            ins.GATE: gate,
            ins.FIRST: first,
            ins.SECOND: second,
            ins.INDEX: index,
            ins.CHANNELS: x.channels,
            ins.OUTPUTS: y.channels,
            ins.GROUPS: groups,
            ins.HEIGHT: x.height,
            ins.WIDTH: x.width,
            ins.SIZE: size,
            ins.FLAGS: flags,
        }
        line = [fields[field] for field in range(ins.FIELDS)]
        self._lines.append(line)
        self._constants.append((eps, factor))
        weights = x.channels * y.channels * size * size
        self.scratch = max(self.scratch, weights, 2 * self.samples + 2 * x.channels)
        return y

    def run(self, module: nn.Module, tensors: Tensors, x: Features, mode: Mode, prefix: str = "") -> Features:
        """Append the instructions of a module that reads ``x``; return its output.

        Raises:
            NotCompilableError: the module has no kernel.
        """
        rule = rule_of(RULES, module)
        if rule is None:
            raise NotCompilableError(f"{type(module).__name__} has no kernel")
        return rule(self, module, tensors, x, mode, prefix)

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the instructions (K, FIELDS) and their constants (K, CONSTANTS)."""
        program = np.array(self._lines, dtype=np.int64).reshape(-1, ins.FIELDS)
        return program, np.array(self._constants, dtype=np.float64).reshape(-1, ins.CONSTANTS)


#: (program, module, tensors, input, mode, prefix of the tensors' names) -> output
Rule = Callable[[Program, Any, Tensors, Features, Mode, str], Features]

RULES: dict[type[nn.Module], Rule] = {}
_rule = partial(register_rule, RULES)


def _flags(mode: Mode, *, bias: bool = False) -> int:
    return ins.INPUT | (ins.PARAMETERS if mode.parameters else 0) | (ins.BIAS if bias else 0)


def _same(program: Program, x: Features) -> Features:
    return program.buffer(*x[1:])


def _require(condition: bool, module: nn.Module) -> None:
    if not condition:
        raise NotCompilableError(f"{module} has no kernel")


@_rule(nn.Sequential)
def _sequential(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:
    for name, child in module._modules.items():
        if child is not None:
            x = program.run(child, tensors, x, mode, f"{prefix}{name}.")
    return x


@_rule(nn.Identity)
def _identity(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:  # noqa: ARG001
    return x


@_rule(nn.Flatten)
def _flatten(program: Program, module: nn.Flatten, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:  # noqa: ARG001
    _require((module.start_dim, module.end_dim) in ((1, -1), (1, 3)), module)
    return Features(x.place, x.channels * x.pixels, 1, 1)


@_rule(nn.Unflatten)
def _unflatten(
    program: Program,  # noqa: ARG001
    module: nn.Unflatten,
    tensors: Tensors,  # noqa: ARG001
    x: Features,
    mode: Mode,  # noqa: ARG001
    prefix: str,  # noqa: ARG001
) -> Features:
    sizes = module.unflattened_size
    _require(module.dim == 1 and x.pixels == 1 and isinstance(sizes, tuple) and len(sizes) == 3, module)
    channels, height, width = sizes
    _require(min(sizes) > 0 and channels * height * width == x.channels, module)
    return Features(x.place, channels, height, width)


def _activation(operation: int, factor: float = 1.0) -> Rule:
    def rule(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:  # noqa: ARG001
        return _activated(program, operation, x, factor)

    return rule


def _activated(program: Program, operation: int, x: Features, factor: float = 1.0) -> Features:
    flat = Features(x.place, x.channels, x.height, x.width)
    return program.emit(operation, flat, _same(program, x), factor=factor)


RULES[nn.ReLU], RULES[nn.SiLU], RULES[nn.Sigmoid] = map(_activation, (ins.RELU, ins.SILU, ins.SIGMOID))


@_rule(nn.Conv2d)
def _conv2d(program: Program, module: nn.Conv2d, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:
    size = module.kernel_size[0]
    _require(
        size % 2 == 1
        and module.kernel_size == (size, size)
        and module.padding == (size // 2, size // 2)
        and module.stride == module.dilation == (1, 1)
        and module.padding_mode == "zeros",
        module,
    )
    y = program.buffer(module.out_channels, x.height, x.width)
    bias = module.bias is not None
    second = tensors[f"{prefix}bias"] if bias else 0
    first, flags = tensors[f"{prefix}weight"], _flags(mode, bias=bias)
    return program.emit(ins.CONV, x, y, first=first, second=second, groups=module.groups, size=size, flags=flags)


@_rule(nn.Linear)
def _linear(program: Program, module: nn.Linear, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:
    _require(x.pixels == 1 and module.in_features == x.channels, module)
    bias = module.bias is not None
    second = tensors[f"{prefix}bias"] if bias else 0
    y, first = program.buffer(module.out_features), tensors[f"{prefix}weight"]
    return program.emit(ins.CONV, x, y, first=first, second=second, flags=_flags(mode, bias=bias))


@_rule(nn.BatchNorm2d)
def _batch_norm(
    program: Program, module: nn.BatchNorm2d, tensors: Tensors, x: Features, mode: Mode, prefix: str
) -> Features:
    _require(module.affine and module.track_running_stats and module.momentum is not None, module)
    places = {"first": tensors[f"{prefix}weight"], "second": tensors[f"{prefix}bias"]}
    index, y = tensors.stats[prefix], _same(program, x)
    if not mode.training:
        _require(not mode.parameters, module)
        return program.emit(ins.FIXED_NORM, x, y, index=index, eps=module.eps, flags=_flags(mode), **places)
    _require(mode.parameters and program.samples * x.pixels > 1, module)
    assert module.momentum is not None
    z, flags = program.memory(2 * x.channels), _flags(mode) | ins.TRACK
    return program.emit(
        ins.BATCH_NORM, x, y, z=z, index=index, eps=module.eps, factor=module.momentum, flags=flags, **places
    )


@_rule(nn.GroupNorm)
def _group_norm(
    program: Program, module: nn.GroupNorm, tensors: Tensors, x: Features, mode: Mode, prefix: str
) -> Features:
    _require(module.num_groups == 1 and module.affine, module)
    z, y = program.memory(2 * program.samples), _same(program, x)
    first, second = tensors[f"{prefix}weight"], tensors[f"{prefix}bias"]
    return program.emit(ins.GROUP_NORM, x, y, z=z, first=first, second=second, eps=module.eps, flags=_flags(mode))


@_rule(nn.MaxPool2d)
def _max_pool(
    program: Program,
    module: nn.MaxPool2d,
    tensors: Tensors,  # noqa: ARG001
    x: Features,
    mode: Mode,  # noqa: ARG001
    prefix: str,  # noqa: ARG001
) -> Features:
    halving = (module.kernel_size, module.stride, module.padding, module.dilation) == (2, 2, 0, 1)
    _require(halving and not module.ceil_mode, module)
    y, places = (program.buffer(x.channels, x.height // 2, x.width // 2) for _ in range(2))
    return program.emit(ins.MAX_POOL, x, y, z=places.place)


@_rule(GlobalAveragePool)
def _average(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:  # noqa: ARG001
    return program.emit(ins.AVERAGE, x, program.buffer(x.channels))


@_rule(LayerScaleResidual)
def _layer_scale(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:
    branch = program.run(module.branch, tensors, x, mode, f"{prefix}branch.")
    _require(branch[1:] == x[1:], module)
    first = tensors[f"{prefix}scale"]
    return program.emit(ins.RESIDUAL, x, _same(program, x), z=branch.place, first=first, flags=_flags(mode))


@_rule(NormSeed)
def _norm_seed(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:
    normed = program.run(module.norm, tensors, x, mode, f"{prefix}norm.")
    _require(normed[1:] == x[1:], module)
    first = tensors[f"{prefix}gate"]
    return program.emit(ins.MIX, x, _same(program, x), z=normed.place, first=first, flags=_flags(mode))


def _pooled_mlp(
    program: Program, module: SqueezeExcite | BlendGate, tensors: Tensors, x: Features, mode: Mode, prefix: str
) -> Features:
    pooled = program.emit(ins.AVERAGE, x, program.buffer(x.channels))
    hidden = program.run(module.squeeze, tensors, pooled, mode, f"{prefix}squeeze.")
    hidden = _activated(program, ins.SILU, hidden)
    return program.run(module.excite, tensors, hidden, mode, f"{prefix}excite.")


@_rule(SqueezeExcite)
def _squeeze_excite(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:
    factor = _activated(program, ins.SIGMOID, _pooled_mlp(program, module, tensors, x, mode, prefix), 2.0)
    _require(factor[1:] == (x.channels, 1, 1), module)
    return program.emit(ins.EXCITE, x, _same(program, x), z=factor.place)


@_rule(BlendGate)
def _blend_gate(program: Program, module: Any, tensors: Tensors, x: Features, mode: Mode, prefix: str) -> Features:
    return _activated(program, ins.SIGMOID, _pooled_mlp(program, module, tensors, x, mode, prefix))
