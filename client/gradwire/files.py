"""Graph files: one protobuf message that any language can read in ten years.

docs/files.md has the format, byte by byte. Nothing in a file is trusted: every byte of it is one
that a writer must have written, and sizes are compared before anything is read.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from hashlib import sha256
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gradwire.errors import FileError
from gradwire.file_kinds import kind_of
from gradwire.payloads import Buffer, field

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = b"gradwire graph"

_HEAD = field(1, len(FORMAT)) + FORMAT
_GRAPH_KEY = b"\x12"
_DIGEST_HEAD = field(3, 32)
_MOST_DIGITS = 5  # of a size that protobuf can hold


def write(path: str | os.PathLike[str], graph: bytes) -> None:
    """Writes a serialized Graph as a file, whole or not at all (FILE_INVALID)."""
    replace(path, [_HEAD, field(2, len(graph)), graph, _DIGEST_HEAD, sha256(graph).digest()])


def replace(path: str | os.PathLike[str], pieces: Iterable[Buffer]) -> None:
    """Puts a file in the place of another, whole or not at all (FILE_INVALID)."""
    try:
        _replace(Path(path), pieces)
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise FileError("FILE_INVALID", f"{path}: cannot be written: {reason}") from None


def _replace(target: Path, pieces: Iterable[Buffer]) -> None:
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "fchmod"):  # by the path, it could be that of another file by now
                os.fchmod(file.fileno(), 0o644)
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes names durable, in the order in which they were given."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: str | os.PathLike[str]) -> bytes:
    """The serialized Graph in a file, byte for byte.

    FILE_INVALID (cannot be read), FILE_NOT_GRAPH, FILE_CUT, FILE_DAMAGED.
    """
    with opened(path) as (file, size):
        return _graph_in(path, file, size)


def parse(name: str, content: bytes) -> bytes:
    """The same of a file's bytes; its name is for messages."""
    return _graph_in(name, BytesIO(content), len(content))


def _graph_in(path: str | os.PathLike[str], file: BinaryIO, size: int) -> bytes:
    head = file.read(len(_HEAD) + 1 + _MOST_DIGITS)
    start, length = _graph_place(path, head)
    whole = start + length + len(_DIGEST_HEAD) + 32
    if size != whole:
        raise _wrong_size(path, size, whole)
    file.seek(start)
    graph = file.read(length)
    end = file.read(len(_DIGEST_HEAD) + 32)
    found, said = sha256(graph).digest(), end[len(_DIGEST_HEAD) :]
    if found != said or not end.startswith(_DIGEST_HEAD):
        raise FileError(
            "FILE_DAMAGED",
            f"{path}: is damaged: its graph has SHA-256 {found.hex()[:16]}... but the file says "
            f"{said.hex()[:16]}...; get it again from where it was written",
        )
    return graph


@contextmanager
def opened(
    path: str | os.PathLike[str], extra_flags: int = 0
) -> Iterator[tuple[BufferedReader, int]]:
    """A regular file and its size, opened without waiting as a pipe would (FILE_INVALID)."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | extra_flags
    try:
        with open(os.open(path, flags), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise FileError("FILE_INVALID", f"{path}: is not a regular file")
            yield file, facts.st_size
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise FileError("FILE_INVALID", f"{path}: cannot be read: {reason}") from None


def _graph_place(path: str | os.PathLike[str], head: bytes) -> tuple[int, int]:
    """Where the graph begins in a file with this head, and how long it is."""
    if not head.startswith(_HEAD):
        if _HEAD.startswith(head):
            raise cut(path, f"it ends after {len(head)} bytes")
        message = f"{path}: is not a graph file: it is {kind_of(head)}"
        raise FileError("FILE_NOT_GRAPH", message)
    at = len(_HEAD)
    if head[at : at + 1] not in (b"", _GRAPH_KEY):
        raise damaged(path, f"byte {at} is {head[at]} but must be {_GRAPH_KEY[0]}")
    length = 0
    for place, digit in enumerate(head[at + 1 :]):
        length |= (digit & 0x7F) << 7 * place
        if digit < 0x80:
            start = at + 2 + place
            if head[at:start] != field(2, length):
                raise damaged(path, f"the length at byte {at + 1} has more digits than it needs")
            return start, length
    if len(head) <= at + _MOST_DIGITS:
        raise cut(path, f"it ends after {len(head)} bytes")
    raise damaged(path, f"the length at byte {at + 1} has no end")


def _wrong_size(path: str | os.PathLike[str], size: int, whole: int) -> FileError:
    if size < whole:
        return cut(path, f"it has {size} bytes but begins as one of {whole}")
    return damaged(path, f"it has {size} bytes but should end after {whole}")


def cut(path: str | os.PathLike[str], why: str) -> FileError:
    """A file that ends too early."""
    return FileError("FILE_CUT", f"{path}: is cut: {why}; get it again from where it was written")


def damaged(path: str | os.PathLike[str], why: str) -> FileError:
    """A file with bytes that no writer wrote."""
    return FileError(
        "FILE_DAMAGED", f"{path}: is damaged: {why}; get it again from where it was written"
    )
