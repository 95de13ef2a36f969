"""Numbers from one data type into another, rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
from ml_dtypes import bfloat16, finfo

from gradwire_server.specs import FLOAT8S, SHORT_INTEGERS

Array = Any

_BLOCK = 1 << 15  # elements whose copies stay in the cache


def astype(x: Array, dtype: str) -> Array:
    """Elements converted, rounded once to nearest even; a float becomes an integer towards zero."""
    x = np.asarray(x)
    if np.dtype(dtype) == _BFLOAT16 and x.dtype in _OVER_FLOAT32:
        x = _rounded_to_odd(_as_float64(x))
    to_half = x.dtype == np.float32 and np.dtype(dtype) == np.float16
    found = _as_float16(x) if to_half else x.astype(dtype)
    return found if found.ndim else found[()]


_BFLOAT16 = np.dtype(bfloat16)
#: What ml_dtypes rounds to float32 before it rounds to bfloat16.
_OVER_FLOAT32 = [np.dtype(name) for name in ("int32", "int64", "uint32", "uint64", "float64")]


def store(x: Array, dtype: str, saturate: bool = True, round_mode: str = "up") -> Array:
    """Elements in a data type that is not computed in, by the table of ONNX's Cast.

    Rounded once, to nearest even. With `saturate` floats of 8 bits keep what is too large, or
    infinite, as their largest number, and otherwise as infinity or NaN, as they have it. Powers of
    two (E8M0) are rounded "up", "down" or to "nearest", of two equally near to the larger. Integers
    keep their low bits; floats become such towards zero.
    """
    x = np.asarray(x)
    out = np.empty(x.shape, dtype)
    given, stored = x.reshape(-1), out.reshape(-1)
    for start in range(0, given.size, _BLOCK):
        part = given[start : start + _BLOCK]
        if dtype in SHORT_INTEGERS:
            found = part.astype(np.int64).astype(dtype)
        elif dtype == "float8_e8m0fnu":
            found = _as_power(_as_float64(part), saturate, round_mode)
        else:
            found = _as_small_float(part, dtype, saturate)
        stored[start : start + _BLOCK] = found
    return out if out.ndim else out[()]


def _as_small_float(x: Array, dtype: str, saturate: bool) -> Array:
    """In a floating data type of 8 or of 4 bits."""
    narrow = _rounded_to_odd(_as_float64(x)) if x.dtype in _OVER_FLOAT32 else x.astype(np.float32)
    if saturate and dtype in FLOAT8S:
        most = np.float32(finfo(dtype).max)  # type: ignore[no-untyped-call]
        narrow = np.clip(narrow, -most, most)  # NaN stays
    return narrow.astype(dtype)


_E8M0_NAN = 0xFF
_E8M0_BIAS = 127


def _as_power(x: Array, saturate: bool, round_mode: str) -> Array:
    """float64s as powers of two: the exponent's code; NaN for what is negative.

    What is outside after rounding is the nearest that there is, and NaN without `saturate`.
    """
    fraction, exponent = np.frexp(x)  # fraction in [1/2, 1)
    upward = {"up": fraction > 0.5, "nearest": fraction >= 0.75, "down": np.False_}[round_mode]
    code = exponent - 1 + _E8M0_BIAS + upward
    code = np.where(x == 0, -1, np.where(np.isposinf(x), _E8M0_NAN, code))
    inside = np.clip(code, 0, _E8M0_NAN - 1)
    is_number = (x >= 0) & (saturate | (code == inside))
    return np.where(is_number, inside, _E8M0_NAN).astype(np.uint8).view("float8_e8m0fnu")


def _as_float64(x: Array) -> Array:
    """float64s that are rounded to fewer bits as x itself would be.

    Integers of over 53 bits lose their last 11, and what is lost makes the last bit odd.
    """
    if x.dtype not in _OVER_FLOAT64:
        return x.astype(np.float64)
    lost = x & 0x7FF
    is_large = (x > 2**53) | (x < -(2**53)) if x.dtype == np.int64 else x > 2**53
    odd = (x - lost) | ((lost != 0).astype(x.dtype) << 11)
    return np.where(is_large, odd, x).astype(np.float64)


_OVER_FLOAT64 = [np.dtype(name) for name in ("int64", "uint64")]


def _rounded_to_odd(x: Array) -> Array:
    """float32s from which rounding to fewer bits gives what rounding x itself would give.

    What is not exact gets an odd last bit (Boldo and Melquiond, "Emulation of FMA and correctly
    rounded sums: proved algorithms using rounding to odd").
    """
    with np.errstate(over="ignore"):
        nearest = x.astype(np.float32)
    back = nearest.astype(np.float64)
    away = np.abs(back) > np.abs(x)
    bits = nearest.view(np.int32)
    is_exact = (back == x) | np.isnan(x)
    return np.where(is_exact, bits, (bits - away) | np.int32(1)).view(np.float32)


_LEAST_NORMAL = np.float32(2.0**-14)  # of float16


def _as_float16(x: Array) -> Array:
    """float32s in half precision.

    NumPy raises a flag for each number that it rounds below the normal ones, which takes thirty
    times as long as the rounding; here they are rounded before, to multiples of 2**-24, which are
    the last bits that float32 has between 0.5 and 1.
    """
    out = np.empty(x.shape, np.float16)
    given, rounded = x.reshape(-1), out.reshape(-1)
    for start in range(0, given.size, _BLOCK):
        part = given[start : start + _BLOCK]
        size = np.abs(part)
        small = size < _LEAST_NORMAL
        if small.any():
            half = np.float32(0.5)
            part = np.where(small, np.copysign((size + half) - half, part), part)
        rounded[start : start + _BLOCK] = part
    return out
