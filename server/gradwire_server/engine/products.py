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

from gradwire_server.engine.tape import processors, share_out
from gradwire_server.gates.base import Array
from gradwire_server.specs import COMPUTED

#: Multiplications that a thread must have to be worth waking: some 0.1 ms.
_LEAST = 2_000_000


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """NumPy's matmul."""
    parts = _parts(a, b)
    if parts < 2:
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

    share_out(multiply, [*pairwise(size * part // parts for part in range(parts + 1))])
    return out


def _parts(a: Array, b: Array) -> int:
    """Threads that are worth waking."""
    if a.ndim < 2 or b.ndim < 2 or str(a.dtype) not in COMPUTED or a.dtype != b.dtype:
        return 1
    if processors() < 2 or a.shape[-1] != b.shape[-2]:
        return 1
    rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    most = max(rows, columns, lead[0] if lead else 1)
    work = prod(lead) * rows * inner * columns
    return int(min(processors(), most, 1 + work // _LEAST))
