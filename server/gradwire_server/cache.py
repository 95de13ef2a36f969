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

#: From here on comparing bytes is quicker than hashing them, by five times.
_LARGE_BYTES = 64 * 1024
_END_BYTES = 128


@dataclass
class Entry:
    """A graph, and the last job it ran: its plan serves the next one of the same shapes."""

    key: bytes
    data: bytes
    graph: Graph
    job: Job | None = None

    @property
    def nbytes(self) -> int:
        """Memory for the graph, its bytes and its plan."""
        size = self.graph.value_count + len(self.graph.node_inputs)
        return 2 * len(self.data) + _BYTES_OF_ONE * size

    def keep(self, job: Job) -> None:
        """Keeps a job's plan, but nothing that its caller sent."""
        if self.job is None or job.plan is not self.job.plan:
            self.job = replace(job, point=replace(job.point, arrays=()), seeds={})


class GraphCache:
    """The graphs used last, by the SHA-256 of their bytes; bounded by the memory they hold."""

    def __init__(self, max_bytes: int, decode: Callable[[bytes], Graph]) -> None:
        self._max_bytes = max_bytes
        self._decode = decode
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._large: dict[bytes, Entry] = {}  # those worth comparing instead of hashing, by ends
        self._nbytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, data: bytes | memoryview) -> Entry:
        """The graph of these bytes, decoded now or before. A graph that is refused is not kept."""
        data = bytes(data)
        entry = self._large.get(_ends(data))
        key = entry.key if entry is not None and entry.data == data else sha256(data).digest()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry
        entry = Entry(key, data, self._decode(data))
        with self._lock:
            self._put(entry)
        return entry

    def _put(self, entry: Entry) -> None:
        if entry.key in self._entries or entry.nbytes > self._max_bytes:
            return
        self._entries[entry.key] = entry
        if len(entry.data) >= _LARGE_BYTES:
            self._large[_ends(entry.data)] = entry
        self._nbytes += entry.nbytes
        while self._nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._nbytes -= oldest.nbytes
            if self._large.get(_ends(oldest.data)) is oldest:
                del self._large[_ends(oldest.data)]


def _ends(data: bytes) -> bytes:
    """What two graphs that differ probably differ in; comparing the rest makes sure."""
    return data[:_END_BYTES] + data[-_END_BYTES:]
