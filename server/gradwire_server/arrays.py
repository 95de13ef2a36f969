"""The NumPy namespace that gates compute with: the Array API's names, and a few more.

What an array library must offer to run gates is `__all__` of this module; the recorder of
gradient graphs (engine/recorder.py) offers the part that gradients need.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise, permutations
from math import prod as size_of
from typing import Any

import numpy as np
from ml_dtypes import iinfo
from numpy import (
    abs,
    acos,
    acosh,
    add,
    argmax,
    argmin,
    asin,
    asinh,
    atan,
    atanh,
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    broadcast_to,
    ceil,
    concat,
    cos,
    cosh,
    divide,
    equal,
    exp,
    expand_dims,
    expm1,
    floor,
    fmod,
    full_like,
    greater,
    greater_equal,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    matmul,
    maximum,
    mean,
    minimum,
    multiply,
    negative,
    ones_like,
    permute_dims,
    pow,
    prod,
    remainder,
    reshape,
    round,
    sign,
    sin,
    sinh,
    sqrt,
    squeeze,
    subtract,
    sum,
    take,
    take_along_axis,
    tan,
    tanh,
    tile,
    trunc,
    zeros_like,
)
from numpy.linalg import det

from gradwire_server.array_boxes import suppress_boxes
from gradwire_server.array_conversion import astype, store
from gradwire_server.array_erf import erf, ndtr
from gradwire_server.array_slopes import sigmoid_slope, tanh_slope
from gradwire_server.array_windows import (
    argmax_windows,
    convolve,
    convolve_transposed,
    convolve_weights,
    max_windows,
    spread_largest,
    spread_windows,
    sum_windows,
)
from gradwire_server.errors import Invalid
from gradwire_server.specs import SHORT_INTEGERS, STORED, Shape, Tensor
from gradwire_server.stopping import stop_if_asked

__all__ = [
    "abs", "acos", "acosh", "add", "arange", "argmax", "argmax_windows", "argmin", "asin", "asinh",
    "astype", "atan", "atanh", "bitcast", "bitwise_and", "bitwise_invert", "bitwise_left_shift",
    "bitwise_or", "bitwise_right_shift", "bitwise_xor", "broadcast_to", "ceil", "cofactor",
    "concat", "constant", "convolve", "convolve_transposed", "convolve_weights", "cos", "cosh",
    "cumulative_product", "cumulative_sum", "det", "dft", "divide", "dropout", "dropout_mask",
    "einsum", "equal", "erf", "exp", "expand_dims", "expm1", "eye", "floor", "fmod", "full",
    "full_like", "gather_nd", "greater", "greater_equal", "isinf", "isnan", "less", "less_equal",
    "log", "log1p", "logical_and", "logical_not", "logical_or", "logical_xor", "matmul", "max",
    "max_windows", "maximum", "mean", "min", "minimum", "multiply", "ndtr", "negative",
    "nonzero_places", "ones_like", "pad", "permute_dims", "pow", "prod", "remainder",
    "require_equal", "require_indices", "require_places", "require_range", "reshape", "roi_argmax",
    "round", "round_to", "scatter", "scatter_nd", "sigmoid_slope", "sign", "sin", "sinh", "slice",
    "split", "spread_largest", "spread_windows", "sqrt", "squeeze", "stop_if_asked", "store",
    "subtract", "sum",
    "sum_windows", "suppress_boxes", "take", "take_along_axis", "tan", "tanh", "tanh_slope", "tile",
    "top_indices", "triangle", "trunc", "truncated_divide", "unique_slices", "where", "zeros_like",
]  # fmt: skip

Array = Any

_SHOWN = 8  # elements that a refusal shows
#: Products, or elements sorted, after which it is asked whether anybody still waits.
_MOST, _MOST_SORTED = 1 << 31, 1 << 22


def full(shape: Shape, fill: float, dtype: str) -> Array:
    """A tensor of one number."""
    return np.full(shape, fill, dtype)


def constant(tensor: Tensor) -> Array:
    """A stored tensor as a read-only array."""
    little_endian = np.dtype(tensor.dtype).newbyteorder("<")
    return np.frombuffer(tensor.data, little_endian).reshape(tensor.shape)


@lru_cache(64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """A data type's name, which NumPy takes longer over than over a small array."""
    return str(dtype)


def where(condition: Array, x: Array, y: Array) -> Array:
    """Elements of x where the condition holds, and of y elsewhere.

    Floats are chosen by their bits: NumPy's own loop branches on every element, which takes
    fifteen times as long where the condition is not predictable.
    """
    if np.size(condition) < _FEW or condition.dtype != bool:
        return np.where(condition, x, y)
    dtype = np.result_type(x, y)
    if dtype not in _BITS:
        return np.where(condition, x, y)
    bits = _BITS[dtype]
    of_x, of_y = (np.asarray(each, dtype).view(bits) for each in (x, y))
    mask = condition.astype(bits)
    np.negative(mask, out=mask)  # all bits, or none
    if not of_y.ndim and not of_y:
        return _into(np.bitwise_and, of_x, mask).view(dtype)
    chosen = _into(np.bitwise_and, of_x ^ of_y, mask)
    return _into(np.bitwise_xor, of_y, chosen).view(dtype)


_FEW = 4096  # elements that NumPy's own loop is good enough for
_BITS = {np.dtype(np.float32): np.dtype(np.int32), np.dtype(np.float64): np.dtype(np.int64)}


def _into(function: Any, x: Array, buffer: Array) -> Array:
    """function(x, buffer), in the buffer where it has room."""
    fits = np.broadcast_shapes(x.shape, buffer.shape) == buffer.shape
    return function(x, buffer, out=buffer if fits else None)


def truncated_divide(x: Array, y: Array) -> Array:
    """Quotient of integers, rounded towards zero; 0 where y is 0."""
    nonzero = np.where(y == 0, np.ones_like(y), y)
    quotient = np.floor_divide(x, nonzero)
    down = (np.remainder(x, nonzero) != 0) & ((x < 0) != (nonzero < 0))
    return np.where(y == 0, np.zeros_like(quotient), quotient + down.astype(quotient.dtype))


def arange(count: int, dtype: str) -> Array:
    """0, 1, .. count - 1."""
    return np.arange(count).astype(dtype)


def eye(rows: int, columns: int, k: int, dtype: str) -> Array:
    """A matrix with ones on the k-th diagonal."""
    return np.eye(rows, columns, k, dtype)


def triangle(x: Array, k: int, upper: bool) -> Array:
    """Matrices with zeros below the k-th diagonal; above it, if not upper."""
    if not x.size:
        return np.zeros_like(x)
    rows, columns = x.shape[-2:]
    k = int(np.clip(k, -rows - 1, columns + 1))  # further out nothing changes
    return np.triu(x, k) if upper else np.tril(x, k)


def bitcast(x: Array, dtype: str) -> Array:
    """The same bytes as another data type of the same width."""
    return np.asarray(x).view(dtype)


def max(x: Array, axis: tuple[int, ...], keepdims: bool = False) -> Array:
    """Largest element along the axes; the lowest number of the type where there is none."""
    return np.max(x, axis=axis, keepdims=keepdims, initial=_lowest(x.dtype))


def min(x: Array, axis: tuple[int, ...], keepdims: bool = False) -> Array:
    """Smallest element along the axes; the highest number of the type where there is none."""
    return np.min(x, axis=axis, keepdims=keepdims, initial=_highest(x.dtype))


def cofactor(x: Array, *directions: Array) -> Array:
    """The cofactors of matrices, determinants without row i and column j, with signs; derived along
    each direction.

    Matrices are turned so that they are diagonal, of singular values, where all of this is sums of
    products of these: so singular matrices have it too, whatever their rank.
    """
    if not x.size:  # an empty batch may be of matrices that are far too large
        return np.zeros_like(x)
    left, values, right = np.linalg.svd(x)
    turned = [_swapped(left) @ each @ _swapped(right) for each in directions]
    inner = _diagonal_cofactor(values, turned)
    sign = np.sign(np.linalg.det(left) * np.linalg.det(right))
    return sign[..., None, None] * (left @ inner @ right)


def _diagonal_cofactor(values: Array, directions: list[Array]) -> Array:
    """The same of diagonal matrices: from each product of all values but those of some rows, where
    the directions have columns that are a permutation of the rows.
    """
    rows = _LETTERS[: len(directions) + 1]
    without = _products_without(values, len(rows))
    eye = np.eye(values.shape[-1], dtype=values.dtype)
    total = np.zeros_like(eye)
    for columns in permutations(rows):
        *factors, place = (row + column for row, column in zip(rows, columns, strict=True))
        out = place if place[0] != place[1] else place[0]
        terms = ",".join(f"...{each}" for each in (rows, *factors))
        part = np.einsum(f"{terms}->...{out}", without, *directions)
        total = total + _parity(columns) * (part if len(out) == 2 else part[..., None] * eye)
    return total


_LETTERS = "abcdefghij"


def _parity(order: Sequence[str]) -> int:
    """1 for an even permutation, -1 for an odd one."""
    swaps = builtins.sum(first > second for first, second in combinations(order, 2))
    return -1 if swaps % 2 else 1


def _products_without(values: Array, count: int) -> Array:
    """Products of all values but those at `count` places, an axis for each; 0 where two agree."""
    size = values.shape[-1]
    places = np.sort(np.indices((size,) * count), axis=0)
    before = cumulative_product(values, -1, True)
    after = cumulative_product(values, -1, True, True)
    product = before[..., places[0]] * after[..., places[-1]]
    if count > 1:
        later = np.triu(np.ones((size, size), bool), 1)
        rows = np.where(later, values[..., None, :], 1)
        between = cumulative_product(rows, -1, True)  # of what is after one and before another
        for first, second in pairwise(places):
            product = product * between[..., first, second]
    return np.where((np.diff(places, axis=0) > 0).all(axis=0), product, 0)


def _swapped(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def round_to(x: Array, dtype: str) -> Array:
    """Floats as integers: rounded to even, and kept within what the data type holds."""
    limits = iinfo(dtype)  # type: ignore[no-untyped-call]
    inside = np.clip(np.round(x), limits.min, limits.max)
    if dtype in SHORT_INTEGERS:
        return store(inside, dtype)
    # the largest int64 is no float64: what would round up to one more is set
    return np.where(inside >= limits.max, limits.max, inside.astype(dtype)).astype(dtype)


def einsum(equation: str, *operands: Array, out: Array | None = None) -> Array:
    """Einstein summation, ordered to need few operations."""
    # planning takes longer than a small product
    worthwhile = len(operands) > 2 or any(operand.size > 1000 for operand in operands)
    # the order of summation must not depend on strides
    rows_first = [np.asarray(operand, order="C") for operand in operands]
    pieces = _einsum_pieces(equation, rows_first) if worthwhile and out is None else 1
    if pieces < 2:
        return np.einsum(equation, *rows_first, out=out, optimize=worthwhile)
    terms, result = equation.split("->")
    axes = [term.find(result[0]) for term in terms.split(",")]
    found = []
    for part in range(pieces):
        stop_if_asked()
        own = [
            _piece(each, axis, part, pieces) for each, axis in zip(rows_first, axes, strict=True)
        ]
        found.append(np.einsum(equation, *own, optimize=True))
    return np.concat(found)


def _einsum_pieces(equation: str, operands: Sequence[Array]) -> int:
    """In how many pieces along the output's first axis a long summation may be stopped between."""
    inputs, out = equation.split("->")
    terms = inputs.split(",")
    sizes = axis_sizes(terms, operands)
    if not out or any(term.count(out[0]) > 1 for term in terms):
        return 1
    return builtins.min(sizes[out[0]], 1 + size_of(sizes.values()) // _MOST)


def axis_sizes(terms: Sequence[str], operands: Sequence[Array]) -> dict[str, int]:
    """How long the axis of each letter is; the longer one, where one operand has it of size 1."""
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, size in zip(term, operand.shape, strict=True):
            sizes[letter] = builtins.max(size, sizes.get(letter, 1))
    return sizes


def _piece(x: Array, axis: int, part: int, pieces: int) -> Array:
    """One of some pieces along an axis, all of it where it has no such axis or is broadcast."""
    if axis < 0 or x.shape[axis] == 1:
        return x
    start, stop = (x.shape[axis] * each // pieces for each in (part, part + 1))
    return x[(np.s_[:],) * axis + (np.s_[start:stop],)]


def dft(x: Array, length: int, axis: int, inverse: int, onesided: int) -> Array:
    """The Fourier transform along an axis; the last axis has the parts of complex numbers."""
    signal = x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]
    axis -= x.ndim if axis >= 0 else 0
    axis += 1  # without the last
    if inverse and onesided:
        return np.fft.irfft(signal, length, axis)[..., None].astype(x.dtype)
    if onesided:
        spectrum = np.fft.rfft(signal, length, axis)
    else:
        spectrum = (np.fft.ifft if inverse else np.fft.fft)(signal, length, axis)
    return np.stack([spectrum.real, spectrum.imag], -1).astype(x.dtype)


def dropout_mask(shape: Shape, ratio: float, seed: int) -> Array:
    """False at about a share of ratio of the places, drawn by a generator that never changes."""
    return np.random.RandomState(seed % 2**32).uniform(0.0, 1.0, shape) >= ratio


def dropout(x: Array, ratio: float, seed: int) -> Array:
    """0 where the mask is false, the rest divided by 1 - ratio."""
    return np.where(dropout_mask(x.shape, ratio, seed), x * (1 / (1 - ratio)), 0.0)


def cumulative_sum(x: Array, axis: int, exclusive: bool = False, reverse: bool = False) -> Array:
    """Running sum along an axis; exclusive leaves an element out of its own sum."""
    along = np.moveaxis(np.flip(x, axis) if reverse else x, axis, 0)
    total = np.zeros_like(along)
    if exclusive:
        np.cumsum(along[:-1], axis=0, dtype=x.dtype, out=total[1:])
    else:
        np.cumsum(along, axis=0, dtype=x.dtype, out=total)
    total = np.moveaxis(total, 0, axis)
    return np.flip(total, axis) if reverse else total


def cumulative_product(
    x: Array, axis: int, exclusive: bool = False, reverse: bool = False
) -> Array:
    """Running product along an axis; exclusive leaves an element out of its own product."""
    along = np.moveaxis(np.flip(x, axis) if reverse else x, axis, 0)
    total = np.ones_like(along)
    if exclusive:
        np.cumprod(along[:-1], axis=0, dtype=x.dtype, out=total[1:])
    else:
        np.cumprod(along, axis=0, dtype=x.dtype, out=total)
    total = np.moveaxis(total, 0, axis)
    return np.flip(total, axis) if reverse else total


def split(x: Array, sizes: tuple[int, ...], axis: int) -> tuple[Array, ...]:
    """Consecutive pieces of the given sizes along an axis."""
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def slice(
    x: Array, starts: tuple[int, ...], stops: tuple[int | None, ...], steps: tuple[int, ...]
) -> Array:
    """x[starts[0]:stops[0]:steps[0], ...], one entry for each axis; a stop of None is the end."""
    from builtins import slice as part

    return x[tuple(map(part, starts, stops, steps))]


def pad(x: Array, before: Shape, after: Shape, mode: str = "constant", fill: Any = 0) -> Array:
    """`before` and `after` elements more an axis; mode "constant", "reflect", "edge", "wrap"."""
    widths = tuple(zip(before, after, strict=True))
    if mode == "constant":
        if isinstance(fill, int) and str(x.dtype) in STORED:
            fill = store(fill, str(x.dtype))  # 0 is NaN to NumPy where there is no 0
        return np.pad(x, widths, constant_values=fill)
    return np.pad(x, widths, mode=mode)  # type: ignore[call-overload]


def scatter(x: Array, indices: Array, updates: Array, axis: int, reduction: str = "none") -> Array:
    """A copy of x where out[.., indices[i], ..] takes updates[i].

    `indices` and `updates` have one shape, of x's rank; where indices repeat, "none" keeps the
    last. `reduction` is "none", "add", "mul", "max" or "min".
    """
    place: list[Array] = list(np.indices(indices.shape, sparse=True))
    if place:
        place[axis] = indices
    return _put(x, tuple(place), updates, reduction)


def roi_argmax(x: Array, rois: Array, bins: Shape, scale: float) -> Array:
    """For each region, channel and bin the position in x of the largest element; x.size if none.

    A region is (image, x1, y1, x2, y2), its last row and column included, and covers at least one
    element. Bins overlap where they do not divide it.
    """
    images, channels, *space = x.shape
    chosen = np.rint(rois[:, 0])
    require_range(chosen, 0, images - 1, "the first column of rois")
    found = np.full((len(rois), channels, *bins), x.size, np.int64)
    corners = np.trunc(rois[:, 1:] * scale + np.copysign(0.5, rois[:, 1:])).astype(np.int64)
    for region, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        stop_if_asked()
        image = int(chosen[region])
        rows, columns = (
            _bins(first, last, count, size)
            for first, last, count, size in zip((y1, x1), (y2, x2), bins, space, strict=True)
        )
        for place in np.ndindex(*bins):
            (top, bottom), (left, right) = rows[place[0]], columns[place[1]]
            if top < bottom and left < right:
                part = x[image, :, top:bottom, left:right].reshape(channels, -1)
                row, column = np.divmod(np.argmax(part, axis=1), right - left)
                first = (image * channels + np.arange(channels)) * space[0] * space[1]
                found[region, :, *place] = first + (top + row) * space[1] + left + column
    return found


def _bins(first: int, last: int, count: int, size: int) -> list[tuple[int, int]]:
    """Start and end of each bin of a region along an axis, cut to the axis."""
    extent = builtins.max(last - first + 1, 1)
    edges = [
        (first + number * extent // count, first - (-(number + 1) * extent // count))
        for number in range(count)
    ]
    return [tuple(np.clip(edge, 0, size).tolist()) for edge in edges]


def gather_nd(x: Array, indices: Array, batch_axes: int) -> Array:
    """x[b, indices[b, i, 0], indices[b, i, 1], ..] for all b of the batch axes, and all i."""
    ones = (1,) * (indices.ndim - 1 - batch_axes)
    counted = [
        each.reshape(*each.shape, *ones)
        for each in np.indices(indices.shape[:batch_axes], sparse=True)
    ]
    return x[(*counted, *np.moveaxis(indices, -1, 0))]


def scatter_nd(x: Array, indices: Array, updates: Array, reduction: str = "none") -> Array:
    """A copy of x where out[indices[i, 0], indices[i, 1], ..] takes updates[i], as in `scatter`."""
    return _put(x, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


def top_indices(x: Array, count: int, axis: int, largest: bool) -> Array:
    """Where the largest or smallest elements are, in order; of equal ones the first comes first."""
    size = x.shape[axis]
    if x.ndim > 1 and x.size > _MOST_SORTED and x.size > size:
        rows = np.moveaxis(x, axis, -1).reshape(-1, size)
        step = builtins.max(1, _MOST_SORTED // size)
        found = []
        for first in range(0, len(rows), step):
            stop_if_asked()
            found.append(top_indices(rows[first : first + step], count, -1, largest))
        axis %= x.ndim
        lead = (*x.shape[:axis], *x.shape[axis + 1 :])
        return np.moveaxis(np.concat(found).reshape(*lead, count), -1, axis)
    if largest:  # the order of the reversed tensor, read from its end, keeps equal ones in order
        order = size - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    return np.take(order, np.arange(count), axis=axis)


def nonzero_places(x: Array) -> Array:
    """Positions of the elements that are not 0, one column each."""
    return np.argwhere(x).T


def unique_slices(x: Array, axis: int, ascending: bool) -> tuple[Array, Array, Array]:
    """The different slices along an axis: where each is first, which of them each slice is, and
    how often it is; ascending, or by first occurrence."""
    moved = np.moveaxis(x, axis, 0)
    slices = moved.reshape(len(moved), size_of(moved.shape[1:]))  # -1 cannot be told where one is 0
    _, first, inverse, counts = np.unique(
        slices, axis=0, return_index=True, return_inverse=True, return_counts=True, equal_nan=False
    )
    inverse = inverse.reshape(-1)
    if ascending:
        return first, inverse, counts
    order = np.argsort(first)
    return first[order], np.argsort(order)[inverse], counts[order]


def require_equal(actual: Array, expected: Array, what: str) -> None:
    """Refuses what is not equal bit by bit, in all rows where `actual` has a leading batch axis."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    bits = f"u{expected.dtype.itemsize}"
    differs = np.ascontiguousarray(actual).view(bits) != np.ascontiguousarray(expected).view(bits)
    if not differs.any():
        return
    row = ""
    if actual.ndim > expected.ndim:
        first = int(np.argmax(differs.reshape(len(actual), -1).any(axis=1)))
        row, actual, differs = f" in row {first} of the batch", actual[first], differs[first]
    if expected.size > _SHOWN:
        place = tuple(np.argwhere(differs)[0].tolist())
        what, actual, expected = f"element {place} of {what}", actual[place], expected[place]
    raise Invalid(
        "ASSERTION_FAILED",
        f"{what} is {actual.tolist()}{row} but was {expected.tolist()} where the graph was made; "
        "make it again at these inputs",
    )


def require_indices(indices: Array, size: int, what: str) -> None:
    """Refuses an index outside [-size, size), which is the axis it selects from."""
    wrong = (indices < -size) | (indices >= size)
    if np.any(wrong):
        first = np.asarray(indices)[wrong].reshape(-1)[0]
        raise Invalid(
            "INDEX_OUT_OF_RANGE",
            f"{what} has the index {first}, but the axis has size {size}: indices are from "
            f"{-size} to {size - 1}",
        )


def require_places(indices: Array, shape: Shape, what: str) -> None:
    """The same for vectors of indices, each along the first axes of a shape."""
    for slot in range(indices.shape[-1]):
        require_indices(indices[..., slot], shape[slot], what)


def require_range(numbers: Array, first: int, last: int, what: str) -> None:
    """Refuses a number outside [first, last]."""
    wrong = (numbers < first) | (numbers > last)
    if np.any(wrong):
        found = np.asarray(numbers)[wrong].reshape(-1)[0]
        raise Invalid(
            "INDEX_OUT_OF_RANGE", f"{what} has {found}, but must be from {first} to {last}"
        )


def _put(x: Array, place: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    out = np.array(x, order="C")
    lead, rest = x.shape[: len(place)], x.shape[len(place) :]
    # NumPy is several times faster with one flat index than with one for each axis
    flat = np.zeros((), np.int64)
    for along, size in zip(place, lead, strict=True):
        flat = flat * size + np.where(along < 0, along + size, along)
    rows, at = out.reshape(size_of(lead), *rest), flat.reshape(-1)
    pieces = updates.reshape(at.size, *rest)
    combine = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
    if reduction == "none":
        rows[at] = pieces
    else:
        combine[reduction].at(rows, at, pieces)
    return out


def _lowest(dtype: Any) -> Any:
    if dtype.kind == "f":
        return -np.inf
    return False if dtype.kind == "b" else np.iinfo(dtype).min


def _highest(dtype: Any) -> Any:
    if dtype.kind == "f":
        return np.inf
    return True if dtype.kind == "b" else np.iinfo(dtype).max
