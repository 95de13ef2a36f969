"""Saved graphs in an S3-compatible store, which servers of several machines may share.

saved/{digest}                  a graph, and its incarnation    } as protocol.py has them; only
names/{hex of the name}         what a name refers to           } ever replaced under a condition
index                           what names refer to, by the versions of their objects: read in place
                                of many objects, and never believed about any other version
uploads/{digest}/{offset}       bytes of an upload
uploads/{digest}/begin          its size, and when the last bytes came
graphs/{digest}                 a graph of the layout before this one

Whatever else lies below the prefix is not the store's, and is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from time import monotonic, time
from typing import NamedTuple, TypeVar

from gradwire_server.errors import Invalid, Refusal, Unavailable
from gradwire_server.limits import Limits
from gradwire_server.store.base import (
    ABSENT,
    PIECE_BYTES,
    Place,
    Saved,
    StoreError,
    lost_bytes,
    no_graph,
    no_name,
    no_upload,
    require_name,
    require_offset,
    require_room,
    require_room_for_name,
    require_same_size,
    require_whole,
    steady,
)
from gradwire_server.store.objects import (
    PAGE,
    Bucket,
    Delete,
    Each,
    Get,
    List,
    Meta,
    Put,
    Slice,
    Steps,
    Swap,
    listed,
)
from gradwire_server.store.protocol import (
    HEADER_BYTES,
    GraphState,
    Name,
    Reference,
    delete_graph,
    digest_from,
    graph_state,
    move_name,
    name_key,
    name_state,
    read_name,
    released_key,
    remove_name,
    resolve_name,
    save_graph,
    saved_from,
    saved_key,
)

T = TypeVar("T")

#: How old the count of all that is stored may be: others may have saved since.
_COUNT_SECONDS = 60.0

#: Names that are read one by one rather than by the index.
_FEW_NAMES = 16

#: The index is written again once it lacks so many names, and so large a part of all.
_INDEX_LAG, _INDEX_LAG_PART = 64, 16

_INDEX = "index"
_BEGIN = "begin"
_OFFSET_DIGITS = 12

#: The part of the idle time after which an upload says again that it goes on.
_TOUCH_PART = 1 / 20


@dataclass
class _Count:
    """What is stored in all: as it was counted, and what was put since."""

    graphs: int
    nbytes: int
    names: int
    at: float


class _Upload(NamedTuple):
    size: int
    touched_at: float


class S3Store:
    """Objects below one prefix of a bucket."""

    kind = "s3"

    def __init__(
        self, address: str, limits: Limits, clock: Callable[[], float] = time,
        bucket: Bucket | None = None,
    ) -> None:  # fmt: skip
        """Opens s3://bucket/prefix, with endpoint and keys from AWS's variables (StoreError)."""
        self._limits = limits
        self._clock = steady(clock)
        self._lock = Lock()
        self._known: dict[str, tuple[str, Reference]] = {}  # by the tag of the name's object
        self._unindexed = 0
        self._begun: dict[bytes, tuple[str, _Upload | None]] = {}
        self._count: _Count | None = None
        try:
            self._bucket = bucket or Bucket(address)
            self._bucket.probe()
            self._run(_require_conditions(address))
        except Refusal as failure:
            raise StoreError(f"the store at {address}: {failure.message}") from None

    def find(self, digest: bytes) -> Saved:
        return self._run(_found(digest))[1]

    def resolve(self, name: str) -> bytes:
        state, digest = self._run(resolve_name(name))
        if state.damaged:
            raise Unavailable(
                "STORE_UNAVAILABLE",
                f"name {name!r}: {name_key(name)} holds nothing that a store has written; save a "
                "graph under the name again",
            )
        if digest == ABSENT:
            raise no_name(name)
        return digest

    def read(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        graph, saved = self._run(_found(digest))
        key, skipped = released_key(digest), 0
        if graph.tag:
            key, skipped = saved_key(digest), HEADER_BYTES
        for start in range(offset, saved.size, PIECE_BYTES):
            length = min(PIECE_BYTES, saved.size - start)
            piece = self._bucket.answer(Slice(key, skipped + start, length))
            if piece is None:
                raise no_graph(digest)  # deleted meanwhile
            if len(piece) != length:
                self.find(digest)  # deleted meanwhile
                raise lost_bytes(digest, start)
            yield piece

    def save(self, digest: bytes, data: bytes) -> bool:
        room = partial(self._take_room, len(data))
        return self._run(save_graph(digest, data, _nonce, room))

    def begin(self, digest: bytes, size: int) -> int:
        return self._run(self._begin(digest, size))

    def append(self, digest: bytes, offset: int, data: memoryview) -> None:
        self._run(self._append(digest, offset, data))

    def uploaded(self, digest: bytes) -> Iterator[bytes]:
        upload = self._run(self._required_upload(digest))
        pieces = self._run(_pieces(digest))
        require_whole(sum(size for _, size in pieces), upload.size)
        for offset, size in pieces:
            for start in range(0, size, PIECE_BYTES):
                length = min(PIECE_BYTES, size - start)
                piece = self._bucket.answer(Slice(_piece_key(digest, offset), start, length))
                if piece is None or len(piece) != length:
                    raise no_upload()
                yield piece

    def finish(self, digest: bytes, data: bytes) -> None:
        self._run(self._finish(digest, data))

    def discard(self, digest: bytes) -> None:
        self._run(_discard(digest))

    def move(self, name: str, digest: bytes, expected: bytes | None) -> None:
        self._run(self._move(name, digest, expected))

    def remove(self, name: str, expected: bytes | None) -> bytes:
        return self._run(remove_name(name, expected, _nonce))

    def delete(self, digest: bytes) -> None:
        self._run(delete_graph(digest, _nonce))

    def page(self, prefix: str, after: Place, most: int) -> list[Saved]:
        return self._run(self._page(prefix, after, most))

    def close(self) -> None:
        self._bucket.close()

    def _run(self, steps: Steps[T]) -> T:
        return self._bucket.run(steps)

    def _move(self, name: str, digest: bytes, expected: bytes | None) -> Steps[None]:
        state = yield from move_name(name, digest, expected, _nonce, self._take_room_for_name)
        self._learn(name, state)
        if self._is_index_old:
            yield from self._write_index()

    def _page(self, prefix: str, after: Place, most: int) -> Steps[list[Saved]]:
        found: list[Saved] = []
        if not isinstance(after, bytes):
            found = yield from self._named(prefix, after or "", most)
        if prefix or len(found) == most:
            return found
        # names first: a graph is saved before it is named
        names = yield from self._names((yield from listed("names/")))
        graphs = yield from _graphs()
        used = {digest for digest, _ in (yield from _holding(names, graphs)).values()}
        first = after if isinstance(after, bytes) else b""
        unnamed = sorted(each for each in graphs.keys() - used if each > first)
        return found + [graphs[each][0] for each in unnamed[: most - len(found)]]

    def _named(self, prefix: str, after: str, most: int) -> Steps[list[Saved]]:
        """Entries of names, in order; objects are listed in the same order."""
        found: list[Saved] = []
        # just before the first that is wanted; where a name is left out, others follow on it
        last = name_key(after) if after >= prefix else name_key(prefix)[:-1]
        if last in ("names", "names/"):
            last = ""
        complete = False
        while len(found) < most and not complete:
            metas: list[Meta] = []
            while len(metas) < most - len(found) and not complete:
                listing = yield List("names/", last)
                complete = len(listing) < PAGE
                for meta in listing:
                    last = meta.key
                    name = _name_from(meta.key)
                    if name.startswith(prefix) and name > after:
                        metas.append(meta)
                    elif name > prefix:
                        complete = complete or bool(name)
            names = yield from self._names(metas)
            graphs = yield from _graphs()
            holding = yield from _holding(names, graphs)
            found += [replace(saved, name=name) for name, (_, saved) in sorted(holding.items())]
        return found[:most]

    def _names(self, metas: Iterable[Meta]) -> Steps[dict[str, Reference]]:
        """What names refer to; those whose objects have not changed are not read again."""
        tags = {name: meta.tag for meta in metas if (name := _name_from(meta.key))}
        for attempt in range(2):
            with self._lock:
                known = self._known
                changed = [name for name in tags if known.get(name, ("",))[0] != tags[name]]
            if attempt or len(changed) <= _FEW_NAMES:
                break
            yield from self._read_index(tags)
        answers = yield Each(tuple(Get(name_key(name)) for name in changed))
        for name, answer in zip(changed, answers, strict=True):
            state = read_name(answer)
            if state.before is not None:
                state = yield from name_state(name)
            tags[name] = state.tag
            self._learn(name, state)
        if self._is_index_old:
            yield from self._write_index()
        with self._lock:
            return {name: self._known[name][1] for name in tags if name in self._known}

    def _learn(self, name: str, state: Name) -> None:
        with self._lock:
            self._known[name] = state.tag, state.to
            self._unindexed += 1

    @property
    def _is_index_old(self) -> bool:
        return self._unindexed > max(_INDEX_LAG, len(self._known) // _INDEX_LAG_PART)

    def _read_index(self, tags: dict[str, str]) -> Steps[None]:
        """Learns what the index has of these versions of names."""
        indexed = yield from _index()
        with self._lock:
            self._known |= {
                name: known for name, known in indexed.items() if tags.get(name) == known[0]
            }

    def _write_index(self) -> Steps[None]:
        """Adds what is known to the index; of two that do so at once, one does it in vain."""
        indexed = yield from _index()
        with self._lock:
            self._unindexed = 0
            indexed |= self._known
        names = {
            name: (tag, to.digest.hex(), to.incarnation, to.tag)
            for name, (tag, to) in indexed.items()
        }
        yield Put(_INDEX, json.dumps({"names": names}).encode())

    def _begin(self, digest: bytes, size: int) -> Steps[int]:
        yield from self._drop_silent_uploads()
        upload = yield from self._upload(digest)
        if upload is None:
            yield from self._take_room(size)
            received = 0
        else:
            require_same_size(size, upload.size)
            # left by another upload of it that went on while the first was saved, or dropped
            there = yield from _pieces(digest)
            received = sum(length for _, length in there)
            for meta in (yield from listed(_upload_prefix(digest))):
                offset = _offset_from(meta.key)
                if offset is not None and offset > received:
                    yield Delete(meta.key)
        yield from self._touch(digest, size)
        return received

    def _append(self, digest: bytes, offset: int, data: memoryview) -> Steps[None]:
        upload = yield from self._required_upload(digest)
        received = sum(size for _, size in (yield from _pieces(digest)))
        require_offset(offset, len(data), received, upload.size)
        if (yield Swap(_piece_key(digest, offset), (bytes(data),), "")) is None:
            received = sum(size for _, size in (yield from _pieces(digest)))
            require_offset(offset, len(data), received, upload.size)  # another was faster
            raise no_upload(received)
        if self._clock() - upload.touched_at > _TOUCH_PART * self._limits.upload_idle_seconds:
            yield from self._touch(digest, upload.size)

    def _finish(self, digest: bytes, data: bytes) -> Steps[None]:
        graph = yield from graph_state(digest)
        if graph.saved is None:
            upload = yield from self._required_upload(digest)
            require_whole(sum(size for _, size in (yield from _pieces(digest))), upload.size)
            yield from save_graph(digest, data, _nonce, _there_is_room)
        yield from _discard(digest)

    def _upload(self, digest: bytes) -> Steps[_Upload | None]:
        return _read_upload((yield Get(_begin_key(digest))))

    def _required_upload(self, digest: bytes) -> Steps[_Upload]:
        upload = yield from self._upload(digest)
        if upload is None or upload.touched_at < self._oldest():
            raise no_upload()
        return upload

    def _oldest(self) -> float:
        """When an upload must have said that it goes on, which it does not with every piece."""
        return self._clock() - (1 + _TOUCH_PART) * self._limits.upload_idle_seconds

    def _touch(self, digest: bytes, size: int) -> Steps[None]:
        content = json.dumps({"size": size, "touched_at": self._clock()})
        yield Put(_begin_key(digest), content.encode())

    def _uploads(self) -> Steps[dict[bytes, _Upload]]:
        """All that have begun; what has not changed is not read again."""
        metas = {}
        for meta in (yield from listed("uploads/")):
            _, _, rest = meta.key.partition("/")
            digest = digest_from(rest.partition("/")[0])
            if digest != ABSENT and rest.partition("/")[2] == _BEGIN:
                metas[digest] = meta
        with self._lock:
            begun = {each: self._begun[each] for each in metas if each in self._begun}
        changed = [each for each in metas if begun.get(each, ("",))[0] != metas[each].tag]
        answers = yield Each(tuple(Get(_begin_key(each)) for each in changed))
        for each, answer in zip(changed, answers, strict=True):
            begun[each] = (answer[0].tag if answer else "", _read_upload(answer))
        with self._lock:
            self._begun = begun
        return {digest: upload for digest, (_, upload) in begun.items() if upload is not None}

    def _drop_silent_uploads(self) -> Steps[dict[bytes, _Upload]]:
        """Drops those without news; what remains."""
        uploads = yield from self._uploads()
        silent = [each for each, upload in uploads.items() if upload.touched_at < self._oldest()]
        for each in silent:
            yield from _discard(each)
            del uploads[each]
        now = self._clock()
        for each, upload in uploads.items():
            if upload.touched_at > now + self._limits.upload_idle_seconds:
                yield from self._touch(each, upload.size)  # by a clock that was wrong
        return uploads

    def _take_room(self, size: int) -> Steps[None]:
        """Room for one graph more (LIMIT_EXCEEDED), by a count that is new before it refuses."""

        def require(count: _Count) -> None:
            require_room(self._limits, count.graphs + 1, count.nbytes + size)

        count = yield from self._counted(require)
        with self._lock:
            count.graphs += 1
            count.nbytes += size

    def _take_room_for_name(self) -> Steps[None]:
        """Room for one name more (LIMIT_EXCEEDED)."""
        count = yield from self._counted(
            lambda count: require_room_for_name(self._limits, count.names + 1)
        )
        with self._lock:
            count.names += 1

    def _counted(self, require: Callable[[_Count], None]) -> Steps[_Count]:
        count = self._count
        if count is not None and monotonic() - count.at <= _COUNT_SECONDS:
            try:
                require(count)
                return count
            except Refusal:
                pass  # perhaps there is room since
        if count is not None:
            count.at = monotonic()  # others go on with it while it is counted again
        uploads = yield from self._drop_silent_uploads()
        names = yield from self._names((yield from listed("names/")))
        graphs = yield from _graphs()
        holding = yield from _holding(names, graphs)
        sizes = [saved.size for saved, _ in graphs.values()]
        sizes += [upload.size for upload in uploads.values()]
        self._count = count = _Count(len(sizes), sum(sizes), len(holding), monotonic())
        require(count)
        return count


def _require_conditions(address: str) -> Steps[None]:
    """That the bucket heeds conditions, on which everything rests (StoreError)."""
    key = "conditions"
    if (yield Get(key)) is not None:
        return
    content = b"only ever created: a second creation is refused"
    if (yield Swap(key, (content,), "")) is None:
        return
    if (yield Swap(key, (content,), "")) is not None:
        raise StoreError(
            f"the store at {address} ignores conditions of writes (If-None-Match), without which "
            "servers would overwrite each other's names; use one that heeds them"
        )


def _index() -> Steps[dict[str, tuple[str, Reference]]]:
    """What names refer to, by the tags of their objects; empty where the index is damaged."""
    found = yield Get(_INDEX)
    try:
        names = json.loads(found[1])["names"] if found else {}
        return {
            name: (str(tag), Reference(digest_from(digest), str(incarnation), str(graph_tag)))
            for name, (tag, digest, incarnation, graph_tag) in names.items()
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return {}  # it is written again


def _found(digest: bytes) -> Steps[tuple[GraphState, Saved]]:
    graph = yield from graph_state(digest)
    if graph.saved is None:
        raise no_graph(digest)
    return graph, graph.saved


def _there_is_room() -> Steps[None]:
    """An upload has taken its room when it began."""
    yield from ()


def _graphs() -> Steps[dict[bytes, tuple[Saved, str]]]:
    """All graphs, each with the tag of its object, "" in the layout before this one."""
    found: dict[bytes, tuple[Saved, str]] = {}
    emptied = set()
    for meta in (yield from listed("saved/")):
        digest = digest_from(meta.key.rpartition("/")[2])
        saved = saved_from(digest, meta)
        if meta.key != saved_key(digest):
            continue
        if saved is None:
            emptied.add(digest)
        else:
            found[digest] = saved, meta.tag
    for meta in (yield from listed("graphs/")):
        digest = digest_from(meta.key.rpartition("/")[2])
        is_graph = meta.key == released_key(digest)
        if is_graph and digest not in found and digest not in emptied:
            found[digest] = Saved(digest, meta.size, meta.modified), ""
    return found


def _holding(
    names: dict[str, Reference], graphs: dict[bytes, tuple[Saved, str]]
) -> Steps[dict[str, tuple[bytes, Saved]]]:
    """The names that refer to what is there."""
    found: dict[str, tuple[bytes, Saved]] = {}
    for name, to in names.items():
        if to.digest not in graphs:
            continue
        saved, tag = graphs[to.digest]
        holds = bool(tag) == bool(to.incarnation)
        if holds and tag != to.tag:  # saved again; or copied to another bucket, with other tags
            holds = (yield from graph_state(to.digest)).holds(to)
        if holds:
            found[name] = to.digest, saved
    return found


def _pieces(digest: bytes) -> Steps[list[tuple[int, int]]]:
    """Offsets and sizes of what came of an upload, from its beginning on without a gap."""
    metas = yield from listed(_upload_prefix(digest))
    offsets = ((_offset_from(meta.key), meta.size) for meta in metas)
    there: list[tuple[int, int]] = []
    end = 0
    for offset, size in sorted((at, size) for at, size in offsets if at is not None):
        if offset == end:
            there.append((offset, size))
            end += size
    return there


def _discard(digest: bytes) -> Steps[None]:
    for meta in (yield from listed(_upload_prefix(digest))):
        if _offset_from(meta.key) is not None:
            yield Delete(meta.key)
    yield Delete(_begin_key(digest))  # last what says that there is one


def _read_upload(found: tuple[Meta, bytes] | None) -> _Upload | None:
    """What an object says; None where it is not one of the store's."""
    if found is None:
        return None
    try:
        fields = json.loads(found[1])
        return _Upload(int(fields["size"]), float(fields["touched_at"]))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def _name_from(key: str) -> str:
    """The name of an object; empty where it has none that a graph may have."""
    try:
        name = require_name(bytes.fromhex(key.removeprefix("names/")).decode())
    except (ValueError, Invalid):
        return ""
    return name if name_key(name) == key else ""


def _offset_from(key: str) -> int | None:
    """Where a piece of an upload begins; None where the object is none."""
    name = key.rpartition("/")[2]
    if len(name) != _OFFSET_DIGITS or not (name.isascii() and name.isdecimal()):
        return None
    return int(name)


def _upload_prefix(digest: bytes) -> str:
    return f"uploads/{digest.hex()}/"


def _begin_key(digest: bytes) -> str:
    return f"{_upload_prefix(digest)}{_BEGIN}"


def _piece_key(digest: bytes, offset: int) -> str:
    return f"{_upload_prefix(digest)}{offset:0{_OFFSET_DIGITS}}"


def _nonce() -> bytes:
    return os.urandom(16)
