"""Memory for values and gradients that lasts from one evaluation to the next."""

from __future__ import annotations

from math import prod
from threading import Lock
from typing import Any

import numpy as np

from gradwire_server.gates.base import Array
from gradwire_server.specs import Shape

#: What caches move at once; as large as the largest vector registers.
LINE_BYTES = 64
#: NumPy asks Linux for huge pages from here on.
_LARGE_BYTES = 4 << 20
_HUGE_PAGE_BYTES = 2 << 20


class Buffers:
    """Buffers between evaluations: a page of fresh memory costs more than computing over it.

    Those that are too small for pages to count are left to malloc.
    """

    def __init__(self, most_bytes: int, least_bytes: int = 0) -> None:
        self._most = most_bytes
        self._least = least_bytes
        self._bytes = 0
        self._held: dict[tuple[Shape, Any], list[Array]] = {}  # the kind that came last is last
        self._lock = Lock()

    def take(self, shape: Shape, dtype: str) -> Array:
        """One of the shape and type, with whatever is in it."""
        with self._lock:
            kind = shape, np.dtype(dtype)
            if kind in self._held:
                return self._removed(kind, -1)
        return empty(shape, dtype)

    def give(self, buffer: Array) -> None:
        """Takes back one that nobody reads any more."""
        if buffer.nbytes < self._least:
            return
        kind = buffer.shape, buffer.dtype
        with self._lock:
            self._held[kind] = [*self._held.pop(kind, []), buffer]
            self._bytes += buffer.nbytes
            while self._bytes > self._most:
                self._removed(next(iter(self._held)), 0)

    def _removed(self, kind: tuple[Shape, Any], place: int) -> Array:
        buffer: Array = self._held[kind].pop(place)
        self._bytes -= buffer.nbytes
        if not self._held[kind]:
            del self._held[kind]
        return buffer


def empty(shape: Shape, dtype: str) -> Array:
    """Fresh memory from the beginning of a line, or of a huge page, on.

    A vector across two lines takes longer; and so does memory of which a part lies in small pages,
    because its addresses must be looked up.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    unit = LINE_BYTES if size < _LARGE_BYTES else _HUGE_PAGE_BYTES
    memory = np.empty(size + unit, np.uint8)
    first = -memory.ctypes.data % unit
    return memory[first : first + size].view(dtype).reshape(shape)
