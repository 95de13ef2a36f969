"""Saved graphs in this process, gone with it: for embedded servers and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import RLock
from time import time

from gradwire_server.limits import Limits
from gradwire_server.store.base import (
    ABSENT,
    PIECE_BYTES,
    Place,
    Saved,
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
    steady,
)


@dataclass
class _Upload:
    size: int
    touched_at: float
    received: int = 0
    pieces: list[bytes] = field(default_factory=list)


class MemoryStore:
    """Dictionaries under one lock."""

    kind = "memory"

    def __init__(self, limits: Limits, clock: Callable[[], float] = time) -> None:
        self._limits = limits
        self._clock = clock
        self._steady = steady(clock)
        self._graphs: dict[bytes, tuple[Saved, bytes]] = {}
        self._names: dict[str, bytes] = {}
        self._uploads: dict[bytes, _Upload] = {}
        self._lock = RLock()

    def find(self, digest: bytes) -> Saved:
        return self._entry(digest)[0]

    def resolve(self, name: str) -> bytes:
        with self._lock:
            if name not in self._names:
                raise no_name(name)
            return self._names[name]

    def read(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        data = self._entry(digest)[1]
        if offset == 0 and len(data) <= PIECE_BYTES:
            yield data
            return
        for start in range(offset, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]

    def save(self, digest: bytes, data: bytes) -> bool:
        with self._lock:
            if digest in self._graphs:
                return False
            self._require_room(len(data))
            self._graphs[digest] = Saved(digest, len(data), self._clock()), data
            return True

    def begin(self, digest: bytes, size: int) -> int:
        with self._lock:
            self._drop_silent_uploads()
            upload = self._uploads.get(digest)
            if upload is None:
                self._require_room(size)
                upload = self._uploads[digest] = _Upload(size, self._steady())
            require_same_size(size, upload.size)
            upload.touched_at = self._steady()
            return upload.received

    def append(self, digest: bytes, offset: int, data: memoryview) -> None:
        with self._lock:
            upload = self._upload(digest)
            require_offset(offset, len(data), upload.received, upload.size)
            upload.pieces.append(bytes(data))
            upload.received += len(data)
            upload.touched_at = self._steady()

    def uploaded(self, digest: bytes) -> Iterator[bytes]:
        with self._lock:
            pieces = self._upload(digest).pieces
        yield from pieces

    def finish(self, digest: bytes, data: bytes) -> None:
        with self._lock:
            if digest in self._graphs:
                self.discard(digest)
                return
            upload = self._upload(digest)
            require_whole(upload.received, upload.size)
            del self._uploads[digest]
            self._graphs[digest] = Saved(digest, len(data), self._clock()), data

    def discard(self, digest: bytes) -> None:
        with self._lock:
            self._uploads.pop(digest, None)

    def move(self, name: str, digest: bytes, expected: bytes | None) -> None:
        with self._lock:
            self._entry(digest)
            require_expected(name, expected, self._names.get(name, ABSENT))
            if name not in self._names:
                require_room_for_name(self._limits, len(self._names) + 1)
            self._names[name] = digest

    def remove(self, name: str, expected: bytes | None) -> bytes:
        with self._lock:
            require_expected(name, expected, self._names.get(name, ABSENT))
            digest = self.resolve(name)
            del self._names[name]
            return digest

    def delete(self, digest: bytes) -> None:
        with self._lock:
            self._entry(digest)
            del self._graphs[digest]
            for name in [name for name, found in self._names.items() if found == digest]:
                del self._names[name]

    def page(self, prefix: str, after: Place, most: int) -> list[Saved]:
        with self._lock:
            saved = {digest: found for digest, (found, _) in self._graphs.items()}
            return page_of(saved, dict(self._names), prefix, after, most)

    def close(self) -> None:
        """Nothing is held."""

    def _entry(self, digest: bytes) -> tuple[Saved, bytes]:
        with self._lock:
            if digest not in self._graphs:
                raise no_graph(digest)
            return self._graphs[digest]

    def _upload(self, digest: bytes) -> _Upload:
        self._drop_silent_uploads()
        if digest not in self._uploads:
            raise no_upload()
        return self._uploads[digest]

    def _require_room(self, size: int) -> None:
        self._drop_silent_uploads()
        sizes = [found.size for found, _ in self._graphs.values()]
        sizes += [upload.size for upload in self._uploads.values()]
        require_room(self._limits, len(sizes) + 1, sum(sizes) + size)

    def _drop_silent_uploads(self) -> None:
        oldest = self._steady() - self._limits.upload_idle_seconds
        for digest in [key for key, each in self._uploads.items() if each.touched_at < oldest]:
            del self._uploads[digest]
