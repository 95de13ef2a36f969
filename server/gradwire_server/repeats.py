"""Logs in which what repeats is counted: a hostile peer fills no disk with one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from time import monotonic

#: The same sentence is written this often at most.
SECONDS = 10.0
#: Sentences that are remembered.
_MOST = 256


class Repeats(logging.Filter):
    """Passes the first warning or error of a kind; those that follow are counted for a while.

    A kind is a logger's sentence before its arguments are put in, and the kind of its exception.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = Lock()
        self._kinds: dict[tuple[object, ...], list[float]] = {}  # when written, and how many since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record; one that is written says how many were not."""
        if record.levelno < logging.WARNING:
            return True
        failure = record.exc_info[0] if record.exc_info else None
        kind = record.name, record.msg if isinstance(record.msg, str) else "", failure
        now = self._clock()
        with self._lock:
            known = self._kinds.get(kind)
            if known is not None and now - known[0] < SECONDS:
                known[1] += 1
                return False
            if known is None and len(self._kinds) >= _MOST:
                self._kinds.clear()
            self._kinds[kind] = [now, 0]
        if known is not None and known[1]:
            record.repeats = int(known[1])
        return True
