"""BLAS has one thread while we compute: products are split over our own threads (products.py).

BLAS's threads spin while they wait for each other, and it counts them for the whole process. A
process that serves has one for good; anywhere else the host gets back what it had, once the last
evaluation ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any

#: Values and gradients of an evaluation below this have no product that BLAS would split.
_SMALL_BYTES = 1 << 17


class _SingleThread:
    """One BLAS thread, from the first evaluation that begins to the last that ends."""

    def __init__(self) -> None:
        from threadpoolctl import ThreadpoolController

        libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._libraries: list[Any] = libraries
        self._before: list[int] = []
        self._running = 0
        self._lock = Lock()

    def begin(self) -> None:
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._before = [each.get_num_threads() for each in self._libraries]
                for each in self._libraries:
                    each.set_num_threads(1)

    def end(self) -> None:
        with self._lock:
            self._running -= 1
            if not self._running:
                for each, count in zip(self._libraries, self._before, strict=True):
                    if each.get_num_threads() == 1:  # else the host has chosen anew
                        each.set_num_threads(count)

    @contextmanager
    def during(self) -> Iterator[None]:
        self.begin()
        try:
            yield
        finally:
            self.end()


@cache
def _single_thread() -> _SingleThread:
    return _SingleThread()


_for_good: list[_SingleThread] = []  # in a process that serves


def serve_with_one_thread() -> None:
    """From now on BLAS has one thread in this process."""
    if not _for_good:
        _for_good.append(_single_thread())
        _for_good[0].begin()


def one_thread(nbytes: int) -> AbstractContextManager[None]:
    """Where an evaluation of so many bytes of values and gradients computes."""
    if _for_good or nbytes < _SMALL_BYTES:
        return nullcontext()
    return _single_thread().during()
