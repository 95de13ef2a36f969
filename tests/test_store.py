"""One suite for every store: what is saved is there, whole, and names move one at a time."""

from __future__ import annotations

import logging
import random
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store as S3Objects

import gradwire as gw
from gradwire_server.entry import EmbeddedServer
from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits
from gradwire_server.store import ABSENT, MemoryStore, Saved, Store, StoreError, open_store
from gradwire_server.store.base import MIN_CHUNK_BYTES, PIECE_BYTES, require_name
from gradwire_server.store.s3 import S3Store
from gradwire_server.store.sqlite import FILE, SqliteStore

SMALL = Limits(max_stored_bytes=4 * PIECE_BYTES, max_stored_graphs=3, upload_idle_seconds=10)
LARGE = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"  # of several pieces


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


#: Opens a store: each call the same graphs, as another process would.
Opener = Callable[..., Store]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of a bucket on a server that speaks S3."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        request = Request(f"http://{host}:{port}/graphs", method="PUT")
        with urlopen(request):
            yield "s3://graphs"
    server.stop()


@pytest.fixture(params=["memory", "sqlite", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    stores: list[Store] = []
    address = f"{request.getfixturevalue('bucket')}/{uuid4()}" if request.param == "s3" else ""

    def open_again(limits: Limits = Limits(), clock: Clock | None = None) -> Store:  # noqa: B008
        if request.param == "memory":
            store: Store = stores[0] if stores else MemoryStore(limits, clock or Clock())
        elif request.param == "sqlite":
            store = SqliteStore(tmp_path, limits, clock or Clock())
        else:
            store = S3Store(address, limits, clock or Clock())
        stores.append(store)
        return store

    yield open_again
    for store in stores:
        store.close()


def digest_of(data: bytes) -> bytes:
    return sha256(data).digest()


def saved(store: Store, data: bytes) -> bytes:
    store.save(digest_of(data), data)
    return digest_of(data)


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as refusal:
        call()
    return refusal.value.reason


def reason_or(call: Callable[[], object]) -> object:
    """The reason of a refusal, or what comes back."""
    try:
        return call()
    except Refusal as refusal:
        return refusal.reason


def entries(store: Store, prefix: str = "", most: int = 100) -> list[Saved]:
    """All of them, page by page."""
    found: list[Saved] = []
    page = store.page(prefix, None, most)
    while page:
        found += page
        page = store.page(prefix, page[-1].name or page[-1].digest, most)
    return found


@pytest.mark.parametrize("data", [b"a", bytes(PIECE_BYTES), LARGE], ids=["small", "piece", "large"])
def test_saved_bytes_come_back_as_they_were(opened: Opener, data: bytes) -> None:
    digest = saved(opened(), data)
    store = opened()
    assert b"".join(store.read(digest)) == data
    assert replace(store.find(digest), saved_at=0.0) == Saved(digest, len(data), 0.0)
    assert all(len(piece) <= PIECE_BYTES for piece in store.read(digest))


def test_reading_begins_anywhere(opened: Opener) -> None:
    store = opened()
    digest = saved(store, LARGE)
    for offset in (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, len(LARGE) - 1, len(LARGE)):
        assert b"".join(store.read(digest, offset)) == LARGE[offset:]


def test_saving_again_changes_nothing(opened: Opener) -> None:
    clock = Clock()
    store = opened(clock=clock)
    assert store.save(digest_of(b"a"), b"a")
    before = store.find(digest_of(b"a"))
    clock.now = 2000.0
    assert not store.save(digest_of(b"a"), b"a")
    assert store.find(digest_of(b"a")) == before


def test_what_is_not_there_is_not_found(opened: Opener) -> None:
    store, digest = opened(), digest_of(b"nowhere")
    calls: list[Callable[[], object]] = [
        lambda: store.find(digest),
        lambda: list(store.read(digest)),
        lambda: store.resolve("nothing"),
        lambda: store.delete(digest),
        lambda: store.remove("nothing", None),
        lambda: store.move("nothing", digest, None),
    ]
    assert [reason(call) for call in calls] == ["GRAPH_NOT_FOUND"] * len(calls)


def test_deleted_graph_takes_its_names_along(opened: Opener) -> None:
    store = opened()
    first, second = saved(store, LARGE), saved(store, b"b")
    for name, digest in {"x": first, "y": first, "z": second}.items():
        store.move(name, digest, None)
    store.delete(first)
    assert [each.name for each in entries(store)] == ["z"]
    assert reason(lambda: store.resolve("x")) == "GRAPH_NOT_FOUND"
    saved(store, LARGE)
    assert [each.name for each in entries(store)] == ["z", ""]  # back, without them


def test_graph_deleted_while_it_is_read_is_never_another(opened: Opener) -> None:
    store = opened()
    pieces = store.read(saved(store, LARGE))
    assert next(pieces) == LARGE[:PIECE_BYTES]
    opened().delete(digest_of(LARGE))
    saved(store, LARGE[::-1])
    found = reason_or(lambda: b"".join(pieces))
    assert found in ("GRAPH_NOT_FOUND", LARGE[PIECE_BYTES:])


def test_name_moves_only_from_what_was_expected(opened: Opener) -> None:
    store = opened()
    first, second = saved(store, b"a"), saved(store, b"b")
    assert reason(lambda: store.move("name", first, second)) == "NAME_CONFLICT"
    store.move("name", first, ABSENT)
    assert reason(lambda: store.move("name", second, ABSENT)) == "NAME_CONFLICT"
    assert reason(lambda: store.move("name", second, second)) == "NAME_CONFLICT"
    assert store.resolve("name") == first
    store.move("name", second, first)
    assert reason(lambda: store.remove("name", first)) == "NAME_CONFLICT"
    assert opened().resolve("name") == second
    assert store.remove("name", second) == second
    assert store.find(second).size == 1  # the graph stays
    store.move("name", first, ABSENT)
    assert store.resolve("name") == first


def test_of_concurrent_moves_exactly_one_wins(opened: Opener) -> None:
    store = opened()
    start = saved(store, b"start")
    store.move("name", start, None)
    rivals = [saved(store, b"%d" % each) for each in range(8)]
    outcomes: dict[bytes, object] = {}
    begin = threading.Barrier(len(rivals))

    def race(digest: bytes, mine: Store) -> None:
        begin.wait()
        outcomes[digest] = reason_or(lambda: mine.move("name", digest, start))

    threads = [threading.Thread(target=race, args=(each, opened())) for each in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = store.resolve("name")
    assert outcomes == {each: None if each == winner else "NAME_CONFLICT" for each in rivals}


def test_pages_hold_every_entry_once_and_in_order(opened: Opener) -> None:
    store = opened()
    digests = [saved(store, b"%d" % each) for each in range(5)]
    names = ["b", "a/1", "a/2", "a%", "é", "a/é", "B"]
    for name in names:
        store.move(name, digests[0], None)
    unnamed = sorted(digests[1:])
    for most in (1, 2, 3, 100):
        found = entries(store, most=most)
        assert [each.name for each in found] == [*sorted(names), *[""] * 4]
        assert [each.digest for each in found[len(names) :]] == unnamed
        assert [each.name for each in entries(store, "a/", most)] == ["a/1", "a/2", "a/é"]
    assert entries(store, "nothing") == []


def upload(store: Store, data: bytes, chunk: int = PIECE_BYTES) -> None:
    digest = digest_of(data)
    received = store.begin(digest, len(data))
    for offset in range(received, len(data), chunk):
        store.append(digest, offset, memoryview(data)[offset : offset + chunk])


@pytest.mark.parametrize("chunk", [3 * MIN_CHUNK_BYTES, 3 * PIECE_BYTES // 2])
def test_upload_goes_on_where_it_broke_off(opened: Opener, chunk: int) -> None:
    store, digest = opened(), digest_of(LARGE)
    store.begin(digest, len(LARGE))
    store.append(digest, 0, memoryview(LARGE)[:chunk])
    again = opened()
    assert again.begin(digest, len(LARGE)) == chunk
    assert entries(again) == []  # nothing is half there
    upload(again, LARGE, chunk)
    assert b"".join(again.uploaded(digest)) == LARGE
    again.finish(digest, LARGE)
    assert b"".join(store.read(digest)) == LARGE
    assert b"".join(store.read(digest, chunk - 1)) == LARGE[chunk - 1 :]
    assert reason(lambda: list(store.uploaded(digest))) == "UPLOAD_INVALID"


def test_bytes_that_do_not_follow_are_refused(opened: Opener) -> None:
    store, digest = opened(), digest_of(LARGE)
    data = memoryview(LARGE)
    assert reason(lambda: store.append(digest, 0, data)) == "UPLOAD_INVALID"
    store.begin(digest, len(LARGE))
    store.append(digest, 0, data[:PIECE_BYTES])
    for offset, chunk in (
        (0, data[:PIECE_BYTES]),
        (PIECE_BYTES - 1, data[:PIECE_BYTES]),
        (PIECE_BYTES + 1, data[:PIECE_BYTES]),
        (PIECE_BYTES, data),  # beyond the end
        (PIECE_BYTES, data[: MIN_CHUNK_BYTES - 1]),
        (2**63 - 1, data[:PIECE_BYTES]),
    ):
        assert reason(lambda o=offset, c=chunk: store.append(digest, o, c)) == "UPLOAD_INVALID"
    assert reason(lambda: store.begin(digest, len(LARGE) + 1)) == "UPLOAD_INVALID"
    assert reason(lambda: store.finish(digest, LARGE)) == "UPLOAD_INVALID"
    assert store.begin(digest, len(LARGE)) == PIECE_BYTES  # nothing of it was taken


def test_rival_uploads_of_one_graph_save_it_whole(opened: Opener) -> None:
    digest = digest_of(LARGE)

    def send(store: Store) -> None:
        def once() -> None:
            upload(store, LARGE)
            store.finish(digest, LARGE)

        while reason_or(once) == "UPLOAD_INVALID" and not entries(store):
            pass

    threads = [threading.Thread(target=send, args=(opened(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(opened().read(digest)) == LARGE


def test_graph_saved_during_its_upload_is_kept(opened: Opener) -> None:
    store, digest = opened(), digest_of(LARGE)
    upload(store, LARGE)
    assert store.save(digest, LARGE)
    store.finish(digest, LARGE)
    assert b"".join(store.read(digest)) == LARGE
    assert len(entries(store)) == 1


def test_discarded_upload_begins_again(opened: Opener) -> None:
    store, digest = opened(), digest_of(LARGE)
    upload(store, LARGE)
    store.discard(digest)
    assert store.begin(digest, len(LARGE)) == 0


def test_silent_upload_is_dropped(opened: Opener) -> None:
    clock = Clock()
    store, digest = opened(SMALL, clock), digest_of(LARGE)
    store.begin(digest, len(LARGE))
    store.append(digest, 0, memoryview(LARGE)[:PIECE_BYTES])
    clock.now += 9
    assert store.begin(digest, len(LARGE)) == PIECE_BYTES  # which is news
    clock.now += 9
    assert store.begin(digest, len(LARGE)) == PIECE_BYTES
    clock.now += 11
    assert store.begin(digest, len(LARGE)) == 0


def test_limits_hold_for_all_that_is_stored(opened: Opener) -> None:
    store = opened(SMALL)
    with pytest.raises(Refusal, match="max-stored-bytes"):
        saved(store, bytes(SMALL.max_stored_bytes + 1))
    store.begin(digest_of(LARGE), len(LARGE))  # counts as if it were there
    with pytest.raises(Refusal, match="max-stored-bytes"):
        saved(store, bytes(PIECE_BYTES))
    saved(store, b"a")
    digest = saved(store, b"b")
    with pytest.raises(Refusal, match="max-stored-graphs"):
        saved(store, b"c")
    saved(store, b"b")  # which is there
    for name in ("x", "y", "z", "z"):
        store.move(name, digest, None)
    with pytest.raises(Refusal, match="max-stored-graphs"):
        store.move("w", digest, None)
    store.delete(digest)
    saved(store, b"c")


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in range(1, 6))]
)
def test_stores_answer_alike_whatever_is_asked(opened: Opener, seed: int) -> None:
    chance = random.Random(seed)
    limits = Limits(max_stored_bytes=900_000, max_stored_graphs=6, upload_idle_seconds=10)
    clock = Clock()
    model, store = MemoryStore(limits, clock), opened(limits, clock)
    graphs = [bytes([each]) * chance.choice((1, 100, 200_000)) for each in range(5)]
    names = ["a", "ab", "b", "é", "c", "d", "e"]
    for number in range(100):
        clock.now += chance.choice((0, 0, 0, 4, 11))
        data, name = chance.choice(graphs), chance.choice(names)
        digest = digest_of(data)
        expected = chance.choice((None, None, ABSENT, digest, digest_of(graphs[0])))
        offset = chance.choice((0, 0, 65_536, 100_000))
        part = memoryview(data)[offset : offset + chance.choice((65_536, 100_000, 200_000))]
        step, *arguments = chance.choice(
            (
                ("save", digest, data),
                ("move", name, digest, expected),
                ("move", name, digest, expected),
                ("remove", name, expected),
                ("delete", digest),
                ("resolve", name),
                ("begin", digest, len(data)),
                ("append", digest, offset, part),
                ("append", digest, offset, part),
                ("finish", digest, data),
                ("discard", digest),
            )
        )
        answers = [reason_or(partial(getattr(each, step), *arguments)) for each in (model, store)]
        assert answers[0] == answers[1], (seed, number, step, arguments[0])
        if number % 10 == 0:
            listed = [
                [(each.name, each.digest, each.size) for each in entries(which, prefix, 2)]
                for prefix in ("", "a")
                for which in (model, store)
            ]
            assert listed[0::2] == listed[1::2], (seed, number)
            for each in model.page("", None, 100):
                assert b"".join(store.read(each.digest)) == b"".join(model.read(each.digest))


@pytest.mark.parametrize(
    "name",
    ["", " a", "a ", "a\n", "a\0b", "\x7f", "a\u202eb", "\u00a0", "a" * 256, "é" * 128, "0f" * 32],
)
def test_names_that_would_mislead_are_refused(name: str) -> None:
    assert reason(lambda: require_name(name)) == "NAME_INVALID"


@pytest.mark.parametrize("name", ["a", "a/b c", "é" * 127, "..", "%2F", "模型", "0f" * 31])
def test_names_that_can_be_read_are_taken(opened: Opener, name: str) -> None:
    store = opened()
    digest = saved(store, b"a")
    store.move(require_name(name), digest, ABSENT)
    assert opened().resolve(name) == digest
    assert [each.name for each in entries(store, name)] == [name]


def test_piece_that_came_too_late_is_in_nobodys_way(bucket: str) -> None:
    address, digest = f"{bucket}/{uuid4()}", digest_of(LARGE)
    store = S3Store(address, Limits())
    upload(store, LARGE)
    obstore.delete(S3Objects.from_url(address), f"uploads/{digest.hex()}/{0:012}")
    assert store.begin(digest, len(LARGE)) == 0
    upload(store, LARGE)
    assert b"".join(store.uploaded(digest)) == LARGE


def test_graph_in_a_bucket_is_evaluated_by_name(bucket: str) -> None:
    store = open_store(f"{bucket}/{uuid4()}", Limits())
    server = EmbeddedServer(store=store)
    graph = gw.Graph()
    graph.output("f", gw.exp(graph.input("x")))
    with gw.connect(server.address) as connection:
        connection.save_graph(graph, "exp")
        assert connection.evaluate("exp", {"x": 0.0})["f"].value == 1.0
        assert connection.describe().store == "s3"
    server.close()


def test_bucket_that_cannot_be_reached_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="the store at s3://missing: "):
        open_store("s3://missing", Limits())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(StoreError, match="the store at s3://graphs: "):
            open_store(bucket, Limits())


def test_store_of_another_version_is_refused(tmp_path: Path) -> None:
    SqliteStore(tmp_path, Limits()).close()
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(StoreError, match="has version 2 but this server reads version 1"):
        open_store(str(tmp_path), Limits())


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("CREATE TABLE graphs (digest)")
    database.commit()
    database.close()
    with pytest.raises(StoreError, match="is not a store of graphs"):
        open_store(str(tmp_path), Limits())


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else" * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(str(tmp_path), Limits())
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(str(tmp_path / FILE), Limits())


def test_lost_bytes_are_noticed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, Limits())
    digest = saved(store, LARGE)
    database = sqlite3.connect(tmp_path / FILE)
    database.execute("DELETE FROM chunks WHERE offset > 0")
    database.commit()
    database.close()
    assert reason(lambda: list(store.read(digest))) == "STORE_UNAVAILABLE"
    store.close()


def test_closed_store_is_unavailable(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, Limits())
    store.close()
    assert reason(lambda: store.resolve("a")) == "STORE_UNAVAILABLE"
