"""What clients of one bucket see is what they could have seen one after another, in every order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import md5, sha256
from itertools import count, product
from typing import Any, NamedTuple

import pytest

from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits
from gradwire_server.store import ABSENT, StoreError
from gradwire_server.store import s3 as s3_module
from gradwire_server.store.objects import (
    PAGE,
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
                self.objects.pop(key, None)
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


@pytest.mark.parametrize("start", [(), BOTH, None], ids=["empty", "both", "released"])
def test_two_clients_see_one_order_in_every_interleaving(start: tuple[Call, ...] | None) -> None:
    bucket, model = released() if start is None else begun(*start)
    for number, first in enumerate(PROGRAMS):
        for second in PROGRAMS[number:]:
            explore((first, second), bucket, model)


def test_two_clients_see_one_order_although_one_is_killed_or_an_answer_lost() -> None:
    bucket, model = begun(*BOTH)
    for first, second in product(RISKY, RISKY):
        explore((first, second), bucket, model, faults=1)


@pytest.mark.parametrize(
    "programs",
    [
        ((move("x", B),), (delete(B),), (resolve("x"), resolve("x"))),
        ((move("x", B, A),), (delete(A),), (resolve("x"), resolve("x"))),
        ((delete(A),), (save(A), move("y", A)), (delete(A),)),
        ((move("x", B),), (remove("x"),), (delete(B),)),
    ],
)
def test_three_clients_see_one_order(programs: tuple[tuple[Call, ...], ...]) -> None:
    explore(programs, *begun(*BOTH))


def test_names_by_digest_alone_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exploration sees what once was wrong: a graph saved again got its old names back."""
    monkeypatch.setattr(GraphState, "holds", lambda self, to: self.saved is not None)
    with pytest.raises(AssertionError):
        explore(((delete(A), save(A)), (resolve("x"),)), *begun(*BOTH))
