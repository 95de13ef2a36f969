"""Convolution and pooling in NumPy: windows as strided views, products by BLAS.

Patches of all windows are gathered for one matrix product a group, a few images at a time. Where
those of one image alone would be too many, the kernel's elements are taken one by one: slower, in
no more memory than the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from gradwire_server.gates.windows import Windows, gathered_elements, image_blocks
from gradwire_server.specs import Shape
from gradwire_server.stopping import stop_if_asked

Array = Any
Matmul = Callable[..., Array]

#: Elements of a kernel that are searched one by one for the largest.
_FEW = 64


def convolve(
    x: Array, w: Array, windows: Windows, group: int = 1, matmul: Matmul = np.matmul
) -> Array:
    """out[n, m, i] = sum over c, k of w[m, c, k] * x[n, c, element k of window i].

    x [N, C, sizes], w [M, C / group, kernel]; each group of output channels sees its own part of
    the input's.
    """
    images, channels = x.shape[:2]
    features = w.shape[0]
    out: Array = np.zeros((images, group, features // group, prod(windows.counts)), x.dtype)
    shape = (images, features, *windows.counts)
    if not out.size or not w.size:
        return out.reshape(shape)
    if gathered_elements(x.shape, windows) is not None:
        matrices = w.reshape(group, features // group, -1)
        for part in image_blocks(x.shape, windows):
            matmul(matrices, _gather(x[part], windows, group), out=out[part])
        return out.reshape(shape)
    out = out.reshape(images, group, features // group, *windows.counts)
    grouped = x.reshape(images, group, channels // group, *x.shape[2:])
    kernels = w.reshape(group, features // group, *w.shape[1:])
    for tap in _taps(windows, x.shape[2:]):
        seen = grouped[(..., *tap.elements)]
        found = matmul(kernels[(..., *tap.offset)], seen.reshape(*seen.shape[:3], -1))
        out[(..., *tap.windows)] += found.reshape(*found.shape[:3], *seen.shape[3:])
    return out.reshape(shape)


def convolve_transposed(
    x: Array,
    w: Array,
    windows: Windows,
    sizes: Shape,
    group: int = 1,
    matmul: Matmul = np.matmul,
) -> Array:
    """The adjoint of `convolve` in its x: every window's elements added up where they lie.

    x [N, M, counts], w [M, C / group, kernel]; out [N, C, sizes].
    """
    images, features = x.shape[:2]
    channels = w.shape[1] * group
    out: Array = np.zeros((images, channels, *sizes), x.dtype)
    if not out.size or not w.size:
        return out
    rows = x.reshape(images, group, features // group, -1)
    if gathered_elements(out.shape, windows) is not None:
        matrices = w.reshape(group, features // group, -1).swapaxes(1, 2)
        taps = list(_taps(windows, sizes))
        for part in image_blocks(out.shape, windows):
            spread = matmul(matrices, rows[part]).reshape(
                -1, channels, *windows.kernel, *windows.counts
            )
            block = out[part]
            for tap in taps:
                block[(..., *tap.elements)] += spread[(slice(None), slice(None), *tap.offset,
                                                       *tap.windows)]  # fmt: skip
        return out
    grouped = out.reshape(images, group, channels // group, *sizes)
    seen = x.reshape(images, group, features // group, *windows.counts)
    kernels = w.reshape(group, features // group, *w.shape[1:])
    for tap in _taps(windows, sizes):
        own = seen[(..., *tap.windows)]
        found = matmul(kernels[(..., *tap.offset)].swapaxes(1, 2), own.reshape(*own.shape[:3], -1))
        grouped[(..., *tap.elements)] += found.reshape(*found.shape[:3], *own.shape[3:])
    return out


def convolve_weights(
    x: Array, grad: Array, windows: Windows, group: int = 1, matmul: Matmul = np.matmul
) -> Array:
    """The adjoint of `convolve` in its w: products of each window's elements with its gradient.

    x [N, C, sizes], grad [N, M, counts]; out [M, C / group, kernel].
    """
    images, channels = x.shape[:2]
    features = grad.shape[1]
    out: Array = np.zeros((features, channels // group, *windows.kernel), x.dtype)
    if not out.size or not x.size:
        return out
    rows = grad.reshape(images, group, features // group, -1)
    if gathered_elements(x.shape, windows) is not None:
        total = out.reshape(group, features // group, -1)
        for part in image_blocks(x.shape, windows, out.size):
            patches = _gather(x[part], windows, group)
            total += matmul(rows[part], patches.swapaxes(-1, -2)).sum(axis=0)
        return out
    kernels = out.reshape(group, features // group, *out.shape[1:])
    grouped = x.reshape(images, group, channels // group, *x.shape[2:])
    own = grad.reshape(images, group, features // group, *windows.counts)
    for tap in _taps(windows, x.shape[2:]):
        seen = grouped[(..., *tap.elements)]
        mine = own[(..., *tap.windows)].reshape(images, group, features // group, -1)
        flat = seen.reshape(*seen.shape[:3], -1)
        for image in range(images):
            kernels[(..., *tap.offset)] += matmul(mine[image], flat[image].swapaxes(1, 2))
    return out


def sum_windows(x: Array, windows: Windows) -> Array:
    """The sum of each window, over x's last axes; padding counts as 0."""
    for axis, along, place in _axes(windows, x):
        out: Array = np.zeros(
            (*x.shape[:place], windows.counts[axis], *x.shape[place + 1 :]), x.dtype
        )
        for tap in _taps(along, x.shape[place : place + 1]):
            out[_at(place, tap.windows)] += x[_at(place, tap.elements)]
        x = out
    return x


def spread_windows(grad: Array, windows: Windows, sizes: Shape) -> Array:
    """The adjoint of `sum_windows`: each window's number added to all its elements."""
    for axis, along, place in _axes(windows, grad):
        shape = (*grad.shape[:place], sizes[axis], *grad.shape[place + 1 :])
        out: Array = np.zeros(shape, grad.dtype)
        for tap in _taps(along, sizes[axis : axis + 1]):
            out[_at(place, tap.elements)] += grad[_at(place, tap.windows)]
        grad = out
    return grad


def max_windows(x: Array, windows: Windows) -> Array:
    """The largest element of each window; a NaN is larger than any number."""
    for axis, along, place in _axes(windows, x):
        shape = (*x.shape[:place], windows.counts[axis], *x.shape[place + 1 :])
        best: Array = np.full(shape, _lowest(x.dtype), x.dtype)
        for tap in _taps(along, x.shape[place : place + 1]):
            own = best[_at(place, tap.windows)]
            np.maximum(own, x[_at(place, tap.elements)], out=own)
        x = best
    return x


def argmax_windows(x: Array, windows: Windows) -> Array:
    """Where in x's spatial axes, row-major, the largest element of each window is.

    Of equal elements it is the first; 0 where a window sees padding alone.
    """
    sizes = x.shape[x.ndim - len(windows.kernel) :]
    numbers = np.arange(prod(sizes), dtype=np.int64 if prod(sizes) > 1 << 31 else np.int32)
    positions = np.broadcast_to(numbers.reshape(sizes), x.shape)
    # the last axis first: of equal elements the one in the first row then stays
    for axis, along, place in reversed(list(_axes(windows, x))):
        shape = (*x.shape[:place], windows.counts[axis], *x.shape[place + 1 :])
        best: Array = np.full(shape, _lowest(x.dtype), x.dtype)
        at_best: Array = np.full(shape, -1, positions.dtype)
        for tap in _taps(along, x.shape[place : place + 1]):
            elements, own = _at(place, tap.elements), _at(place, tap.windows)
            found, before = x[elements], best[own]
            larger = (found > before) | (at_best[own] < 0)  # the lowest number is one too
            if x.dtype.kind == "f":
                larger |= np.isnan(found) & ~np.isnan(before)
            np.copyto(before, found, where=larger)
            np.copyto(at_best[own], positions[elements], where=larger)
        x, positions = best, at_best
    return np.maximum(positions, 0, dtype=np.int64)


def spread_largest(grad: Array, largest: Array, x: Array, windows: Windows) -> Array:
    """Each window's number added to the first of its elements that is the largest."""
    sizes = x.shape[x.ndim - len(windows.kernel) :]
    out: Array = np.zeros(x.shape, x.dtype)
    if not out.size:
        return out
    if prod(windows.kernel) > _FEW:
        rows = out.reshape(-1, prod(sizes))
        starts = np.arange(rows.shape[0])[:, None] * rows.shape[1]
        places = argmax_windows(x, windows).reshape(-1, prod(windows.counts)) + starts
        np.add.at(out.reshape(-1), places.reshape(-1), grad.reshape(-1))
        return out
    has_nan = x.dtype.kind == "f" and np.isnan(largest).any()
    searched: Array = np.ones(largest.shape, bool)
    for tap in _taps(windows, sizes):
        elements, own = (..., *tap.elements), (..., *tap.windows)
        found = x[elements] == largest[own]
        if has_nan:
            found |= np.isnan(x[elements])
        found &= searched[own]
        searched[own] ^= found
        out[elements] += grad[own] * found
    return out


class _Tap(NamedTuple):
    """One element of the kernel: the windows that have it inside the tensor, and where it is."""

    offset: Shape
    windows: tuple[slice, ...]
    elements: tuple[slice, ...]


def _taps(windows: Windows, sizes: Shape) -> Iterator[_Tap]:
    """Every kernel element that is inside the tensor for any window, row-major."""
    for each in product(*(_taps_along(windows, sizes, axis) for axis in range(len(sizes)))):
        stop_if_asked()
        yield _Tap(
            tuple(tap[0] for tap in each),
            tuple(tap[1] for tap in each),
            tuple(tap[2] for tap in each),
        )


def _taps_along(windows: Windows, sizes: Shape, axis: int) -> Iterator[tuple[int, slice, slice]]:
    stride, size, count = windows.strides[axis], sizes[axis], windows.counts[axis]
    for offset in _offsets(windows, size, axis):
        start = offset * windows.dilations[axis] - windows.before[axis]
        first = max(0, -(start // stride))
        last = min(count - 1, (size - 1 - start) // stride)
        if first <= last:
            elements = slice(start + first * stride, start + last * stride + 1, stride)
            yield offset, slice(first, last + 1), elements


def _offsets(windows: Windows, size: int, axis: int) -> Iterator[int]:
    """Kernel elements that may be inside; a kernel far larger than the tensor is skipped over."""
    kernel, dilation = windows.kernel[axis], windows.dilations[axis]
    if kernel <= windows.counts[axis]:
        yield from range(kernel)
        return
    behind = 0
    # later windows have the tensor at their earlier elements
    for window in reversed(range(windows.counts[axis])):
        start = windows.before[axis] - window * windows.strides[axis]
        first = max(behind, -(-start // dilation))
        behind = max(behind, min(kernel, (start + size - 1) // dilation + 1))
        yield from range(first, behind)


def _axes(windows: Windows, x: Array) -> Iterator[tuple[int, Windows, int]]:
    """Each spatial axis: its number, the windows along it alone, and where it is in x."""
    lead = x.ndim - len(windows.kernel)
    for axis in range(len(windows.kernel)):
        fields = (
            windows.kernel, windows.strides, windows.dilations, windows.before, windows.after,
            windows.counts,
        )  # fmt: skip
        yield axis, Windows(*(field[axis : axis + 1] for field in fields)), lead + axis


def _at(place: int, along: tuple[slice, ...]) -> tuple[slice, ...]:
    return (*(slice(None),) * place, *along)


def _gather(x: Array, windows: Windows, group: int) -> Array:
    """The patches as matrices: [N, group, C / group * kernel, counts]."""
    spatial = x.shape[2:]
    behind = tuple(
        max(0, reach - before - size)
        for reach, before, size in zip(windows.reach, windows.before, spatial, strict=True)
    )
    if any(windows.before) or any(behind):
        sizes = zip(windows.before, spatial, behind, strict=True)
        padded = np.zeros((*x.shape[:2], *map(sum, sizes)), x.dtype)
        inside = (slice(before, before + size) for before, size in
                  zip(windows.before, spatial, strict=True))  # fmt: skip
        padded[(slice(None), slice(None), *inside)] = x
        x = padded
    lead, steps = x.strides[:2], x.strides[2:]
    shape = (*x.shape[:2], *windows.kernel, *windows.counts)
    strides = (
        *lead,
        *(step * dilation for step, dilation in zip(steps, windows.dilations, strict=True)),
        *(step * stride for step, stride in zip(steps, windows.strides, strict=True)),
    )
    patches = as_strided(x, shape, strides, writeable=False)
    return patches.reshape(x.shape[0], group, -1, prod(windows.counts))


def _lowest(dtype: Any) -> Any:
    return -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
