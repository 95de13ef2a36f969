"""Saved graphs in an S3-compatible store, which servers of several machines may share.

graphs/{digest}                 the bytes of a graph: one object, put whole
names/{hex of the name}         what a name refers to; replaced only if it is what was read before
uploads/{digest}/{offset}       bytes of an upload
uploads/{digest}/begin          its size, and when the last bytes came

There are no transactions. What makes up for them: a graph is there, or not, by one object; a name
whose graph is not there is no name; and a name is not deleted but emptied, under the condition that
it is what was read, so that nobody's later move is undone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock
from time import time
from typing import Any

from gradwire_server.errors import Refusal, Unavailable
from gradwire_server.limits import Limits
from gradwire_server.store.base import (
    ABSENT,
    DIGEST_BYTES,
    PIECE_BYTES,
    Place,
    Saved,
    StoreError,
    lost_bytes,
    no_graph,
    no_name,
    no_upload,
    page_of,
    require_expected,
    require_offset,
    require_room,
    require_room_for_name,
    require_same_size,
    require_whole,
)

#: How old the count of all that is stored may be: others may have saved since.
_COUNT_SECONDS = 60.0

#: How often a name is read again because another server has moved it meanwhile.
_ATTEMPTS = 50

#: Longer, and a call would rather fail: whoever asked can ask again.
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=20)}

#: Names that are read at the same time.
_READERS = 16

#: What refers to a graph holds its digest; what was emptied is smaller than that.
_FULL_NAME_BYTES = 2 * DIGEST_BYTES

_BEGIN = "begin"
_OFFSET_DIGITS = 12


@dataclass(frozen=True)
class _Name:
    """What the object of a name says; `tag` is the object's version, empty where there is none."""

    digest: bytes = ABSENT
    nonce: str = ""
    tag: str = ""


@dataclass
class _Count:
    """What is stored in all: as it was counted, and what was put since."""

    graphs: int
    nbytes: int
    at: float


@dataclass(frozen=True)
class _Upload:
    size: int
    touched_at: float


class S3Store:
    """Objects below one prefix of a bucket."""

    kind = "s3"

    def __init__(self, address: str, limits: Limits, clock: Callable[[], float] = time) -> None:
        """Opens s3://bucket/prefix, with endpoint and keys from AWS's variables (StoreError)."""
        self._limits = limits
        self._clock = clock
        self._lock = Lock()
        self._names_seen: dict[str, _Name] = {}
        self._count = _Count(0, 0, 0.0)
        try:
            self._bucket = _Bucket(address)
            next(self._bucket.list("names/"), None)
        except Refusal as failure:
            raise StoreError(f"the store at {address}: {failure.message}") from None

    def find(self, digest: bytes) -> Saved:
        meta = self._bucket.head(_graph_key(digest))
        if meta is None:
            raise no_graph(digest)
        return _saved(digest, meta)

    def resolve(self, name: str) -> bytes:
        digest = self._actual(self._name(name))
        if digest == ABSENT:
            raise no_name(name)
        return digest

    def read(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        size = self.find(digest).size
        for start in range(offset, size, PIECE_BYTES):
            length = min(PIECE_BYTES, size - start)
            piece = self._bucket.get_range(_graph_key(digest), start, length)
            if piece is None:
                raise no_graph(digest)  # deleted meanwhile
            if len(piece) != length:
                raise lost_bytes(digest, start)
            yield piece

    def save(self, digest: bytes, data: bytes) -> bool:
        if self._has(digest):
            return False
        self._take_room(len(data))
        self._bucket.put(_graph_key(digest), data)
        return True

    def begin(self, digest: bytes, size: int) -> int:
        self._drop_silent_uploads()
        upload = self._upload(digest)
        if upload is None:
            self._take_room(size)
        else:
            require_same_size(size, upload.size)
            # left by another upload of it that went on while the first was saved, or dropped
            received = self._received(digest)
            stray = [offset for offset, _ in self._pieces(digest) if offset > received]
            self._bucket.delete(_piece_key(digest, offset) for offset in stray)
        self._touch(digest, size)
        return self._received(digest)

    def append(self, digest: bytes, offset: int, data: memoryview) -> None:
        upload = self._required_upload(digest)
        require_offset(offset, len(data), self._received(digest), upload.size)
        if not self._bucket.put_if(_piece_key(digest, offset), bytes(data), ""):
            raise no_upload(self._received(digest))  # another upload of it was faster
        self._touch(digest, upload.size)

    def uploaded(self, digest: bytes) -> Iterator[bytes]:
        self._required_upload(digest)
        for offset, size in self._pieces(digest):
            for start in range(0, size, PIECE_BYTES):
                length = min(PIECE_BYTES, size - start)
                piece = self._bucket.get_range(_piece_key(digest, offset), start, length)
                if piece is None:
                    raise no_upload()
                yield piece

    def finish(self, digest: bytes, data: bytes) -> None:
        if not self._has(digest):
            require_whole(self._received(digest), self._required_upload(digest).size)
            self._bucket.put(_graph_key(digest), data)
        self.discard(digest)

    def discard(self, digest: bytes) -> None:
        pieces = [_piece_key(digest, offset) for offset, _ in self._pieces(digest)]
        self._bucket.delete([*pieces, _begin_key(digest)])  # last what says that there is one

    def move(self, name: str, digest: bytes, expected: bytes | None) -> None:
        self.find(digest)

        def require(actual: bytes) -> None:
            require_expected(name, expected, actual)
            if actual == ABSENT:
                known = sum(
                    meta["size"] >= _FULL_NAME_BYTES for meta in self._bucket.list("names/")
                )
                require_room_for_name(self._limits, known + 1)

        self._replace(name, digest, require)
        if not self._has(digest):  # deleted meanwhile, perhaps too soon to see the name
            self._empty(name, digest)
            raise no_graph(digest)

    def remove(self, name: str, expected: bytes | None) -> bytes:
        def require(actual: bytes) -> None:
            require_expected(name, expected, actual)
            if actual == ABSENT:
                raise no_name(name)

        return self._replace(name, ABSENT, require)

    def delete(self, digest: bytes) -> None:
        self.find(digest)
        self._bucket.delete([_graph_key(digest)])
        for name, found in self._names().items():
            if found == digest:
                self._empty(name, digest)

    def page(self, prefix: str, after: Place, most: int) -> list[Saved]:
        # names first: a graph is saved before it is named
        names = self._names(prefix)
        return page_of(self._graphs(), names, prefix, after, most)

    def close(self) -> None:
        """Nothing is held."""

    def _has(self, digest: bytes) -> bool:
        return self._bucket.head(_graph_key(digest)) is not None

    def _graphs(self) -> dict[bytes, Saved]:
        found = {}
        for meta in self._bucket.list("graphs/"):
            digest = _digest(meta["path"].rpartition("/")[2])
            if digest != ABSENT:
                found[digest] = _saved(digest, meta)
        return found

    def _actual(self, name: _Name) -> bytes:
        """What a name refers to, if that is there."""
        return name.digest if name.digest != ABSENT and self._has(name.digest) else ABSENT

    def _name(self, name: str) -> _Name:
        found = self._bucket.get(_name_key(name))
        return _Name() if found is None else _read_name(*found)

    def _names(self, prefix: str = "") -> dict[str, bytes]:
        """All names and what they refer to; those that have not changed are not read again."""
        tags = {}
        for meta in self._bucket.list("names/"):
            name = bytes.fromhex(meta["path"].rpartition("/")[2]).decode()
            if name.startswith(prefix) and meta["size"] >= _FULL_NAME_BYTES:
                tags[name] = meta["e_tag"]
        with self._lock:
            found = {name: self._names_seen.get(name, _Name()) for name in tags}
        changed = [name for name in tags if found[name].tag != tags[name]]
        with ThreadPoolExecutor(_READERS) as pool:
            found |= zip(changed, pool.map(self._name, changed), strict=True)
        with self._lock:
            self._names_seen = found if not prefix else self._names_seen | found
        return {name: known.digest for name, known in found.items() if known.digest != ABSENT}

    def _replace(self, name: str, digest: bytes, require: Callable[[bytes], None]) -> bytes:
        """Lets a name refer to something else than now, if that is required; what it was."""
        key = _name_key(name)
        for _ in range(_ATTEMPTS):
            before = self._name(name)
            actual = self._actual(before)
            require(actual)
            nonce = os.urandom(8).hex()
            content = json.dumps({"digest": digest.hex(), "nonce": nonce}).encode()
            # the answer to a first try may have been lost, and the second been refused
            if self._bucket.put_if(key, content, before.tag) or self._name(name).nonce == nonce:
                return actual
        raise Unavailable("STORE_UNAVAILABLE", f"name {name!r}: is being moved by others all along")

    def _empty(self, name: str, digest: bytes) -> None:
        """Lets a name refer to nothing, if it still refers to a graph that was deleted."""
        before = self._name(name)
        if before.digest == digest:
            content = json.dumps({"digest": "", "nonce": os.urandom(8).hex()}).encode()
            self._bucket.put_if(_name_key(name), content, before.tag)

    def _upload(self, digest: bytes) -> _Upload | None:
        found = self._bucket.get(_begin_key(digest))
        return None if found is None else _Upload(**json.loads(found[0]))

    def _required_upload(self, digest: bytes) -> _Upload:
        upload = self._upload(digest)
        if upload is None or upload.touched_at < self._oldest():
            raise no_upload()
        return upload

    def _oldest(self) -> float:
        """When the last news of an upload must have come."""
        return self._clock() - self._limits.upload_idle_seconds

    def _touch(self, digest: bytes, size: int) -> None:
        content = json.dumps({"size": size, "touched_at": self._clock()})
        self._bucket.put(_begin_key(digest), content.encode())

    def _pieces(self, digest: bytes) -> list[tuple[int, int]]:
        """Offsets and sizes of what came of an upload."""
        metas = self._bucket.list(f"uploads/{digest.hex()}/")
        named = ((meta["path"].rpartition("/")[2], meta["size"]) for meta in metas)
        return sorted((int(name), size) for name, size in named if name != _BEGIN)

    def _received(self, digest: bytes) -> int:
        end = 0
        for offset, size in self._pieces(digest):
            if offset != end:
                break
            end += size
        return end

    def _uploads(self) -> dict[bytes, _Upload]:
        found = {}
        for meta in self._bucket.list("uploads/"):
            _, digest, name = meta["path"].split("/")
            if name == _BEGIN and (upload := self._upload(bytes.fromhex(digest))):
                found[bytes.fromhex(digest)] = upload
        return found

    def _drop_silent_uploads(self) -> None:
        for digest, upload in self._uploads().items():
            if upload.touched_at < self._oldest():
                self.discard(digest)

    def _take_room(self, size: int) -> None:
        """Room for one graph more (LIMIT_EXCEEDED), by a count that is new before it refuses."""
        with self._lock:
            old = self._clock() - self._count.at > _COUNT_SECONDS
            try:
                if old:
                    self._count_again()
                self._require_room(size)
            except Refusal:
                self._drop_silent_uploads()
                self._count_again()
                self._require_room(size)
            self._count.graphs += 1
            self._count.nbytes += size

    def _require_room(self, size: int) -> None:
        require_room(self._limits, self._count.graphs + 1, self._count.nbytes + size)

    def _count_again(self) -> None:
        sizes = [graph.size for graph in self._graphs().values()]
        sizes += [upload.size for upload in self._uploads().values()]
        self._count = _Count(len(sizes), sum(sizes), self._clock())


class _Bucket:
    """The few operations on objects that a store is made of (STORE_UNAVAILABLE)."""

    def __init__(self, address: str) -> None:
        try:
            import obstore
            from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
            from obstore.store import S3Store as Objects
        except ImportError:
            raise StoreError(
                f"the store at {address} needs obstore: pip install 'gradwire[s3]'"
            ) from None
        self._calls: Any = obstore
        self._conflicts = AlreadyExistsError, PreconditionError
        self._failures = BaseError, OSError, ValueError
        with self._explained():
            self._objects: Any = Objects.from_url(address, retry_config=_RETRIES)

    def head(self, key: str) -> Any:
        """What is known of an object; None where there is none."""
        with self._explained():
            try:
                return self._calls.head(self._objects, key)
            except FileNotFoundError:
                return None

    def get(self, key: str) -> tuple[bytes, str] | None:
        """The bytes of a small object, and its version."""
        with self._explained():
            try:
                found = self._calls.get(self._objects, key)
                return bytes(found.bytes()), found.meta["e_tag"]
            except FileNotFoundError:
                return None

    def get_range(self, key: str, start: int, length: int) -> bytes | None:
        with self._explained():
            try:
                return bytes(self._calls.get_range(self._objects, key, start=start, length=length))
            except FileNotFoundError:
                return None

    def list(self, prefix: str) -> Iterator[Any]:
        """What is known of all objects below a prefix, which ends with a slash."""
        with self._explained():
            for page in self._calls.list(self._objects, prefix=prefix):
                yield from page

    def put(self, key: str, data: bytes) -> None:
        with self._explained():
            self._calls.put(self._objects, key, data)

    def put_if(self, key: str, data: bytes, tag: str) -> bool:
        """Puts an object in the place of one version, or of nothing; False where it is another."""
        with self._explained():
            try:
                mode = {"e_tag": tag} if tag else "create"
                self._calls.put(self._objects, key, data, mode=mode, use_multipart=False)
            except (*self._conflicts, FileNotFoundError):
                return False
            return True

    def delete(self, keys: Iterable[str]) -> None:
        with self._explained():
            for key in keys:
                self._calls.delete(self._objects, key)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except self._failures as failure:
            (first, *_) = str(failure).splitlines() or [""]
            raise Unavailable(
                "STORE_UNAVAILABLE", f"the store of graphs: {first[:300]}; ask again later"
            ) from failure


def _graph_key(digest: bytes) -> str:
    return f"graphs/{digest.hex()}"


def _name_key(name: str) -> str:
    """Hexadecimal: no character of a name means anything in a key."""
    return f"names/{name.encode().hex()}"


def _begin_key(digest: bytes) -> str:
    return f"uploads/{digest.hex()}/{_BEGIN}"


def _piece_key(digest: bytes, offset: int) -> str:
    return f"uploads/{digest.hex()}/{offset:0{_OFFSET_DIGITS}}"


def _digest(text: str) -> bytes:
    """A digest in hexadecimal; ABSENT where it is none."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        return ABSENT
    return found if len(found) == DIGEST_BYTES else ABSENT


def _read_name(content: bytes, tag: str) -> _Name:
    found = json.loads(content)
    return _Name(_digest(found["digest"]), found["nonce"], tag)


def _saved(digest: bytes, meta: Any) -> Saved:
    return Saved(digest, meta["size"], meta["last_modified"].timestamp())
