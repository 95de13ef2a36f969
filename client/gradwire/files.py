"""Graph files: one protobuf message that any language can read in ten years."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from google.protobuf.message import DecodeError

from gradwire.errors import FileError
from gradwire.payloads import Buffer
from gradwire.v1 import graph_pb2

FORMAT = "gradwire graph"


def write(path: str | os.PathLike[str], graph: bytes) -> None:
    """Writes a serialized Graph as a file, whole or not at all (FILE_INVALID)."""
    message = graph_pb2.GraphFile(format=FORMAT, graph=graph, sha256=sha256(graph).digest())
    replace(path, [message.SerializeToString(deterministic=True)])


def replace(path: str | os.PathLike[str], pieces: Iterable[Buffer]) -> None:
    """Puts a file in the place of another, whole or not at all (FILE_INVALID)."""
    try:
        _replace(Path(path), pieces)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise FileError("FILE_INVALID", f"{path}: cannot be written: {reason}") from None


def _replace(target: Path, pieces: Iterable[Buffer]) -> None:
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str]) -> bytes:
    """The serialized Graph in a file, byte for byte (FILE_INVALID)."""
    try:
        data = Path(path).read_bytes()
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise FileError("FILE_INVALID", f"{path}: cannot be read: {reason}") from None
    message = graph_pb2.GraphFile()
    try:
        message.ParseFromString(data)
    except DecodeError:
        message.Clear()
    if message.format != FORMAT:
        raise FileError(
            "FILE_INVALID",
            f"{path}: is not a graph file, or is cut; its first bytes are {data[:16]!r}",
        )
    found = sha256(message.graph).digest()
    if found != message.sha256:
        raise FileError(
            "FILE_INVALID",
            f"{path}: is damaged: its graph has SHA-256 {found.hex()[:16]}... but the file says "
            f"{message.sha256.hex()[:16]}...; get it again from where it was written",
        )
    return message.graph
