"""Memory of a process that does nothing but serve; an embedded server leaves its host alone.

By default glibc gives large blocks back to the system when they are freed, and the next call pays
for every page again: for an answer of 800 kB that costs five times as much as copying it. And
Python's collector walks, now and then, through all that was ever imported, for some 50 ms.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h

#: Blocks up to this size are kept, which is the most that glibc takes.
_KEPT_BLOCK_BYTES = 32 << 20
#: Free memory at the end of an arena beyond this goes back to the system.
_KEPT_BYTES = 512 << 20
#: ... and all free memory but this, when it is quiet for a moment after so much was freed.
_KEPT_AFTER_BYTES = 64 << 20
_QUIET_SECONDS = 1.0
#: All threads share one arena, or each would keep memory of its own.
_ARENAS = 1


def keep_freed_memory() -> None:
    """Tells malloc, where it is glibc's; elsewhere does nothing."""
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    tell(_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)
    tell(_TRIM_THRESHOLD, _KEPT_BYTES)
    tell(_ARENA_MAX, _ARENAS)
    returns_freed_memory.trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


class ReturnsFreedMemory:
    """Gives freed memory back to the system once much was freed and it is quiet for a moment.

    malloc gives back only what lies at the end of its arena, and of what many calls held at once
    nearly nothing does.
    """

    def __init__(self, trim: Callable[[int], Any] | None = None) -> None:
        """`trim` is glibc's malloc_trim, in a process that keeps freed memory; else None."""
        self.trim = trim
        self._lock = Lock()
        self._freed = 0
        self._thread: Thread | None = None
        self._more = Event()

    def freed(self, nbytes: int) -> None:
        """Takes note of much memory that was freed, or is about to be."""
        trim = self.trim
        if trim is None:
            return
        with self._lock:
            self._freed += nbytes
            self._more.set()
            if self._freed >= _KEPT_BYTES and self._thread is None:
                self._thread = Thread(
                    target=self._run, args=(trim,), name="gradwire-trim", daemon=True
                )
                self._thread.start()

    def wait(self) -> None:
        """Until what was freed is given back."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, trim: Callable[[int], Any]) -> None:
        self._more.clear()
        while self._more.wait(_QUIET_SECONDS):  # what is needed again at once is kept
            self._more.clear()
        with self._lock:
            self._freed, self._thread = 0, None
        trim(_KEPT_AFTER_BYTES)


#: Of this process.
returns_freed_memory = ReturnsFreedMemory()


def spare_what_stays() -> None:
    """From now on collections pass over all that there is by now."""
    gc.freeze()
