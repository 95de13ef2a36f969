"""Saved graphs in one SQLite file: durable, and shared by processes of one machine.

Every change is one transaction, on disk when it returns (WAL, synchronous=FULL). Bytes lie in rows
of a few MB at most, so that no graph is ever copied as a whole.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from time import time
from typing import NamedTuple

from gradwire_server.errors import Unavailable
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
    require_expected,
    require_offset,
    require_room,
    require_room_for_name,
    require_same_size,
    require_whole,
)

FILE = "graphs.sqlite"
SCHEMA_VERSION = 1

_APPLICATION_ID = 0x67617465  # "gate"
_BUSY_SECONDS = 60.0
_WAL_BYTES = 64 << 20

# `blobs` gives ids that are never used again: who reads a deleted graph finds nothing, not another
_SCHEMA = f"""
CREATE TABLE blobs (id INTEGER PRIMARY KEY AUTOINCREMENT);
CREATE TABLE chunks (
    blob INTEGER NOT NULL, offset INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (blob, offset)
);
CREATE TABLE graphs (
    digest BLOB PRIMARY KEY, blob INTEGER NOT NULL, size INTEGER NOT NULL, saved_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE uploads (
    digest BLOB PRIMARY KEY, blob INTEGER NOT NULL, size INTEGER NOT NULL,
    received INTEGER NOT NULL, touched_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE names (name TEXT PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX names_by_digest ON names (digest);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class _Upload(NamedTuple):
    blob: int
    size: int
    received: int
    touched_at: float


class SqliteStore:
    """Two connections, each under a lock: one that writes, one that reads what is written."""

    kind = "sqlite"

    def __init__(
        self, directory: str | os.PathLike[str], limits: Limits, clock: Callable[[], float] = time
    ) -> None:
        """Opens the store in a directory, and makes what is missing (StoreError)."""
        self._limits = limits
        self._clock = clock
        try:
            self._writer, self._reader = _opened(Path(directory)), _opened(Path(directory))
        except (OSError, sqlite3.Error) as failure:
            raise StoreError(f"the store in {directory} cannot be opened: {failure}") from None

    def find(self, digest: bytes) -> Saved:
        with self._reading() as database:
            _, saved = _graph(database, digest)
        return saved

    def resolve(self, name: str) -> bytes:
        with self._reading() as database:
            digest = _digest_of(database, name)
        if digest == ABSENT:
            raise no_name(name)
        return digest

    def read(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
        with self._reading() as database:
            blob, saved = _graph(database, digest)
        for piece in self._pieces(blob, offset, saved.size):
            if piece is None:
                self.find(digest)  # deleted meanwhile
                raise lost_bytes(digest, offset)
            yield piece

    def save(self, digest: bytes, data: bytes) -> bool:
        with self._writing() as database:
            if database.execute("SELECT 1 FROM graphs WHERE digest = ?", (digest,)).fetchone():
                return False
            self._require_room(database, len(data))
            blob = _new_blob(database)
            _put_chunks(database, blob, 0, memoryview(data))
            row = digest, blob, len(data), self._clock()
            database.execute("INSERT INTO graphs VALUES (?, ?, ?, ?)", row)
            return True

    def begin(self, digest: bytes, size: int) -> int:
        with self._writing() as database:
            self._drop_silent_uploads(database)
            found = _upload(database, digest)
            if found is None:
                self._require_room(database, size)
                row = digest, _new_blob(database), size, 0, self._clock()
                database.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?)", row)
                return 0
            require_same_size(size, found.size)
            _touch(database, digest, found.received, self._clock())
            return found.received

    def append(self, digest: bytes, offset: int, data: memoryview) -> None:
        with self._writing() as database:
            blob, size, received = self._required_upload(database, digest)
            require_offset(offset, len(data), received, size)
            _put_chunks(database, blob, offset, data)
            _touch(database, digest, received + len(data), self._clock())

    def uploaded(self, digest: bytes) -> Iterator[bytes]:
        with self._reading() as database:
            blob, _, received = self._required_upload(database, digest)
        for piece in self._pieces(blob, 0, received):
            if piece is None:
                raise no_upload()
            yield piece

    def finish(self, digest: bytes, data: bytes) -> None:
        with self._writing() as database:
            if database.execute("SELECT 1 FROM graphs WHERE digest = ?", (digest,)).fetchone():
                _drop_upload(database, digest)
                return
            blob, size, received = self._required_upload(database, digest)
            require_whole(received, size)
            database.execute("DELETE FROM uploads WHERE digest = ?", (digest,))
            row = digest, blob, size, self._clock()
            database.execute("INSERT INTO graphs VALUES (?, ?, ?, ?)", row)

    def discard(self, digest: bytes) -> None:
        with self._writing() as database:
            _drop_upload(database, digest)

    def move(self, name: str, digest: bytes, expected: bytes | None) -> None:
        with self._writing() as database:
            _graph(database, digest)
            actual = _digest_of(database, name)
            require_expected(name, expected, actual)
            if actual == ABSENT:
                (names,) = database.execute("SELECT count(*) FROM names").fetchone()
                require_room_for_name(self._limits, names + 1)
            database.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (name, digest))

    def remove(self, name: str, expected: bytes | None) -> bytes:
        with self._writing() as database:
            actual = _digest_of(database, name)
            require_expected(name, expected, actual)
            if actual == ABSENT:
                raise no_name(name)
            database.execute("DELETE FROM names WHERE name = ?", (name,))
            return actual

    def delete(self, digest: bytes) -> None:
        with self._writing() as database:
            blob, _ = _graph(database, digest)
            _drop_blob(database, blob)
            database.execute("DELETE FROM graphs WHERE digest = ?", (digest,))
            database.execute("DELETE FROM names WHERE digest = ?", (digest,))

    def page(self, prefix: str, after: Place, most: int) -> list[Saved]:
        with self._reading() as database:
            rows: list[tuple[bytes, int, float, str]] = []
            if not isinstance(after, bytes):
                rows = database.execute(
                    "SELECT digest, size, saved_at, name FROM names JOIN graphs USING (digest) "
                    # nothing that a name may have comes after the last character
                    "WHERE name >= ? AND name > ? AND name < ? ORDER BY name LIMIT ?",
                    (prefix, after or "", prefix + "\U0010ffff", most),
                ).fetchall()
            if not prefix and len(rows) < most:
                first = after if isinstance(after, bytes) else b""
                rows += database.execute(
                    "SELECT digest, size, saved_at, '' FROM graphs WHERE digest > ? AND NOT EXISTS "
                    "(SELECT 1 FROM names WHERE names.digest = graphs.digest) "
                    "ORDER BY digest LIMIT ?",
                    (first, most - len(rows)),
                ).fetchall()
        return [Saved(*row) for row in rows]

    def close(self) -> None:
        for each in (self._writer, self._reader):
            each.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._reader.transaction("BEGIN") as database:
            yield database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._writer.transaction("BEGIN IMMEDIATE") as database:
            yield database

    def _pieces(self, blob: int, offset: int, end: int) -> Iterator[bytes | None]:
        """The bytes of a blob in [offset, end); None where they are not there."""
        while offset < end:
            with self._reading() as database:
                row: tuple[int, bytes] | None = database.execute(
                    "SELECT offset, data FROM chunks WHERE blob = ? AND offset <= ? "
                    "ORDER BY offset DESC LIMIT 1",
                    (blob, offset),
                ).fetchone()
            piece = row[1][offset - row[0] :] if row else b""
            if not piece:
                yield None
                return
            yield piece
            offset += len(piece)

    def _require_room(self, database: sqlite3.Connection, size: int) -> None:
        self._drop_silent_uploads(database)
        graphs, nbytes = database.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM "
            "(SELECT size FROM graphs UNION ALL SELECT size FROM uploads)"
        ).fetchone()
        require_room(self._limits, graphs + 1, nbytes + size)

    def _required_upload(self, database: sqlite3.Connection, digest: bytes) -> tuple[int, int, int]:
        """Blob, size and bytes received of an upload that is not too old (UPLOAD_INVALID)."""
        found = _upload(database, digest)
        if found is None or found.touched_at < self._oldest():
            raise no_upload()
        return found.blob, found.size, found.received

    def _oldest(self) -> float:
        """When the last news of an upload must have come."""
        return self._clock() - self._limits.upload_idle_seconds

    def _drop_silent_uploads(self, database: sqlite3.Connection) -> None:
        silent = database.execute(
            "SELECT digest FROM uploads WHERE touched_at < ?", (self._oldest(),)
        )
        for (digest,) in silent.fetchall():
            _drop_upload(database, digest)


class _Connection:
    """A connection to the database, used by one thread at a time."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._lock = Lock()

    @contextmanager
    def transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        """All of it, or nothing (STORE_UNAVAILABLE)."""
        with self._lock:
            try:
                self._database.execute(begin)
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:  # a full disk may have ended it
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as failure:
                raise Unavailable(
                    "STORE_UNAVAILABLE", f"the store of graphs: {failure}; ask again later"
                ) from failure

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _opened(directory: Path) -> _Connection:
    """A connection to the database, of the right version, made while nobody else makes it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        database = sqlite3.connect(
            directory / FILE, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(database, directory)
        except BaseException:
            database.close()
            raise
        return _Connection(database)
    finally:
        os.close(lock)


def _prepare(database: sqlite3.Connection, directory: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != _APPLICATION_ID:
        raise StoreError(f"{directory / FILE} is not a store of graphs; name another directory")
    if tables and version != SCHEMA_VERSION:
        raise StoreError(
            f"the store in {directory} has version {version} but this server reads version "
            f"{SCHEMA_VERSION}; start the release of Gradwire that wrote it"
        )
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    if not tables:
        database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")


def _graph(database: sqlite3.Connection, digest: bytes) -> tuple[int, Saved]:
    """Blob and size of a graph (GRAPH_NOT_FOUND)."""
    row = database.execute(
        "SELECT blob, size, saved_at FROM graphs WHERE digest = ?", (digest,)
    ).fetchone()
    if row is None:
        raise no_graph(digest)
    return row[0], Saved(digest, row[1], row[2])


def _digest_of(database: sqlite3.Connection, name: str) -> bytes:
    """What a name refers to; ABSENT where there is no such name."""
    row = database.execute("SELECT digest FROM names WHERE name = ?", (name,)).fetchone()
    return ABSENT if row is None else bytes(row[0])


def _upload(database: sqlite3.Connection, digest: bytes) -> _Upload | None:
    row = database.execute(
        "SELECT blob, size, received, touched_at FROM uploads WHERE digest = ?", (digest,)
    ).fetchone()
    return None if row is None else _Upload(*row)


def _touch(database: sqlite3.Connection, digest: bytes, received: int, now: float) -> None:
    database.execute(
        "UPDATE uploads SET received = ?, touched_at = ? WHERE digest = ?", (received, now, digest)
    )


def _drop_upload(database: sqlite3.Connection, digest: bytes) -> None:
    found = _upload(database, digest)
    if found is not None:
        _drop_blob(database, found.blob)
        database.execute("DELETE FROM uploads WHERE digest = ?", (digest,))


def _new_blob(database: sqlite3.Connection) -> int:
    blob = database.execute("INSERT INTO blobs DEFAULT VALUES").lastrowid
    assert blob is not None
    return blob


def _drop_blob(database: sqlite3.Connection, blob: int) -> None:
    database.execute("DELETE FROM chunks WHERE blob = ?", (blob,))
    database.execute("DELETE FROM blobs WHERE id = ?", (blob,))


def _put_chunks(database: sqlite3.Connection, blob: int, offset: int, data: memoryview) -> None:
    for start in range(0, len(data), PIECE_BYTES):
        row = blob, offset + start, data[start : start + PIECE_BYTES]
        database.execute("INSERT INTO chunks VALUES (?, ?, ?)", row)
