"""How tests wait on a machine that may be busy, and how they measure without a clock."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from time import monotonic
from types import FrameType

#: Seconds after which a test gives up on what must come: more than any busy machine needs.
PATIENCE = 600


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether it does, while one waits."""
    end = monotonic() + PATIENCE
    while not condition():
        if monotonic() > end:
            return False
        Event().wait(0.001)
    return True


class Clock:
    """In place of `monotonic`: time passes when a test says so."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def pass_some(self) -> None:
        """Two seconds, and a moment in which others may look at the clock."""
        self._now += 2
        Event().wait(0.01)


class Calls:
    """How many functions were called, of Python and of C."""

    count = 0


@contextmanager
def counted_calls(most: int | None = None) -> Iterator[Calls]:
    """Counts calls on this thread, the same number at every speed; more than `most` fail."""
    found, before = Calls(), sys.getprofile()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_call"):
            found.count += 1
            if most is not None and found.count > most:
                sys.setprofile(before)
                raise AssertionError(f"more than {most} calls, in {frame.f_code.co_qualname}")

    sys.setprofile(count)
    try:
        yield found
    finally:
        sys.setprofile(before)
