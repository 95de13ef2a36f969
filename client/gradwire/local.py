"""An embedded server: the one place where the client knows the server's package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from gradwire import files
from gradwire.connection import Connection
from gradwire.errors import (
    FileError,
    GradwireError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from gradwire_server.codec import decode_graph
from gradwire_server.engine import kernels
from gradwire_server.engine.symbolic import leaf_specs
from gradwire_server.entry import EmbeddedServer
from gradwire_server.entry import serve as serve_forever
from gradwire_server.errors import Invalid, Refusal, Unsupported
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
    warm_up: bool = True,
    shared_memory: bool = False,
    **limits: int,
) -> Connection:
    """A connection to a server inside this process, over a unix socket; nothing to start.

    Limits are those of `gradwire serve`, such as max_nodes=10_000_000. Compiled kernels come in in
    the background, on their first use from a process that compiles for a minute or two; without
    warm_up they do not, for programs that end soon. shared_memory is that of `connect`. Graphs are
    saved in memory, until the connection is closed.
    """
    try:
        server = EmbeddedServer(Limits(**limits), warms_up=warm_up, shares_memory=shared_memory)
    except SharedMemoryError as failure:
        raise _unshared(failure) from None
    return Connection(
        server.address, timeout=timeout, shared_memory=shared_memory, on_close=server.close
    )


def serve(
    address: str,
    *,
    workers: int,
    log_level: str,
    drain_seconds: float,
    shared_memory: str | None,
    store: str | None,
    web: bool,
    web_port: int | None,
    web_hosts: tuple[str, ...],
    **limits: Any,
) -> None:
    """Serves until told to stop.

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
            web=Web(READERS, web_port, web_hosts) if web else None,
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


def _unshared(failure: SharedMemoryError) -> GradwireError:
    return UnsupportedError("SHARED_MEMORY_UNSUPPORTED", str(failure))


def _read_file(name: str, content: bytes) -> bytes:
    """A .gate file, its text form, or an .onnx file, as a serialized Graph (Refusal)."""
    try:
        if name.lower().endswith(".onnx"):
            from gradwire.onnx import from_onnx

            return from_onnx(content).to_bytes()
        from gradwire.builder import Graph

        if content.startswith(b"gradwire text"):
            return Graph.from_text(content.decode()).to_bytes()
        return Graph.from_bytes(files.parse(name, content)).to_bytes()
    except GradwireError as error:
        raise _refusal(name, error) from None
    except UnicodeDecodeError as failure:
        raise Invalid("TEXT_INVALID", f"{name}: byte {failure.start} is not UTF-8") from None


def _read_expression(text: str) -> bytes:
    """An expression as a serialized Graph (Refusal, with `line` and `column`)."""
    try:
        read = import_module("gradwire.expressions").parse_expression
    except ModuleNotFoundError:
        raise Unsupported("FEATURE_UNSUPPORTED", "this server reads no expressions") from None
    try:
        graph: bytes = read(text).to_bytes()
        return graph
    except GradwireError as error:
        raise _refusal("", error) from None


def _refusal(name: str, error: GradwireError) -> Invalid:
    message = error.message
    if name and not message.startswith(f"{name}: "):
        message = f"{name}: {message}"
    return Invalid(error.reason, message, **error.facts)


#: What the page sends is read by this package.
READERS = Readers(_read_file, _read_expression)


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


def compile_kernels() -> Path:
    """Compiles the server's kernels, so that no server has to; the folder they are in."""
    try:
        return kernels.compile_all()
    except OSError as failure:
        message = f"{failure.filename}: {failure.strerror}; name a folder in GRADWIRE_CACHE"
        raise FileError("FILE_INVALID", message) from None
