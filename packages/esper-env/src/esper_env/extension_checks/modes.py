"""Modes that replace PyTorch's defaults while modules are built: the generators and the dtype.

Those defaults belong to the process: a thread that changes and restores them also changes what other threads compute.
A mode acts only in its thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode
from typing_extensions import override

#: Operations whose result has the default dtype only if a number among their arguments is a float.
_INFERRED = ("aten::full", "aten::arange")
_CONSTANTS = (torch.tensor, torch.as_tensor, torch.asarray)


class _ThreadMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode of one thread. The methods of PyTorch's base class also write variables of the process."""

    supports_higher_order_operators = True

    @override
    def __enter__(self) -> Self:
        _push_mode(self)
        return self

    @override
    def __exit__(self, *_: object) -> None:
        _pop_mode()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would load torch._dynamo


class OwnDraws(_ThreadMode):  # type: ignore[no-untyped-call]
    """Context in which the thread draws from generators that start from ``seed``, one for each device.

    The numbers are those that the default generator draws after ``torch.manual_seed(seed)``. Operations that are given
    a generator use that one.

    Attributes:
        drawn: True after a draw that would have used a default generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn = False
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not _is_random(func):
            return func(*args, **kwargs) if kwargs else func(*args)
        given = dict(kwargs or {})
        form, place = _form_with_generator(func)
        if form is None and _drops_nothing(func, args, given):
            return func(*args, **given)
        if form is func and (args[place] if place < len(args) else given.get("generator")) is not None:
            return func(*args, **given)
        self.drawn = True
        if form is None:
            raise ValueError(
                f"{func} draws from PyTorch's default generator and accepts no other; draw with torch.rand, "
                "torch.randn or torch.nn.init"
            )
        tensor = next((value for value in args if isinstance(value, Tensor)), None)
        device = torch.device(given.get("device") or "cpu") if tensor is None else tensor.device
        if device.type not in ("cpu", "cuda"):  # such as "meta"
            return func(*args, **given)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        given["generator"] = self._generators[device]
        return form(*args[:place], **given)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Context in which tensors that are made from numbers, without a dtype, are float32.

    A stated dtype that equals the default dtype is treated as not stated.
    """
    if torch.get_default_dtype() is torch.float32:
        yield
        return
    with _Factories(), _Constants():  # type: ignore[no-untyped-call]
        yield


class _Factories(_ThreadMode):  # type: ignore[no-untyped-call]
    """Make ``torch.zeros`` and the like return float32 tensors."""

    @override
    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if _has_default_dtype(func, args, given):
            given["dtype"] = torch.float32
        return func(*args, **given)


class _Constants(TorchFunctionMode):
    """Make ``torch.tensor`` and the like, which convert numbers before a dispatch mode runs, return float32 tensors."""

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _CONSTANTS and made.dtype is torch.get_default_dtype():
            made = func(*args, **{**(kwargs or {}), "dtype": torch.float32})
        return made


def _has_default_dtype(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True for an operation that makes a tensor of the default dtype from numbers."""
    if not isinstance(func, torch._ops.OpOverload) or any(isinstance(value, Tensor) for value in args):
        return False
    declared = [argument for argument in func._schema.arguments if argument.name == "dtype"]
    if not declared or declared[0].default_value is not None:
        return False
    stated = kwargs.get("dtype")
    if stated is None and func._schema.name in _INFERRED:
        return any(isinstance(value, float) for value in args)
    return stated in (None, torch.get_default_dtype())


@cache
def _is_random(func: Any) -> bool:
    """True for an operation that may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())  # higher-order operators have no tags


@cache
def _form_with_generator(func: torch._ops.OpOverload) -> tuple[Any, int]:
    """Return the overload of a random operation that accepts a generator, None if there is none, and its place."""
    overloads = [getattr(func.overloadpacket, name) for name in func.overloadpacket.overloads()]
    for form in [func, *overloads]:
        if "generator" in _names(form) and _signature(form) == _signature(func):
            return form, _names(form).index("generator")
    return None, 0


def _drops_nothing(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True for a layer that can drop values, such as attention, if it does not drop any."""
    values = {**dict(zip(_names(func), args, strict=False)), **kwargs}
    return any(
        not values.get(argument.name, argument.default_value)
        for argument in func._schema.arguments
        if argument.name in ("dropout_p", "dropout", "train")
    )


def _names(func: torch._ops.OpOverload) -> list[str]:
    return [argument.name for argument in func._schema.arguments]


def _signature(func: torch._ops.OpOverload) -> list[tuple[str, str]]:
    """Names and types of the arguments, except the generator."""
    arguments: list[Any] = [argument for argument in func._schema.arguments if argument.name != "generator"]
    return [(argument.name, str(argument.type)) for argument in arguments]
