"""Saved graphs for the service: requests to a store, checked before they reach it."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from io import BytesIO

from gradwire.payloads import field
from gradwire.v1 import service_pb2 as pb
from gradwire_server.cache import Entry, GraphCache
from gradwire_server.codec.requests import decode_request, graph_of, source_bytes
from gradwire_server.codec.tensors import Payloads
from gradwire_server.errors import Invalid, NotFound, Refusal, Stopped, Unsupported, within
from gradwire_server.limits import Limits
from gradwire_server.store import ABSENT, Place, Saved, Store
from gradwire_server.store.base import (
    DIGEST_BYTES,
    lost_bytes,
    require_digest,
    require_name,
    require_size,
)
from gradwire_server.threads import Turns

#: Whether nobody waits for the answer any more.
IsStopped = Callable[[], bool]

_PAGE, _MAX_PAGE = 100, 1000

#: How often a graph is saved again because it was deleted before it had its name.
_SAVES = 5
_MAX_TOKEN = 512
_CHECK_BYTES = 8
_GET_DATA = 2  # the field of GetGraphResponse


class SavedGraphs:
    """The graphs of one server: those in its store, and those in its cache of plans."""

    def __init__(
        self, store: Store | None, cache: GraphCache, turns: Turns, limits: Limits
    ) -> None:
        self._store = store
        self._cache = cache
        self._turns = turns
        self._limits = limits

    @property
    def kind(self) -> str:
        """Where graphs are saved; empty where they are not."""
        return "" if self._store is None else self._store.kind

    def entry(self, source: pb.GraphSource, payloads: Payloads, stopped: IsStopped) -> Entry:
        """The graph of a request, decoded now or before; the field of what is refused is graph."""
        with within("graph"):
            match source.WhichOneof("source"):
                case "digest":
                    digest = require_digest(source.digest)
                case "name":
                    digest = self._required().resolve(require_name(source.name))
                case _:
                    return self._cache.find(source_bytes(source, payloads))
            return self._cache.find_saved(digest, lambda: self._loaded(digest, stopped))

    def save(self, data: bytes, stopped: IsStopped) -> bytes:
        """One SaveGraphRequest, serialized, to one SaveGraphResponse."""
        request, payloads = decode_request(pb.SaveGraphRequest, data)
        store = self._required()
        change = _change(request.name) if request.HasField("name") else None
        created = False
        by_reference = request.graph.WhichOneof("source") in ("digest", "name")
        if by_reference:
            with within("graph"):
                digest = self._digest(request.graph)
            size = store.find(digest).size
        else:
            with graph_of(request.graph), within("graph"):
                graph = source_bytes(request.graph, payloads)
                require_size(len(graph), self._limits)
                with self._turns:
                    if stopped():
                        raise Stopped
                    entry = self._cache.find(graph)
            digest, size = entry.key, len(entry.data)
            if not request.validate_only:
                created, answer = self._saved(store, entry, change)
        if request.validate_only:
            answer = pb.SavedGraph(digest=digest, size=size, name=request.name.name)
        elif by_reference:
            answer = self._named(store, digest, change)
        return pb.SaveGraphResponse(graph=answer, created=created).SerializeToString()

    def upload(self, requests: Iterable[bytes], stopped: IsStopped) -> bytes:
        """UploadGraphRequests, serialized, to one UploadGraphResponse."""
        store = self._required()
        begun: pb.UploadBegin | None = None
        received = 0  # bytes that are there
        end: int | None = None  # of the last chunk
        for data in requests:
            request, payloads = decode_request(pb.UploadGraphRequest, data)
            part = request.WhichOneof("part")
            if part != ("begin" if begun is None else "chunk"):
                raise Invalid("REQUEST_INVALID", "an upload is one begin, then chunks")
            if begun is None:
                begun = request.begin
                with within("begin"):
                    received = self._begin(store, begun)
            else:
                chunk = memoryview(payloads.found(request.chunk.data))
                if len(chunk):
                    offset = request.chunk.offset
                    follows = offset <= received if end is None else offset == end
                    with within("chunk"):
                        if follows:
                            there = self._append(store, begun, offset, chunk)
                        else:
                            store.append(begun.digest, offset, chunk)
                            there = offset + len(chunk)
                    end = offset + len(chunk)
                    received = max(received, there)
        if begun is None:
            raise Invalid("REQUEST_INVALID", "the upload has no message")
        answer = pb.UploadGraphResponse(received=received)
        if received == begun.size:
            self._finish(store, begun.digest, stopped)
            change = _change(begun.name) if begun.HasField("name") else None
            answer.graph.CopyFrom(self._named(store, begun.digest, change))
        return answer.SerializeToString()

    def get(self, data: bytes, stopped: IsStopped) -> Iterator[bytes]:
        """One GetGraphRequest, serialized, to GetGraphResponses."""
        request, _ = decode_request(pb.GetGraphRequest, data)
        if request.WhichOneof("graph") is None:
            raise Invalid("REQUEST_INVALID", "the request has neither a digest nor a name")
        digest, store = self._digest(request), self._required()
        saved = store.find(digest)
        if request.offset > saved.size:
            raise Invalid(
                "REQUEST_INVALID",
                f"offset: is {request.offset} but the graph has {saved.size}",
                field="offset",
            )
        yield pb.GetGraphResponse(graph=_message(saved, request.name)).SerializeToString()
        for piece in store.read(digest, request.offset):
            if stopped():
                return
            yield b"".join((field(_GET_DATA, len(piece)), piece))

    def page(self, data: bytes, stopped: IsStopped) -> bytes:
        """One ListGraphsRequest, serialized, to one ListGraphsResponse."""
        request, _ = decode_request(pb.ListGraphsRequest, data)
        prefix, most = request.name_prefix, request.page_size or _PAGE
        if most > _MAX_PAGE:
            what = f"page_size: is {most} but may be {_MAX_PAGE} at most"
            raise Invalid("REQUEST_INVALID", what, field="page_size")
        if prefix and not prefix.isprintable():
            what = f"name_prefix: {prefix[:80]!r} begins no name"
            raise Invalid("NAME_INVALID", what, field="name_prefix")
        after = _place(prefix, request.page_token) if request.page_token else None
        found = self._required().page(prefix, after, most + 1)
        answer = pb.ListGraphsResponse(graphs=[_message(each, each.name) for each in found[:most]])
        if len(found) > most:
            last = found[most - 1]
            answer.next_page_token = _token(prefix, last.name or last.digest)
        return answer.SerializeToString()

    def delete(self, data: bytes, stopped: IsStopped) -> bytes:
        """One DeleteGraphRequest, serialized, to one DeleteGraphResponse."""
        request, _ = decode_request(pb.DeleteGraphRequest, data)
        store = self._required()
        match request.WhichOneof("target"):
            case "digest":
                with within("digest"):
                    digest = require_digest(request.digest)
                store.delete(digest)
                self._cache.forget(digest)
            case "name":
                digest = store.remove(*_change(request.name))
            case _:
                raise Invalid("REQUEST_INVALID", "the request has neither a digest nor a name")
        return pb.DeleteGraphResponse(digest=digest).SerializeToString()

    def _required(self) -> Store:
        if self._store is None:
            raise Unsupported(
                "STORE_UNSUPPORTED",
                "this server saves no graphs; start it with --store DIRECTORY",
                flag="--store",
            )
        return self._store

    def _digest(self, source: pb.GraphSource | pb.GetGraphRequest) -> bytes:
        """What a digest or a name stands for."""
        if source.HasField("name"):
            with within("name"):
                return self._required().resolve(require_name(source.name))
        with within("digest"):
            return require_digest(source.digest)

    def _loaded(self, digest: bytes, stopped: IsStopped) -> bytes:
        """The bytes of a graph that is saved (GRAPH_NOT_FOUND)."""
        if self._store is None:
            raise NotFound(
                "GRAPH_NOT_FOUND",
                f"no graph with the digest {digest.hex()} is here, and this server saves none; "
                "send the graph itself",
                digest=digest.hex(),
            )
        data = _joined(self._store.read(digest), stopped)
        if sha256(data).digest() != digest:
            raise lost_bytes(digest, 0)
        return data

    def _saved(
        self, store: Store, entry: Entry, change: tuple[str, bytes | None] | None
    ) -> tuple[bool, pb.SavedGraph]:
        """Saves a graph and moves a name to it; whether the graph was not there before."""
        created = store.save(entry.key, entry.data)
        for _ in range(_SAVES):
            try:
                return created, self._named(store, entry.key, change)
            except NotFound:  # somebody has deleted it in between
                created = store.save(entry.key, entry.data) or created
        return created, self._named(store, entry.key, change)

    def _named(
        self, store: Store, digest: bytes, change: tuple[str, bytes | None] | None
    ) -> pb.SavedGraph:
        """Moves a name to a saved graph, if one is to be moved."""
        if change is None:
            return _message(store.find(digest), "")
        name, expected = change
        store.move(name, digest, expected)
        return _message(store.find(digest), name)

    def _begin(self, store: Store, begin: pb.UploadBegin) -> int:
        """Bytes that are there; all, where the graph is saved."""
        with within("digest"):
            digest = require_digest(begin.digest)
        with within("size"):
            require_size(begin.size, self._limits)
        if begin.HasField("name"):
            _change(begin.name)  # refused before the bytes come
        size = _size(store, digest)
        if size is None:
            return store.begin(digest, begin.size)
        if size != begin.size:
            what = f"size: is {begin.size} but the graph has {size}"
            raise Invalid("UPLOAD_INVALID", what, field="size")
        return size

    def _append(self, store: Store, begun: pb.UploadBegin, offset: int, chunk: memoryview) -> int:
        """Adds bytes of an upload, those that no other has brought; where what is there ends."""
        end = offset + len(chunk)
        while True:
            try:
                store.append(begun.digest, offset, chunk)
                return end
            except Invalid as refusal:
                there = _brought(store, begun, refusal)
                if there <= offset:
                    raise
            if there >= end:
                return there
            chunk, offset = chunk[there - offset :], there

    def _finish(self, store: Store, digest: bytes, stopped: IsStopped) -> None:
        """Saves what has been uploaded, if it is what was announced and a graph."""
        if _size(store, digest) is not None:
            store.discard(digest)
            return
        try:
            with self._turns:
                data = _joined(store.uploaded(digest), stopped)
                try:
                    _require_same_digest(data, digest)
                    self._cache.find(data)
                except Refusal as refusal:
                    store.discard(digest)
                    raise refusal.at_field("chunk.data") from None
            store.finish(digest, data)
        except Invalid:
            if _size(store, digest) is None:
                raise
            # another upload of it was faster


def _size(store: Store, digest: bytes) -> int | None:
    """Bytes of a graph; None where it is not saved."""
    try:
        return store.find(digest).size
    except NotFound:
        return None


def _brought(store: Store, begun: pb.UploadBegin, refusal: Invalid) -> int:
    """Bytes that are there although this upload did not bring them."""
    if _size(store, begun.digest) is not None:
        return begun.size
    return int(refusal.facts.get("received", 0)) if refusal.field == "offset" else 0


def _require_same_digest(data: bytes, digest: bytes) -> None:
    found = sha256(data).digest()
    if found != digest:
        raise Invalid(
            "DIGEST_MISMATCH",
            f"upload: its bytes have the digest {found.hex()} but {digest.hex()} was announced; "
            "they are dropped",
        )


def _change(message: pb.NameChange) -> tuple[str, bytes | None]:
    """A name, and what it must refer to (NAME_INVALID, DIGEST_INVALID, REQUEST_INVALID)."""
    with within("name.name"):
        name = require_name(message.name)
    match message.WhichOneof("expected"):
        case "digest":
            with within("name.digest"):
                return name, require_digest(message.digest)
        case "must_not_exist":
            if not message.must_not_exist:
                what = "must_not_exist: is false; leave it out"
                raise Invalid("REQUEST_INVALID", what, field="name.must_not_exist")
            return name, ABSENT
    return name, None


def _message(saved: Saved, name: str) -> pb.SavedGraph:
    return pb.SavedGraph(digest=saved.digest, size=saved.size, saved_at=saved.saved_at, name=name)


def _joined(pieces: Iterable[bytes], stopped: IsStopped) -> bytes:
    """All pieces as one, without holding both (Stopped)."""
    whole = BytesIO()
    for piece in pieces:
        if stopped():
            raise Stopped
        whole.write(piece)
    return whole.getvalue()  # its own buffer, not a copy


def _token(prefix: str, place: str | bytes) -> str:
    """A page token for what follows on a place."""
    key = b"n" + place.encode() if isinstance(place, str) else b"g" + place
    return urlsafe_b64encode(_check(prefix, key) + key).decode()


def _place(prefix: str, token: str) -> Place:
    """The place of a page token (PAGE_TOKEN_INVALID)."""
    try:
        if len(token) > _MAX_TOKEN:
            raise ValueError
        data = urlsafe_b64decode(token.encode("ascii"))
        key = data[_CHECK_BYTES:]
        if data[:_CHECK_BYTES] != _check(prefix, key):
            raise ValueError
        if key[:1] == b"g" and len(key) == 1 + DIGEST_BYTES and not prefix:
            return key[1:]
        if key[:1] == b"n":
            return require_name(key[1:].decode())
        raise ValueError
    except (ValueError, Refusal):  # binascii's and Unicode's errors are ValueErrors
        raise Invalid(
            "PAGE_TOKEN_INVALID",
            f"page_token: {token[:80]!r} is not one that was given for this name_prefix; "
            "begin with the first page",
            field="page_token",
        ) from None


def _check(prefix: str, key: bytes) -> bytes:
    """Tells a token of this server from one that was made up, or given for another prefix."""
    return sha256(b"\0".join((b"gradwire page", prefix.encode(), key))).digest()[:_CHECK_BYTES]
