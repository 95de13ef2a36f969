"""How graphs and names are kept in a bucket, so that many servers may change them at once.

A bucket has no transactions, but an object can be replaced on the condition that it is still the
version that was read (compare and swap). Everything that is acknowledged rests on one such swap of
one object; nothing is ever deleted, only replaced, so that a request that comes late is refused.

A graph is the object saved/{digest}: a header, then its bytes.

    absent ──save──> saved ──delete──> emptied ──save──> saved again ──> ...

Emptied is a header alone. A header holds a nonce that no other write has: the incarnation of the
graph. A name is the object names/{hex of the name}: it refers to one incarnation of a graph, or to
nothing. A name whose incarnation is no longer there is no name. So one swap deletes a graph with
all its names, and a name given to the graph after it was saved again is another matter altogether:
no late step of the delete can touch it.

    nothing ──move──> refers to A ──move──> moving from A to B ──> refers to B   if B is still there
       ^────remove─────────┘                        └────────────> refers to A   if it is not

Moving is a state of its own because two objects must be looked at. Whoever meets it, the mover or
another, looks whether B is there (and A, where the move expects it) and swaps in what follows. A
move away from nothing needs no such state, since with B gone the name is nothing as before. Who
finds that the graph of a name is gone reads the name again: it may have moved away before.

The answer to a swap may be lost, and its second try be refused. Therefore every object remembers
the nonces of the writes that came last: who was refused looks whether its own is among them.

The layout before this one is read as well. A graph was graphs/{digest}, its bytes alone; its
incarnation is "", and it is there as long as saved/{digest} is absent. A delete empties saved/ and
then removes it. Names referred to digests, which means that incarnation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from gradwire_server.errors import Unavailable
from gradwire_server.store.base import (
    ABSENT,
    DIGEST_BYTES,
    Saved,
    no_graph,
    no_name,
    require_expected,
)
from gradwire_server.store.objects import Delete, Get, Head, Meta, Steps, Swap

_MAGIC = b"gradwire"
_NONCE_BYTES = 16
_GRAPH_WRITES = 5
_NAME_WRITES = 16

#: What lies before the bytes of a graph.
HEADER_BYTES = len(_MAGIC) + _GRAPH_WRITES * _NONCE_BYTES

#: How often an object is read again because another server has replaced it meanwhile.
_ATTEMPTS = 50

#: Gives the nonce of a write, which no other write has; 16 bytes.
Nonces = Callable[[], bytes]

#: Steps that refuse what there is no room for.
Room = Callable[[], Steps[None]]


class Reference(NamedTuple):
    """One incarnation of a graph; of nothing, where the digest is ABSENT."""

    digest: bytes = ABSENT
    incarnation: str = ""
    tag: str = ""  # of the object that holds it, where it was written


NOTHING = Reference()


class GraphState(NamedTuple):
    """What is known of a graph. `saved` is None where it is not there."""

    saved: Saved | None
    incarnation: str = ""
    tag: str = ""  # of saved/{digest}, "" where that is absent
    writes: tuple[bytes, ...] = ()  # nonces, the newest first

    def holds(self, reference: Reference) -> bool:
        """Whether what is referred to is there."""
        return self.saved is not None and self.incarnation == reference.incarnation


class Name(NamedTuple):
    """What the object of a name says."""

    to: Reference = NOTHING
    before: Reference | None = None  # while it is moving
    both: bool = False  # the move expects that `before` is there too
    writes: tuple[str, ...] = ()  # nonces, the newest first; with a "-", of moves that failed
    tag: str = ""  # of the object, "" where it is absent
    damaged: bool = False  # the object says nothing that a store has written

    def succeeded(self, nonce: str) -> bool | None:
        """What became of a write; None where it is not known."""
        if nonce in self.writes:
            return True
        return False if f"-{nonce}" in self.writes else None


def graph_state(digest: bytes) -> Steps[GraphState]:
    found = yield Get(saved_key(digest), HEADER_BYTES)
    if found is None:
        meta = yield Head(released_key(digest))
        return GraphState(None if meta is None else Saved(digest, meta.size, meta.modified))
    meta, header = found
    if not header.startswith(_MAGIC) or len(header) < HEADER_BYTES:
        return GraphState(None, tag=meta.tag)
    starts = range(len(_MAGIC), HEADER_BYTES, _NONCE_BYTES)
    writes = tuple(header[start : start + _NONCE_BYTES] for start in starts)
    saved = saved_from(digest, meta)
    return GraphState(saved, writes[0].hex(), meta.tag, writes)


def saved_from(digest: bytes, meta: Meta) -> Saved | None:
    """The graph of an object saved/{digest}; None where it is emptied."""
    size = meta.size - HEADER_BYTES
    return Saved(digest, size, meta.modified) if size > 0 else None


def save_graph(digest: bytes, data: bytes, nonces: Nonces, room: Room) -> Steps[bool]:
    """Saves a graph; whether it was not there before."""
    for _ in range(_ATTEMPTS):
        graph = yield from graph_state(digest)
        if graph.saved is not None:
            return False
        yield from room()
        if (yield from _write_graph(digest, data, nonces(), graph)):
            return True
    raise _busy(f"graph {digest.hex()}")


def delete_graph(digest: bytes, nonces: Nonces) -> Steps[None]:
    """Deletes a graph, and with it all names that refer to it (GRAPH_NOT_FOUND)."""
    for _ in range(_ATTEMPTS):
        graph = yield from graph_state(digest)
        if graph.saved is None:
            raise no_graph(digest)
        if (yield from _write_graph(digest, b"", nonces(), graph)):
            if not graph.tag:
                yield Delete(released_key(digest))
            return
    raise _busy(f"graph {digest.hex()}")


def _write_graph(digest: bytes, data: bytes, nonce: bytes, before: GraphState) -> Steps[bool]:
    """Whether a graph's object was replaced."""
    writes = (nonce, *before.writes)[:_GRAPH_WRITES]
    header = (_MAGIC + b"".join(writes)).ljust(HEADER_BYTES, b"\0")
    pieces = (header, data) if data else (header,)
    if (yield Swap(saved_key(digest), pieces, before.tag)) is not None:
        return True
    after = yield from graph_state(digest)
    return nonce in after.writes


def name_state(name: str) -> Steps[Name]:
    """What a name refers to, decided if it was moving."""
    for _ in range(_ATTEMPTS):
        state = read_name((yield Get(name_key(name))))
        if state.before is None:
            return state
        decided = yield from _decide(name, state)
        if decided is not None:
            return decided
    raise _busy(f"name {name!r}")


def _decide(name: str, moving: Name) -> Steps[Name | None]:
    """Ends a move, for whoever has begun it; None where another was faster."""
    assert moving.before is not None
    graph = yield from graph_state(moving.to.digest)
    there = graph.holds(moving.to)
    if there and moving.both:
        other = yield from graph_state(moving.before.digest)
        there = other.holds(moving.before)
    nonce, *rest = moving.writes
    if there:
        after = Name(moving.to, writes=moving.writes)
    else:
        after = Name(moving.before, writes=(f"-{nonce}", *rest))
    tag = yield Swap(name_key(name), (_name_content(after),), moving.tag)
    return None if tag is None else after._replace(tag=tag)


def resolve_name(name: str) -> Steps[tuple[Name, bytes]]:
    """The state of a name, and the digest it refers to, ABSENT where that is not there."""
    state = yield from name_state(name)
    for _ in range(_ATTEMPTS):
        if state.to.digest == ABSENT:
            return state, ABSENT
        graph = yield from graph_state(state.to.digest)
        if graph.holds(state.to):
            return state, state.to.digest
        # gone; but the name may have moved away before that
        again = yield from name_state(name)
        if again.tag == state.tag:
            return state, ABSENT
        state = again
    raise _busy(f"name {name!r}")


def move_name(
    name: str, digest: bytes, expected: bytes | None, nonces: Nonces, room: Room
) -> Steps[Name]:
    """Lets a name refer to a graph; its state (GRAPH_NOT_FOUND, NAME_CONFLICT)."""
    for _ in range(_ATTEMPTS):
        graph = yield from graph_state(digest)
        if graph.saved is None:
            raise no_graph(digest)
        state, actual = yield from resolve_name(name)
        require_expected(name, expected, actual)
        if actual == digest:
            return state
        to = Reference(digest, graph.incarnation, graph.tag)
        if actual == ABSENT:
            yield from room()
            # looked at after the name: it is there while the name is still nothing
            if not (yield from graph_state(digest)).holds(to):
                continue
        moved = Name(
            to=to,
            before=state.to if actual != ABSENT else None,
            both=bool(expected),
        )
        written = yield from _write_name(name, moved, nonces().hex(), state)
        if written is not None:
            return written
    raise _busy(f"name {name!r}")


def remove_name(name: str, expected: bytes | None, nonces: Nonces) -> Steps[bytes]:
    """Lets a name refer to nothing; what it referred to (GRAPH_NOT_FOUND, NAME_CONFLICT)."""
    for _ in range(_ATTEMPTS):
        state, actual = yield from resolve_name(name)
        require_expected(name, expected, actual)
        if actual == ABSENT:
            raise no_name(name)
        if (yield from _write_name(name, Name(), nonces().hex(), state)) is not None:
            return actual
    raise _busy(f"name {name!r}")


def _write_name(name: str, new: Name, nonce: str, state: Name) -> Steps[Name | None]:
    """The state of a name after a write; None where it failed, or the move that it began."""
    new = new._replace(writes=(nonce, *state.writes)[:_NAME_WRITES])
    tag = yield Swap(name_key(name), (_name_content(new),), state.tag)
    after = None
    if tag is not None:
        new = new._replace(tag=tag)
        if new.before is None:
            return new
        after = yield from _decide(name, new)
    if after is None:
        after = yield from name_state(name)
    succeeded = after.succeeded(nonce)
    if succeeded is None and tag is not None:
        raise _busy(f"name {name!r}")
    return after if succeeded else None


def saved_key(digest: bytes) -> str:
    return f"saved/{digest.hex()}"


def released_key(digest: bytes) -> str:
    """Where the layout before this one has a graph."""
    return f"graphs/{digest.hex()}"


def name_key(name: str) -> str:
    """Hexadecimal: no character of a name means anything in a key."""
    return f"names/{name.encode().hex()}"


def digest_from(text: Any) -> bytes:
    """A digest in hexadecimal; ABSENT where it is none."""
    try:
        digest = bytes.fromhex(text)
    except (TypeError, ValueError):
        return ABSENT
    return digest if len(digest) == DIGEST_BYTES else ABSENT


def read_name(found: tuple[Meta, bytes] | None) -> Name:
    """What an object says; nothing, where no store has written it."""
    if found is None:
        return Name()
    meta, content = found
    try:
        fields = json.loads(content)
        before = fields.get("before")
        return Name(
            to=_reference(fields),
            before=None if before is None else _reference(before),
            both=bool(fields.get("both")),
            writes=tuple(map(str, fields.get("writes") or [fields["nonce"]])),
            tag=meta.tag,
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return Name(tag=meta.tag, damaged=True)


def _reference(fields: dict[str, Any]) -> Reference:
    digest = digest_from(fields["digest"])
    return Reference(digest, str(fields.get("incarnation", "")), str(fields.get("tag", "")))


def _fields(reference: Reference) -> dict[str, Any]:
    return {
        "digest": reference.digest.hex(),
        "incarnation": reference.incarnation,
        "tag": reference.tag,
    }


def _name_content(name: Name) -> bytes:
    # "nonce" is for readers of the layout before this one
    fields = {**_fields(name.to), "nonce": name.writes[0], "writes": name.writes}
    if name.before is not None:
        fields |= {"before": _fields(name.before), "both": name.both}
    return json.dumps(fields).encode()


def _busy(what: str) -> Unavailable:
    return Unavailable(
        "STORE_UNAVAILABLE",
        f"{what}: others change it all the time; look what is there now, then ask again",
    )
