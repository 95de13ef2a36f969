"""Gradwire: send a gate graph, get every node's value and gradient.

    import gradwire as gw

    graph = gw.Graph()
    w, x = graph.input("w"), graph.input("x")
    graph.output("f", gw.sigmoid(w * x))
    with gw.local() as server:
        server.evaluate(graph, {"w": 2.0, "x": 0.5})["w"].gradient

Every gate is a function here: `gw.exp`, `gw.mat_mul`, `gw.reduce_sum`, ...; all are in
`gradwire.operators`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradwire.version import __version__

if TYPE_CHECKING:
    from gradwire.builder import Graph, Handle
    from gradwire.checking import GradientFinding
    from gradwire.connection import AsyncConnection, AsyncSession, Connection, Session
    from gradwire.drawing import Drawing, draw
    from gradwire.errors import (
        CancelledError,
        ConflictError,
        DeadlineError,
        FileError,
        GradwireError,
        InvalidRequestError,
        LimitError,
        NotFoundError,
        ServerError,
        TextError,
        UnavailableError,
        UnsupportedError,
    )
    from gradwire.in_process import Evaluator
    from gradwire.local import local
    from gradwire.modules import module
    from gradwire.onnx import from_onnx, to_onnx
    from gradwire.operators import *  # noqa: F403
    from gradwire.results import Event, Result, Summary
    from gradwire.saved import SavedGraph

# NumPy and gRPC are loaded on first use: `gradwire --help` must not wait for them.
_HOMES = {
    "builder": ("Graph", "Handle"),
    "checking": ("GradientFinding",),
    "connection": ("AsyncConnection", "AsyncSession", "Connection", "Session"),
    "drawing": ("Drawing", "draw"),
    "errors": (
        "CancelledError",
        "ConflictError",
        "DeadlineError",
        "FileError",
        "GradwireError",
        "InvalidRequestError",
        "LimitError",
        "NotFoundError",
        "ServerError",
        "TextError",
        "UnavailableError",
        "UnsupportedError",
    ),
    "in_process": ("Evaluator",),
    "local": ("local",),
    "modules": ("module",),
    "onnx": ("from_onnx", "to_onnx"),
    "results": ("Event", "Result", "Summary"),
    "saved": ("SavedGraph",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncConnection",
    "AsyncSession",
    "CancelledError",
    "ConflictError",
    "Connection",
    "DeadlineError",
    "Drawing",
    "Evaluator",
    "Event",
    "FileError",
    "GradientFinding",
    "GradwireError",
    "Graph",
    "Handle",
    "InvalidRequestError",
    "LimitError",
    "NotFoundError",
    "Result",
    "SavedGraph",
    "ServerError",
    "Session",
    "Summary",
    "TextError",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
    "check_gradients",
    "connect",
    "connect_async",
    "draw",
    "from_onnx",
    "from_text",
    "gradient_graph",
    "load",
    "local",
    "module",
    "parse",
    "save",
    "to_onnx",
]


class _Package(ModuleType):
    """Keeps the function `local` where importing the module of that name would put the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        is_module = name == "local" and isinstance(value, ModuleType)
        super().__setattr__(name, value.local if is_module else value)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as any module is pickled: cloudpickle sends functions that use this one."""
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package


def connect(
    target: str, *, timeout: float | None = None, shared_memory: bool = False
) -> Connection:
    """A connection to the server at "host:port" or "unix:path"; `timeout` in seconds a call.

    With shared_memory, large arrays do not travel in messages: for programs that run beside the
    server, as its user, where it was started with --shared-memory (UnsupportedError elsewhere).
    """
    from gradwire.connection import Connection

    return Connection(target, timeout=timeout, shared_memory=shared_memory)


def connect_async(
    target: str, *, timeout: float | None = None, shared_memory: bool = False
) -> AsyncConnection:
    """The same for asyncio."""
    from gradwire.connection import AsyncConnection

    return AsyncConnection(target, timeout=timeout, shared_memory=shared_memory)


def gradient_graph(
    graph: Graph,
    wrt: Sequence[str] = (),
    *,
    sizes: Mapping[str, int] | None = None,
    server: Connection | None = None,
) -> Graph:
    """The backward pass of a graph as a graph, made by `server` or by an embedded one."""
    if server is not None:
        return server.gradient_graph(graph, wrt, sizes)
    from gradwire.local import local

    with local() as embedded:
        return embedded.gradient_graph(graph, wrt, sizes)


def check_gradients(
    graph: Graph,
    inputs: Mapping[str, Any] | None = None,
    *,
    uses: int = 20,
    server: Connection | None = None,
) -> list[GradientFinding]:
    """Where modules' own gradients differ from finite differences, and what cannot be judged.

    At a point, for so many uses of each module, by `server` or by an embedded one. Empty where all
    is well.
    """
    from gradwire.checking import check_gradients

    if server is not None:
        reports = [*check_gradients(graph, inputs, server=server, uses=uses)]
    else:
        from gradwire.local import local

        with local(warm_up=False) as embedded:
            reports = [*check_gradients(graph, inputs, server=embedded, uses=uses)]
    return [finding for report in reports for finding in report.findings]


def save(graph: Graph, path: str | os.PathLike[str], *, blobs: bool | None = None) -> None:
    """Writes a `.gate` file; with blobs, large values go into a file beside it."""
    graph.save(path, blobs=blobs)


def load(path: str | os.PathLike[str]) -> Graph:
    """Reads a `.gate` file (FileError)."""
    from gradwire.builder import Graph

    return Graph.load(path)


def from_text(source: str, blob_file: str | os.PathLike[str] | None = None) -> Graph:
    """Reads the text of a graph (TEXT_INVALID, with line and column).

    `blob_file` has the values that the text says are blobs.
    """
    from gradwire.builder import Graph

    return Graph.from_text(source, blob_file)


def parse(
    expression: str,
    values: Mapping[str, Any] | None = None,
    *,
    shapes: Mapping[str, int | Sequence[int | str]] | None = None,
) -> Graph:
    """The graph of mathematics such as "sigmoid(w*x + b)", whose names are inputs (TextError).

    They are float64 scalars, unless `values` has defaults or `shapes` other shapes. The output is
    "out", or the last name that is assigned: docs/expressions.md.
    """
    from gradwire.expressions import parse_expression

    return parse_expression(expression, values, shapes=shapes)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    if name in _HOME_OF:
        found = getattr(import_module(f"gradwire.{_HOME_OF[name]}"), name)
        globals()[name] = found
        return found
    if find_spec(f"gradwire.{name}") is not None:
        raise AttributeError(f"module 'gradwire' has not loaded {name!r}")  # import does, then
    operators = import_module("gradwire.operators")
    if name in operators.__all__:
        return getattr(operators, name)
    raise AttributeError(f"module 'gradwire' has no attribute {name!r}")
