"""Calls from the page, answered by the handlers that gRPC calls, on the same threads.

A handler blocks, so it runs on its lane, and what it sends crosses to the event loop a few messages
at a time: one whose reader is slow waits, and one whose reader has gone is told to stop.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from math import inf
from queue import SimpleQueue
from threading import Lock, Semaphore
from types import SimpleNamespace
from typing import Any, NoReturn, Protocol

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gradwire_server.held import Held
from gradwire_server.threads import Lane
from gradwire_server.web.bodies import once_sent

log = logging.getLogger("gradwire")

#: Messages between a thread and the loop, each way.
_MESSAGES = 2
_DETAILS = "grpc-status-details-bin"


class Servicer(Protocol):
    """What the page needs of the gRPC service."""

    light: Lane
    held: Held

    def service(self, handler_call_details: Any) -> Any:
        """The RpcMethodHandler of a call."""


class Ended(Exception):  # noqa: N818 -- how a call ended, which need not be an error of ours
    """A call ended with another status than OK."""

    def __init__(self, code: str, message: str, details: list[any_pb2.Any]) -> None:
        super().__init__(message)
        self.code = code  # by its name
        self.message = message
        self.details = details

    def info(self) -> error_details_pb2.ErrorInfo:
        """Reason and facts; empty where there are none."""
        found = error_details_pb2.ErrorInfo()
        for detail in self.details:
            if detail.Unpack(found):
                break
        return found


class Context:
    """What a handler sees of its caller; stands in for grpc's ServicerContext."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._active = True
        self._code, self._message = "OK", ""
        self._metadata: Any = ()
        self._lock = Lock()
        self._callbacks: list[Callable[[], None]] | None = []

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Calls this once the answer is sent; False where it was, or nobody waits for it."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def sent(self) -> None:
        """The answer is on its way."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks or [], None
        for each in callbacks:
            each()

    def is_active(self) -> bool:
        return self._active

    def time_remaining(self) -> float:
        """Pages set no deadlines: they leave."""
        return inf

    def cancel(self) -> None:
        """The caller has gone."""
        self._active = False

    def peer(self) -> str:
        return self._peer

    def set_code(self, code: Any) -> None:
        self._code = code.name

    def set_details(self, details: str) -> None:
        self._message = details

    def set_trailing_metadata(self, metadata: Any) -> None:
        self._metadata = metadata

    def abort(self, code: Any, details: str) -> NoReturn:
        self.set_code(code)
        self.set_details(details)
        raise self._ended()

    def abort_with_status(self, status: Any) -> NoReturn:
        self.set_trailing_metadata(status.trailing_metadata)
        self.abort(status.code, status.details)

    def failure(self) -> Ended | None:
        """How the call ended, if not well."""
        return None if self._code == "OK" else self._ended()

    def _ended(self) -> Ended:
        status = status_pb2.Status.FromString(dict(self._metadata).get(_DETAILS, b""))
        return Ended(self._code, self._message, list(status.details))


class Outbox:
    """Messages from a thread to the event loop."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._room = Semaphore(_MESSAGES)
        self._messages: asyncio.Queue[bytes | Ended | None] = asyncio.Queue()
        self._open = True

    def put(self, data: bytes) -> bool:
        """Sends a message as soon as there is room; False where nobody reads any more."""
        self._room.acquire()
        if not self._open:
            self._room.release()  # nor will it wait the next time
            return False
        return self._tell(data)

    def end(self, failure: Ended | None) -> None:
        """Nothing follows."""
        self._tell(failure)

    def close(self) -> None:
        """Nobody reads any more."""
        self._open = False
        self._room.release()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Every message, on the loop (Ended)."""
        while (found := await self._messages.get()) is not None:
            if isinstance(found, Ended):
                raise found
            self._room.release()
            yield found

    def _tell(self, found: bytes | Ended | None) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._messages.put_nowait, found)
        except RuntimeError:  # the loop has ended: this server is stopping
            return False
        return True


class Inbox:
    """Messages from the event loop to a thread, which iterates over them."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()
        self._room = asyncio.Semaphore(_MESSAGES)

    async def put(self, data: bytes) -> None:
        """Hands a message over as soon as there is room."""
        await self._room.acquire()
        self._messages.put(data)

    def close(self) -> None:
        """No message follows, for whoever waits for one now or later."""
        self._messages.put(None)

    def __iter__(self) -> Iterator[bytes]:
        while (data := self._messages.get()) is not None:
            try:
                self._loop.call_soon_threadsafe(self._room.release)
            except RuntimeError:  # the loop has ended
                return
            yield data


def handler_of(service: Servicer, method: str) -> Any:
    """What answers a method; where its lane is full, what refuses it."""
    return service.service(SimpleNamespace(method=method, invocation_metadata=()))


async def answers(
    service: Servicer, method: str, data: bytes, peer: str
) -> AsyncGenerator[bytes, None]:
    """The answers to one message (Ended); leaving the iterator stops the work."""
    handler = handler_of(service, method)
    context, outbox = Context(peer), Outbox(asyncio.get_running_loop())

    def answer(behavior: Callable[[Any, Any], Any]) -> Generator[bytes, None, None]:
        if handler.response_streaming:
            yield from behavior(data, context)
        else:
            yield behavior(data, context)

    def work(behavior: Callable[[Any, Any], Any]) -> None:
        found = answer(behavior)
        for each in found:
            if not outbox.put(each):
                break
        found.close()

    _start(service, handler, context, outbox, work)
    try:
        async for each in outbox.messages():
            yield each
    finally:
        context.cancel()
        outbox.close()
        once_sent(context.sent)


def converse(service: Servicer, method: str, inbox: Inbox, outbox: Outbox, peer: str) -> Context:
    """Starts a call of many messages either way; cancel it, and close both, when it is over."""
    handler = handler_of(service, method)
    context = Context(peer)

    def send(data: bytes | None) -> None:
        if data is not None:
            outbox.put(data)
            return
        outbox.end(context.failure())
        inbox.close()

    def work(behavior: Callable[..., Any]) -> None:
        # grpc's own mark: the behaviour sends its answers itself
        if getattr(behavior, "experimental_non_blocking", False):
            behavior(iter(inbox), context, send)
        else:
            behavior(iter(inbox), context)

    _start(service, handler, context, outbox, work)
    return context


def _start(
    service: Servicer,
    handler: Any,
    context: Context,
    outbox: Outbox,
    work: Callable[[Callable[..., Any]], None],
) -> None:
    """Runs a handler on its lane, and reports its end."""
    behavior = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )

    def run() -> None:
        failure: Ended | None = Ended("INTERNAL", "the server failed; its log says why", [])
        try:
            work(behavior)
            failure = context.failure()
        except Ended as ended:
            failure = ended
        except Exception:
            log.exception("fault")
        finally:
            outbox.end(failure)

    getattr(behavior, "experimental_thread_pool", service.light).submit(run)
