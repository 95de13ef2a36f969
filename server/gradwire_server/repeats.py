"""Logs in which what repeats is counted: a hostile peer fills no disk with one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from time import monotonic

#: In so many seconds a sentence is written so many times, as for every worker that dies.
SECONDS = 10.0
TIMES = 5
#: Sentences that are remembered.
_MOST = 256


class Repeats(logging.Filter):
    """Passes the first warnings or errors of a kind; those that follow are counted for a while.

    A kind is a logger's sentence before its arguments are put in, and the kind of its exception.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = Lock()
        self._kinds: dict[tuple[object, ...], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record; one that is written says how many were not."""
        if record.levelno < logging.WARNING:
            return True
        failure = record.exc_info[0] if record.exc_info else None
        kind = record.name, record.msg if isinstance(record.msg, str) else "", failure
        now = self._clock()
        with self._lock:
            known = self._kinds.get(kind)
            if known is not None and now - known.since < SECONDS:
                known.count += 1
                return known.count <= TIMES
            if known is None and len(self._kinds) >= _MOST:
                self._kinds.clear()
            self._kinds[kind] = _Kind(now)
        if known is not None and known.count > TIMES:
            record.repeats = known.count - TIMES
        return True


@dataclass
class _Kind:
    since: float
    count: int = 1  # written or not
