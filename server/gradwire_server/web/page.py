"""Shows the page: sockets that listen from the start, and a web server once somebody comes.

The libraries for it take a third of a second to import. A server that no browser visits never does.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, cast

from gradwire_server.limits import Limits
from gradwire_server.workers import AddressError, reserve

if TYPE_CHECKING:
    import uvicorn

    from gradwire_server.web.calls import Servicer

#: Below the ports that systems give to clients, and nobody's habit.
PORT = 5051

#: Files and expressions that are read at the same time.
FILES, EXPRESSIONS = 2, 1

_BACKLOG = 128
_CONNECTIONS = 512  # at the same time; a page uses about seven
#: Of the descriptors that this process may have, those that the page's connections may take.
_DESCRIPTORS_SHARE = 4
_LOOPBACK = "127.0.0.1"
_EVERYWHERE = ("0.0.0.0", "::", "*")

log = logging.getLogger("gradwire")


class Job(Protocol):
    """Reads one thing that somebody has sent, in a process that may be killed."""

    def result(self) -> bytes:
        """A serialized graph, no more trusted than a request (Refusal)."""

    def cancel(self) -> None:
        """Ends it at once, from another thread."""


class Readers(Protocol):
    """What makes serialized graphs of what people write; functions of the client's package.

    They raise Refusal, with `line` and `column` among an expression's facts.
    """

    def file(self, name: str, content: bytes, options: Sequence[tuple[str, str]]) -> Job:
        """A file's name and bytes, and options of a model: ("size", "batch=4")."""

    def expression(self, text: str) -> Job:
        """An expression."""

    def close(self) -> None:
        """Ends all that is read."""


@dataclass(frozen=True)
class Web:
    """How the page is to be shown."""

    #: Starts the readers, when somebody comes.
    readers: Callable[[Limits], Readers]
    #: None: the usual one, or any free one where that is taken.
    port: int | None = None
    #: Names that browsers may call the server by, beside localhost and IP addresses.
    names: tuple[str, ...] = ()
    #: What Vite makes of the page's source.
    ui: Path = Path(__file__).parent.parent / "ui"


@dataclass(frozen=True)
class Place:
    """Where the page is shown."""

    host: str
    port: int
    #: That listen there; none where several processes share the port, and listen themselves.
    sockets: tuple[socket.socket, ...] = ()

    @property
    def url(self) -> str:
        host = "localhost" if self.host in _EVERYWHERE else self.host
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"


def place_of(address: str, web: Web, *, shared: bool, stack: ExitStack) -> tuple[Place | None, str]:
    """Takes the page's port on the host of a gRPC address, until the stack closes; and says so.

    AddressError where it was given and cannot be had. There is no page beside a unix socket, unless
    its port was given.
    """
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith(("unix:", "unix-abstract:")):
        host = "" if web.port is None else _LOOPBACK
    if not host:
        return None, ""
    if web.port is not None:
        place = _taken(host, web.port, shared, stack)
        return place, f"gradwire shows its page on {place.url}"
    try:
        place = _taken(host, PORT, shared, stack)
        return place, f"gradwire shows its page on {place.url}"
    except AddressError:
        pass
    try:
        place = _taken(host, 0, shared, stack)
    except AddressError as failure:
        return None, f"gradwire shows no page: {failure}"
    return place, f"gradwire shows its page on {place.url} (port {PORT} is taken)"


def _taken(host: str, port: int, shared: bool, stack: ExitStack) -> Place:
    if not shared:
        sockets = bind(host, port)
        for each in sockets:
            stack.callback(each.close)
        return Place(host, sockets[0].getsockname()[1], tuple(sockets))
    try:
        reserved = reserve(f"{host}:{port}", stack)
    except AddressError:
        raise _not_shown(host, port, "it is in use, or not of this machine") from None
    return Place(host, int(reserved.rpartition(":")[2]))


def bind(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Listens on every address of a host, all with the same port (AddressError)."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            listener = socket.socket(family, kind, protocol)
            option = socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
            sockets.append(listener)
            try:
                listener.bind((place[0], port, *place[2:]))
            except OSError as failure:
                if failure.errno != errno.EADDRNOTAVAIL:
                    raise
                missing = failure  # such as localhost's ::1 where IPv6 is switched off
                sockets.pop().close()
                continue
            listener.listen(_BACKLOG)
            port = listener.getsockname()[1]
        if missing is not None and not sockets:
            raise missing
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


def most_connections() -> int:
    """Of the page at once: a share of the descriptors, so that gRPC has the others."""
    try:
        import resource  # not on every system
    except ImportError:
        return _CONNECTIONS
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return _CONNECTIONS
    return max(1, min(_CONNECTIONS, descriptors // _DESCRIPTORS_SHARE))


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
                self._server.config.timeout_graceful_shutdown = max(1, math.ceil(grace_seconds))
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
        from gradwire_server.web.connections import Connections

        connections = Connections(most_connections())
        readers = self._web.readers(self._limits)
        config = uvicorn.Config(
            application(self._service, self._limits, self._web, readers),
            access_log=False,
            backlog=_BACKLOG,
            http=cast("Any", connections.http),
            lifespan="off",
            log_config=None,
            loop="asyncio",
            proxy_headers=False,
            server_header=False,
            ws=cast("Any", connections.websocket),
            ws_max_size=self._limits.max_message_bytes,
            ws_ping_timeout=None,  # a page that waits for a long answer reads nothing else
            ws_per_message_deflate=False,  # a bomb would be unpacked on the event loop
        )
        with closing(readers):
            with self._lock:
                if self._stopping:
                    return
                self._server = uvicorn.Server(config)
            self._server.run(sockets=self._sockets)
