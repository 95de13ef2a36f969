"""Memory held for peers: answers that they have not read, and evaluations that stay for them.

A unary answer is held until it is on its way, a stream holds its evaluation until its last message
is, a session the point that `backward` goes back to. All of it counts against one limit. Where
there is no room, whoever needs some waits, and who has kept the server waiting for longest loses
what is held for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition
from time import monotonic
from types import TracebackType
from typing import Any

from gradwire_server.errors import ADVICE, OverLimit, Stopped

LIMIT = "max-held-bytes"

#: A peer may take this long before others may have its room, and longer for what has been sent...
_GRACE_SECONDS = 5.0
#: ... by so many bytes a second: a slow line is not a stalled one.
_SLOWEST_BYTES = 4 << 20
#: A session may be silent for longer: its client computes.
IDLE_SECONDS = 60.0

#: Answers up to this size have an eighth of the room for themselves, whoever waits for the rest.
SMALL_BYTES = 256 << 10
_SMALL_SHARE = 8
_AT_ONCE = 64  # ends so much of the limit, rather than one small answer for each
#: What a call holds that is answered and not read, beside its answer.
CALL_BYTES = 16 << 10

_WAIT_SECONDS = 30.0
_LOOK_SECONDS = 0.1  # at the peers that keep the server waiting, by the first who needs room
_ASK_SECONDS = 1.0  # whether the others' clients are still there


def held_nbytes(answer_nbytes: int) -> int:
    """What an answer of this size holds: grpc keeps what it was given, beside a copy to send."""
    return 2 * answer_nbytes + CALL_BYTES


class NeedsRoom(Exception):  # noqa: N818 -- not an error: the call waits, but not where it is
    """There is no room for so many bytes at once."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.nbytes = nbytes


class Held:
    """What is held for all peers."""

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float] = monotonic,
        freed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`freed` is told of memory that is no longer held."""
        self._limit = limit
        self._clock = clock
        self._freed = freed
        self._holdings: set[Holding] = set()
        self._waiting: deque[Holding] = deque()
        self._small_waiting: deque[Holding] = deque()
        self._changed = Condition()
        self.nbytes = 0

    def holding(self, end: Callable[[], Any], lane: object = None) -> Holding:
        """Holds nothing yet. `end` ends its call, from another thread, and at most once."""
        return Holding(self, end, lane, self._clock)

    def end_latest(self, lane: object) -> None:
        """Of the calls of a lane, ends the one that has kept the server waiting for longest."""
        with self._changed:
            late = [each for each in self._late() if each.lane is lane]
        for each in late[:1]:
            each.end()

    def claim(self, holding: Holding) -> bool:
        """Whether whoever asks is the first who wants to end this call."""
        with self._changed:
            is_first, holding.is_ended = not holding.is_ended, True
        return is_first

    def take(self, holding: Holding, nbytes: int, stopped: Callable[[], bool]) -> None:
        """Makes a holding this large as soon as there is room (LIMIT_EXCEEDED, Stopped)."""
        if not self.put(holding, nbytes):
            self._wait(holding, nbytes, stopped)

    def resize(self, holding: Holding, nbytes: int) -> None:
        """Makes a holding this large (LIMIT_EXCEEDED where there is no room now)."""
        if not self.put(holding, nbytes):
            self._end_late(nbytes)
            if not self.put(holding, nbytes):
                raise self._refusal(nbytes)

    def drop(self, holding: Holding) -> None:
        """Holds nothing more for a call."""
        with self._changed:
            self._holdings.discard(holding)
            freed, holding.nbytes = holding.nbytes, 0
            self.nbytes -= freed
            if self._waiting or self._small_waiting:
                self._changed.notify_all()
        if freed > SMALL_BYTES:
            self._freed(freed)

    def put(self, holding: Holding, nbytes: int) -> bool:
        """Makes a holding this large, if there is room now and nobody waits for it."""
        with self._changed:
            return self._put_locked(holding, nbytes, waited=False)

    def _put_locked(self, holding: Holding, nbytes: int, waited: bool) -> bool:
        is_small = nbytes <= SMALL_BYTES
        share = self._limit if is_small else self._limit - self._limit // _SMALL_SHARE
        nbytes = min(nbytes, share)  # what one evaluation may have, it may have alone
        more = nbytes - holding.nbytes
        if more > 0 and not is_small and self._waiting and not waited:
            return False
        if more > 0 and self.nbytes + more > share:
            return False
        self.nbytes += more
        holding.nbytes = nbytes
        self._holdings.add(holding)
        return True

    def _wait(self, holding: Holding, nbytes: int, stopped: Callable[[], bool]) -> None:
        began = self._clock()
        waiting = self._small_waiting if nbytes <= SMALL_BYTES else self._waiting
        with self._changed:
            waiting.append(holding)
        try:
            while True:
                is_first = waiting[0] is holding
                if is_first:
                    self._end_late(nbytes)
                with self._changed:
                    if is_first and self._put_locked(holding, nbytes, waited=True):
                        return
                    self._changed.wait(_LOOK_SECONDS if is_first else _ASK_SECONDS)
                if stopped():
                    raise Stopped
                if self._clock() - began > _WAIT_SECONDS:
                    raise self._refusal(nbytes)
        finally:
            with self._changed:
                waiting.remove(holding)
                self._changed.notify_all()

    def _refusal(self, nbytes: int) -> OverLimit:
        return OverLimit.because(
            f"{nbytes} bytes are to be held for this call, but peers have not read {self.nbytes} "
            f"of the {self._limit} that may be held for them; {ADVICE[LIMIT]}, or start the "
            f"server with a larger --{LIMIT}",
            LIMIT, self._limit, self.nbytes + nbytes,
        )  # fmt: skip

    def _end_late(self, nbytes: int) -> None:
        """Ends those that keep the server waiting, the latest first, until so much is free.

        So many small answers that they lack room are no honest client's: they go at once.
        """
        ended = []
        with self._changed:
            is_small = nbytes <= SMALL_BYTES
            room = self._limit - self.nbytes
            if is_small:
                nbytes = max(nbytes, self._limit // _AT_ONCE)
            else:
                room -= self._limit // _SMALL_SHARE
            for each in self._late(with_small=is_small):
                if room >= nbytes:
                    break
                room += each.nbytes
                ended.append(each)
        for each in ended:
            each.end()

    def _late(self, with_small: bool = False) -> list[Holding]:
        """The latest first; small answers before they are late, if that is wanted."""
        now = self._clock()
        found = [
            (late, each)
            for each in self._holdings
            if (late := each.late(now)) > 0 or (with_small and each.is_small_answer)
        ]
        return [each for _, each in sorted(found, key=_first, reverse=True)]


class Holding:
    """What is held for one call, from when it begins until it is closed."""

    def __init__(
        self, held: Held, end: Callable[[], Any], lane: object, clock: Callable[[], float]
    ) -> None:
        self._held = held
        self._end = end
        self._clock = clock
        self.is_ended = False
        self._since: float | None = None  # when the server began to wait for the peer
        self._waited = 0.0  # before that
        self._grace = _GRACE_SECONDS
        self._sent = 0
        self.lane = lane
        self.nbytes = 0

    def take(self, nbytes: int, stopped: Callable[[], bool]) -> None:
        """Holds this much at least, as soon as there is room (LIMIT_EXCEEDED, Stopped)."""
        if nbytes > self.nbytes:
            self._held.take(self, nbytes, stopped)

    def take_now(self, nbytes: int) -> None:
        """Holds this much at least (NeedsRoom: to be taken where a call may wait)."""
        if nbytes > self.nbytes and not self._held.put(self, nbytes):
            raise NeedsRoom(nbytes)

    def grow(self, nbytes: int) -> None:
        """Holds this much at least (LIMIT_EXCEEDED)."""
        if nbytes > self.nbytes:
            self._held.resize(self, nbytes)

    def resize(self, nbytes: int) -> None:
        """Holds this much now (LIMIT_EXCEEDED)."""
        if nbytes != self.nbytes:
            self._held.resize(self, nbytes)

    def offer(self, nbytes: int) -> None:
        """From now on the peer may read so many bytes more."""
        self._sent += nbytes
        self._grace = _GRACE_SECONDS
        self._since = self._clock()

    def idle(self) -> None:
        """From now on the peer may ask for something."""
        self._sent, self._waited = 0, 0.0
        self._grace = IDLE_SECONDS
        self._since = self._clock()

    def go_on(self) -> None:
        """The peer has read, or asked: the server no longer waits for it."""
        if self._since is not None:
            self._waited += self._clock() - self._since
            self._since = None

    def late(self, now: float) -> float:
        """Seconds by which the peer keeps the server waiting for too long."""
        since = self._since
        if since is None or self.is_ended:
            return 0.0
        return self._waited + now - since - self._grace - self._sent / _SLOWEST_BYTES

    @property
    def is_small_answer(self) -> bool:
        """Whether the peer may read a small answer now."""
        is_offered = self._since is not None and self._grace == _GRACE_SECONDS
        return is_offered and self.nbytes <= SMALL_BYTES and not self.is_ended

    def end(self) -> None:
        """Ends the call, unless that was done."""
        if self._held.claim(self):
            self._end()

    def close(self) -> None:
        """Nothing is held any more."""
        self._since = None
        self._held.drop(self)

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _first(pair: tuple[float, Holding]) -> float:
    return pair[0]


#: Of a caller in this process, who takes what is made.
UNHELD = Held(1 << 62).holding(lambda: None)
