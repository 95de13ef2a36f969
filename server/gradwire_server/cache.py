"""Graphs met before: a repeated request is neither decoded nor planned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from threading import Lock

from gradwire_server.engine.evaluation import Job
from gradwire_server.graph import Graph

#: What Python and NumPy hold for one value or one use of it: a graph's columns, the plan's, and
#: the lists that an engine makes of them.
_BYTES_OF_ONE = 64


@dataclass
class Entry:
    """A graph, and the last job it ran: its plan serves the next one of the same shapes."""

    graph: Graph
    nbytes: int
    job: Job | None = None

    def keep(self, job: Job) -> None:
        """Keeps a job's plan, but nothing that its caller sent."""
        if self.job is None or job.plan is not self.job.plan or not self.job.compiled.settled:
            self.job = replace(job, point=replace(job.point, arrays=()), seeds={})


class GraphCache:
    """The graphs used last, by the SHA-256 of their bytes; bounded by the memory they hold."""

    def __init__(self, max_bytes: int, decode: Callable[[bytes], Graph]) -> None:
        self._max_bytes = max_bytes
        self._decode = decode
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._nbytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, data: bytes | memoryview) -> Entry:
        """The graph of these bytes, decoded now or before. A graph that is refused is not kept."""
        key = sha256(data).digest()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry
        graph = self._decode(bytes(data))
        entry = Entry(graph, _held_bytes(graph, len(data)))
        with self._lock:
            self._put(key, entry)
        return entry

    def _put(self, key: bytes, entry: Entry) -> None:
        if key in self._entries or entry.nbytes > self._max_bytes:
            return
        self._entries[key] = entry
        self._nbytes += entry.nbytes
        while self._nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._nbytes -= oldest.nbytes


def _held_bytes(graph: Graph, size: int) -> int:
    """Memory for a graph of so many bytes with its plan."""
    return size + _BYTES_OF_ONE * (graph.value_count + len(graph.node_inputs))
