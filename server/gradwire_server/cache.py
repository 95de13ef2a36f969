"""Graphs met before: a repeated request is neither decoded nor planned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from threading import Lock
from typing import NamedTuple

from gradwire_server.engine.evaluation import Evaluation, Job
from gradwire_server.graph import Graph
from gradwire_server.mould import movable, moved, without

#: What Python and NumPy hold for one value or one use of it: a graph's columns, the plan's, the
#: tape's with its buffers, and the lists that an engine makes of them.
_BYTES_OF_ONE = 96

#: From here on comparing bytes is quicker than hashing them, by five times.
_LARGE_BYTES = 64 * 1024
_END_BYTES = 128


class _Last(NamedTuple):
    """A job without its caller's arrays, and what was asked for, apart from them."""

    job: Job
    asked: Evaluation
    bound: Set[str]


@dataclass
class Entry:
    """A graph, and the last job it ran: its plan serves the next one of the same shapes."""

    key: bytes
    data: bytes
    graph: Graph
    job: Job | None = None  # lends its plan
    _last: _Last | None = None

    @property
    def nbytes(self) -> int:
        """Memory for the graph, its bytes and its plan."""
        size = self.graph.value_count + len(self.graph.node_inputs)
        if self.graph.inside is not None:
            size += self.graph.id_count + len(self.graph.inside.use_modules)
        return 2 * len(self.data) + _BYTES_OF_ONE * size

    def again(self, asked: Evaluation) -> Job | None:
        """The last job for these numbers, where only they differ from what was asked then."""
        last = self._last
        if last is None or asked.seeds or asked.bindings.keys() != last.bound:
            return None
        if replace(asked, bindings={}) != last.asked:
            return None
        return moved(last.job, self._movable, asked.bindings)

    def keep(self, job: Job, asked: Evaluation) -> None:
        """Keeps a job, but nothing that its caller sent."""
        self.job = without(job, self._movable, asked.bindings)
        reusable = not asked.seeds and asked.bindings.keys() <= self._movable.keys()
        bare = replace(asked, bindings={}, seeds={})
        self._last = _Last(self.job, bare, frozenset(asked.bindings)) if reusable else None

    @cached_property
    def _movable(self) -> dict[str, int]:
        return movable(self.graph)


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

    def find_saved(self, digest: bytes, load: Callable[[], bytes]) -> Entry:
        """The graph of a digest; its bytes are loaded where it is not here."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is not None:
                self._entries.move_to_end(digest)
                return entry
        data = load()
        entry = Entry(digest, data, self._decode(data))
        with self._lock:
            self._put(entry)
        return entry

    def forget(self, digest: bytes) -> None:
        """Lets go of a graph."""
        with self._lock:
            entry = self._entries.pop(digest, None)
            if entry is not None:
                self._let_go(entry)

    def _put(self, entry: Entry) -> None:
        if entry.key in self._entries or entry.nbytes > self._max_bytes:
            return
        self._entries[entry.key] = entry
        if len(entry.data) >= _LARGE_BYTES:
            self._large[_ends(entry.data)] = entry
        self._nbytes += entry.nbytes
        while self._nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._let_go(oldest)

    def _let_go(self, entry: Entry) -> None:
        self._nbytes -= entry.nbytes
        if self._large.get(_ends(entry.data)) is entry:
            del self._large[_ends(entry.data)]


def _ends(data: bytes) -> bytes:
    """What two graphs that differ probably differ in; comparing the rest makes sure."""
    return data[:_END_BYTES] + data[-_END_BYTES:]
