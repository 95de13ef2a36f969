"""Memory of a process that does nothing but serve; an embedded server leaves its host alone.

By default glibc gives large blocks back to the system when they are freed, and the next call pays
for every page again: for an answer of 800 kB that costs five times as much as copying it. And
Python's collector walks, now and then, through all that was ever imported, for some 50 ms.
"""

from __future__ import annotations

import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h

#: Blocks up to this size are kept, which is the most that glibc takes.
_KEPT_BLOCK_BYTES = 32 << 20
#: Free memory at the end of an arena beyond this goes back to the system.
_KEPT_BYTES = 512 << 20
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


def spare_what_stays() -> None:
    """From now on collections pass over all that there is by now."""
    gc.freeze()
