"""exp and tanh that the compiler can vectorise, unlike those of the C library."""

from __future__ import annotations

from math import factorial, log
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from esper_env.population.fused.compilation import OPTIONS, kernel

#: By type: dtype, degree of exp's Taylor polynomial, largest argument, bits of a number, bits of its fraction, bias of
#: its exponent. For arguments up to ln(2) / 2, the first omitted term is below the rounding error.
_FORMATS: Any = {
    types.float32: (np.float32, 7, -88.0, 89.0, 32, 23, 127),
    types.float64: (np.float64, 13, -709.0, 710.0, 64, 52, 1023),
}


def _power(context: Any, exponent: Any) -> Any:  # noqa: ARG001
    """2 to the power of an exponent with an integer value."""
    *_, width, fraction, bias = _FORMATS[exponent]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, number = ir.IntType(width), context.get_value_type(signature.return_type)
        # The lowest bits of this sum are the biased exponent of the result.
        biased = builder.fadd(arguments[0], ir.Constant(number, 1.5 * 2.0**fraction + bias))
        return builder.bitcast(builder.shl(builder.bitcast(biased, bits), ir.Constant(bits, fraction)), number)

    return exponent(exponent), generate


_power_of_two: Any = intrinsic(_power)


def exp(x: Any) -> Any:
    """Exponential, with a relative error up to 5e-6 (float32) or 1e-13 (float64).

    Above 88 (float32) or 709 (float64) the result may be infinity, and below -87 or -708 it may be 0. NaN stays NaN.
    This is what compiled functions call; outside of them it is NumPy's function.
    """
    return np.exp(x)


@overload(exp, jit_options=OPTIONS)
def _exp_of(x: Any) -> Any:
    dtype, terms, lowest, largest, *_ = _FORMATS[x]
    least, most, half = dtype(lowest), dtype(largest), dtype(0.5)
    ln2, inverse = dtype(log(2.0)), dtype(1.0 / log(2.0))
    one, highest = dtype(1.0), dtype(1.0 / factorial(terms))
    coefficients = tuple(dtype(1.0 / factorial(k)) for k in range(terms - 1, 0, -1))

    def function(x: Any) -> Any:
        x = least if x < least else x
        x = most if x > most else x
        k = np.floor(x * inverse + half)
        r = x - k * ln2
        p = highest
        for c in coefficients:
            p = p * r + c
        return (p * r + one) * _power_of_two(k)

    return function


@kernel
def tanh(x: Any) -> Any:
    """Hyperbolic tangent, with a relative error up to 1e-5 (float32) or 1e-13 (float64)."""
    kind = type(x)
    one, two, square = kind(1), kind(2), x * x
    # In the difference below, small arguments would lose their digits.
    series = x * (one + square * (kind(-1 / 3) + square * (kind(2 / 15) + square * kind(-17 / 315))))
    difference = one - two / (exp(two * x) + one)
    return series if square < kind(0.0009) else difference
