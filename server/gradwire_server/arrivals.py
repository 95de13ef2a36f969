"""Calls wait for their first message without a thread.

grpc's synchronous server gives a call a thread at once, and there it waits for its message, so that
callers who send none take every thread. Here the message is asked for first, by grpc's own
means, and the call is handed to its threads when the message is there. Until then it is a row of a
table: the rows have a deadline, and the peer that has most of them loses its oldest when the table
is full.

This file has all that is used of grpc's private parts. `KNOWN` says whether they are as they were
in the versions that were tested; where they are not, calls take their threads as grpc has it.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any

import grpc

from gradwire_server.errors import OverLimit, Refusal
from gradwire_server.threads import STARTED, Lane

_server: Any = import_module("grpc._server")  # private, so that its types are nobody's promise
_cygrpc: Any = import_module("grpc._cython.cygrpc")

log = logging.getLogger("gradwire")

#: Parts of the time limit after which one looks again.
_LOOKS = 10

_IN_POOL = ("rpc_event", "state", "behavior", "argument_thunk", "request_deserializer")


def _is_known() -> bool:
    """Whether grpc's private parts are those that this file was written for."""
    try:
        state = _server._RPCState()
        return (
            {"condition", "due", "request", "client", "statused", "code", "details"}
            <= {*vars(state)}
            and isinstance(_server._RECEIVE_MESSAGE_TOKEN, str)
            and _arguments(_server._receive_message) == ("state", "call", "request_deserializer")
            and _arguments(_server._abort) == ("state", "call", "code", "details")
            and _arguments(_server._is_rpc_state_active) == ("state",)
            and all(
                _arguments(each)[: len(_IN_POOL)] == _IN_POOL
                for each in (_server._unary_response_in_pool, _server._stream_response_in_pool)
            )
            and callable(_cygrpc.ReceiveMessageOperation)
        )
    except AttributeError:
        return False


def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


KNOWN = _is_known()


class Arrivals:
    """The calls whose first message has not come."""

    def __init__(self, most: int, seconds: float, status: Callable[[Refusal], grpc.Status]) -> None:
        """At most so many, for so long; `status` is what a refused one ends with."""
        self._most = most
        self._seconds = seconds
        self._status = status
        self._lock = Lock()
        self._waiting: dict[_Arrival, float] = {}  # since when; the oldest first
        self._closed = Event()
        self._watch: Thread | None = None
        if not KNOWN:
            log.warning(
                "this grpcio (%s) is newer than this server: calls take a thread before their "
                "message comes, so clients that send none take threads from others",
                grpc.__version__,
            )

    @property
    def waiting(self) -> int:
        """Calls that have sent no message yet."""
        return len(self._waiting)

    def add(self, arrival: _Arrival) -> None:
        with self._lock:
            self._waiting[arrival] = monotonic()
            late = self._most_of_one_peer() if len(self._waiting) > self._most else []
            if self._watch is None:
                watch = Thread(target=self._look, name="gradwire-arrivals", daemon=True)
                with suppress(RuntimeError):  # the system has no thread now; the next call tries
                    watch.start()
                    self._watch = watch
        for each in late:
            each.end(self._status(_too_many(self._most)))

    def remove(self, arrival: _Arrival) -> None:
        with self._lock:
            self._waiting.pop(arrival, None)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def _most_of_one_peer(self) -> list[_Arrival]:
        """The older half of the calls of the peer that has most, so that this is rare."""
        hosts = {each: each.host() for each in self._waiting}
        host, count = Counter(hosts.values()).most_common(1)[0]
        theirs = [each for each in self._waiting if hosts[each] == host]
        return self._taken(theirs[: (count + 1) // 2])

    def _taken(self, arrivals: list[_Arrival]) -> list[_Arrival]:
        for each in arrivals:
            del self._waiting[each]
        return arrivals

    def _look(self) -> None:
        while not self._closed.wait(self._seconds / _LOOKS):
            before = monotonic() - self._seconds
            with self._lock:
                late = self._taken(
                    [each for each, since in self._waiting.items() if since < before]
                )
            for each in late:
                each.end(self._status(_too_late(self._seconds)))


class Arriving(ThreadPoolExecutor):
    """The threads of a lane, for calls whose first message is there.

    An executor in type only, which is what grpc asks for.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        lane: Lane,
        refuse: tuple[Callable[[Any, Any], Any], Lane] | None = None,
        *,
        streams: bool = False,
    ) -> None:
        """`refuse` is the behaviour, and its threads, of a call that comes when the lane is full.

        `streams`: more messages may follow on the first.
        """
        super().__init__(1)
        self._arrivals = arrivals
        self._lane = lane
        self._refuse = refuse
        self.streams = streams

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """As of grpc: a call; anything else gets a thread at once."""
        if not KNOWN or not arguments or arguments[0] not in _RUNNERS:
            return self._lane.submit(work, *arguments, **named)
        _Arrival(self._arrivals, self, work, arguments).ask()
        return STARTED

    def run(self, work: Callable[..., Any], runner: Any, call: tuple[Any, ...], first: Any) -> None:
        """Hands a call to a thread; `first` is its message, None where a stream has none."""
        event, state, behavior, thunk, *more = call
        lane = self._lane
        if self._refuse is not None and lane.full:
            behavior, lane = self._refuse
        if first is not None:
            argument = _Following(first, thunk()) if self.streams else first
            lane.submit(work, runner, event, state, behavior, lambda: argument, *more)
        else:
            lane.submit(work, runner, event, state, behavior, thunk, *more)


_RUNNERS = (_server._unary_response_in_pool, _server._stream_response_in_pool) if KNOWN else ()


class _Arrival:
    """One call on its way: its first message has been asked for."""

    __slots__ = ("_arguments", "_arrivals", "_executor", "_work")

    def __init__(
        self,
        arrivals: Arrivals,
        executor: Arriving,
        work: Callable[..., Any],
        arguments: tuple[Any, ...],
    ) -> None:
        self._arrivals, self._executor = arrivals, executor
        self._work, self._arguments = work, arguments

    def ask(self) -> None:
        """As grpc's handlers do, but that nobody waits."""
        _, event, state, _, _, deserializer, *_ = self._arguments
        receive = _server._receive_message(state, event.call, deserializer)

        def came(completed: Any) -> Any:
            found = receive(completed)
            self._came(event, state)
            return found

        self._arrivals.add(self)
        with state.condition:
            if not _server._is_rpc_state_active(state):  # it was one too many itself
                return
            event.call.start_server_batch((_cygrpc.ReceiveMessageOperation(0),), came)
            state.due.add(_server._RECEIVE_MESSAGE_TOKEN)

    def host(self) -> str:
        """Whose call it is."""
        peer: str = self._arguments[1].call.peer().decode(errors="replace")
        return peer.rpartition(":")[0]

    def end(self, status: grpc.Status) -> None:
        """Ends the call, which then gets no thread."""
        _, event, state, *_ = self._arguments
        try:
            with state.condition:
                if not _server._is_rpc_state_active(state):
                    return
                state.trailing_metadata = status.trailing_metadata
                state.code, state.details = status.code, status.details.encode()
                _server._abort(state, event.call, _cygrpc.StatusCode.unknown, b"")
        except Exception:  # else one call would end the thread that hears all callers
            log.exception("fault")

    def _came(self, event: Any, state: Any) -> None:
        """The message is there, or none will come."""
        self._arrivals.remove(self)
        with state.condition:
            if not _server._is_rpc_state_active(state):
                return
            first, state.request = state.request, None
            if first is None and not self._executor.streams:  # as grpc's handlers have it
                method = event.call_details.method.decode(errors="replace")
                what = f'"{method}" requires exactly one request message.'.encode()
                _server._abort(state, event.call, _cygrpc.StatusCode.unimplemented, what)
                return
        runner, *call = self._arguments
        self._executor.run(self._work, runner, tuple(call), first)


class _Following:
    """The messages of a client, the first of which is here."""

    __slots__ = ("_first", "_more")

    def __init__(self, first: Any, more: Iterator[Any]) -> None:
        self._first, self._more = first, more

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._first is None:
            return next(self._more)
        first, self._first = self._first, None
        return first


def _too_late(seconds: float) -> OverLimit:
    return OverLimit.because(
        f"no message came for {int(seconds)} seconds, so the server ended the call; send one at "
        "once, or start the server with a larger --first-message-seconds",
        "first-message-seconds", int(seconds), int(seconds),
    )  # fmt: skip


def _too_many(most: int) -> OverLimit:
    return OverLimit.of("max-silent", most, most + 1, "open calls without a message")
