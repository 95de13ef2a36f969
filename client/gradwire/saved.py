"""Saved graphs: the messages about them, checked in both directions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from threading import Lock

from gradwire.builder import Graph
from gradwire.errors import InvalidRequestError, ServerError
from gradwire.v1 import service_pb2 as pb

#: Larger graphs are uploaded: in pieces, and from where an earlier upload broke off.
ONE_MESSAGE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20

#: How often an upload is begun again because another one of the same graph was faster.
ATTEMPTS = 5

_PAGE = 1000
_KEPT_GRAPHS = 8

#: Told how many bytes are there, of how many.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SavedGraph:
    """A graph on the server; with a name, where it was asked for or listed by one."""

    digest: str  # hexadecimal
    size: int  # bytes
    saved_at: datetime | None  # None where it was only validated
    name: str = ""

    @classmethod
    def from_message(cls, message: pb.SavedGraph) -> SavedGraph:
        at = datetime.fromtimestamp(message.saved_at, UTC) if message.saved_at else None
        return cls(message.digest.hex(), message.size, at, message.name)


class KnownGraphs:
    """The saved graphs that a connection used last, by digest: what a result is read with."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[bytes, Graph] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: bytes) -> Graph | None:
        with self._lock:
            if digest in self._graphs:
                self._graphs.move_to_end(digest)
            return self._graphs.get(digest)

    def put(self, digest: bytes, graph: Graph) -> Graph:
        with self._lock:
            self._graphs[digest] = graph
            while len(self._graphs) > _KEPT_GRAPHS:
                self._graphs.popitem(last=False)
        return graph


class Download:
    """The pieces of a graph, put together."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.saved = pb.SavedGraph()
        self._buffer = BytesIO()
        self._progress = progress

    def add(self, message: pb.GetGraphResponse) -> None:
        if message.HasField("graph"):
            self.saved = message.graph
        self._buffer.write(message.data)
        if self._buffer.tell() > self.saved.size:
            raise ServerError("INTERNAL", f"the server sent more than {self.saved.size} bytes")
        if self._progress is not None:
            self._progress(self._buffer.tell(), self.saved.size)

    def graph(self) -> bytes:
        """All bytes, if they have the digest (ServerError)."""
        data = self._buffer.getvalue()
        if sha256(data).digest() != self.saved.digest:
            raise ServerError(
                "INTERNAL",
                f"the server sent {len(data)} bytes that are not the graph "
                f"{self.saved.digest.hex()}; get it again",
            )
        return data


def digest_of(text: str) -> bytes | None:
    """The digest that 64 hexadecimal digits are; None where they are a name."""
    if not isinstance(text, str):
        raise InvalidRequestError(
            "NAME_INVALID", f"a saved graph is {text!r}; give its name, or its digest as text"
        )
    if len(text) != 64 or not set(text.lower()) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(text)


def reference(name_or_digest: str) -> pb.GraphSource:
    """A saved graph as the graph of a request."""
    digest = digest_of(name_or_digest)
    return pb.GraphSource(name=name_or_digest) if digest is None else pb.GraphSource(digest=digest)


def get_request(name_or_digest: str) -> pb.GetGraphRequest:
    digest = digest_of(name_or_digest)
    if digest is None:
        return pb.GetGraphRequest(name=name_or_digest)
    return pb.GetGraphRequest(digest=digest)


def name_change(name: str, expected: str | None) -> pb.NameChange | None:
    """A name, and what it must refer to: None is anything, "" is nothing, else a digest."""
    if not name:
        if expected is not None:
            raise InvalidRequestError("NAME_INVALID", "expected: is given without a name")
        return None
    change = pb.NameChange(name=name)
    if expected == "":
        change.must_not_exist = True
    elif expected is not None:
        change.digest = _required_digest(expected)
    return change


def save_request(
    graph: bytes | str, change: pb.NameChange | None, validate_only: bool
) -> pb.SaveGraphRequest:
    if not isinstance(graph, (bytes, str)):
        raise InvalidRequestError(
            "GRAPH_INVALID", f"the graph is {graph!r}; give a gw.Graph, its bytes, or its digest"
        )
    source = reference(graph) if isinstance(graph, str) else pb.GraphSource(graph=graph)
    return pb.SaveGraphRequest(graph=source, name=change, validate_only=validate_only)


def begin(graph: bytes, change: pb.NameChange | None) -> pb.UploadGraphRequest:
    """The first message of an upload."""
    found = pb.UploadBegin(digest=sha256(graph).digest(), size=len(graph), name=change)
    return pb.UploadGraphRequest(begin=found)


def parts(
    begin: pb.UploadGraphRequest, graph: bytes, received: int, progress: Progress | None
) -> Iterator[pb.UploadGraphRequest]:
    """An upload of what the server has not received; told as it is sent."""
    yield begin
    for offset in range(received, len(graph), CHUNK_BYTES):
        data = graph[offset : offset + CHUNK_BYTES]
        yield pb.UploadGraphRequest(chunk=pb.UploadChunk(offset=offset, data=data))
        if progress is not None:
            progress(offset + len(data), len(graph))


def completed(answer: pb.UploadGraphResponse) -> SavedGraph:
    """The graph of an upload that was whole (ServerError)."""
    if not answer.HasField("graph"):
        raise ServerError("INTERNAL", f"the server took only {answer.received} bytes; save again")
    return SavedGraph.from_message(answer.graph)


def require_retry(error: InvalidRequestError, attempt: int) -> None:
    """Raises the error of an upload, unless another upload of the graph was in its way."""
    if error.reason != "UPLOAD_INVALID" or attempt + 1 == ATTEMPTS:
        raise error


def delete_request(name_or_digest: str, expected: str | None) -> pb.DeleteGraphRequest:
    digest = digest_of(name_or_digest)
    if digest is None:
        return pb.DeleteGraphRequest(name=name_change(name_or_digest, expected))
    if expected is not None:
        raise InvalidRequestError("NAME_INVALID", "expected: is given without a name")
    return pb.DeleteGraphRequest(digest=digest)


def list_request(prefix: str, token: str) -> pb.ListGraphsRequest:
    return pb.ListGraphsRequest(name_prefix=prefix, page_size=_PAGE, page_token=token)


def _required_digest(text: str) -> bytes:
    digest = digest_of(text)
    if digest is None:
        raise InvalidRequestError(
            "DIGEST_INVALID", f"expected: {text[:80]!r} is not 64 hexadecimal digits"
        )
    return digest
