"""Ends what has been silent for too long, although its thread waits where it cannot be woken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Lock, Thread
from time import monotonic

from gradwire_server.errors import OverLimit, Refusal

#: Parts of the limit after which one looks again.
_LOOKS = 10


class Silence:
    """Whether one session waits for its client, and since when."""

    def __init__(self, end: Callable[[Refusal], None]) -> None:
        self._end = end
        self._lock = Lock()
        self._since: float | None = None
        self.ended = False

    def begins(self) -> None:
        """From now on the session waits for its client."""
        self._since = monotonic()

    def breaks(self) -> bool:
        """A message came; False where it came too late."""
        with self._lock:
            self._since = None
            return not self.ended

    def end_if_longer(self, seconds: float) -> None:
        """Ends a session that waits for longer than this (LIMIT_EXCEEDED)."""
        with self._lock:
            silent = 0.0 if self._since is None else monotonic() - self._since
            if silent <= seconds:
                return
        self.end(
            OverLimit.because(
                f"no request came for {int(seconds)} seconds, so the server ended the call; begin "
                "again, or start the server with a larger --session-idle-seconds",
                "session-idle-seconds", int(seconds), int(silent),
            )
        )  # fmt: skip

    def end(self, refusal: Refusal) -> bool:
        """Ends a session that waits for its client; False where it does not, or no longer."""
        with self._lock:
            if self.ended or self._since is None:
                return False
            self.ended = True
        self._end(refusal)
        return True


class SilenceWatch:
    """One thread that looks at all sessions, while there are any."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._watched: set[Silence] = set()
        self._changed = Condition()
        self._open = True
        self._thread: Thread | None = None

    @contextmanager
    def over(self, end: Callable[[Refusal], None]) -> Iterator[Silence]:
        """Watches a session; `end` is called at most once, from the watch's thread."""
        silence = Silence(end)
        with self._changed:
            if self._thread is None:
                self._thread = Thread(target=self._look, name="gradwire-silence", daemon=True)
                self._thread.start()
            self._watched.add(silence)
            self._changed.notify()
        try:
            yield silence
        finally:
            with self._changed:
                self._watched.discard(silence)

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()

    def _look(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(self._seconds / _LOOKS if self._watched else None)
                if not self._open:
                    return
                watched = list(self._watched)
            for silence in watched:
                silence.end_if_longer(self._seconds)
