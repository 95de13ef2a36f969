"""Blob files: the large values of a graph file, beside it, by the SHA-256 of their bytes.

A file is a head (magic, count, and for each blob its digest and length, by ascending digest; then
the digest of all that), and the blobs in this order, each at a multiple of 64 bytes. docs/files.md
has it byte by byte. Its name follows from the graph file's own name and the graph's digest, so a
new one never takes the place of one that a graph file still needs.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradwire import files, tensors
from gradwire.errors import FileError
from gradwire.file_kinds import kind_of
from gradwire.payloads import Buffer

MAGIC = b"gradwire blobs\x00\x01"
#: The least bytes that a value has which is written as a blob.
LEAST_BYTES = 4096

_ALIGNMENT = 64
_ENTRY = 40
_FIXED = len(MAGIC) + 8 + 32
_CHUNK = 1 << 24

#: Blobs by digest.
Blobs = Mapping[bytes, tensors.Array]


class _Place(NamedTuple):
    digest: bytes
    start: int
    length: int


def path_of(path: str | os.PathLike[str], graph: bytes) -> Path:
    """Where the blobs of a graph file lie that holds this serialized graph."""
    target = Path(path)
    return target.with_name(f"{target.name}.{sha256(graph).hexdigest()[:16]}.blobs")


def digest_of(array: tensors.Array) -> bytes:
    """SHA-256 of the elements of an array that has some."""
    found = sha256()
    for chunk in _chunks(array):
        found.update(chunk)
    return found.digest()


def write(path: Path, blobs: Blobs) -> None:
    """Writes a blob file, whole or not at all (FILE_INVALID)."""
    files.replace(path, _pieces({digest: blobs[digest] for digest in sorted(blobs)}))


def remove_others(path: str | os.PathLike[str], kept: Path | None) -> None:
    """Removes blob files of graphs that this graph file held before."""
    target = Path(path)
    own = re.compile(re.escape(target.name) + r"\.[0-9a-f]{16}\.blobs")
    for each in os.listdir(target.parent):
        if own.fullmatch(each) and (kept is None or each != kept.name):
            with suppress(OSError):  # a reader on Windows keeps it; the next save tries again
                target.with_name(each).unlink()


def load(path: Path, expected: str) -> Blobs:
    """Every blob of a file, memory-mapped, after each was compared with its digest.

    BLOBS_MISSING (it is that of the graph file `expected`), FILE_INVALID, FILE_NOT_BLOBS, FILE_CUT,
    FILE_DAMAGED.
    """
    if not os.path.lexists(path):
        raise FileError(
            "BLOBS_MISSING",
            f"{expected}: its large values are in {path.name!r}, which is not beside it; get both "
            "files from where they were written",
        )
    with files.opened(path, getattr(os, "O_NOFOLLOW", 0)) as (file, size):
        places = _read_head(path, file, size)
        for place in places:
            _verify(path, file, place)
        mapped = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
    return {each.digest: mapped[each.start : each.start + each.length] for each in places}


def _pieces(blobs: Blobs) -> Iterator[Buffer]:
    head = MAGIC + len(blobs).to_bytes(8, "little")
    head += b"".join(digest + array.nbytes.to_bytes(8, "little") for digest, array in blobs.items())
    yield head
    yield sha256(head).digest()
    at = len(head) + 32
    for array in blobs.values():
        yield bytes(-at % _ALIGNMENT)
        yield from _chunks(array)
        at += -at % _ALIGNMENT + array.nbytes


def _chunks(array: tensors.Array) -> Iterator[memoryview]:
    """The elements in pieces; of a file's pages, only those of one piece stay in memory."""
    view = tensors.elements(array)
    for at in range(0, len(view), _CHUNK):
        yield view[at : at + _CHUNK]
        _let_go(array, at, min(_CHUNK, len(view) - at))


def _let_go(array: tensors.Array, at: int, size: int) -> None:
    """Tells the system that pages of a read-only map were read; it reads them again if need be."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    if not isinstance(base, mmap.mmap) or not hasattr(base, "madvise"):
        return
    if not memoryview(base).readonly:
        return
    offset = array.ctypes.data - np.frombuffer(base, np.uint8).ctypes.data + at
    first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if pages > 0:
        base.madvise(mmap.MADV_DONTNEED, first, pages)


def _read_head(path: Path, file: BufferedReader, size: int) -> list[_Place]:
    """Where the blobs are; they fill the file exactly."""
    start = file.read(len(MAGIC) + 8)
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise FileError("FILE_NOT_BLOBS", f"{path}: is not a blob file: it is {kind_of(start)}")
    count = int.from_bytes(start[len(MAGIC) :], "little")
    if len(start) < len(MAGIC) + 8 or _FIXED + count * _ENTRY > size:
        raise files.cut(path, f"it has {size} bytes but begins as one of {count} blobs")
    entries, said = file.read(count * _ENTRY), file.read(32)
    if sha256(start + entries).digest() != said:
        raise files.damaged(path, "its list of blobs does not have the SHA-256 that it says")
    places: list[_Place] = []
    at = _FIXED + count * _ENTRY
    last = b""
    for entry in range(0, len(entries), _ENTRY):
        digest = entries[entry : entry + 32]
        length = int.from_bytes(entries[entry + 32 : entry + _ENTRY], "little")
        at += -at % _ALIGNMENT
        if digest <= last or not length:
            raise files.damaged(path, "its blobs are not in order, or one is empty")
        places.append(_Place(digest, at, length))
        last = digest
        at += length
    if size < at:
        raise files.cut(path, f"it has {size} bytes but begins as one of {at}")
    if size > at or not places:
        raise files.damaged(path, f"it has {size} bytes but should end after {at}")
    return places


def _verify(path: Path, file: BufferedReader, place: _Place) -> None:
    """Reads on to the end of a blob, which must be what its digest says."""
    found = sha256()
    if any(file.read(place.start - file.tell())):
        raise files.damaged(path, f"the bytes before {place.start} are not zero")
    left = place.length
    buffer = memoryview(bytearray(min(left, 1 << 20)))
    while left:
        count = file.readinto(buffer[: min(left, len(buffer))])
        if not count:
            raise files.cut(path, "it was cut while it was read")
        found.update(buffer[:count])
        left -= count
    if found.digest() != place.digest:
        raise files.damaged(
            path,
            f"the blob at byte {place.start} has SHA-256 {found.hexdigest()[:16]}... but should "
            f"have {place.digest.hex()[:16]}...",
        )
