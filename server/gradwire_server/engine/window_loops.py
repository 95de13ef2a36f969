"""Compiled loops over windows of two spatial axes, for convolution and pooling.

Tensors come flat, a row for each channel of each image, a plane of height x width in each row;
`place` has kernel, strides, dilations, padding in front, counts, and that height and width, two
numbers each. Each loop does the rows from `start` to `stop`. Lines are short, so nothing is sliced;
and places have no sign, since a signed index may count from the end, which costs a comparison and
the processor's vectors. Compiled in the cache's own copy of this file (engine/kernels.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

U = np.uint64


def _kernel(*letters):
    """Compiles for flat arrays, by letters: x is read, o written, p are places, w a `place`."""

    def signature(number):
        kinds = {
            "x": types.Array(number, 1, "C", readonly=True),  # requests' arrays may not be written
            "o": number[::1],
            "p": types.int64[::1],
            "w": types.int64[:, ::1],
        }
        rows = (types.int64, types.int64)
        return types.void(*(kinds[letter] for letter in letters), *rows)

    return njit([signature(number) for number in (types.float32, types.float64)],
                cache=True, nogil=True)  # fmt: skip


@njit(inline="always")
def _inside(offset, stride, size, count):
    """The windows, first and end, that have their element at this offset inside the tensor."""
    first = 0 if offset >= 0 else min(count, (stride - 1 - offset) // stride)
    end = 0 if offset >= size else min(count, (size - 1 - offset) // stride + 1)
    return first, max(first, end)


@_kernel(*"xwo")
def gather(x, place, patches, start, stop):
    """patches [rows, kernel, counts]: each window's elements; 0 where it sees padding."""
    kernel, strides, dilations, before, counts, sizes = place
    step, zero = U(strides[1]), x.dtype.type(0)
    to = U(start * kernel[0] * kernel[1] * counts[0] * counts[1])
    for row in range(start, stop):
        for a in range(kernel[0]):
            down = a * dilations[0] - before[0]
            top, bottom = _inside(down, strides[0], sizes[0], counts[0])
            for b in range(kernel[1]):
                along = b * dilations[1] - before[1]
                left, right = _inside(along, strides[1], sizes[1], counts[1])
                for i in range(counts[0]):
                    outside = i < top or i >= bottom
                    for _ in range(counts[1] if outside else left):
                        patches[to] = zero
                        to += U(1)
                    if outside:
                        continue
                    line = (row * sizes[0] + i * strides[0] + down) * sizes[1]
                    at, count = U(line + left * strides[1] + along), U(right - left)
                    if step == U(1):
                        for j in range(count):
                            patches[to + j] = x[at + j]
                    else:
                        for j in range(count):
                            patches[to + j] = x[at + j * step]
                    to += count
                    for _ in range(counts[1] - right):
                        patches[to] = zero
                        to += U(1)


@_kernel(*"xwo")
def spread(patches, place, out, start, stop):
    """The adjoint of `gather`: adds each window's elements to `out` where they lie."""
    kernel, strides, dilations, before, counts, sizes = place
    step, first = U(strides[1]), start * kernel[0] * kernel[1] * counts[0] * counts[1]
    for row in range(start, stop):
        for a in range(kernel[0]):
            down = a * dilations[0] - before[0]
            top, bottom = _inside(down, strides[0], sizes[0], counts[0])
            for b in range(kernel[1]):
                along = b * dilations[1] - before[1]
                left, right = _inside(along, strides[1], sizes[1], counts[1])
                for i in range(top, bottom):
                    line = (row * sizes[0] + i * strides[0] + down) * sizes[1]
                    to, at = U(line + left * strides[1] + along), U(first + i * counts[1] + left)
                    if step == U(1):
                        for j in range(U(right - left)):
                            out[to + j] += patches[at + j]
                    else:
                        for j in range(U(right - left)):
                            out[to + j * step] += patches[at + j]
                first += counts[0] * counts[1]


@_kernel(*"xwop")
def find_largest(x, place, largest, places, start, stop):
    """The largest element of each window, and where in its row it is: the first of equal ones.

    A NaN is larger than any number. Windows that see padding alone have -inf, at 0. Which element
    is the largest cannot be foreseen, so nothing is branched on.
    """
    kernel, strides, dilations, before, counts, sizes = place
    step, windows, low = U(strides[1]), counts[0] * counts[1], x.dtype.type(-np.inf)
    for each in range(U(start * windows), U(stop * windows)):
        largest[each] = low
        places[each] = -1
    for row in range(start, stop):
        for a in range(kernel[0]):
            down = a * dilations[0] - before[0]
            top, bottom = _inside(down, strides[0], sizes[0], counts[0])
            for b in range(kernel[1]):
                along = b * dilations[1] - before[1]
                left, right = _inside(along, strides[1], sizes[1], counts[1])
                for i in range(top, bottom):
                    z = (i * strides[0] + down) * sizes[1] + left * strides[1] + along
                    at = U(row * sizes[0] * sizes[1] + z)
                    to = U(row * windows + i * counts[1] + left)
                    for j in range(U(right - left)):
                        each, best, at_best = x[at + j * step], largest[to + j], places[to + j]
                        larger = (each > best) | ((each != each) & (best == best)) | (at_best < 0)
                        largest[to + j] = each if larger else best
                        places[to + j] = z + np.int64(j * step) if larger else at_best
    for each in range(U(start * windows), U(stop * windows)):
        places[each] = max(places[each], 0)


@_kernel(*"xxxwo")
def spread_largest(grad, largest, x, place, out, start, stop):
    """Adds each window's number to the first of its elements that is its largest."""
    kernel, strides, dilations, before, counts, sizes = place
    step, windows, zero = U(strides[1]), counts[0] * counts[1], x.dtype.type(0)
    rest = np.empty(windows, grad.dtype)
    for row in range(start, stop):
        for each in range(U(windows)):
            rest[each] = grad[U(row * windows) + each]
        for a in range(kernel[0]):
            down = a * dilations[0] - before[0]
            top, bottom = _inside(down, strides[0], sizes[0], counts[0])
            for b in range(kernel[1]):
                along = b * dilations[1] - before[1]
                left, right = _inside(along, strides[1], sizes[1], counts[1])
                for i in range(top, bottom):
                    line = (row * sizes[0] + i * strides[0] + down) * sizes[1]
                    at, own = U(line + left * strides[1] + along), U(i * counts[1] + left)
                    base = U(row * windows) + own
                    for j in range(U(right - left)):
                        each, best, given = x[at + j * step], largest[base + j], rest[own + j]
                        found = (each == best) | ((each != each) & (best != best))
                        out[at + j * step] += given if found else zero
                        rest[own + j] = zero if found else given


__all__ = ["find_largest", "gather", "spread", "spread_largest"]
