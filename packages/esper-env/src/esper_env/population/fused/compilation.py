"""Compilation of functions for one network, and the two simplest kernels.

Features are flat arrays in the order (C, H, W, B). Samples come last, so a row of an image is W * B contiguous values.
A forward kernel overwrites its output unless its docstring has ``+=``. A backward kernel adds to the gradients of its
input and its parameters. ``n`` is a number of contiguous values of a channel. Kernels receive arrays that begin at
their first value and may be longer than needed; ``at(x, k)`` is the array x from value k on.

Sums are computed in a different order than in PyTorch, with fused multiply-add. Non-finite values stay non-finite.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llvmlite.binding import Linkage
from numba import njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import intrinsic
from numba.np import arrayobj

make_array: Any = arrayobj.make_array
populate_array: Any = arrayobj.populate_array

#: All options that speed up sums without the assumption that values are finite.
OPTIONS: Any = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}


def kernel(function: Callable[..., Any], inline: str = "never") -> Any:
    """Compile a function on its first call; only compiled functions can call it."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "inline": inline}
    return njit(function, **OPTIONS, **options)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into its only caller, which is faster than a call."""
    return kernel(function, "always")


class _Library(JITCodeLibrary):
    """Machine code of an entry point, with kernels of its own.

    numba gives these the same names as the kernels that were compiled alone, which may round differently. Then the
    process that compiles would call the latter, and processes that load the cached result the former.
    """

    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()  # type: ignore[no-untyped-call]
        for function in self._final_module.functions:
            if function.linkage == Linkage.linkonce_odr and not function.is_declaration:
                function.linkage = Linkage.internal


class _EntryPointCompiler(Compiler):
    def __init__(self, typing: Any, target: Any, library: Any, *arguments: Any) -> None:
        if library is None:
            library = _Library(target.codegen(), "entry point")  # type: ignore[no-untyped-call]
        super().__init__(typing, target, library, *arguments)  # type: ignore[no-untyped-call]
        self.state.library.enable_object_caching()


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile a function on its first call, and release the interpreter lock while it runs.

    The result is cached on disk if a folder is writable.
    """
    compiled = njit(function, nogil=True, pipeline_class=_EntryPointCompiler, **OPTIONS)
    with suppress(RuntimeError):
        compiled.enable_caching()
    return compiled


def _at(context: Any, array: Any, start: Any) -> Any:  # noqa: ARG001
    """Return a view of a flat array from ``start`` on, valid while a variable of the caller holds the array.

    A slice has the same values. But numba compiles slices slowly: it clips their bounds and counts references.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        source, view = make_array(kind)(context, builder, arguments[0]), make_array(kind)(context, builder)
        length = builder.extract_value(source.shape, 0)
        populate_array(
            view,
            data=builder.gep(source.data, [arguments[1]]),
            shape=[builder.sub(length, arguments[1])],
            strides=source.strides,
            itemsize=source.itemsize,
            meminfo=None,
        )
        return view._getvalue()

    return array(array, types.intp), generate


at: Any = intrinsic(_at)


@kernel
def clear(x: Any, n: int) -> None:
    """Set the first n values of x to zero."""
    zero = x.dtype.type(0)
    for j in range(n):
        x[j] = zero


@kernel
def copy(x: Any, y: Any, n: int) -> None:
    """Copy the first n values of x to y."""
    for j in range(n):
        y[j] = x[j]
