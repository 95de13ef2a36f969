"""What happens to the disk of a store: it is full, its files go, or are damaged; clocks jump."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits
from gradwire_server.store import Store, StoreError, base
from gradwire_server.store import sqlite as module
from gradwire_server.store.sqlite import FILE, SqliteStore

DATA = bytes(3000)
DIGEST = sha256(DATA).digest()


def saved(directory: Path) -> SqliteStore:
    """A store with one graph, and a name for it."""
    store = SqliteStore(directory, Limits())
    store.save(DIGEST, DATA)
    store.move("name", DIGEST, None)
    return store


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refusal:
        call()
    assert refusal.value.reason == "STORE_UNAVAILABLE"
    return refusal.value.message


def calls(store: Store) -> list[Callable[[], object]]:
    other = sha256(b"other").digest()
    return [
        lambda: store.page("", None, 10),
        lambda: store.resolve("name"),
        lambda: b"".join(store.read(DIGEST)),
        lambda: store.save(other, b"other"),
        lambda: store.move("other", DIGEST, None),
        lambda: store.remove("name", None),
        lambda: store.begin(bytes(32), 10),
        lambda: store.delete(DIGEST),
    ]


def test_nothing_is_acknowledged_in_a_directory_that_is_gone(tmp_path: Path) -> None:
    store = saved(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    for call in calls(store):
        assert "was removed or replaced while the server had it open" in refused(call)
    store.close()


@pytest.mark.parametrize("file", [FILE, f"{FILE}-wal"])
def test_nothing_is_acknowledged_in_a_file_that_was_replaced(tmp_path: Path, file: str) -> None:
    store = saved(tmp_path)
    shutil.copy(tmp_path / file, tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / file)
    assert file in refused(lambda: store.save(sha256(b"a").digest(), b"a"))
    store.close()


def test_disk_that_is_nearly_full_is_not_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saved(tmp_path)
    store.begin(bytes(32), 1000)
    free = os.statvfs_result((4096, 4096, 1000, 500, 500, 1, 1, 1, 0, 255))
    monkeypatch.setattr(module.os, "statvfs", lambda _: free)
    other = b"other"
    for call in (
        lambda: store.save(sha256(other).digest(), other),
        lambda: store.begin(sha256(other).digest(), 10),
        lambda: store.append(bytes(32), 0, memoryview(bytes(1000))),
    ):
        assert "its disk has 2048000 bytes left" in refused(call)
    assert store.remove("name", None) == DIGEST
    store.delete(DIGEST)
    store.close()


def test_deletion_finds_room_on_a_disk_that_others_have_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saved(tmp_path)
    reserve = tmp_path / "reserve"
    assert reserve.stat().st_blocks * 512 >= reserve.stat().st_size > 0
    transaction = module._Connection.transaction

    @contextmanager
    def full(self: Any, begin: str) -> Iterator[sqlite3.Connection]:
        with transaction(self, begin) as database:
            yield database
            if begin != "BEGIN" and reserve.exists():
                failure = sqlite3.OperationalError("database or disk is full")
                failure.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
                raise Refused from failure

    # as `transaction` itself says it
    class Refused(module.Unavailable):
        def __init__(self) -> None:
            super().__init__("STORE_UNAVAILABLE", "the store of graphs: database or disk is full")

    monkeypatch.setattr(module._Connection, "transaction", full)
    assert "is full" in refused(lambda: store.move("other", DIGEST, None))
    monkeypatch.setattr(module, "_keep_reserve", lambda _: None)
    store.delete(DIGEST)
    assert not reserve.exists()
    assert store.page("", None, 10) == []
    monkeypatch.undo()
    store.close()
    SqliteStore(tmp_path, Limits()).close()
    assert reserve.exists()


def test_store_opens_on_a_disk_that_others_have_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path).close()
    opened = module._opened

    def full(directory: Path) -> Any:
        if (tmp_path / "reserve").exists():
            raise sqlite3.OperationalError("database or disk is full")
        return opened(directory)

    monkeypatch.setattr(module, "_opened", full)
    store = SqliteStore(tmp_path, Limits())
    store.delete(DIGEST)
    store.close()


def test_damaged_pages_are_told_from_what_passes(tmp_path: Path) -> None:
    chance = random.Random(5)
    whole = tmp_path / "whole"
    store = SqliteStore(whole, Limits())
    for number in range(40):
        data = b"%d" % number * (1 + 100 * number)
        store.save(sha256(data).digest(), data)
        store.move(f"n{number}", sha256(data).digest(), None)
    store.save(DIGEST, DATA)
    store.move("name", DIGEST, None)
    store.close()
    content = (whole / FILE).read_bytes()
    said: list[str] = []
    for number in range(60):
        place = tmp_path / str(number)
        place.mkdir()
        damaged = bytearray(content)
        page = 4096 * chance.randrange(12)
        length = chance.choice((16, 16, 4096))
        start = page + chance.choice((0, 100, chance.randrange(4096 - 16))) * (length == 16)
        damaged[start : start + length] = chance.choice((bytes(length), chance.randbytes(length)))
        (place / FILE).write_bytes(damaged)
        try:
            store = SqliteStore(place, Limits())
        except StoreError as failure:
            said.append(str(failure))
            continue
        for call in calls(store):
            try:
                call()
            except Refusal as refusal:
                if refusal.reason == "STORE_UNAVAILABLE":
                    said.append(refusal.message)
        store.close()
    assert len(said) > 30
    for each in said:
        assert "ask again later" not in each
        assert "is damaged: stop the server" in each or "lost its bytes" in each or (
            "is not a store of graphs" in each or "is not a database" in each or "version" in each
        )  # fmt: skip


def test_uploads_outlive_a_clock_that_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, passed = [1e9], [0.0]

    def clock() -> float:
        return wall[0]

    monkeypatch.setattr(base, "time", clock)
    monkeypatch.setattr(base, "monotonic", lambda: passed[0])
    limits = Limits(upload_idle_seconds=100)
    store = SqliteStore(tmp_path, limits, clock)
    data = memoryview(bytes(1 << 17))
    store.begin(DIGEST, len(data))
    store.append(DIGEST, 0, data[: 1 << 16])
    wall[0] += 86_400.0  # set forward
    assert store.begin(DIGEST, len(data)) == 1 << 16
    wall[0] -= 2 * 86_400.0  # and back, before another server starts
    store.close()
    store = SqliteStore(tmp_path, limits, clock)
    assert store.begin(DIGEST, len(data)) == 1 << 16
    passed[0] += 101
    assert store.begin(DIGEST, len(data)) == 0  # not kept until a clock is where it was
    store.close()
