"""What the page sends: the bytes of a file, or an expression, to a serialized Graph.

Nothing beside them is read: they come from wherever the browser is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gradwire.builder import Graph
from gradwire.errors import FileError, GradwireError, InvalidRequestError
from gradwire.expressions import parse_expression

#: Nodes of a model whose loops are written out: many more than anybody looks at.
_MOST_NODES = 100_000
#: Options of ONNX models, as the command line has them: of from_onnx.
_OPTIONS = {"size": "sizes", "fix": "fixed", "at": "at"}


def read_file(name: str, content: bytes, options: Sequence[tuple[str, str]] = ()) -> bytes:
    """A .gate file, its text form, or an .onnx file (FILE_INVALID, BLOBS_MISSING, ...).

    Options are ("size", "batch=4"), ("fix", "steps=3") and ("at", "x=[1, 2]").
    """
    try:
        return _graph(name, content, options).to_bytes()
    except GradwireError as error:
        if error.message.startswith(f"{name}: "):
            raise
        message = error.message.removeprefix("the model: ")
        raise FileError(error.reason, f"{name}: {message}", error.facts) from None


def read_expression(text: str) -> bytes:
    """An expression (TextError: EXPRESSION_INVALID, ..., with line and column)."""
    return parse_expression(text).to_bytes()


def _graph(name: str, content: bytes, options: Sequence[tuple[str, str]]) -> Graph:
    if name.lower().endswith(".onnx"):
        from gradwire.onnx import from_onnx

        return from_onnx(content, max_nodes=_MOST_NODES, **_read_options(options))
    if not content.startswith(b"gradwire text"):
        return Graph.from_file_bytes(name, content)
    try:
        return Graph.from_text(content.decode())
    except UnicodeDecodeError as failure:
        raise FileError("TEXT_INVALID", f"byte {failure.start}: is not UTF-8") from None


def _read_options(options: Sequence[tuple[str, str]]) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {each: {} for each in _OPTIONS.values()}
    for option, text in options:
        name, equals, value = text.rpartition("=") if option == "size" else text.partition("=")
        try:
            number = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            number = {}
        wrong = option == "size" and (isinstance(number, bool) or not isinstance(number, int))
        if not equals or not name or wrong or isinstance(number, dict):
            expected = "SYMBOL=N" if option == "size" else "NAME=VALUE, a number or a JSON list"
            raise InvalidRequestError(
                "REQUEST_INVALID", f"{option} {text[:60]!r}: must be {expected}"
            )
        found[_OPTIONS[option]][name] = number
    return found
