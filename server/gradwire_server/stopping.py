"""Whether anybody still waits for what this thread computes: asked inside of what takes long.

Engines stop between nodes. A single gate may compute for minutes, and so may planning, so they ask
here between two steps. Threads that help with a block are not asked: the one that waits for them
is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from gradwire_server.errors import Stopped

#: Seconds between two questions; asking a call takes longer than reading the clock.
_EVERY = 0.01


class _Here(threading.local):
    stopped: Callable[[], bool] | None = None
    asked_at = 0.0


_here = _Here()


class asked:  # noqa: N801 -- a context manager, as those of contextlib are named
    """Where `stopped` says whether nobody waits any more; then nothing is begun (Stopped)."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __enter__(self) -> None:
        if self._stopped():
            raise Stopped
        self._before = _here.stopped
        _here.stopped = self._stopped

    def __exit__(self, *_: object) -> None:
        _here.stopped = self._before


def stop_if_asked() -> None:
    """Ends what takes long where nobody waits for it any more (Stopped)."""
    stopped = _here.stopped
    if stopped is None or (now := monotonic()) < _here.asked_at + _EVERY:
        return
    _here.asked_at = now
    if stopped():
        raise Stopped
