"""What the page sends: the bytes of a file, or an expression, to a serialized Graph.

Nothing beside them is read: they come from wherever the browser is.
"""

from __future__ import annotations

from gradwire.builder import Graph
from gradwire.errors import FileError, GradwireError
from gradwire.expressions import parse_expression

#: Nodes of a model whose loops are written out: many more than anybody looks at.
_MOST_NODES = 100_000


def read_file(name: str, content: bytes) -> bytes:
    """A .gate file, its text form, or an .onnx file (FILE_INVALID, BLOBS_MISSING, ...)."""
    try:
        return _graph(name, content).to_bytes()
    except GradwireError as error:
        if error.message.startswith(f"{name}: "):
            raise
        message = error.message.removeprefix("the model: ")
        raise FileError(error.reason, f"{name}: {message}", error.facts) from None


def read_expression(text: str) -> bytes:
    """An expression (TextError: EXPRESSION_INVALID, ..., with line and column)."""
    return parse_expression(text).to_bytes()


def _graph(name: str, content: bytes) -> Graph:
    if name.lower().endswith(".onnx"):
        from gradwire.onnx import from_onnx

        return from_onnx(content, max_nodes=_MOST_NODES)
    if not content.startswith(b"gradwire text"):
        return Graph.from_file_bytes(name, content)
    try:
        return Graph.from_text(content.decode())
    except UnicodeDecodeError as failure:
        raise FileError("TEXT_INVALID", f"byte {failure.start}: is not UTF-8") from None
