"""Saved graphs in one SQLite file: durable, and shared by processes of one machine.

Every change is one transaction, on disk when it returns (WAL, synchronous=FULL). Bytes lie in rows
of a few MB at most, so that no graph is ever copied as a whole.

A full disk can always be made less full: nothing is saved into the last megabytes, and a file that
holds some of them is given up when even a deletion finds no room. What is acknowledged is in the
file that others will open: it is looked at again after each change, and where it has been removed
or replaced, all is refused.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from time import time
from typing import NamedTuple, TypeVar

from gradwire_server.errors import Unavailable
from gradwire_server.folders import FolderError, require_kept
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
    steady,
)

T = TypeVar("T")

FILE = "graphs.sqlite"
SCHEMA_VERSION = 1

_APPLICATION_ID = 0x67617465  # "gate"
_BUSY_SECONDS = 60.0
_WAL_BYTES = 64 << 20

#: Bytes of the disk that no graph is saved into, so that the journal of a deletion has room.
_SPARE_BYTES = 2 << 20

#: The journal of a graph that comes in pieces: it is used again from its beginning.
_PIECES_BYTES = 8 << 20

#: A file that holds room for deletions, should others have filled the disk.
_RESERVE, _RESERVE_BYTES = "reserve", 2 << 20

_NOT_A_DATABASE = sqlite3.SQLITE_NOTADB

#: What may pass; anything else that SQLite says means that the file is damaged.
_PASSING = frozenset(
    {
        0, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_MISUSE,
    }
)  # fmt: skip

#: What a damaged file makes of Python's own operations.
_ODD = (TypeError, ValueError, OverflowError, IndexError)

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
        self._steady = steady(clock)
        self._directory = Path(directory)
        try:
            try:
                self._open()
            except (OSError, sqlite3.Error):  # perhaps for want of room, which there may be
                if not self._give_up_reserve():
                    raise
                self._open()
        except FolderError as failure:
            raise StoreError(f"the store in {directory} cannot be opened: {failure}") from None
        except (OSError, sqlite3.Error, *_ODD) as failure:
            # what is not a database at all may be anything
            is_other = isinstance(failure, sqlite3.Error) and _code(failure) == _NOT_A_DATABASE
            advice = "" if is_other else _advice(failure)
            raise StoreError(
                f"the store in {directory} cannot be opened: {failure}{advice}"
            ) from None
        _keep_reserve(self._directory)

    def _open(self) -> None:
        self._writer, self._reader = _opened(self._directory), _opened(self._directory)
        self._page_bytes = self._writer.page_bytes()

    def _give_up_reserve(self) -> bool:
        """Gives back the room that was held back; whether there was any."""
        try:
            (self._directory / _RESERVE).unlink()
        except OSError:
            return False
        return True

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
            self._require_disk(database, len(data), len(data))
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
                self._require_disk(database, size, min(size, _PIECES_BYTES))
                row = digest, _new_blob(database), size, 0, self._steady()
                database.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?)", row)
                return 0
            require_same_size(size, found.size)
            _touch(database, digest, found.received, self._steady())
            return found.received

    def append(self, digest: bytes, offset: int, data: memoryview) -> None:
        with self._writing() as database:
            blob, size, received = self._required_upload(database, digest)
            require_offset(offset, len(data), received, size)
            self._require_disk(database, len(data), len(data))
            _put_chunks(database, blob, offset, data)
            _touch(database, digest, received + len(data), self._steady())

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
        self._freed(lambda database: _drop_upload(database, digest))

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
        def step(database: sqlite3.Connection) -> bytes:
            actual = _digest_of(database, name)
            require_expected(name, expected, actual)
            if actual == ABSENT:
                raise no_name(name)
            database.execute("DELETE FROM names WHERE name = ?", (name,))
            return actual

        return self._freed(step)

    def delete(self, digest: bytes) -> None:
        def step(database: sqlite3.Connection) -> None:
            blob, _ = _graph(database, digest)
            _drop_blob(database, blob)
            database.execute("DELETE FROM graphs WHERE digest = ?", (digest,))
            database.execute("DELETE FROM names WHERE digest = ?", (digest,))

        self._freed(step)

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

    def _freed(self, step: Callable[[sqlite3.Connection], T]) -> T:
        """A change that makes room: on a disk that is full, in what was held back for it."""
        try:
            with self._writing() as database:
                return step(database)
        except Unavailable as failure:
            cause = failure.__cause__
            if not isinstance(cause, sqlite3.Error) or _code(cause) != sqlite3.SQLITE_FULL:
                raise
        self._give_up_reserve()
        with self._writing() as database:
            freed = step(database)
        self._writer.shorten_journal()
        _keep_reserve(self._directory)
        return freed

    def _require_disk(self, database: sqlite3.Connection, size: int, journal: int) -> None:
        """Room on the disk: for what grows the file, for its journal, and to delete later."""
        try:
            status = os.statvfs(self._directory)
            written = os.stat(self._directory / f"{FILE}-wal").st_size  # which is used again
        except OSError:
            return  # gone: which is found out before anything is acknowledged
        free = status.f_bavail * status.f_frsize
        (pages,) = database.execute("PRAGMA freelist_count").fetchone()
        growth = max(0, size - pages * self._page_bytes)
        needed = growth + max(0, journal - written) + _SPARE_BYTES
        if free < needed:
            raise Unavailable(
                "STORE_UNAVAILABLE",
                f"the store of graphs: its disk has {free} bytes left, but {size} more would need "
                f"{needed}; delete graphs, or give it a larger disk",
            )

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
        return self._steady() - self._limits.upload_idle_seconds

    def _drop_silent_uploads(self, database: sqlite3.Connection) -> None:
        silent = database.execute(
            "SELECT digest FROM uploads WHERE touched_at < ?", (self._oldest(),)
        )
        for (digest,) in silent.fetchall():
            _drop_upload(database, digest)
        # by a clock that was ahead: they would never be dropped
        now = self._steady()
        database.execute(
            "UPDATE uploads SET touched_at = ? WHERE touched_at > ?",
            (now, now + self._limits.upload_idle_seconds),
        )


class _Connection:
    """A connection to the database, used by one thread at a time."""

    def __init__(self, database: sqlite3.Connection, files: tuple[Path, ...]) -> None:
        self._database = database
        self._files = {file: known for file in files if (known := _identity(file))}
        self._lock = Lock()

    def page_bytes(self) -> int:
        with self._lock:
            (size,) = self._database.execute("PRAGMA page_size").fetchone()
        return int(size)

    def shorten_journal(self) -> None:
        """Gives the journal's room back, if nobody reads in it now."""
        with self._lock, suppress(sqlite3.Error):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

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
            except (sqlite3.Error, *_ODD) as failure:
                raise Unavailable(
                    "STORE_UNAVAILABLE",
                    f"the store of graphs: {failure}{_advice(failure) or '; ask again later'}",
                ) from failure
            self._require_files()

    def _require_files(self) -> None:
        """What was done is in the files that others open (STORE_UNAVAILABLE)."""
        for file, identity in self._files.items():
            if _identity(file) != identity:
                raise Unavailable(
                    "STORE_UNAVAILABLE",
                    f"the store of graphs: {file} was removed or replaced while the server had it "
                    "open; put it back, and start the server again",
                )

    def close(self) -> None:
        with self._lock:
            self._database.close()


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _keep_reserve(directory: Path) -> None:
    """Holds room back, if there is any to spare; of several servers the first one does."""
    try:
        status = os.statvfs(directory)
        if status.f_bavail * status.f_frsize < _RESERVE_BYTES + _SPARE_BYTES:
            return
        with open(directory / _RESERVE, "xb") as file:
            file.write(bytes(_RESERVE_BYTES))
    except FileExistsError:
        pass
    except OSError:
        with suppress(OSError):
            (directory / _RESERVE).unlink()


def _code(failure: sqlite3.Error) -> int:
    """The primary code of SQLite; 0 where the failure is not one of its own."""
    code: int = getattr(failure, "sqlite_errorcode", 0)
    return code & 0xFF


def _advice(failure: Exception) -> str:
    """What to do about a failure that does not pass; empty where it may."""
    if isinstance(failure, OSError):
        return ""
    if isinstance(failure, sqlite3.Error):
        code = _code(failure)
        if code == sqlite3.SQLITE_FULL:
            return "; make room on its disk"
        if code in _PASSING and "decode" not in str(failure):
            return ""
    return (
        f"; {FILE} is damaged: stop the server, then restore it from a backup, or save what can be "
        f"read with: sqlite3 {FILE} .recover"
    )


def _opened(directory: Path) -> _Connection:
    """A connection to the database, of the right version, made while nobody else makes it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_kept(directory)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(directory / "lock", flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        database = sqlite3.connect(
            directory / FILE, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(database, directory)
            return _Connection(database, (directory / FILE, directory / f"{FILE}-wal"))
        except BaseException:
            database.close()
            raise
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
