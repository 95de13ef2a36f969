"""What clients of one bucket see is what they could have seen one after another, in every order."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import md5, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, product
from typing import Any, NamedTuple

import pytest

from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits
from gradwire_server.store import ABSENT, StoreError
from gradwire_server.store.objects import (
    PAGE,
    Bucket,
    Delete,
    Each,
    Get,
    Head,
    List,
    Meta,
    Put,
    Slice,
    Steps,
    Swap,
)
from gradwire_server.store.protocol import (
    GraphState,
    delete_graph,
    graph_state,
    move_name,
    name_key,
    released_key,
    remove_name,
    resolve_name,
    save_graph,
)
from gradwire_server.store.s3 import S3Store

A, B = (sha256(each).digest() for each in (b"a", b"b"))
BYTES = {A: b"a", B: b"b"}
UNKNOWN = "UNKNOWN"  # whether it was done


class Objects:
    """A bucket in memory that heeds conditions; the tag of an object is its MD5, as S3 has it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[Any] = []

    def answer(self, request: Any) -> Any:
        self.asked.append(request)
        match request:
            case Head(key):
                return self._meta(key) if key in self.objects else None
            case Get(key, most):
                return (self._meta(key), self.objects[key][:most]) if key in self.objects else None
            case Slice(key, start, length):
                return self.objects[key][start : start + length] if key in self.objects else None
            case List(prefix, after):
                keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
                return [self._meta(key) for key in keys[:PAGE]]
            case Swap(key, pieces, tag):
                if tag != (self._meta(key).tag if key in self.objects else ""):
                    return None
                self.objects[key] = b"".join(pieces)
                return self._meta(key).tag
            case Put(key, data):
                self.objects[key] = data
                return self._meta(key).tag
            case Delete(key):
                return self.objects.pop(key, None)
            case Each(requests):
                return [self.answer(each) for each in requests]
            case _:
                raise AssertionError(request)

    def _meta(self, key: str) -> Meta:
        data = self.objects[key]
        return Meta(key, len(data), md5(data).hexdigest(), 0.0)

    # what S3Store asks of a bucket

    def run(self, steps: Steps[Any]) -> Any:
        answer = None
        while True:
            try:
                answer = self.answer(steps.send(answer))
            except StopIteration as end:
                return end.value

    def probe(self) -> None:
        """It is there."""

    def close(self) -> None:
        """Nothing is held."""


class Call(NamedTuple):
    """One operation of a client: what it is called with."""

    step: str
    arguments: tuple[Any, ...]

    def begin(self, nonces: Callable[[], bytes]) -> Steps[Any]:
        match self.step, *self.arguments:
            case "save", digest:
                return save_graph(digest, BYTES[digest], nonces, room)
            case "delete", digest:
                return delete_graph(digest, nonces)
            case "has", digest:
                return _has(digest)
            case "move", name, digest, expected:
                return _nothing(move_name(name, digest, expected, nonces, room))
            case "remove", name, expected:
                return remove_name(name, expected, nonces)
            case "resolve", name:
                return _digest(resolve_name(name))
        raise AssertionError(self)


def room() -> Steps[None]:
    yield from ()


def _has(digest: bytes) -> Steps[bool]:
    return (yield from graph_state(digest)).saved is not None


def _nothing(steps: Steps[Any]) -> Steps[None]:
    yield from steps


def _digest(steps: Steps[Any]) -> Steps[bytes]:
    return (yield from steps)[1]


class Model(NamedTuple):
    """What a store is, if one client at a time is answered."""

    graphs: frozenset[bytes]
    names: frozenset[tuple[str, bytes]]

    def done(self, call: Call) -> tuple[Model, Any]:
        """The model after a call, and its result."""
        graphs, names = set(self.graphs), dict(self.names)
        result: Any = None
        match call.step, *call.arguments:
            case "save", digest:
                result = digest not in graphs
                graphs.add(digest)
            case "has", digest:
                result = digest in graphs
            case "delete", digest:
                if digest not in graphs:
                    return self, "GRAPH_NOT_FOUND"
                graphs.remove(digest)
                names = {name: to for name, to in names.items() if to != digest}
            case "resolve", name:
                result = names.get(name, ABSENT)
            case "move", name, digest, expected:
                if digest not in graphs:
                    return self, "GRAPH_NOT_FOUND"
                if expected is not None and names.get(name, ABSENT) != expected:
                    return self, "NAME_CONFLICT"
                names[name] = digest
            case "remove", name, expected:
                if expected is not None and names.get(name, ABSENT) != expected:
                    return self, "NAME_CONFLICT"
                if name not in names:
                    return self, "GRAPH_NOT_FOUND"
                result = names.pop(name)
        return Model(frozenset(graphs), frozenset(names.items())), result


class Done(NamedTuple):
    """A call and its result, between its first and its last request."""

    call: Call
    result: Any
    began: int
    ended: float


class World:
    """A bucket, clients that each make their calls in order, and what has happened so far."""

    def __init__(self, begun: Objects, programs: tuple[tuple[Call, ...], ...]) -> None:
        self.bucket = Objects()
        self.bucket.objects = dict(begun.objects)
        self.programs = [iter(program) for program in programs]
        self.nonces = [count(1) for _ in programs]
        self.running: list[tuple[Call, Steps[Any], Any, int] | None] = [None] * len(programs)
        self.ended = [False] * len(programs)
        self.log: list[list[Any]] = [[] for _ in programs]
        self.done: list[Done] = []
        self.now = 0
        for client in range(len(programs)):
            self._next(client)

    def _next(self, client: int) -> None:
        call = next(self.programs[client], None)
        if call is None:
            self.running[client], self.ended[client] = None, True
            return
        numbers = self.nonces[client]

        def nonce() -> bytes:
            return b"%d/%d" % (client, next(numbers)) + bytes(16)[:13]

        steps = call.begin(nonce)
        self.running[client] = call, steps, next(steps), -1

    def choices(self, faults: int) -> Iterator[tuple[int, str]]:
        """Who may go on, and how; at most so many times it goes wrong."""
        for client, running in enumerate(self.running):
            if running is None:
                continue
            yield client, "answer"
            if faults:
                yield client, "crash"
                if isinstance(running[2], Swap):
                    yield client, "lost"

    def go_on(self, client: int, how: str) -> None:
        self.now += 1
        running = self.running[client]
        assert running is not None
        call, steps, request, began = running
        began = self.now if began < 0 else began
        if how == "crash":
            self.running[client] = None
            self.log[client].append(how)
            self.done.append(Done(call, UNKNOWN, began, float("inf")))
            return
        answer = self.bucket.answer(request)
        if how == "lost":
            answer = None  # it was put; the second try was refused
        self.log[client].append(repr(answer))
        try:
            self.running[client] = call, steps, steps.send(answer), began
            return
        except StopIteration as end:
            result = end.value
        except Refusal as refusal:
            result = UNKNOWN if refusal.reason == "STORE_UNAVAILABLE" else refusal.reason
        self.done.append(Done(call, result, began, self.now))
        self._next(client)

    def key(self) -> Any:
        """Equal where everything that may follow is equal."""
        before = frozenset(
            (first, second)
            for first, each in enumerate(self.done)
            for second, other in enumerate(self.done)
            if each.ended < other.began
        )
        begun = tuple(
            (len([each for each in self.done if each.ended < running[3]]) if running[3] > 0 else -1)
            if running
            else -2
            for running in self.running
        )
        log = tuple(map(tuple, self.log))
        calls = tuple((each.call, each.result) for each in self.done)
        return tuple(sorted(self.bucket.objects.items())), log, calls, before, begun

    def finish(self, reads: list[Call]) -> list[Done]:
        """What happened, and what is there in the end."""
        for call in reads:
            self.now += 1
            result = self.bucket.run(call.begin(lambda: bytes(16)))
            self.done.append(Done(call, result, self.now, self.now + 0.5))
        return self.done


def explains(model: Model, history: list[Done]) -> bool:
    """Whether the calls, one after another, have these results: each in its time."""
    if not history:
        return True
    earliest = min(each.ended for each in history)
    for number, each in enumerate(history):
        if each.began > earliest:
            continue  # another ended before this one began
        rest = history[:number] + history[number + 1 :]
        after, result = model.done(each.call)
        if each.result == UNKNOWN and explains(model, rest):
            return True
        if each.result in (UNKNOWN, result) and explains(after, rest):
            return True
    return False


def explore(
    programs: tuple[tuple[Call, ...], ...], begun: Objects, model: Model, faults: int = 0
) -> int:
    """Runs the clients in every order; how many different endings there are (AssertionError)."""
    reads = [resolve("x"), resolve("y"), has(A), has(B)]
    seen: set[Any] = set()
    endings: set[Any] = set()
    open_orders: list[tuple[tuple[int, str], ...]] = [()]
    while open_orders:
        order = open_orders.pop()
        world = World(begun, programs)
        for client, how in order:
            world.go_on(client, how)
        key = world.key()
        if key in seen:
            continue
        seen.add(key)
        bad = sum(how != "answer" for _, how in order)
        choices = list(world.choices(faults - bad))
        open_orders += [(*order, choice) for choice in choices]
        if not choices:
            history = world.finish(reads)
            endings.add(repr(history))
            assert explains(model, history), (programs, order, history)
    return len(endings)


def save(digest: bytes) -> Call:
    return Call("save", (digest,))


def delete(digest: bytes) -> Call:
    return Call("delete", (digest,))


def has(digest: bytes) -> Call:
    return Call("has", (digest,))


def move(name: str, digest: bytes, expected: bytes | None = None) -> Call:
    return Call("move", (name, digest, expected))


def remove(name: str, expected: bytes | None = None) -> Call:
    return Call("remove", (name, expected))


def resolve(name: str) -> Call:
    return Call("resolve", (name,))


def begun(*calls: Call) -> tuple[Objects, Model]:
    """A bucket and a model in which calls were made one after another."""
    bucket, model = Objects(), Model(frozenset(), frozenset())
    numbers = count(1)
    for call in calls:
        bucket.run(call.begin(lambda: b"begun" + b"%11d" % next(numbers)))
        model, _ = model.done(call)
    return bucket, model


def released() -> tuple[Objects, Model]:
    """The same as BOTH, as the layout before this one has it."""
    bucket = Objects()
    bucket.objects[released_key(A)], bucket.objects[released_key(B)] = b"a", b"b"
    content = json.dumps({"digest": A.hex(), "nonce": "0123456789abcdef"}).encode()
    bucket.objects[name_key("x")] = content
    return bucket, begun(*BOTH)[1]


BOTH = save(A), save(B), move("x", A)

#: What a client may do; a call of the service may be several of these.
PROGRAMS: tuple[tuple[Call, ...], ...] = (
    (delete(A),),
    (delete(B),),
    (save(A), move("y", A)),
    (save(B), move("x", B)),
    (move("x", B, A),),
    (move("x", B, ABSENT),),
    (move("x", A),),
    (remove("x"),),
    (remove("x", A),),
    (delete(A), save(A)),
    (resolve("x"), resolve("x"), has(A)),
)

#: Those of them that are worth breaking off.
RISKY = (
    (delete(A),), (delete(B), save(B)), (move("x", B, A),), (remove("x"),), (save(A), move("y", A)),
)  # fmt: skip


@pytest.mark.parametrize("start", [(), BOTH], ids=["empty", "both"])
def test_two_clients_see_one_order_in_every_interleaving(start: tuple[Call, ...]) -> None:
    bucket, model = begun(*start)
    for number, first in enumerate(PROGRAMS):
        for second in PROGRAMS[number:]:
            explore((first, second), bucket, model)


def test_graphs_of_the_layout_before_are_changed_in_one_order() -> None:
    bucket, model = released()
    for first, second in product(RISKY, RISKY):
        explore((first, second), bucket, model)
    explore(((delete(A),), (resolve("x"), resolve("x"), has(A))), bucket, model)


def test_two_clients_see_one_order_although_one_is_killed_or_an_answer_lost() -> None:
    bucket, model = begun(*BOTH)
    for first, second in product(RISKY, RISKY):
        explore((first, second), bucket, model, faults=1)


@pytest.mark.parametrize(
    "programs",
    [
        ((move("x", B),), (delete(B),), (resolve("x"), resolve("x"))),
        ((move("x", B, A),), (delete(A),), (resolve("x"),)),
        ((delete(A),), (save(A), move("y", A)), (delete(A),)),
        ((move("x", B),), (remove("x"),), (delete(B),)),
    ],
)
def test_three_clients_see_one_order(programs: tuple[tuple[Call, ...], ...]) -> None:
    explore(programs, *begun(*BOTH))


def test_names_by_digest_alone_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exploration sees what once was wrong: a graph saved again got its old names back."""
    monkeypatch.setattr(GraphState, "holds", lambda self, _: self.saved is not None)
    with pytest.raises(AssertionError):
        explore(((delete(A), save(A)), (resolve("x"),)), *begun(*BOTH))


def store_in(bucket: Any, limits: Limits = Limits()) -> S3Store:  # noqa: B008
    bucket.asked.clear()
    return S3Store("s3://graphs", limits, bucket=bucket)


def data_of(number: int) -> tuple[bytes, bytes]:
    data = b"graph %d" % number
    return sha256(data).digest(), data


def entries(store: S3Store, prefix: str = "") -> list[str]:
    """All names, page by page as the service asks for them."""
    found: list[str] = []
    page = store.page(prefix, None, PAGE + 1)
    while page:
        found += [each.name for each in page[:PAGE]]
        if len(page) <= PAGE:
            break
        last = page[PAGE - 1]
        page = store.page(prefix, last.name or last.digest, PAGE + 1)
    return found


def asked(bucket: Objects) -> int:
    """Requests since the last time."""
    number = sum(not isinstance(each, Each) for each in bucket.asked)
    bucket.asked.clear()
    return number


def test_three_thousand_names_are_listed_by_few_requests() -> None:
    bucket, most = Objects(), 3000
    store = store_in(bucket)
    for number in range(most):
        digest, data = data_of(number)
        store.save(digest, data)
        store.move(f"bulk{number:04}", digest, ABSENT)
    assert asked(bucket) < 9 * most
    names = [f"bulk{number:04}" for number in range(most)]
    other = store_in(bucket)
    assert entries(other, "bulk") == names
    # what the index lacks, then nothing but pages of names, and for each those of all graphs
    assert asked(bucket) < most // 16 + 60
    assert entries(other, "bulk") == names
    assert asked(bucket) <= 22
    assert entries(other) == names
    assert asked(bucket) <= 32
    assert entries(store_in(bucket), "bulk1") == names[1000:2000]
    digest, _ = data_of(7)
    bucket.asked.clear()
    other.delete(digest)
    assert asked(bucket) == 2


def test_names_of_the_layout_before_are_read_once() -> None:
    bucket = Objects()
    for number in range(500):
        digest, data = data_of(number)
        bucket.objects[released_key(digest)] = data
        content = json.dumps({"digest": digest.hex(), "nonce": "0" * 16}).encode()
        bucket.objects[name_key(f"n{number:03}")] = content
    names = [f"n{number:03}" for number in range(500)]
    assert entries(store_in(bucket)) == names
    assert asked(bucket) > 500
    store = store_in(bucket)
    assert entries(store) == names
    assert asked(bucket) < 20
    digest, data = data_of(3)
    assert b"".join(store.read(digest, 2)) == data[2:]
    assert not store.save(digest, data)
    store.delete(digest)
    assert released_key(digest) not in bucket.objects
    assert store.save(digest, data)
    assert "n003" not in entries(store_in(bucket))
    assert store.resolve("n004") == data_of(4)[0]


def test_objects_of_others_are_passed_over() -> None:
    bucket = Objects()
    store = store_in(bucket)
    digest, data = data_of(1)
    store.save(digest, data)
    store.move("mine", digest, ABSENT)
    for key in (
        "names", "names/README.txt", "names/zz", "names/ff", "names/20", "graphs/README",
        "saved/README", "saved/" + "ab" * 32, "uploads/x", "uploads/x/begin",
        f"uploads/{'cd' * 32}/begin", f"uploads/{'cd' * 32}/piece", "index", "names/6D696E65",
        f"saved/x/{'ab' * 32}", f"saved/{'AB' * 32}", f"graphs/x/{'ab' * 32}", "names/6a756e6b",
    ):  # fmt: skip
        bucket.objects[key] = b"hello" * 30
        again = store_in(bucket)
        assert [each.name for each in again.page("", None, 10) if each.name] == ["mine"], key
        other = sha256(key.encode()).digest()
        again.save(other, key.encode())
        again.move("another", other, ABSENT)
        assert again.remove("another", None) == other
        assert again.begin(bytes(32), 100) == 0
        again.discard(bytes(32))
        again.delete(other)
    with pytest.raises(Refusal, match="'junk': names/6a756e6b holds nothing that a store has"):
        store.resolve("junk")
    store.move("junk", digest, ABSENT)  # in its place
    assert store.resolve("junk") == digest


def test_names_hold_in_a_copy_of_the_bucket() -> None:
    class Elsewhere(Objects):
        """Another store, in which other tags stand for the same bytes."""

        def _meta(self, key: str) -> Meta:
            return super()._meta(key)._replace(tag=f"other {md5(self.objects[key]).hexdigest()}")

    bucket, digest = Objects(), data_of(1)[0]
    store = store_in(bucket)
    store.save(*data_of(1))
    store.move("mine", digest, ABSENT)
    copy = Elsewhere()
    copy.objects = dict(bucket.objects)
    assert store_in(copy).resolve("mine") == digest
    assert entries(store_in(copy)) == ["mine"]


def test_bucket_that_ignores_conditions_is_refused() -> None:
    class Careless(Objects):
        def answer(self, request: Any) -> Any:
            if isinstance(request, Swap):
                return super().answer(Put(request.key, b"".join(request.pieces)))
            return super().answer(request)

    with pytest.raises(StoreError, match="ignores conditions of writes"):
        store_in(Careless())


def test_uploads_that_have_begun_are_not_read_again_and_again() -> None:
    bucket = Objects()
    store = store_in(bucket)
    for number in range(200):
        store.begin(data_of(number)[0], 1000)
    asked(bucket)
    store.begin(data_of(1000)[0], 1000)
    assert asked(bucket) <= 8


KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


@pytest.mark.parametrize(
    ("address", "variables", "said"),
    [
        ("s3://", KEYS, "names no bucket; write s3://BUCKET/PREFIX"),
        ("s3:///prefix", KEYS, "names no bucket"),
        ("s3://b", {}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"),
        ("s3://b", {"AWS_ACCESS_KEY_ID": "k"}, "needs keys, but AWS_SECRET_ACCESS_KEY is not set"),
        (
            "s3://b",
            {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "is not encrypted; set AWS_ALLOW_HTTP=true",
        ),
    ],
)
def test_configuration_that_is_incomplete_is_refused_before_anybody_is_asked(
    monkeypatch: pytest.MonkeyPatch, address: str, variables: dict[str, str], said: str
) -> None:
    for name in [*os.environ]:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Bucket, "_opened", lambda *_: pytest.fail("somebody would be asked"))
    with pytest.raises(StoreError, match=said):
        S3Store(address, Limits())


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "NoSuchBucket", "there is no such bucket: make it, or name another"),
        (403, "InvalidAccessKeyId", "check the keys, and what they may do in the bucket"),
        (403, "SignatureDoesNotMatch", "check the keys"),
    ],
)
def test_configuration_that_is_wrong_is_said_after_one_request(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, said: str
) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    with (
        answering(monkeypatch, status, body) as requests,
        pytest.raises(StoreError, match=said),
    ):
        S3Store("s3://graphs/prefix", Limits())
    assert len(requests) == 1


def test_page_of_a_list_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = "".join(
        f"<Contents><Key>prefix/names/{number:04}</Key><Size>5</Size><ETag>x</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for number in range(PAGE)
    )
    body = (
        "<ListBucketResult><IsTruncated>true</IsTruncated><KeyCount>1000</KeyCount>"
        f"<NextContinuationToken>more</NextContinuationToken>{objects}</ListBucketResult>"
    )
    with answering(monkeypatch, 200, body.encode()) as requests:
        page = Bucket("s3://graphs/prefix").answer(List("names/", "names/0"))
    assert [each.key for each in page[:2]] == ["names/0000", "names/0001"]
    assert len(page) == PAGE
    assert len(requests) == 1
    assert "start-after=prefix%2Fnames%2F0" in requests[0]


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, status: int, body: bytes) -> Iterator[list[str]]:
    """A place that gives one answer to everybody; the paths that were asked for."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        for name, value in {**KEYS, "AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)
        yield requests
        server.shutdown()
