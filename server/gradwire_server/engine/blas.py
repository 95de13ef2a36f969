"""How many threads a matrix product has, in a process that serves.

BLAS gives every product all processors. Its threads spin while they wait for each other, so where
clients, or other evaluations, want the processors too, a product of a tenth of a millisecond may
take many. One thread is enough for small evaluations; large ones get all. BLAS counts threads for
the whole process: an embedded server leaves its host's as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

#: Values and gradients of an evaluation from which on it is large: some milliseconds of computing.
_LARGE_BYTES = 4 << 20


class Threads:
    """One thread for every product, and all of them while something large runs."""

    def __init__(self) -> None:
        from threadpoolctl import ThreadpoolController

        self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._most = [each.num_threads for each in self._libraries]
        self._large = 0
        self._lock = Lock()
        self._set([1] * len(self._most))

    @contextmanager
    def all(self) -> Iterator[None]:
        """As many as there were at first, until the last one who wants them is done."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            before, self._large = self._large, self._large + more
            if not before or not self._large:
                self._set(self._most if self._large else [1] * len(self._most))

    def _set(self, counts: list[int]) -> None:
        for library, count in zip(self._libraries, counts, strict=True):
            library.set_num_threads(count)


_threads: list[Threads] = []  # of this process, where it shares


def share_processors() -> None:
    """From now on only large evaluations have products on several threads."""
    if not _threads:
        _threads.append(Threads())


def threads_for(nbytes: int) -> AbstractContextManager[None]:
    """Where an evaluation of so many bytes of values and gradients computes."""
    if not _threads or nbytes < _LARGE_BYTES:
        return nullcontext()
    return _threads[0].all()
