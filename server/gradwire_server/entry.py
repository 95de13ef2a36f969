"""Starts and stops servers: the process behind `gradwire serve`, and one inside a program."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from gradwire_server.allocator import keep_freed_memory, spare_what_stays
from gradwire_server.engine import kernels
from gradwire_server.engine.blas import serve_with_one_thread
from gradwire_server.folders import FolderError, is_own_socket, require_private
from gradwire_server.health import Health, Reflection
from gradwire_server.limits import Limits
from gradwire_server.repeats import Repeats
from gradwire_server.segments import Segments, require_directory
from gradwire_server.service import GradientService
from gradwire_server.store import MemoryStore, Store, open_store
from gradwire_server.web.page import Page, Place, Web, bind, place_of
from gradwire_server.workers import AddressError, Told, supervise

_LAST_PORT = 65535
_PENDING = 16_384  # calls that have come and are not looked at yet; about 10 kB each


class Server:
    """A gRPC server: the service, health checks and reflection (SharedMemoryError)."""

    def __init__(
        self,
        limits: Limits,
        *,
        shares_port: bool = False,
        shared_memory: str | None = None,
        store: Store | None = None,
    ) -> None:
        """The store is closed with the server."""
        self._limits = limits
        self._segments = Segments(shared_memory, limits.max_shared_bytes) if shared_memory else None
        self._store = store
        self._page: Page | None = None
        self._service = GradientService(limits, self._segments, store)
        arrivals = self._service.arrivals
        self._health = Health(arrivals)
        self._reflection = Reflection(arrivals, self._service.light, self._service.silence)
        self._server = grpc.server(
            self._service.light, handlers=[self._service], options=_options(limits, shares_port)
        )
        self._health.add_to(self._server)
        self._reflection.add_to(self._server)

    def start(self, address: str) -> str:
        """Listens, and returns the address with its port (AddressError)."""
        number = address.rpartition(":")[2]
        try:
            if number.isdecimal() and int(number[:9]) > _LAST_PORT and "unix:" not in address:
                raise RuntimeError  # grpc would take it modulo 65536
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            self._let_go()
            raise AddressError.of(address) from None
        self._server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def show(self, web: Web, sockets: Sequence[socket.socket]) -> None:
        """Shows the page to whoever comes to these sockets."""
        self._page = Page(web, sockets, self._service, self._limits)

    def stop(self, grace_seconds: float) -> None:
        """Refuses new calls, lets running ones end within the grace, then cancels them."""
        self._health.stop()
        if self._page is not None:
            self._page.begin_to_stop(grace_seconds)
        self._server.stop(grace_seconds).wait()
        if self._page is not None:
            self._page.stop()
        self._let_go()
        self._service.close()
        self._health.close()
        self._reflection.close()

    def _let_go(self) -> None:
        if self._segments is not None:
            self._segments.close()
        if self._store is not None:
            self._store.close()


class EmbeddedServer:
    """A server in this process, on a unix socket that only this user can reach."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        shares_memory: bool = False,
        store: Store | None = None,
    ) -> None:
        """Graphs are saved in memory, unless there is another store."""
        self._folder = _private_folder()
        shared_memory = self._folder if shares_memory else None
        limits = limits or Limits()
        self._server = Server(
            limits, shared_memory=shared_memory, store=store or MemoryStore(limits)
        )
        self.address = self._server.start(f"unix:{self._folder}/socket")

    def close(self) -> None:
        """Cancels what still runs, and removes the socket."""
        self._server.stop(grace_seconds=0)
        shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> str:
    """A new folder that only this user can enter or replace (AddressError)."""
    folder = tempfile.mkdtemp(prefix="gradwire-")
    try:
        require_private(folder)
    except FolderError as failure:
        os.rmdir(folder)
        raise AddressError(
            f"cannot listen in {folder}: {failure}: set TMPDIR to a folder of this user's"
        ) from None
    return folder


def serve(
    address: str,
    limits: Limits,
    *,
    workers: int = 1,
    drain_seconds: float = 30.0,
    log_level: str = "WARNING",
    shared_memory: str | None = None,
    store: str | None = None,
    web: Web | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains; `store` is the place of saved graphs.

    AddressError, SharedMemoryError, StoreError, WorkerError.
    """

    def say(sentence: str) -> None:
        announce(sentence)
        sys.stdout.flush()

    _log_as_json(log_level)
    with ExitStack() as stack:
        place, sentence = None, ""
        if web is not None:
            place, sentence = place_of(address, web, shared=workers > 1, stack=stack)

        def listens(reached: str) -> None:
            say(f"gradwire listens on {reached}")
            if sentence:
                say(sentence)

        if workers > 1:
            if shared_memory:
                require_directory(shared_memory)
            if store:
                open_store(store, limits).close()  # what is wrong with it is said once, and now
            work = _Work(limits, drain_seconds, log_level, shared_memory, store, web, place)
            supervise(address, workers, work, listens)
            return
        keep_freed_memory()
        serve_with_one_thread()
        kernels.load()
        told = Told()
        _remove_dead_socket(address)
        opened = open_store(store, limits) if store else None
        server = Server(limits, shared_memory=shared_memory, store=opened)
        listens(server.start(address))
        if web is not None and place is not None:
            server.show(web, place.sockets)
        spare_what_stays()
        told.wait()
        server.stop(drain_seconds)


@dataclass(frozen=True)
class _Work:
    """What one of several workers does."""

    limits: Limits
    drain_seconds: float
    log_level: str
    shared_memory: str | None
    store: str | None
    web: Web | None
    place: Place | None

    def __call__(self, address: str, told: Told, listens: Callable[[], None]) -> None:
        _log_as_json(self.log_level)
        keep_freed_memory()
        serve_with_one_thread()
        kernels.load()
        server = Server(
            self.limits,
            shares_port=True,
            shared_memory=self.shared_memory,
            store=open_store(self.store, self.limits) if self.store else None,
        )
        server.start(address)
        if self.web is not None and self.place is not None:
            server.show(self.web, bind(self.place.host, self.place.port, shared=True))
        listens()
        spare_what_stays()
        told.wait()
        server.stop(self.drain_seconds)


def _options(limits: Limits, shares_port: bool) -> list[tuple[str, int]]:
    return [
        # else a second server on the port is an error, not a silent share
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
        # a connection on which nobody speaks HTTP/2 keeps its descriptor no longer than this
        ("grpc.server_handshake_timeout_ms", 10_000),
        # grpc cancels what is above these, without a word; our own limits have sentences
        ("grpc.server.max_pending_requests", _PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _PENDING + 1),
    ]


def _remove_dead_socket(address: str) -> None:
    """A socket file that nobody listens on, left by a server that was killed."""
    path = Path(address.removeprefix("unix:"))
    if not address.startswith("unix:"):
        return
    try:
        if not is_own_socket(os.fspath(path)):
            return
    except FolderError as failure:
        raise AddressError(f"cannot listen on {address}: {failure}; give another path") from None
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise AddressError(f"cannot listen on {address}: another server does")


def _log_as_json(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    handler.addFilter(Repeats())
    others = ("uvicorn.error", "ERROR"), ("asyncio", "ERROR"), ("grpc", "ERROR")
    for name, lowest in (("gradwire", level.upper()), *others):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(lowest)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    _FIELDS = ("request_id", "method", "outcome", "peer", "milliseconds", "repeats")

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        entry |= {name: getattr(record, name) for name in self._FIELDS if hasattr(record, name)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)
