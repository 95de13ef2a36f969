"""An embedded server: the one place where the client knows the server's package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gradwire.connection import Connection
from gradwire.errors import (
    GradwireError,
    InvalidRequestError,
    ServerError,
    UnavailableError,
    UnsupportedError,
    nearest,
)
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine import kernels
from gradwire_server.engine.symbolic import leaf_specs
from gradwire_server.entry import EmbeddedServer
from gradwire_server.entry import serve as serve_forever
from gradwire_server.errors import Invalid, Refusal
from gradwire_server.limits import Limit, Limits
from gradwire_server.plan import make_plan
from gradwire_server.segments import SharedMemoryError
from gradwire_server.store import StoreError
from gradwire_server.web.page import Readers, Web
from gradwire_server.workers import AddressError, WorkerError

#: Every limit of a server, with its default.
LIMITS: tuple[Limit, ...] = tuple(Limits().describe())


def local(
    *,
    timeout: float | None = None,
    warm_up: bool = True,  # noqa: ARG001 -- kept for programs that name it
    shared_memory: bool = False,
    **limits: int,
) -> Connection:
    """A connection to a server inside this process, over a unix socket; nothing to start.

    Limits are those of `gradwire serve`, such as max_nodes=10_000_000. shared_memory is that of
    `connect`. Graphs are saved in memory, until the connection is closed. warm_up has no effect any
    more: the compiled kernels come with the package.
    """
    known = [limit.name for limit in fields(Limits)]
    for name in limits:
        if name not in known:
            message = f"there is no limit {name!r}{nearest(name, known)}"
            raise InvalidRequestError("OPTION_UNKNOWN", message)
    try:
        server = EmbeddedServer(Limits(**limits), shares_memory=shared_memory)
    except SharedMemoryError as failure:
        raise _unshared(failure) from None
    return Connection(
        server.address, timeout=timeout, shared_memory=shared_memory, on_close=server.close
    )


@dataclass(frozen=True)
class PageOptions:
    """The page that is served for browsers, and what reads what it sends."""

    read_file: Callable[[str, bytes, Sequence[tuple[str, str]]], bytes]
    read_expression: Callable[[str], bytes]
    port: int | None
    hosts: tuple[str, ...]

    def web(self, address: str) -> Web:
        """The same for a server that listens on an address."""
        readers = Readers(_Refusing(self.read_file), _Refusing(self.read_expression))
        own = address.rpartition(":")[0]
        return Web(readers, self.port, (*self.hosts, *filter(None, [own])))


def serve(
    address: str,
    *,
    workers: int,
    log_level: str,
    drain_seconds: float,
    shared_memory: str | None,
    store: str | None,
    page: PageOptions | None,
    **limits: Any,
) -> None:
    """Serves until told to stop, with a page for browsers if told so.

    UnavailableError where the address cannot be listened on or the store not be opened, ServerError
    where a worker cannot start, UnsupportedError where the directory for shared memory cannot be
    used.
    """
    error: GradwireError
    try:
        serve_forever(
            address,
            Limits(**limits),
            workers=workers,
            drain_seconds=drain_seconds,
            log_level=log_level,
            shared_memory=shared_memory,
            store=store,
            web=page.web(address) if page is not None else None,
        )
    except AddressError as failure:
        error = UnavailableError("UNAVAILABLE", str(failure))
        raise error from None
    except SharedMemoryError as failure:
        raise _unshared(failure) from None
    except StoreError as failure:
        error = UnavailableError("STORE_UNAVAILABLE", str(failure))
        raise error from None
    except WorkerError as failure:
        error = ServerError("INTERNAL", str(failure))
        raise error from None


@dataclass(frozen=True)
class _Refusing:
    """A reader whose errors are the server's refusals; pickled for the server's processes."""

    read: Callable[..., bytes]

    def __call__(self, *arguments: Any) -> bytes:
        try:
            return self.read(*arguments)
        except GradwireError as error:
            raise Invalid(error.reason, error.message, **error.facts) from None


def _unshared(failure: SharedMemoryError) -> GradwireError:
    return UnsupportedError("SHARED_MEMORY_UNSUPPORTED", str(failure))


def kernel_level() -> str:
    """What evaluations in this process compute with, as DescribeServerResponse.kernels says it."""
    return kernels.level()


def output_shapes(graph: bytes, sizes: Mapping[str, int]) -> list[tuple[int, ...]] | None:
    """The shape of every output of a serialized graph; None where its plan is refused."""
    try:
        decoded = decode_graph(graph, Limits())
        plan = make_plan(decoded, leaf_specs(decoded, sizes))
    except Refusal:
        return None
    return [
        plan.shape(output.value_ids[0]) if len(output.value_ids) == 1 else (len(output.value_ids),)
        for output in decoded.outputs
    ]
