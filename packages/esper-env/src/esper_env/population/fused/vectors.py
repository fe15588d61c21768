"""SIMD vectors, with which kernels compute on several samples at once.

A kernel uses a vector as it uses a number, and numba keeps the vector in registers. In loops over arrays, numba does
not keep sums of many terms in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, models, register_model

from esper_env.population.fused.compilation import make_array

#: Bytes of a vector: two AVX2 or AVX-512 registers. Four sums then fill eight, which hides the latency of additions.
BYTES = 128 if binding.get_host_cpu_features().get("avx512f") else 64
_FLAGS = ("reassoc", "contract", "nsz")


class Vector(types.Type):
    """The type of a vector."""

    def __init__(self, scalar: Any) -> None:
        super().__init__(name=f"Vector({scalar}, {BYTES})")
        self.scalar, self.width = scalar, BYTES * 8 // scalar.bitwidth


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        scalar = manager.lookup(kind.scalar).get_value_type()
        super().__init__(manager, kind, ir.VectorType(scalar, kind.width))  # type: ignore[no-untyped-call]


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Pointer to the vector that begins at ``array[start]``, and the LLVM type of the vector."""
    array = make_array(signature.args[0])(context, builder, arguments[0])
    vector = context.get_value_type(Vector(signature.args[0].dtype))
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), vector.as_pointer()), vector


def _width(context: Any, array: Any) -> Any:  # noqa: ARG001
    width = Vector(array.dtype).width

    def generate(*_: Any) -> Any:
        return ir.Constant(ir.IntType(64), width)

    return types.intp(array), generate


def _zeros(context: Any, array: Any) -> Any:  # noqa: ARG001
    vector = Vector(array.dtype)

    def generate(context: Any, *_: Any) -> Any:
        return ir.Constant(context.get_value_type(vector), None)

    return vector(array), generate


def _load(context: Any, array: Any, start: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, _ = _place(context, builder, signature, arguments)
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), generate


def _store(context: Any, array: Any, start: Any, value: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, _ = _place(context, builder, signature, arguments)
        builder.store(arguments[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


def _add_product(context: Any, total: Any, factor: Any, value: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        first = arguments[1]
        if not isinstance(factor, Vector):
            vector = context.get_value_type(total)
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), first, ir.Constant(ir.IntType(32), 0))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
            first = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)
        return builder.fadd(arguments[0], builder.fmul(first, arguments[2], flags=_FLAGS), flags=_FLAGS)

    return total(total, factor, value), generate


def _total(context: Any, value: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        vector, scalar = context.get_value_type(value), context.get_value_type(value.scalar)
        name = f"llvm.vector.reduce.fadd.v{vector.count}f{value.scalar.bitwidth}"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(scalar, [scalar, vector]), name)
        return builder.call(function, [ir.Constant(scalar, 0.0), arguments[0]], fastmath=_FLAGS)

    return value.scalar(value), generate


#: ``width(x)``: number of vector of a vector of x's dtype.
width: Any = intrinsic(_width)
#: ``zeros(x)``: a vector of zeros of x's dtype.
zeros: Any = intrinsic(_zeros)
#: ``load(x, k)``: the vector ``x[k : k + width]``.
load: Any = intrinsic(_load)
#: ``store(x, k, v)``: set ``x[k : k + width]`` to v.
store: Any = intrinsic(_store)
#: ``add_product(total, factor, v)``: total + factor * v, where the factor is a number or a vector.
add_product: Any = intrinsic(_add_product)
#: ``total(v)``: sum over the vector of v.
total: Any = intrinsic(_total)
