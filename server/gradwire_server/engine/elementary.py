"""Scalar functions for compiled kernels, one set for each floating data type.

Exponentials, logarithms and erf are plain arithmetic, so that a loop over them runs on vector
registers; their error is a few units in the last place. The others are the C library's. Names and
meaning are those of `engine/opcodes.py`: NumPy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from gradwire_server.array_erf import NDTR
from gradwire_server.array_slopes import SIGMOID_TAIL, TANH_TAIL

#: How kernels are compiled; and what they call, which must be inlined for loops to be vectors.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
INLINED: dict[str, Any] = {**OPTIONS, "forceinline": True}

#: By data type: bits of the fraction, bias of the exponent, and how many terms of a series reach
#: the last place.
_FORMATS = {"float64": (52, 1023, 13, 21), "float32": (23, 127, 7, 9)}
_INTEGERS = {"float64": (np.int64, types.int64), "float32": (np.int32, types.int32)}
_FLOATS = {"float64": (np.float64, types.float64), "float32": (np.float32, types.float32)}

#: The natural logarithm of 2, split so that a small whole number times the first part is exact.
_LN2 = {
    "float64": (0.693147180369123816490, 1.90821492927058770002e-10),
    "float32": (0.693359375, -2.12194440e-4),
}

#: erf(x) is x times the first polynomial, in x * x, up to 1, and from there to the number (where it
#: rounds to 1) 1 less the exponential of the second, in x. Highest power first; through the
#: Chebyshev nodes of erf(sqrt(s)) / sqrt(s) on [0, 1] and of log(1 - erf(x)).
_ERF = {
    "float64": (
        (-7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07,
         1.6447424703317362e-06, -1.492473690741966e-05, 0.00012055294904839707,
         -0.0008548325975389692, 0.0052239776071164225, -0.02686617064323777, 0.11283791670945006,
         -0.37612638903183543, 1.1283791670955126),
        (-5.038175090820216e-18, 4.372730657464627e-16, -1.803681420277295e-14,
         4.704754571528763e-13, -8.710329646313464e-12, 1.2176913893331286e-10,
         -1.3348440700984947e-09, 1.1757498115750717e-08, -8.454071020048298e-08,
         5.008717897920234e-07, -2.452846118538208e-06, 9.88504231580783e-06,
         -3.223400632863468e-05, 8.134663117117e-05, -0.00013878978515156762,
         5.9988163202506775e-05, 0.0005115746202377613, -0.0016410725055028398,
         0.00018134612945957767, 0.019136993126873038, -0.10277298786463396, -0.6366206965657829,
         -1.1283787825197156, -5.442051963983573e-08),
        6.0,
    ),
    "float32": (
        (-0.0005648059865503044, 0.004921762027877231, -0.02671505423226643, 0.11280316652505075,
         -0.37612343775327806, 1.1283791261787373),
        (1.6371514145936436e-06, -4.605804268918978e-05, 0.0005968056256607798,
         -0.004759596293266265, 0.026421136005663898, -0.11008008294882024, -0.631826051559163,
         -1.130233434841994, 0.00032013804967769883),
        4.0,
    ),
}  # fmt: skip


@intrinsic
def _pointer(context: Any, address: Any, element: Any) -> Any:
    """An address, as a pointer to elements of a type."""
    pointed = types.CPointer(element.dtype)

    def build(codegen: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], codegen.get_value_type(pointed))

    return pointed(types.int64, element), build


@njit(**INLINED)
def column(address: Any, count: Any, element: Any) -> Any:
    """`count` elements of a type at an address, as an array."""
    return carray(_pointer(address, element), (count,))


@cache
def elementary(dtype: str) -> SimpleNamespace:
    """The functions by name, with F, which makes a number of the data type."""
    f, float_type = _FLOATS[dtype]
    integer, integer_type = _INTEGERS[dtype]
    fraction_bits, bias, exp_terms, log_terms = _FORMATS[dtype]
    shift, offset = integer(fraction_bits), integer(bias)
    magic = f(1.5 * 2.0**fraction_bits)  # adding it rounds to a whole number, in the low bits
    ln2_high, ln2_low = map(f, _LN2[dtype])
    per_ln2 = f(1 / math.log(2))
    zero, half, one, two, infinity, nan = map(f, (0, 0.5, 1, 2, np.inf, np.nan))
    largest = f(math.log(float(np.finfo(dtype).max)) + 1)
    smallest = f(math.log(float(np.finfo(dtype).smallest_subnormal)) - 1)
    saturated = f(22.0)  # beyond it tanh is 1 to the last place
    tiny, lift = f(np.finfo(dtype).smallest_normal), f(2.0 ** (fraction_bits + 1))
    root_half = f(math.sqrt(0.5))

    @intrinsic
    def bits(context: Any, x: Any) -> Any:
        def build(codegen: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], codegen.get_value_type(integer_type))

        return integer_type(float_type), build

    @intrinsic
    def from_bits(context: Any, x: Any) -> Any:
        def build(codegen: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], codegen.get_value_type(float_type))

        return float_type(integer_type), build

    def polynomial(coefficients: Sequence[float]) -> Any:
        """Horner's scheme, unrolled, highest power first."""
        lines = ["def horner(x):", f"    y = F({coefficients[0]!r})"]
        lines += [f"    y = y * x + F({each!r})" for each in coefficients[1:]]
        found: dict[str, Any] = {"F": f}
        exec("\n".join([*lines, "    return y"]), found)
        return njit(**INLINED)(found["horner"])

    #: (exp(r) - 1 - r) / r ** 2
    exp_series = polynomial([1 / math.factorial(n) for n in range(exp_terms, 1, -1)])
    #: (atanh(s) / s - 1) / s ** 2, in s ** 2
    log_series = polynomial([1 / n for n in range(log_terms, 1, -2)])
    *erf_series, erf_end = _ERF[dtype]
    erf_near, erf_far = map(polynomial, erf_series)
    saturated_erf = f(erf_end)
    ndtr_numbers, ndtr_coefficients = NDTR[dtype]
    ndtr_series = polynomial(ndtr_coefficients[::-1])
    ndtr_stretch, ndtr_centre, ndtr_last = map(f, ndtr_numbers)
    root_eight = f(math.sqrt(8))
    sigmoid_tail, tanh_tail = f(SIGMOID_TAIL), f(TANH_TAIL)
    half_fraction = ~integer(2 ** ((fraction_bits + 2) // 2) - 1)  # what is left has exact squares

    @njit(**INLINED)
    def power_of_two(rounded: Any) -> Any:
        """2 ** k, for k = rounded - magic inside the exponent's range."""
        return from_bits((bits(rounded) + offset) << shift)

    @njit(**INLINED)
    def reduced(x: Any) -> Any:
        """exp(r) - 1 and k + magic, where x = k * ln(2) + r."""
        rounded = x * per_ln2 + magic
        k = rounded - magic
        r = (x - k * ln2_high) - k * ln2_low
        return exp_series(r) * r * r + r, rounded

    @njit(**INLINED)
    def halves(rounded: Any) -> Any:
        """2 ** k as two factors, which reach the ends of the range, subnormals too."""
        k = rounded - magic
        first = k * half + magic
        second = (k - (first - magic)) + magic
        return power_of_two(first), power_of_two(second)

    @njit(**INLINED)
    def exp(x: Any) -> Any:
        inside = smallest if x < smallest else x
        inside = largest if inside > largest else inside
        less_one, rounded = reduced(inside)
        first, second = halves(rounded)
        return (less_one + one) * first * second

    @njit(**INLINED)
    def expm1(x: Any) -> Any:
        inside = -saturated * two if x < -saturated * two else x
        inside = largest if inside > largest else inside
        less_one, rounded = reduced(inside)
        first, second = halves(rounded)
        near = less_one * (first * second) + (first * second - one)
        far = (less_one + one) * first * second
        return far if x > saturated * two else near

    @njit(**INLINED)
    def tanh(x: Any) -> Any:
        inside = -saturated if x < -saturated else x
        inside = saturated if inside > saturated else inside
        less_one, rounded = reduced(inside * two)
        scale = power_of_two(rounded)
        less_one = less_one * scale + (scale - one)
        return less_one / (less_one + two)

    @njit(**INLINED)
    def log(x: Any) -> Any:
        normal = x * lift if x < tiny else x
        lifted = f(fraction_bits + 1) if x < tiny else zero
        # the exponent of x / sqrt(1/2), so that the rest is between sqrt(1/2) and sqrt(2)
        exponent = ((bits(normal) - bits(root_half)) >> shift) << shift
        rest = from_bits(bits(normal) - exponent)
        k = f(exponent >> shift) - lifted
        s = (rest - one) / (rest + one)
        square = s * s
        series = two * s + two * s * square * log_series(square)
        found = k * ln2_high + (series + k * ln2_low)
        found = x if x == infinity else found
        found = -infinity if x == zero else found
        return found if x >= zero else nan

    @njit(**INLINED)
    def log1p(x: Any) -> Any:
        y = one + x
        lost = (x - (y - one)) / y
        return log(y) + (lost if (y > zero) & (y < infinity) else zero)

    @njit(**INLINED)
    def erf(x: Any) -> Any:
        size = -x if x < zero else x
        size = saturated_erf if size > saturated_erf else size
        less_one, rounded = reduced(erf_far(size))
        far = one - (less_one + one) * power_of_two(rounded)
        far = -far if x < zero else far
        return far if size > one else x * erf_near(x * x)

    @njit(**INLINED)
    def ndtr(x: Any) -> Any:
        size = -x if x < zero else x
        size = ndtr_last if size > ndtr_last else size
        # exp(-size * size / 2), whose rounded exponent would cost digits: high * high is exact
        high = from_bits(bits(size) & half_fraction)
        exponent = high * high * -half
        rounded = exponent * per_ln2 + magic
        k = rounded - magic
        r = (exponent - k * ln2_high) - k * ln2_low
        r -= (size - high) * (size + high) * half
        first, second = halves(rounded)
        place = ndtr_stretch * (size / (size + ndtr_centre)) - one
        scale = ndtr_series(place) / (two + root_eight * size)
        tail = (exp_series(r) * r * r + r + one) * scale * first * second
        return tail if x < zero else one - tail

    # the second exponential of these two is behind a branch: circuits of scalars rarely get there
    @njit(**INLINED)
    def sigmoid_slope(x: Any, out: Any) -> Any:
        return out / (one + exp(x)) if x > sigmoid_tail else out * (one - out)

    @njit(**INLINED)
    def tanh_slope(x: Any, out: Any) -> Any:
        size = -x if x < zero else x
        steep = one + (-out if out < zero else out)
        return exp(-two * size) * steep * steep if size > tanh_tail else one - out * out

    @njit(**INLINED)
    def where(condition: Any, x: Any, y: Any) -> Any:
        return x if condition else y

    @njit(**INLINED)
    def maximum(x: Any, y: Any) -> Any:
        return x if x > y or x != x else y

    @njit(**INLINED)
    def minimum(x: Any, y: Any) -> Any:
        return x if x < y or x != x else y

    @njit(**INLINED)
    def sign(x: Any) -> Any:
        return x if x != x else (one if x > zero else zero) - (one if x < zero else zero)

    @njit(**INLINED)
    def power(x: Any, y: Any) -> Any:
        if y == two:
            return x * x
        return x if y == one else f(x**y)

    @njit(**INLINED)
    def remainder(x: Any, y: Any) -> Any:
        return f(np.remainder(x, y))

    @njit(**INLINED)
    def fmod(x: Any, y: Any) -> Any:
        return f(np.fmod(x, y))

    element = np.dtype(dtype).type

    @njit(**INLINED)
    def view(address: Any, count: Any) -> Any:
        """`count` elements at an address, as an array."""
        return column(address, count, element)

    def library(name: str) -> Any:
        function = getattr(math, name)

        @njit(**INLINED)
        def call(x: Any) -> Any:
            return f(function(x))

        return call

    def ufunc(function: Any) -> Any:
        @njit(**INLINED)
        def call(x: Any) -> Any:
            return function(x)

        return call

    own = (
        exp,
        expm1,
        tanh,
        log,
        log1p,
        erf,
        ndtr,
        sigmoid_slope,
        tanh_slope,
        where,
        maximum,
        minimum,
        sign,
        power,
        remainder,
        fmod,
        view,
    )
    return SimpleNamespace(
        F=f, inf=np.inf, nan=np.nan,
        **{each.__name__: each for each in own},
        **{name: library(name) for name in _LIBRARY},
        **{each.__name__: ufunc(each) for each in _UFUNCS},
    )  # fmt: skip


_LIBRARY = (
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "sin", "sinh", "tan",
)  # fmt: skip
_UFUNCS = (np.floor, np.ceil, np.rint, np.trunc, np.sqrt, np.isinf, np.isnan)

__all__ = ["INLINED", "OPTIONS", "column", "elementary"]
