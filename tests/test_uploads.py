"""Uploads beside each other: of one graph by many, silent ones, and what a large one takes."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import grpc
import numpy as np
import pytest
from patience import PATIENCE, Clock

import gradwire as gw
from gradwire.v1 import service_pb2 as pb
from gradwire.v1 import service_pb2_grpc
from gradwire_server import silence
from gradwire_server.cache import GraphCache
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.entry import EmbeddedServer
from gradwire_server.limits import Limits
from gradwire_server.saved import SavedGraphs
from gradwire_server.store import MemoryStore, Store
from gradwire_server.store.sqlite import SqliteStore
from gradwire_server.threads import Turns

CHUNK = 1 << 20


def large(megabytes: int) -> bytes:
    graph = gw.Graph()
    w = graph.parameter("w", np.random.default_rng(1).random(megabytes << 17))
    graph.output("f", gw.reduce_sum(w))
    return graph.to_bytes()


def begin(data: bytes) -> pb.UploadGraphRequest:
    upload = pb.UploadBegin(digest=sha256(data).digest(), size=len(data))
    return pb.UploadGraphRequest(begin=upload)


def chunk(data: bytes, number: int, size: int = CHUNK) -> pb.UploadGraphRequest:
    offset = number * size
    piece = pb.UploadChunk(offset=offset, data=data[offset : offset + size])
    return pb.UploadGraphRequest(chunk=piece)


def chunks(data: bytes, size: int = CHUNK) -> Iterator[pb.UploadGraphRequest]:
    for number in range(-(-len(data) // size)):
        yield chunk(data, number, size)


def saved_graphs(store: Store, limits: Limits) -> SavedGraphs:
    cache = GraphCache(limits.max_cache_bytes, lambda data: decode_graph(data, limits))
    return SavedGraphs(store, cache, Turns(1, 1), limits)


def open_store(kind: str, directory: Path) -> Store:
    return SqliteStore(directory, Limits()) if kind == "sqlite" else MemoryStore(Limits())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("before", [0, 1, 3, 4])
def test_upload_goes_on_beside_another_of_the_same_graph(
    kind: str, before: int, tmp_path: Path
) -> None:
    """After so many chunks of one, another brings its first three, or all four."""
    store, data = open_store(kind, tmp_path), large(3)
    graphs = saved_graphs(store, Limits())

    def upload(messages: Iterator[pb.UploadGraphRequest]) -> pb.UploadGraphResponse:
        raw = (each.SerializeToString() for each in messages)
        return pb.UploadGraphResponse.FromString(graphs.upload(raw, lambda: False))

    def first() -> Iterator[pb.UploadGraphRequest]:
        yield begin(data)
        for number in range(4):
            if number == before:
                upload(iter([begin(data), *list(chunks(data))[: 3 if before < 2 else 4]]))
            yield chunk(data, number)

    answer = upload(first())
    assert answer.graph.digest == sha256(data).digest()
    assert b"".join(store.read(answer.graph.digest)) == data
    store.close()


def test_chunks_of_other_sizes_meet(tmp_path: Path) -> None:
    store, data = SqliteStore(tmp_path, Limits()), large(3)
    graphs = saved_graphs(store, Limits())

    def first() -> Iterator[bytes]:
        yield begin(data).SerializeToString()
        yield chunk(data, 0).SerializeToString()
        size = CHUNK + CHUNK // 2
        other = [begin(data), pb.UploadGraphRequest(chunk=pb.UploadChunk(
            offset=CHUNK // 2, data=data[CHUNK // 2 : size]))]  # fmt: skip
        graphs.upload((each.SerializeToString() for each in other), lambda: False)
        for number in range(1, 4):
            yield chunk(data, number).SerializeToString()

    answer = pb.UploadGraphResponse.FromString(graphs.upload(first(), lambda: False))
    assert answer.HasField("graph")
    store.close()


def test_eight_clients_save_one_graph_at_once(tmp_path: Path) -> None:
    server = EmbeddedServer(store=SqliteStore(tmp_path, Limits()))
    data, together = large(4), threading.Barrier(8)

    def save(_: int) -> str:
        with gw.connect(server.address) as connection:
            together.wait()
            return connection.save_graph(data, "one").digest

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(save, range(8))) == {sha256(data).hexdigest()}
    server.close()


def test_silent_uploads_keep_nobody_from_fetching_and_give_their_places_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, over = Clock(), threading.Event()
    monkeypatch.setattr(silence, "monotonic", clock)
    server = EmbeddedServer(Limits(max_transfers=2, session_idle_seconds=1))
    data = large(2)
    with gw.connect(server.address) as connection, grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        connection.save_graph(data, "saved")
        arrived = threading.Semaphore(0)

        def silent(number: int) -> Callable[[], Iterator[pb.UploadGraphRequest]]:
            def messages() -> Iterator[pb.UploadGraphRequest]:
                upload = pb.UploadBegin(digest=bytes([number]) * 32, size=100)
                yield pb.UploadGraphRequest(begin=upload)
                arrived.release()
                over.wait()

            return messages

        silents = [stub.UploadGraph.future(silent(number)()) for number in range(2)]
        for _ in silents:
            arrived.acquire()
        refused = ""
        while "open uploads: 3 is over the limit of 2" not in refused:  # once both have a place
            try:
                stub.UploadGraph(iter([begin(data)]), timeout=PATIENCE)
            except grpc.RpcError as failure:
                refused = failure.details()
        assert connection.get_graph("saved").to_bytes() == data
        while not all(each.done() for each in silents):
            clock.pass_some()
        assert {each.code() for each in silents} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        answer = None
        while answer is None:  # the places are free once the threads have ended
            try:
                answer = stub.UploadGraph(iter([begin(data)]), timeout=PATIENCE)
            except grpc.RpcError as failure:
                refused = failure.details()
        assert "open uploads" in refused
        assert answer.graph.digest == sha256(data).digest()
        over.set()
    server.close()


def test_uploaded_graph_takes_twice_its_size(tmp_path: Path) -> None:
    limits, data = Limits(), large(16)
    store = SqliteStore(tmp_path, limits)
    graphs = saved_graphs(store, limits)
    messages = (each.SerializeToString() for each in (begin(data), *chunks(data)))
    tracemalloc.start()
    try:
        graphs.upload(messages, lambda: False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # its bytes and its stored values; a sixth more, as the first are put together
    assert peak < 2.6 * len(data)
    store.close()


def test_large_values_are_lifted_out_of_a_graph() -> None:
    data = large(1)
    tracemalloc.start()
    try:
        graph = decode_graph(data, Limits())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * len(data)
    (leaf,) = graph.leaves
    assert leaf.value is not None
    assert leaf.value.data == np.random.default_rng(1).random(1 << 17).tobytes()


def test_graph_deleted_before_it_has_its_name_is_saved_again() -> None:
    class Raced(MemoryStore):
        deletions = 2

        def move(self, name: str, digest: bytes, expected: bytes | None) -> None:
            if self.deletions:
                self.deletions -= 1
                self.delete(digest)
            super().move(name, digest, expected)

    store, data = Raced(Limits()), large(1)
    request = pb.SaveGraphRequest(
        graph=pb.GraphSource(graph=data), name=pb.NameChange(name="mine")
    ).SerializeToString()
    answer = pb.SaveGraphResponse.FromString(
        saved_graphs(store, Limits()).save(request, lambda: False)
    )
    assert (answer.created, answer.graph.name) == (True, "mine")
    assert store.resolve("mine") == sha256(data).digest()


def test_upload_of_what_is_there_says_that_all_is() -> None:
    store, data = MemoryStore(Limits()), large(3)
    store.save(sha256(data).digest(), data)
    graphs = saved_graphs(store, Limits())
    raw = (each.SerializeToString() for each in (begin(data), chunk(data, 0)))
    answer = pb.UploadGraphResponse.FromString(graphs.upload(raw, lambda: False))
    assert (answer.received, answer.graph.size) == (len(data), len(data))
