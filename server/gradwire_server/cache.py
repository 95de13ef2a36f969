"""Graphs met before: a repeated request is neither decoded nor planned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from threading import Lock
from typing import NamedTuple

from gradwire_server.engine.evaluation import Evaluation, Job, Packed
from gradwire_server.errors import within
from gradwire_server.graph import Graph
from gradwire_server.mould import Casting, Hole, Mould, movable, moved, without

#: What Python and NumPy hold for one value or one use of it: a graph's columns, the plan's, the
#: tape's with its buffers, and the lists that an engine makes of them.
_BYTES_OF_ONE = 96

#: As much as so many of those: a leaf, with its place in an order of packed leaves.
_LEAF_SIZE = 8

#: From here on comparing bytes is quicker than hashing them, by five times.
_LARGE_BYTES = 64 * 1024
_END_BYTES = 128

#: Messages of one length that are compared with a new one, at about 0.1 us each.
_MOULDS = 8
#: What a message that is known by its bytes may hold beside its graph.
_ASKED_BYTES = 8 * 1024


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
    casting: Casting = field(default_factory=Casting)
    _last: _Last | None = None

    @property
    def nbytes(self) -> int:
        """Memory for the graph, its bytes, those of a mould, and its plan."""
        size = self.graph.value_count + len(self.graph.node_inputs)
        size += _LEAF_SIZE * len(self.graph.leaves)
        if self.graph.inside is not None:
            size += self.graph.id_count + len(self.graph.inside.use_modules)
        return 3 * len(self.data) + _ASKED_BYTES + _BYTES_OF_ONE * size

    def again(self, asked: Evaluation) -> Job | None:
        """The last job for these numbers, where only they differ from what was asked then."""
        last = self._last
        if last is None or asked.seeds or asked.bindings.keys() != last.bound:
            return None
        if not asked.wants_as(last.asked):
            return None
        if asked.packed is None:
            return moved(last.job, self.movable, asked.bindings)
        assert last.job.packing is not None, "it was asked for as this is"
        with within("evaluation"):
            packed = Packed(last.job.packing, asked.packed)
        return moved(last.job, self.movable, asked.bindings, packed)

    def wants_mould(self, job: Job, data: bytes) -> bool:
        """Whether a request for this job should be known by its bytes from now on."""
        return self.casting.is_due(job) and len(data) <= len(self.data) + _ASKED_BYTES

    def keep(self, job: Job, asked: Evaluation) -> None:
        """Keeps a job, but nothing that its caller sent."""
        self.job = without(job, self.movable, asked.bindings)
        reusable = not asked.seeds and asked.bindings.keys() <= self.movable.keys()
        bare = replace(asked, bindings={}, seeds={}, packed=None if asked.packed is None else b"")
        self._last = _Last(self.job, bare, frozenset(asked.bindings)) if reusable else None

    @cached_property
    def movable(self) -> dict[str, int]:
        """Leaves that a job may be moved along."""
        return movable(self.graph)


class GraphCache:
    """The graphs used last, by the SHA-256 of their bytes; bounded by the memory they hold."""

    def __init__(self, max_bytes: int, decode: Callable[[bytes], Graph]) -> None:
        self._max_bytes = max_bytes
        self._decode = decode
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._large: dict[bytes, Entry] = {}  # those worth comparing instead of hashing, by ends
        self._moulds: dict[int, tuple[tuple[bytes, Mould], ...]] = {}  # by length; keys, moulds
        self._nbytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, data: bytes | memoryview) -> Entry:
        """The graph of these bytes, decoded now or before. A graph that is refused is not kept."""
        data = bytes(data)
        entry = self._large.get(_ends(data)) if len(data) >= _LARGE_BYTES else None
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

    def pour(self, data: bytes) -> Job | None:
        """The job of a request whose mould is here."""
        for key, mould in self._moulds.get(len(data), ()):
            job = mould.pour(data)
            if job is not None:
                with self._lock:
                    if key in self._entries:
                        self._entries.move_to_end(key)
                return job
        return None

    def cast(self, entry: Entry, job: Job, data: bytes, holes: Collection[Hole] | None) -> None:
        """Makes a request known by its bytes, as long as its graph is kept."""
        with self._lock:
            if holes is not None:
                self._drop_mould(entry)
            mould = entry.casting.cast(job, entry.movable, data, holes)
            if mould is not None and self._entries.get(entry.key) is entry:
                others = self._moulds.get(mould.size, ())
                self._moulds[mould.size] = ((entry.key, mould), *others)[:_MOULDS]

    def _drop_mould(self, entry: Entry) -> None:
        mould = entry.casting.mould
        if mould is None:
            return
        kept = tuple(each for each in self._moulds.pop(mould.size, ()) if each[1] is not mould)
        if kept:
            self._moulds[mould.size] = kept

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
        self._drop_mould(entry)
        if self._large.get(_ends(entry.data)) is entry:
            del self._large[_ends(entry.data)]


def _ends(data: bytes) -> bytes:
    """What two graphs that differ probably differ in; comparing the rest makes sure."""
    return data[:_END_BYTES] + data[-_END_BYTES:]
