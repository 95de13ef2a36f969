"""What a store of graphs promises, and the rules that all stores share.

A graph is its bytes, and never changes; its digest names it. A name refers to a digest, and moves
only if it refers to what the mover expects. What a method has done when it returns is durable, and
what it has not done when it is killed has not happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import monotonic, time
from typing import Protocol

from gradwire_server.errors import Conflict, Invalid, NotFound, OverLimit, Refusal, Unavailable
from gradwire_server.limits import Limits

DIGEST_BYTES = 32

#: Pieces in which graphs are stored and read.
PIECE_BYTES = 1 << 20

#: Smaller pieces, the last apart, would cost more for their keeping than for their bytes.
MIN_CHUNK_BYTES = 64 * 1024

#: Expected of a name that must not exist.
ABSENT = b""

_MAX_NAME_BYTES = 255

#: The entry that a page follows on: a name, or the digest of a graph without one; None at first.
Place = str | bytes | None


class StoreError(Exception):
    """The store cannot be opened."""


@dataclass(frozen=True)
class Saved:
    """A saved graph; with a name, where it was found by one."""

    digest: bytes
    size: int
    saved_at: float  # seconds since 1970
    name: str = ""


class Store(Protocol):
    """Where graphs are saved; safe to use from many threads.

    Digests, names and sizes have been checked. Every method may raise STORE_UNAVAILABLE.
    """

    kind: str

    def find(self, digest: bytes) -> Saved:
        """What is known of a graph (GRAPH_NOT_FOUND)."""

    def resolve(self, name: str) -> bytes:
        """The digest that a name refers to (GRAPH_NOT_FOUND)."""

    def read(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a graph from an offset on, in pieces (GRAPH_NOT_FOUND)."""

    def save(self, digest: bytes, data: bytes) -> bool:
        """Saves a graph; whether it was not there before (LIMIT_EXCEEDED)."""

    def begin(self, digest: bytes, size: int) -> int:
        """Begins an upload; bytes that are there already (UPLOAD_INVALID, LIMIT_EXCEEDED)."""

    def append(self, digest: bytes, offset: int, data: memoryview) -> None:
        """Adds bytes to an upload (UPLOAD_INVALID)."""

    def uploaded(self, digest: bytes) -> Iterator[bytes]:
        """The bytes of an upload, in pieces."""

    def finish(self, digest: bytes, data: bytes) -> None:
        """Saves the graph of a whole upload, whose bytes `uploaded` gave (UPLOAD_INVALID)."""

    def discard(self, digest: bytes) -> None:
        """Forgets an upload."""

    def move(self, name: str, digest: bytes, expected: bytes | None) -> None:
        """Lets a name refer to a graph (GRAPH_NOT_FOUND, NAME_CONFLICT, LIMIT_EXCEEDED)."""

    def remove(self, name: str, expected: bytes | None) -> bytes:
        """Deletes a name; the digest it referred to (GRAPH_NOT_FOUND, NAME_CONFLICT)."""

    def delete(self, digest: bytes) -> None:
        """Deletes a graph, and the names that refer to it (GRAPH_NOT_FOUND)."""

    def page(self, prefix: str, after: Place, most: int) -> list[Saved]:
        """Entries after one: names in order, then, without a prefix, graphs without a name."""

    def close(self) -> None:
        """Lets go of the store; it is not used any more."""


def steady(clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds since 1970 that go on evenly where the machine's clock is set; or a test's clock."""
    if clock is not time:
        return clock
    began = time() - monotonic()
    return lambda: began + monotonic()


def require_digest(digest: bytes) -> bytes:
    """A digest (DIGEST_INVALID)."""
    if len(digest) != DIGEST_BYTES:
        raise Invalid(
            "DIGEST_INVALID",
            f"digest: has {len(digest)} bytes but a SHA-256 has {DIGEST_BYTES}",
        )
    return digest


def require_name(name: str) -> str:
    """A name that a graph may have (NAME_INVALID)."""
    size = len(name.encode())
    wrong = None
    if not 1 <= size <= _MAX_NAME_BYTES:
        wrong = f"has {size} bytes but may have 1 to {_MAX_NAME_BYTES}"
    elif not name.isprintable():
        wrong = "has a character that cannot be printed"
    elif name != name.strip(" "):
        wrong = "begins or ends with a space"
    elif looks_like_digest(name):
        wrong = "looks like a digest"
    if wrong:
        raise Invalid("NAME_INVALID", f"name {name[:80]!r}: {wrong}; give another")
    return name


def looks_like_digest(name: str) -> bool:
    """Whether a name is 64 hexadecimal digits."""
    return len(name) == 2 * DIGEST_BYTES and set(name.lower()) <= set("0123456789abcdef")


def require_size(size: int, limits: Limits) -> None:
    """A size that a graph may have (GRAPH_INVALID, LIMIT_EXCEEDED)."""
    if size == 0:
        raise Invalid("GRAPH_INVALID", "the graph has no bytes")
    if size > limits.max_graph_bytes:
        raise OverLimit.of("max-graph-bytes", limits.max_graph_bytes, size, "bytes of the graph")


def require_room(limits: Limits, graphs: int, nbytes: int) -> None:
    """Room for as many graphs, of so many bytes in all (LIMIT_EXCEEDED)."""
    if graphs > limits.max_stored_graphs:
        raise OverLimit.of("max-stored-graphs", limits.max_stored_graphs, graphs, "saved graphs")
    if nbytes > limits.max_stored_bytes:
        raise OverLimit.of(
            "max-stored-bytes", limits.max_stored_bytes, nbytes, "bytes of saved graphs"
        )


def require_room_for_name(limits: Limits, names: int) -> None:
    """Room for as many names (LIMIT_EXCEEDED)."""
    if names > limits.max_stored_graphs:
        raise OverLimit.of("max-stored-graphs", limits.max_stored_graphs, names, "saved names")


def require_expected(name: str, expected: bytes | None, actual: bytes) -> None:
    """A name refers to what its mover expects; ABSENT is nothing (NAME_CONFLICT)."""
    if expected is not None and expected != actual:
        found = f"refers to {actual.hex()}" if actual else "does not exist"
        wanted = f"to refer to {expected.hex()}" if expected else "not to exist"
        raise Conflict(
            "NAME_CONFLICT",
            f"name {name!r}: {found} but was expected {wanted}; get what is there now, then decide",
            name=name,
            digest=actual.hex(),
        )


def require_same_size(size: int, announced: int) -> None:
    """An upload goes on as it began (UPLOAD_INVALID)."""
    if size != announced:
        raise Invalid(
            "UPLOAD_INVALID",
            f"size: is {size} but the upload began with a size of {announced}",
            field="size",
            size=announced,
        )


def require_offset(offset: int, length: int, received: int, size: int) -> None:
    """Bytes follow on those that are there, and do not go beyond the end (UPLOAD_INVALID)."""
    end = offset + length
    if offset != received:
        field, wrong = "offset", f"is {offset} but {received} bytes are there; go on from there"
    elif end > size:
        field, wrong = "data", f"ends at {end} but the size of the graph is {size}"
    elif length < MIN_CHUNK_BYTES and end < size:
        wrong = f"has {length} bytes, but every chunk but the last has at least {MIN_CHUNK_BYTES}"
        field = "data"
    else:
        return
    raise Invalid("UPLOAD_INVALID", f"{field}: {wrong}", field=field, received=received)


def require_whole(received: int, size: int) -> None:
    """All bytes of an upload are there (UPLOAD_INVALID)."""
    if received != size:
        raise no_upload(received)


def page_of(
    saved: dict[bytes, Saved], names: dict[str, bytes], prefix: str, after: Place, most: int
) -> list[Saved]:
    """A page, where everything is at hand; a name whose graph is not there is none."""
    found: list[Saved] = []
    if not isinstance(after, bytes):
        chosen = sorted(name for name in names if name.startswith(prefix) and name > (after or ""))
        known = (name for name in chosen if names[name] in saved)
        found = [replace(saved[names[name]], name=name) for name in known][:most]
    if not prefix and len(found) < most:
        first = after if isinstance(after, bytes) else b""
        unnamed = sorted(digest for digest in saved.keys() - names.values() if digest > first)
        found += [saved[digest] for digest in unnamed[: most - len(found)]]
    return found


def no_upload(received: int = 0) -> Refusal:
    """An upload that is not there, or not whole; it was too slow, or another one was faster."""
    return Invalid(
        "UPLOAD_INVALID", f"upload: only {received} bytes are there; begin again", received=received
    )


def no_graph(digest: bytes) -> Refusal:
    return NotFound(
        "GRAPH_NOT_FOUND", f"no graph with the digest {digest.hex()} is saved", digest=digest.hex()
    )


def no_name(name: str) -> Refusal:
    return NotFound("GRAPH_NOT_FOUND", f"no graph is saved under the name {name!r}", name=name)


def lost_bytes(digest: bytes, offset: int) -> Refusal:
    """The store gave less than was saved."""
    return Unavailable(
        "STORE_UNAVAILABLE",
        f"graph {digest.hex()}: the store has lost its bytes from {offset} on; save it again",
    )
