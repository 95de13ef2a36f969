"""Matrix products on one BLAS thread each, split over the engine's own threads.

BLAS's threads spin while they wait for each other, so beside busy neighbours a product of a tenth
of a millisecond may take many; ours sleep. Where a product is split depends on its shapes and on
the number of threads, never on who is idle, so that the same request gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from gradwire_server import arrays
from gradwire_server.engine.tape import processors, share_out
from gradwire_server.gates.base import Array
from gradwire_server.specs import COMPUTED
from gradwire_server.stopping import stop_if_asked

#: Multiplications that a thread must have to be worth waking: some 0.1 ms.
_LEAST = 2_000_000
_DTYPES = tuple(map(np.dtype, COMPUTED))
#: Multiplications after which it is asked whether anybody still waits: some 0.2 s.
_MOST = 1 << 32


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """NumPy's matmul."""
    stop_if_asked()
    parts, rounds = _parts(a, b)
    if parts * rounds < 2:
        return np.matmul(a, b) if out is None else np.matmul(a, b, out=out)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns = a.shape[-2], b.shape[-1]
    if out is None:
        out = np.empty((*lead, rows, columns), np.result_type(a, b))
    multiply: Callable[[int, int], Any]
    if lead and lead[0] >= parts:
        size = lead[0]
        wholes = [each.ndim - 2 == len(lead) and each.shape[0] == size for each in (a, b)]

        def multiply(start: int, stop: int) -> None:
            left, right = (
                each[start:stop] if whole else each
                for each, whole in zip((a, b), wholes, strict=True)
            )
            np.matmul(left, right, out=out[start:stop])

    elif rows >= columns:
        size = rows

        def multiply(start: int, stop: int) -> None:
            np.matmul(a[..., start:stop, :], b, out=out[..., start:stop, :])

    else:
        size = columns

        def multiply(start: int, stop: int) -> None:
            np.matmul(a, b[..., start:stop], out=out[..., start:stop])

    _share_out(multiply, size, parts, rounds)
    return out


def einsum(equation: str, *operands: Array) -> Array:
    """arrays.einsum; that of two operands is split along the longest axis of what it yields."""
    if len(operands) != 2 or operands[0].size * operands[1].size < _LEAST:
        return arrays.einsum(equation, *operands)
    left, right, result = equation.replace("->", ",").split(",")
    sizes = arrays.axis_sizes((left, right), operands)
    parts, rounds, letter = _parts_of_sum(left, right, result, operands, sizes)
    if parts * rounds < 2:
        return arrays.einsum(equation, *operands)
    operands = tuple(np.asarray(each, order="C") for each in operands)
    out: Array = np.empty(tuple(sizes[each] for each in result), operands[0].dtype)

    def contract(start: int, stop: int) -> None:
        def part(term: str, x: Array) -> Array:
            along = [each == letter and size > 1 for each, size in zip(term, x.shape, strict=True)]
            return x[tuple(slice(start, stop) if cut else slice(None) for cut in along)]

        first, second = map(part, (left, right), operands)
        arrays.einsum(equation, first, second, out=part(result, out))

    _share_out(contract, sizes[letter], parts, rounds)
    return out


def _share_out(work: Callable[[int, int], object], size: int, parts: int, rounds: int) -> None:
    """Work over a size on some threads, in rounds between which it may be stopped."""
    count = parts * rounds
    pieces = [*pairwise(size * piece // count for piece in range(count + 1))]
    for first in range(0, count, parts):
        stop_if_asked()
        share_out(work, pieces[first : first + parts])


def _rounds(work: int, most: int, parts: int) -> int:
    """In how many rounds so many threads multiply, of at most so many pieces."""
    return int(max(1, min(most // parts, 1 + work // _MOST)))


def _parts_of_sum(
    left: str, right: str, result: str, operands: tuple[Array, ...], sizes: dict[str, int]
) -> tuple[int, int, str]:
    """Threads that are worth waking, rounds, and the letter to split along."""
    summed = set(left) & set(right) - set(result)
    a, b = operands
    if not summed or not result or a.dtype not in _DTYPES or a.dtype != b.dtype:
        return 1, 1, ""
    letter = max(result, key=sizes.__getitem__)
    work = prod(sizes[each] for each in {*summed, *result})
    parts = int(min(processors(), sizes[letter], 1 + work // _LEAST))
    return parts, _rounds(work, sizes[letter], parts), letter


def _parts(a: Array, b: Array) -> tuple[int, int]:
    """Threads that are worth waking, and in how many rounds, between which it may be stopped."""
    if a.ndim < 2 or b.ndim < 2:
        return 1, 1
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    # most products are small, so what needs least time to tell comes first
    if a.size * b.size < _LEAST * inner or inner != b.shape[-2]:
        return 1, 1
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    most = max(rows, columns, lead[0] if lead else 1)
    work = prod(lead) * rows * inner * columns
    if a.dtype not in _DTYPES or a.dtype != b.dtype:  # NumPy's own loop
        return 1, _rounds(32 * work, most, 1)
    parts = int(min(processors(), most, 1 + work // _LEAST))
    return parts, _rounds(work, most, parts)
