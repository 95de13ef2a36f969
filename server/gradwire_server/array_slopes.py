"""Derivatives that their functions' rounded values have no digits of, in the tails."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

#: Where out * (1 - out) of a sigmoid, and 1 - out ** 2 of a tanh, begin to cancel.
SIGMOID_TAIL, TANH_TAIL = 4.0, 2.0


def sigmoid_slope(x: Array, out: Array) -> Array:
    """The derivative of out = sigmoid(x); in its tail 1 - out is 1 / (1 + exp(x))."""
    slope = out * (1 - out)
    in_tail = x > SIGMOID_TAIL
    if not np.any(in_tail):
        return slope
    if np.ndim(slope) == 0:
        return out / (1 + np.exp(x))
    tail = np.exp(x)
    tail += 1
    np.divide(out, tail, out=tail)
    np.copyto(slope, tail, where=in_tail)
    return slope


def tanh_slope(x: Array, out: Array) -> Array:
    """The derivative of out = tanh(x); in its tails 1 - |out| is exp(-2 |x|) (1 + |out|)."""
    slope, size = 1 - out * out, np.abs(x)
    in_tail = size > TANH_TAIL
    if not np.any(in_tail):
        return slope
    if np.ndim(slope) == 0:
        return np.exp(-2 * size) * (1 + np.abs(out)) ** 2
    tail = np.multiply(size, -2, out=size)
    np.exp(tail, out=tail)
    rest = np.abs(out)
    rest += 1
    rest *= rest
    tail *= rest
    np.copyto(slope, tail, where=in_tail)
    return slope
