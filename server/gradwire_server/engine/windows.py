"""What the array engine computes with: NumPy's arrays, and products and windows on our threads.

Where there are kernels, convolution and pooling are compiled loops in place of the functions of
array_windows.py, which say what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from math import prod
from operator import ge
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire_server import arrays
from gradwire_server.engine import kernels
from gradwire_server.engine.products import einsum, matmul
from gradwire_server.engine.tape import over_elements
from gradwire_server.gates.base import Array, Namespace
from gradwire_server.gates.windows import Windows, gathered_elements, image_blocks
from gradwire_server.specs import COMPUTED, Shape

#: Elements of a kernel that are searched for the largest in each of many windows over them.
_FEW = 64
#: What multiplies matrices in array_windows.py.
_CONVOLUTIONS = ("convolve", "convolve_transposed", "convolve_weights")


def namespace() -> Namespace:
    """The functions that gates compute with."""
    return _namespace(tuple(kernels.loaded(dtype) for dtype in COMPUTED))


@cache
def _namespace(loops: tuple[Any, ...]) -> SimpleNamespace:
    functions = {name: getattr(arrays, name) for name in arrays.__all__}
    functions |= {"matmul": matmul, "einsum": einsum}
    functions |= {name: partial(getattr(arrays, name), matmul=matmul) for name in _CONVOLUTIONS}
    if None in loops:
        return SimpleNamespace(**functions)
    own = _Windowed(dict(zip(COMPUTED, loops, strict=True)))
    names = ("argmax_windows", *_CONVOLUTIONS, "spread_largest")
    return SimpleNamespace(**functions | {name: getattr(own, name) for name in names})


class _Windowed:
    """The functions of array_windows.py by their names there; theirs where these do not fit."""

    def __init__(self, loops: Mapping[str, Any]) -> None:
        self._loops = loops  # by data type

    def convolve(self, x: Array, w: Array, windows: Windows, group: int = 1) -> Array:
        if not _gathers(x, windows) or not x.size or not w.size:
            return arrays.convolve(x, w, windows, group, matmul)
        images, features = x.shape[0], w.shape[0]
        matrices = w.reshape(group, features // group, -1)
        out: Array = np.empty((images, group, features // group, prod(windows.counts)), x.dtype)
        for part in image_blocks(x.shape, windows):
            matmul(matrices, self._gathered(x[part], windows, group), out=out[part])
        return out.reshape(images, features, *windows.counts)

    def convolve_transposed(
        self, x: Array, w: Array, windows: Windows, sizes: Shape, group: int = 1
    ) -> Array:
        images, features = x.shape[:2]
        channels = w.shape[1] * group
        out: Array = np.zeros((images, channels, *sizes), x.dtype)
        if not _gathers(out, windows) or not out.size or not w.size:
            return arrays.convolve_transposed(x, w, windows, sizes, group, matmul)
        rows = x.reshape(images, group, features // group, -1)
        matrices = w.reshape(group, features // group, -1).swapaxes(1, 2)
        place, loops = _place(windows, sizes), self._loops[x.dtype.name]
        for part in image_blocks(out.shape, windows):
            patches = matmul(matrices, rows[part])
            columns = (np.ravel(patches), place, np.ravel(out[part]))
            _over_rows(loops.spread, columns, len(patches) * channels, patches.size)
        return out

    def convolve_weights(self, x: Array, grad: Array, windows: Windows, group: int = 1) -> Array:
        if not _gathers(x, windows) or not x.size or not grad.size:
            return arrays.convolve_weights(x, grad, windows, group, matmul)
        images, features = grad.shape[:2]
        out: Array = np.zeros((features, x.shape[1] // group, *windows.kernel), x.dtype)
        total = out.reshape(group, features // group, -1)
        rows = grad.reshape(images, group, features // group, -1)
        for part in image_blocks(x.shape, windows, out.size):
            patches = self._gathered(x[part], windows, group)
            total += matmul(rows[part], patches.swapaxes(-1, -2)).sum(axis=0)
        return out

    def argmax_windows(self, x: Array, windows: Windows) -> Array:
        if not _searches(x, windows):
            return arrays.argmax_windows(x, windows)
        lead, sizes = _axes(x, windows)
        largest: Array = np.empty((*lead, *windows.counts), x.dtype)
        places: Array = np.empty(largest.shape, np.int64)
        columns = (np.ravel(x), _place(windows, sizes), np.ravel(largest), np.ravel(places))
        _over_rows(self._loops[x.dtype.name].find_largest, columns, prod(lead), x.size)
        return places

    def spread_largest(self, grad: Array, largest: Array, x: Array, windows: Windows) -> Array:
        if not _searches(x, windows):
            return arrays.spread_largest(grad, largest, x, windows)
        out: Array = np.zeros(x.shape, x.dtype)
        lead, sizes = _axes(x, windows)
        given = map(np.ravel, (grad, largest, x))
        columns = (*given, _place(windows, sizes), np.ravel(out))
        _over_rows(self._loops[x.dtype.name].spread_largest, columns, prod(lead), x.size)
        return out

    def _gathered(self, x: Array, windows: Windows, group: int) -> Array:
        """The patches as matrices: [N, group, C / group * kernel, counts]."""
        (images, channels), sizes = _axes(x, windows)
        elements = channels // group * prod(windows.kernel)
        patches: Array = np.empty((images, group, elements, prod(windows.counts)), x.dtype)
        columns = (np.ravel(x), _place(windows, sizes), np.ravel(patches))
        _over_rows(self._loops[x.dtype.name].gather, columns, images * channels, patches.size)
        return patches


def _fits(x: Array, windows: Windows) -> bool:
    """Whether the loops know the axes and the data type."""
    return len(windows.kernel) in (1, 2) and str(x.dtype) in COMPUTED


def _gathers(x: Array, windows: Windows) -> bool:
    """Whether the windows of an image may be held at once, besides."""
    return _fits(x, windows) and gathered_elements(x.shape, windows) is not None


def _searches(x: Array, windows: Windows) -> bool:
    """Whether each window may be searched whole, besides.

    Along one axis after another is faster where large windows overlap.
    """
    apart = all(map(ge, windows.strides, windows.spans))
    most = max(_FEW, prod(_axes(x, windows)[1])) if apart else _FEW
    return _fits(x, windows) and prod(windows.kernel) <= most


def _over_rows(loop: Any, columns: tuple[Array, ...], rows: int, work: int) -> None:
    """Runs a loop over all rows, on as many processors as the work, in elements, is worth."""
    over_elements(lambda start, stop: loop(*columns, start, stop), rows, work // max(1, rows), 1)


def _place(windows: Windows, sizes: Shape) -> npt.NDArray[np.int64]:
    """As the loops take it; a single axis is the second of two."""
    alone = len(sizes) == 1
    fields = (windows.kernel, windows.strides, windows.dilations, windows.before, windows.counts)
    firsts = (1, 1, 1, 0, 1, 1)
    rows = zip(firsts, (*fields, sizes), strict=True)
    return np.array([(first, *each) if alone else each for first, each in rows], np.int64)


def _axes(x: Array, windows: Windows) -> tuple[Shape, Shape]:
    """The axes before those that windows lie over, and those."""
    lead = x.ndim - len(windows.kernel)
    return x.shape[:lead], x.shape[lead:]


__all__ = ["namespace"]
