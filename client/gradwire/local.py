"""An embedded server: the one place where the client knows the server's package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gradwire import isolation
from gradwire.connection import Connection
from gradwire.errors import (
    GradwireError,
    InvalidRequestError,
    ServerError,
    UnavailableError,
    UnsupportedError,
    nearest,
)
from gradwire.isolation import Bounds, Pool
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
from gradwire_server.web.page import EXPRESSIONS, FILES, Job, Readers, Web
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
    except AddressError as failure:
        raise UnavailableError("UNAVAILABLE", str(failure)) from None
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
        readers = _Reading(self.read_file, self.read_expression)
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
class _Reading:
    """Starts the readers of a server's page; pickled for the server's processes."""

    read_file: Callable[..., bytes]
    read_expression: Callable[..., bytes]

    def __call__(self, limits: Limits) -> Readers:
        return _Readers(_name(self.read_file), _name(self.read_expression), limits)


class _Readers:
    """Reads in processes of its own, one of which is for expressions: they wait for no file."""

    def __init__(self, file: str, expression: str, limits: Limits) -> None:
        self._file, self._expression = file, expression
        self._files = Pool(FILES, (file.partition(":")[0], "gradwire.onnx.apart"))
        self._expressions = Pool(EXPRESSIONS, (expression.partition(":")[0],))
        self._bounds = Bounds(
            "open a smaller one, or start the server with a larger --{limit}",
            limits.max_read_bytes,
            limits.max_read_seconds,
            limits.max_message_bytes,
        )
        self._files.warm()
        self._expressions.warm()

    def file(self, name: str, content: bytes, options: Sequence[tuple[str, str]]) -> Job:
        given = name, content, options
        return _Refusing(self._files.job(self._file, *given, what=name, bounds=self._bounds))

    def expression(self, text: str) -> Job:
        what = "the expression"
        return _Refusing(
            self._expressions.job(self._expression, text, what=what, bounds=self._bounds)
        )

    def close(self) -> None:
        self._files.close()
        self._expressions.close()


@dataclass(frozen=True)
class _Refusing:
    """A job whose errors are the server's refusals."""

    job: isolation.Job

    def result(self) -> bytes:
        try:
            return self.job.result().graph
        except GradwireError as error:
            raise Invalid(error.reason, error.message, **error.facts) from None

    def cancel(self) -> None:
        self.job.cancel()


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


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
