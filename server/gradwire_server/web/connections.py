"""The page's connections: so many at once, and none that keeps the server waiting.

uvicorn waits for ever for the rest of a request, and for who does not read an answer. Here each of
these takes as long as a slow line needs, and where too many are open, those go first that have not
sent a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: For the head of a request, and for whatever a peer sends or reads, beside its bytes.
WAIT_SECONDS = 10.0
#: Bytes a second that even a slow line carries.
SLOWEST_BYTES = 16 << 10

_LOOK_SECONDS = 1.0

log = logging.getLogger("gradwire")


class Connections:
    """All connections of one page, in the order in which they were made."""

    def __init__(self, most: int, clock: Callable[[], float] = monotonic) -> None:
        self._most = most
        self.clock = clock
        self._open: dict[_Connection, None] = {}
        self._look: asyncio.TimerHandle | None = None

    def http(self, *arguments: Any, **named: Any) -> asyncio.Protocol:
        """uvicorn's class for HTTP."""
        return Http(self, *arguments, **named)

    def websocket(self, *arguments: Any, **named: Any) -> asyncio.Protocol:
        """uvicorn's class for WebSockets."""
        return WebSocket(self, *arguments, **named)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: _Connection) -> None:
        """A new one, in place of the oldest that has sent no request where there are too many."""
        if len(self._open) >= self._most:
            silent = next((each for each in self._open if each.is_silent), connection)
            log.warning("the page has %s connections: a silent one is closed", self._most)
            self._drop(silent)
            if silent is connection:
                return
        self._open[connection] = None
        if self._look is None:
            loop = asyncio.get_running_loop()
            self._look = loop.call_later(_LOOK_SECONDS, self._close_late)

    def replace(self, before: _Connection, after: _Connection) -> None:
        """The same connection, by another protocol."""
        self._open.pop(before, None)
        self._open[after] = None

    def remove(self, connection: _Connection) -> None:
        """It has ended."""
        self._open.pop(connection, None)

    def may_upgrade(self) -> bool:
        """Whether another connection may stay for a session: half of them may."""
        return 2 * sum(isinstance(each, WebSocket) for each in self._open) < self._most

    def close_late(self) -> None:
        """Closes those that keep the server waiting."""
        now = self.clock()
        for each in [each for each in self._open if each.is_late(now)]:
            log.warning("a peer of the page kept the server waiting: its connection is closed")
            self._drop(each)

    def _close_late(self) -> None:
        self._look = None
        self.close_late()
        if self._open:
            loop = asyncio.get_running_loop()
            self._look = loop.call_later(_LOOK_SECONDS, self._close_late)

    def _drop(self, connection: _Connection) -> None:
        self._open.pop(connection, None)
        connection.transport.abort()


class _Connection(asyncio.Protocol):
    """What is known of a connection by either protocol."""

    transport: Any
    is_silent = False
    _is_full = False  # of what the peer has not read
    _unread = 0  # bytes that the peer could have read
    _unread_since = inf  # when it began to read no more of them

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._all = connections

    def is_late(self, now: float) -> bool:
        """Whether the peer reads too slowly."""
        unread = self.transport.get_write_buffer_size()
        waits = unread and (self._is_full or self.transport.is_closing())
        if not waits:
            self._unread_since = inf
            return False
        if self._unread_since == inf:
            self._unread, self._unread_since = unread, now
            return False
        waited = now - self._unread_since
        if self._unread - unread >= SLOWEST_BYTES * max(waited, 1.0):
            self._unread, self._unread_since = unread, now
            return False
        return waited > WAIT_SECONDS

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._is_full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        super().resume_writing()


class Http(_Connection, H11Protocol):
    """One that has time for its request, and for each answer."""

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(connections, *arguments, **named)
        self._began = connections.clock()  # to wait for a request, or for the body of one
        self._received = 0
        self._request: object = None

    @property
    def is_silent(self) -> bool:  # type: ignore[override]
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def is_late(self, now: float) -> bool:
        if super().is_late(now):
            return True
        allowed = WAIT_SECONDS
        if not self.is_silent:
            if not self.cycle.more_body or self.flow.read_paused:
                return False
            allowed += self._received / SLOWEST_BYTES
        return now - self._began > allowed

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._all.add(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not self._request:
            self._request, self._received = self.cycle, 0
            self._began = self._all.clock()
        self._received += len(data)

    def on_response_complete(self) -> None:
        self._began = self._all.clock()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Any) -> None:
        if not self._all.may_upgrade():
            self.transport.abort()
            return
        super().handle_websocket_upgrade(event)


class WebSocket(_Connection, WebSocketsSansIOProtocol):
    """One that has time for each answer; its session ends it where it is silent."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._all.replace(transport.get_protocol(), self)
