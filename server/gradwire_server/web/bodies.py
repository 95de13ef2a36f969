"""Bodies of requests and answers count as memory held for peers, from their first byte on."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradwire_server.errors import OverLimit
from gradwire_server.held import CALL_BYTES, Held
from gradwire_server.web.guard import refused

_sent: ContextVar[list[Callable[[], None]] | None] = ContextVar("_sent", default=None)


def once_sent(callback: Callable[[], None]) -> None:
    """Calls this when the answer to the request of this task is on its way, or at once."""
    callbacks = _sent.get()
    if callbacks is None:
        callback()
    else:
        callbacks.append(callback)


class Bodies:
    """Counts bodies, and says when an answer is on its way."""

    def __init__(self, app: ASGIApp, held: Held) -> None:
        self._app = app
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        holding = self._held.holding(lambda: None)  # who sends slowly is cut off as it is
        callbacks: list[Callable[[], None]] = [holding.close]
        _sent.set(callbacks)
        received, started = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received:
                holding.grow(received + CALL_BYTES)
            return message

        async def awaited(message: Message) -> None:
            """The last part goes in two, of which the second waits until the first is sent."""
            nonlocal started
            started = True
            if message.get("body") and not message.get("more_body", False):
                await send({**message, "more_body": True})
                message = {**message, "body": b"", "more_body": False}
            await send(message)

        try:
            await self._app(scope, counted, awaited)
        except OverLimit as refusal:
            if started:
                raise
            await refused(refusal, 413)(scope, receive, send)
        finally:
            for each in callbacks:
                each()
