"""Shows the page: sockets that listen from the start, and a web server once somebody comes.

The libraries for it take a third of a second to import. A server that no browser visits never does.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection
from threading import Lock, Thread
from typing import TYPE_CHECKING

from gradwire_server.limits import Limits
from gradwire_server.workers import AddressError, reserve

if TYPE_CHECKING:
    import uvicorn

    from gradwire_server.web.calls import Servicer

#: Below the ports that systems give to clients, and nobody's habit.
PORT = 5051

_BACKLOG = 128
_CONNECTIONS = 512  # at the same time; a page uses about seven
_LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::", "*")

log = logging.getLogger("gradwire")


@dataclass(frozen=True)
class Readers:
    """What makes serialized graphs of what people write; functions of the client's package.

    They raise Refusal, with `line` and `column` among an expression's facts.
    """

    #: A file's name and bytes.
    file: Callable[[str, bytes], bytes]
    expression: Callable[[str], bytes]


@dataclass(frozen=True)
class Web:
    """How the page is to be shown."""

    readers: Readers
    #: None: the usual one, or any free one where that is taken.
    port: int | None = None
    #: Names that browsers may call the server by, beside localhost and IP addresses.
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where the page is shown."""

    host: str
    port: int
    #: Where the usual place is taken.
    note: str
    #: That listen there; none where several processes share the port, and listen themselves.
    sockets: tuple[socket.socket, ...] = ()

    @property
    def sentence(self) -> str:
        host = "localhost" if self.host in _EVERYWHERE else self.host
        host = f"[{host}]" if ":" in host else host
        return f"gradwire shows its page on http://{host}:{self.port}/{self.note}"


def place_of(address: str, web: Web, *, shared: bool, stack: ExitStack) -> Place | None:
    """Takes the page's port on the host of a gRPC address, until the stack closes (AddressError).

    None beside a unix socket, unless there is a port of its own.
    """
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix"):
        if web.port is None:
            return None
        host = _LOOPBACK
    if web.port is not None:
        return _taken(host, web.port, "", shared, stack)
    try:
        return _taken(host, PORT, "", shared, stack)
    except AddressError:
        return _taken(host, 0, f" (port {PORT} is taken)", shared, stack)


def _taken(host: str, port: int, note: str, shared: bool, stack: ExitStack) -> Place:
    if not shared:
        sockets = bind(host, port)
        for each in sockets:
            stack.callback(each.close)
        return Place(host, sockets[0].getsockname()[1], note, tuple(sockets))
    try:
        reserved = reserve(f"{host}:{port}", stack)
    except AddressError:
        raise _not_shown(host, port, "it is in use, or not of this machine") from None
    return Place(host, int(reserved.rpartition(":")[2]), note)


def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Listens on every address of a host, all with the same port (AddressError)."""
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, place in found:
            listener = socket.socket(family, kind, protocol)
            option = socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
            sockets.append(listener)
            listener.bind((place[0], port, *place[2:]))
            listener.listen(_BACKLOG)
            port = listener.getsockname()[1]
    except (OSError, OverflowError, ValueError) as failure:
        for each in sockets:
            each.close()
        why = getattr(failure, "strerror", None) or str(failure)
        raise _not_shown(host, port, why) from None
    return sockets


def _not_shown(host: str, port: int, why: str) -> AddressError:
    return AddressError(
        f"cannot show the page on {host}:{port}: {why}; give another --web-port (0 for any free "
        "one), or --no-web"
    )


class Page:
    """The web server of one process."""

    def __init__(
        self, web: Web, sockets: Sequence[socket.socket], service: Servicer, limits: Limits
    ) -> None:
        self._web = web
        self._sockets = list(sockets)
        self._service = service
        self._limits = limits
        self._told, self._tell = socket.socketpair()
        self._lock = Lock()
        self._stopping = False
        self._server: uvicorn.Server | None = None
        self._thread = Thread(target=self._run, name="gradwire-page", daemon=True)
        self._thread.start()

    def begin_to_stop(self, grace_seconds: float) -> None:
        """Refuses new requests, ends sessions, lets the rest end within the grace."""
        with self._lock:
            self._stopping = True
            if self._server is not None:
                self._server.config.timeout_graceful_shutdown = math.ceil(grace_seconds)
                self._server.should_exit = True
        self._tell.send(b".")

    def stop(self) -> None:
        """Waits for the end that was begun."""
        self._thread.join()
        for each in (*self._sockets, self._told, self._tell):
            each.close()

    def _run(self) -> None:
        try:
            if self._told not in connection.wait([self._told, *self._sockets]):
                self._serve()
        except Exception:
            log.exception("fault")

    def _serve(self) -> None:
        import uvicorn

        from gradwire_server.web.app import application

        config = uvicorn.Config(
            application(self._service, self._limits, self._web),
            access_log=False,
            backlog=_BACKLOG,
            http="h11",
            lifespan="off",
            limit_concurrency=_CONNECTIONS,
            log_config=None,
            loop="asyncio",
            proxy_headers=False,
            server_header=False,
            ws="websockets-sansio",
            ws_max_size=self._limits.max_message_bytes,
            ws_per_message_deflate=False,  # a bomb would be unpacked on the event loop
        )
        with self._lock:
            if self._stopping:
                return
            self._server = uvicorn.Server(config)
        self._server.run(sockets=self._sockets)
