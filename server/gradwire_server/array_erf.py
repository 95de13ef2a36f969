"""The error function, and the normal distribution, for NumPy's arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def erf(x: Array) -> Array:
    """The error function; of float32 to 5e-7 of its size, five times as fast as SciPy's."""
    if x.dtype == np.float32:
        return _erf_of_float32(x)
    from scipy.special import erf as scipy_erf  # slow to import, and few graphs need it

    return scipy_erf(x)


#: erf(x) / x for |x| <= 4 is the quotient of these polynomials in x * x, constant term first: the
#: least largest relative error (2.5e-8), found by reweighted least squares.
_ERF_NUMERATOR = (
    1.1283791393152005, 0.19354423825348827, 0.05310165666214935, 0.0038833155990271317,
    0.0002845662962295555, 1.986800447258195e-06,
)  # fmt: skip
_ERF_DENOMINATOR = (
    1.0, 0.5048566708997038, 0.11534967739697957, 0.015207191703661853, 0.0011855663307754581,
    3.742038802828186e-05,
)  # fmt: skip
_ERF_BLOCK = 1 << 15  # elements whose powers stay in the cache


def _erf_of_float32(x: Array) -> Array:
    flat = np.reshape(x, -1)
    out = np.empty_like(flat)
    for start in range(0, flat.size, _ERF_BLOCK):
        part, given = out[start : start + _ERF_BLOCK], flat[start : start + _ERF_BLOCK]
        np.clip(given, -4, 4, out=part)
        square = part * part
        part *= _polynomial(_ERF_NUMERATOR, square)
        part /= _polynomial(_ERF_DENOMINATOR, square)
        np.clip(part, -1, 1, out=part)
        far = np.abs(given) > 3.92  # where it rounds to 1
        if far.any():
            part[far] = np.sign(given[far])
    return out.reshape(x.shape)[()]


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Its value at x, by Horner's rule in one buffer."""
    *rest, last = coefficients
    dtype = x.dtype.type
    total = x * dtype(last)
    for coefficient in reversed(rest[1:]):
        total += dtype(coefficient)
        total *= x
    total += dtype(rest[0])
    return total


#: By data type: ndtr(-x), for x from 0 to `last`, where it is 0 to the last place, is the quotient
#: exp(-x * x / 2) / (2 + sqrt(8) x) times a polynomial in stretch * x / (x + centre) - 1, which
#: runs from -1 to 1. Stretch, centre, last; coefficients, constant term first, through the
#: Chebyshev nodes.
NDTR = {
    "float64": (
        (2.25, 4.949747468305833, 39.59797974644666),
        (1.2576226059539464, -0.11853147654582685, -0.04180752757187663, 0.11305959211536436,
         -0.10860958645428487, 0.06980961463401143, -0.03210283425093028, 0.009915085613480746,
         -0.0013935077411854693, -0.00034520256138739156, 0.0002060369018460292,
         -1.178277707218133e-05, -1.773844689883524e-05, 3.4474117706002786e-06,
         1.5519808338701463e-06, -4.725017211967578e-07, -1.625201932923532e-07,
         5.5934197021786736e-08, 2.05083033049148e-08, -5.7223827170707425e-09,
         -2.59425113480782e-09, 3.7967308507960474e-10, 2.1479772915839718e-10),
    ),
    "float32": (
        (2.588235294117647, 4.242640687119285, 14.424978336205568),
        (1.2794893793365294, -0.06746822187478897, -0.10862336045434787, 0.1287781635311899,
         -0.0769927637142416, 0.028100443060640842, -0.005189625283895338, -0.0003522537535409457,
         0.00037901862920580276, -1.6462020189795042e-05, -2.097901691038564e-05),
    ),
}  # fmt: skip
#: By data type: the integers of its size, and the bits of a number that has an exact square.
_UPPER_HALVES = {
    "float64": (np.int64, ~np.int64(2**27 - 1)),
    "float32": (np.int32, ~np.int32(2**12 - 1)),
}


def ndtr(x: Array) -> Array:
    """The normal distribution's share below x, (1 + erf(x / sqrt(2))) / 2.

    It is right to the last digits of its tail, where SciPy's loses three.
    """
    dtype = x.dtype.type
    (stretch, centre, last), coefficients = NDTR[x.dtype.name]
    stretch, centre, last, slope = map(dtype, (stretch, centre, last, np.sqrt(8)))
    integer, upper_half = _UPPER_HALVES[x.dtype.name]
    flat = np.reshape(x, -1)
    out = np.empty_like(flat)
    for start in range(0, flat.size, _ERF_BLOCK):
        given = flat[start : start + _ERF_BLOCK]
        size = np.minimum(np.abs(given), last)
        # x * x rounded would cost digits of its exponential
        high = (size.view(integer) & upper_half).view(dtype)
        part = np.exp(high * high * dtype(-0.5))
        part *= np.exp((high - size) * (high + size) * dtype(0.5))
        part *= _polynomial(coefficients, stretch * (size / (size + centre)) - 1)
        part /= 2 + slope * size
        out[start : start + _ERF_BLOCK] = np.where(given < 0, part, 1 - part)
    return out.reshape(x.shape)[()]
