"""Saved graphs through the wire: saved whole or not at all, evaluated by name or digest."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from patience import Clock
from wire import field_of, neuron, source

import gradwire as gw
from gradwire import saved
from gradwire.cli import main
from gradwire.v1 import service_pb2 as pb
from gradwire.v1 import service_pb2_grpc
from gradwire_server import silence
from gradwire_server.cache import GraphCache
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.entry import EmbeddedServer, Server
from gradwire_server.limits import Limits
from gradwire_server.store import MemoryStore
from gradwire_server.store.sqlite import SqliteStore

LIMITS = Limits(max_graph_bytes=16 << 20)
DATA = neuron().SerializeToString()
DIGEST = sha256(DATA).digest()
LARGE_COUNT = 400_000  # elements, over 3 MB


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    running = EmbeddedServer(LIMITS)
    yield running
    running.close()


@pytest.fixture
def stub(server: EmbeddedServer) -> Iterator[service_pb2_grpc.GradientServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)


@pytest.fixture
def connection(server: EmbeddedServer) -> Iterator[gw.Connection]:
    with gw.connect(server.address) as found:
        yield found


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    status = rpc_status.from_call(failure.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return info.reason


def scaled(factor: float, count: int = 3) -> gw.Graph:
    graph = gw.Graph()
    w = graph.parameter("w", np.full(count, factor))
    x = graph.input("x", shape=(count,))
    graph.output("f", gw.reduce_sum(w * x))
    return graph


def large(seed: int = 1) -> gw.Graph:
    graph = gw.Graph()
    w = graph.parameter("w", np.random.default_rng(seed).normal(size=LARGE_COUNT))
    graph.output("f", gw.reduce_sum(w))
    return graph


def begin(data: bytes, **more: object) -> pb.UploadGraphRequest:
    fields = {"digest": sha256(data).digest(), "size": len(data)} | more
    return pb.UploadGraphRequest(begin=pb.UploadBegin(**fields))  # type: ignore[arg-type]


def chunk(offset: int, data: bytes) -> pb.UploadGraphRequest:
    return pb.UploadGraphRequest(chunk=pb.UploadChunk(offset=offset, data=data))


def test_saved_graph_is_evaluated_by_name_and_digest(connection: gw.Connection) -> None:
    graph = scaled(2.0)
    found = connection.save_graph(graph, "models/double")
    assert (found.digest, found.name) == (graph.digest, "models/double")
    expected = connection.evaluate(graph, {"x": [1, 2, 3]})
    for known in ("models/double", graph.digest):
        result = connection.evaluate(known, {"x": [1, 2, 3]})
        assert result["f"].value == 12.0
        np.testing.assert_array_equal(result["x"].gradient, expected["x"].gradient)
        *_, last = connection.stream(known, {"x": [1, 2, 3]})
        assert isinstance(last, gw.Result)
        assert last["f"].value == 12.0
        with connection.session(known) as session:
            assert session.step({"x": [1, 1, 1]})["f"].value == 6.0
        assert connection.gradient_graph(known).outputs


def test_name_that_moved_means_the_new_graph(connection: gw.Connection) -> None:
    first = connection.save_graph(scaled(2.0), "f")
    assert connection.evaluate("f", {"x": [1, 1, 1]})["f"].value == 6.0
    connection.save_graph(scaled(3.0), "f", expected=first.digest)
    assert connection.evaluate("f", {"x": [1, 1, 1]})["f"].value == 9.0
    with pytest.raises(gw.ConflictError) as failure:
        connection.save_graph(scaled(4.0), "f", expected=first.digest)
    assert failure.value.facts["digest"] == scaled(3.0).digest
    connection.save_graph(first.digest, "f")  # back, without sending it
    assert connection.evaluate("f", {"x": [1, 1, 1]})["f"].value == 6.0
    with pytest.raises(gw.ConflictError):
        connection.save_graph(first.digest, "f", expected="")


def test_asyncio_does_the_same(server: EmbeddedServer) -> None:
    async def run() -> None:
        async with gw.AsyncConnection(server.address) as connection:
            graph = large()
            told: list[int] = []
            found = await connection.save_graph(
                graph, "large", progress=lambda done, _: told.append(done)
            )
            assert told[-1] == found.size
            assert (await connection.get_graph("large")).to_bytes() == graph.to_bytes()
            result = await connection.evaluate("large")
            assert (await connection.evaluate(graph))["f"].value == result["f"].value
            async with await connection.session("large") as session:
                assert (await session.step())["f"].value == result["f"].value
            await connection.save_graph(scaled(1.0))
            names = [each.name async for each in connection.list_graphs()]
            assert names == ["large", ""]
            assert await connection.delete_graph("large") == graph.digest
            with pytest.raises(gw.NotFoundError):
                await connection.get_graph("large")

    asyncio.run(run())


def test_large_graph_goes_up_and_down_in_pieces(connection: gw.Connection) -> None:
    graph, told = large(), []
    connection.save_graph(graph, "large", progress=lambda *bytes_: told.append(bytes_))
    size = len(graph.to_bytes())
    assert told[-1] == (size, size)
    assert len(told) == -(-size // saved.CHUNK_BYTES)
    assert connection.get_graph("large").to_bytes() == graph.to_bytes()
    connection.save_graph(graph, "again", progress=lambda *_: pytest.fail("it is there"))


def test_broken_upload_goes_on_where_it_broke_off(
    connection: gw.Connection, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    graph = large()
    data = graph.to_bytes()
    answer = stub.UploadGraph(iter([begin(data), chunk(0, data[: 1 << 20])]))
    assert (answer.received, answer.HasField("graph")) == (1 << 20, False)
    told: list[int] = []
    connection.save_graph(graph, progress=lambda done, _: told.append(done))
    assert told[0] == 2 << 20


def test_upload_whose_answer_was_lost_is_finished_by_asking() -> None:
    data = large().to_bytes()
    store = MemoryStore(LIMITS)
    store.begin(sha256(data).digest(), len(data))
    store.append(sha256(data).digest(), 0, memoryview(data))
    server = EmbeddedServer(LIMITS, store=store)
    with grpc.insecure_channel(server.address) as channel:
        asking = service_pb2_grpc.GradientServiceStub(channel)
        answer = asking.UploadGraph(iter([begin(data, name=pb.NameChange(name="f"))]))
    assert (answer.received, answer.graph.name) == (len(data), "f")
    assert store.resolve("f") == sha256(data).digest()
    server.close()


def test_cancelled_upload_keeps_what_came(stub: service_pb2_grpc.GradientServiceStub) -> None:
    data, over = large().to_bytes(), threading.Event()

    def parts() -> Iterator[pb.UploadGraphRequest]:
        yield begin(data)
        yield chunk(0, data[: 1 << 20])
        over.wait()

    call = stub.UploadGraph.future(parts())
    while stub.UploadGraph(iter([begin(data)])).received < 1 << 20:
        pass
    call.cancel()
    over.set()
    assert stub.UploadGraph(iter([begin(data)])).received == 1 << 20


def test_download_goes_on_where_it_broke_off(
    connection: gw.Connection, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    graph = large()
    connection.save_graph(graph, "large")
    data = graph.to_bytes()
    for offset in (0, 1, 2 << 20, len(data)):
        head, *rest = stub.GetGraph(pb.GetGraphRequest(name="large", offset=offset))
        assert (head.graph.size, head.graph.name) == (len(data), "large")
        assert b"".join(each.data for each in rest) == data[offset:]


def test_only_graphs_that_could_be_evaluated_are_saved(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    broken = neuron()
    broken.gates[0].operator = "Mull"
    data = broken.SerializeToString()
    assert reason(lambda: stub.SaveGraph(pb.SaveGraphRequest(graph=source(broken)))) == (
        "OPERATOR_UNKNOWN"
    )
    whole = [begin(data), chunk(0, data)]
    assert reason(lambda: stub.UploadGraph(iter(whole))) == "OPERATOR_UNKNOWN"
    assert stub.UploadGraph(iter(whole[:1])).received == 0  # dropped
    false = [begin(DATA, digest=bytes(32)), chunk(0, DATA)]
    assert reason(lambda: stub.UploadGraph(iter(false))) == "DIGEST_MISMATCH"
    assert not stub.ListGraphs(pb.ListGraphsRequest()).graphs


def test_validated_graph_is_not_saved(connection: gw.Connection) -> None:
    found = connection.save_graph(scaled(2.0), "f", validate_only=True)
    assert (found.digest, found.saved_at) == (scaled(2.0).digest, None)
    assert list(connection.list_graphs()) == []


def test_saving_twice_says_that_it_was_there(stub: service_pb2_grpc.GradientServiceStub) -> None:
    request = pb.SaveGraphRequest(graph=source(neuron()))
    first, second = stub.SaveGraph(request), stub.SaveGraph(request)
    assert (first.created, second.created) == (True, False)
    assert first.graph == second.graph
    assert first.graph.digest == DIGEST


def test_pages_go_on_by_their_tokens(stub: service_pb2_grpc.GradientServiceStub) -> None:
    stub.SaveGraph(pb.SaveGraphRequest(graph=source(neuron())))
    other = pb.GraphSource(graph=scaled(1.0).to_bytes())
    stub.SaveGraph(pb.SaveGraphRequest(graph=other))
    for each in range(5):
        name = pb.NameChange(name=f"n{each}")
        stub.SaveGraph(pb.SaveGraphRequest(graph=pb.GraphSource(digest=DIGEST), name=name))
    found, token = [], ""
    while True:
        page = stub.ListGraphs(pb.ListGraphsRequest(page_size=2, page_token=token))
        assert 1 <= len(page.graphs) <= 2
        found += [each.name for each in page.graphs]
        token = page.next_page_token
        if not token:
            break
    assert found == ["n0", "n1", "n2", "n3", "n4", ""]


def bad_calls() -> Iterator[tuple[str, str, object]]:
    """Reason, method, and what it refuses."""
    nameless = pb.NameChange(name="a\nb")
    graph = pb.GraphSource(graph=DATA)
    yield "GRAPH_INVALID", "SaveGraph", pb.SaveGraphRequest()
    yield "GRAPH_INVALID", "SaveGraph", pb.SaveGraphRequest(graph=pb.GraphSource(graph=b""))
    yield "NAME_INVALID", "SaveGraph", pb.SaveGraphRequest(graph=graph, name=nameless)
    yield "NAME_INVALID", "SaveGraph", pb.SaveGraphRequest(graph=graph, name=pb.NameChange())
    short = pb.NameChange(name="a", digest=b"short")
    yield "DIGEST_INVALID", "SaveGraph", pb.SaveGraphRequest(graph=graph, name=short)
    false = pb.NameChange(name="a", must_not_exist=False)
    yield "REQUEST_INVALID", "SaveGraph", pb.SaveGraphRequest(graph=graph, name=false)
    for named, said in (
        ({"digest": bytes(32)}, "GRAPH_NOT_FOUND"),
        ({"digest": b""}, "DIGEST_INVALID"),
        ({"digest": bytes(33)}, "DIGEST_INVALID"),
        ({"name": "nothing"}, "GRAPH_NOT_FOUND"),
        ({"name": ""}, "NAME_INVALID"),
        ({"name": "\0"}, "NAME_INVALID"),
    ):
        found = pb.GraphSource(**named)  # type: ignore[arg-type]
        yield said, "SaveGraph", pb.SaveGraphRequest(graph=found)
        yield said, "Evaluate", pb.EvaluateRequest(graph=found)
        yield said, "DifferentiateGraph", pb.DifferentiateGraphRequest(graph=found)
        yield said, "GetGraph", pb.GetGraphRequest(**named)  # type: ignore[arg-type]
    yield "REQUEST_INVALID", "GetGraph", pb.GetGraphRequest()
    yield "REQUEST_INVALID", "DeleteGraph", pb.DeleteGraphRequest()
    yield "GRAPH_NOT_FOUND", "DeleteGraph", pb.DeleteGraphRequest(digest=bytes(32))
    yield "DIGEST_INVALID", "DeleteGraph", pb.DeleteGraphRequest(digest=b"a")
    yield "NAME_INVALID", "DeleteGraph", pb.DeleteGraphRequest(name=pb.NameChange())
    yield "REQUEST_INVALID", "ListGraphs", pb.ListGraphsRequest(page_size=1001)
    yield "NAME_INVALID", "ListGraphs", pb.ListGraphsRequest(name_prefix="a\0")
    for token in ("a", "AAAA", "é", "A" * 1000, "bm90aGluZw==", "!" * 12):
        yield "PAGE_TOKEN_INVALID", "ListGraphs", pb.ListGraphsRequest(page_token=token)
    yield "REQUEST_INVALID", "UploadGraph", []
    yield "REQUEST_INVALID", "UploadGraph", [pb.UploadGraphRequest()]
    yield "REQUEST_INVALID", "UploadGraph", [chunk(0, DATA)]
    yield "REQUEST_INVALID", "UploadGraph", [begin(DATA), begin(DATA)]
    yield "DIGEST_INVALID", "UploadGraph", [begin(DATA, digest=b"")]
    yield "GRAPH_INVALID", "UploadGraph", [begin(DATA, size=0)]
    yield "LIMIT_EXCEEDED", "UploadGraph", [begin(DATA, size=2**63)]
    yield "NAME_INVALID", "UploadGraph", [begin(DATA, name=nameless)]
    yield "UPLOAD_INVALID", "UploadGraph", [begin(DATA), chunk(1, DATA)]
    yield "UPLOAD_INVALID", "UploadGraph", [begin(DATA), chunk(2**64 - 1, DATA)]
    yield "UPLOAD_INVALID", "UploadGraph", [begin(DATA), chunk(0, DATA + b"x")]
    yield "UPLOAD_INVALID", "UploadGraph", [begin(DATA), chunk(0, DATA[:-1])]


def test_what_is_wrong_is_refused_with_its_reason(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    for expected, method, request in bad_calls():
        call = getattr(stub, method)

        def ask(call: Callable[..., object] = call, request: object = request) -> None:
            found = call(iter(request) if isinstance(request, list) else request)
            if isinstance(found, Iterator):
                list(found)

        assert reason(ask) == expected, (method, request)
    stub.SaveGraph(pb.SaveGraphRequest(graph=source(neuron())))
    beyond = pb.GetGraphRequest(digest=DIGEST, offset=len(DATA) + 1)
    assert reason(lambda: list(stub.GetGraph(beyond))) == "REQUEST_INVALID"
    assert reason(lambda: stub.UploadGraph(iter([begin(DATA, size=1)]))) == "UPLOAD_INVALID"


def test_token_is_for_its_prefix_only(stub: service_pb2_grpc.GradientServiceStub) -> None:
    for name in ("a1", "a2"):
        change = pb.NameChange(name=name)
        stub.SaveGraph(pb.SaveGraphRequest(graph=source(neuron()), name=change))
    token = stub.ListGraphs(pb.ListGraphsRequest(name_prefix="a", page_size=1)).next_page_token
    other = pb.ListGraphsRequest(page_token=token)
    assert reason(lambda: stub.ListGraphs(other)) == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize("sent", [[begin(DATA)], [begin(DATA), chunk(0, DATA)]])
def test_silent_upload_is_ended(
    sent: list[pb.UploadGraphRequest],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, over = Clock(), threading.Event()
    monkeypatch.setattr(silence, "monotonic", clock)
    server = EmbeddedServer(replace(LIMITS, session_idle_seconds=1))

    def parts() -> Iterator[pb.UploadGraphRequest]:
        yield from sent
        over.wait()

    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        call = stub.UploadGraph.future(parts())
        while stub.UploadGraph(iter(sent[:1])).received < len(DATA) * (len(sent) - 1):
            pass  # until all has come
        while not call.done():
            clock.pass_some()
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "--session-idle-seconds" in call.details()
        over.set()
        answer = stub.UploadGraph(iter(sent[:1]))
        assert answer.HasField("graph") == (len(sent) == 2)  # what came is there
    assert not caplog.records
    server.close()


def test_fields_that_are_wrong_are_named(stub: service_pb2_grpc.GradientServiceStub) -> None:
    bad, short = pb.NameChange(name=" f"), b"short"
    broken = neuron()
    broken.circuit.inputs[1].name = broken.circuit.inputs[0].name
    data = broken.SerializeToString()
    for field, call in (
        (
            "name.name",
            lambda: stub.SaveGraph(pb.SaveGraphRequest(graph=source(neuron()), name=bad)),
        ),
        (
            "graph.graph.circuit.inputs[1].name",
            lambda: stub.SaveGraph(pb.SaveGraphRequest(graph=source(broken))),
        ),
        ("page_size", lambda: stub.ListGraphs(pb.ListGraphsRequest(page_size=9999))),
        ("digest", lambda: [*stub.GetGraph(pb.GetGraphRequest(digest=short))]),
        ("begin.name.name", lambda: stub.UploadGraph(iter([begin(DATA, name=bad)]))),
        ("chunk.data", lambda: stub.UploadGraph(iter([begin(data), chunk(0, data)]))),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert field_of(failed.value) == field


def test_deleted_graph_is_gone_from_the_plans_too(connection: gw.Connection) -> None:
    graph = scaled(2.0)
    connection.save_graph(graph, "f")
    connection.evaluate("f", {"x": [1, 1, 1]})
    connection.delete_graph(graph.digest)
    with pytest.raises(gw.NotFoundError, match="no graph with the digest"):
        connection.evaluate(graph.digest, {"x": [1, 1, 1]})
    with pytest.raises(gw.NotFoundError, match="no graph is saved under the name 'f'"):
        connection.evaluate("f", {"x": [1, 1, 1]})


def test_server_without_a_store_says_so(tmp_path: Path) -> None:
    server = Server(LIMITS)
    address = server.start(f"unix:{tmp_path}/socket")
    with gw.connect(address) as connection:
        assert connection.describe().store == ""
        with pytest.raises(gw.UnsupportedError, match="start it with --store") as failure:
            connection.save_graph(scaled(1.0))
        assert failure.value.reason == "STORE_UNSUPPORTED"
        with pytest.raises(gw.UnsupportedError):
            connection.evaluate("f", {"x": [1, 1, 1]})
    with grpc.insecure_channel(address) as channel:
        plain = service_pb2_grpc.GradientServiceStub(channel)
        known = pb.EvaluateRequest(graph=pb.GraphSource(digest=DIGEST))
        assert reason(lambda: plain.Evaluate(known)) == "GRAPH_NOT_FOUND"
        first = plain.Evaluate(pb.EvaluateRequest(graph=source(neuron())))
        assert plain.Evaluate(known) == first  # it has it now
    server.stop(0)


def test_server_says_where_it_saves(connection: gw.Connection) -> None:
    found = connection.describe()
    assert found.store == "memory"
    limits = {limit.name: limit.value for limit in found.limits}
    assert limits["max-graph-bytes"] == LIMITS.max_graph_bytes
    assert "max-stored-bytes" in limits


def test_saved_graphs_that_were_used_last_stay_planned() -> None:
    graphs = [scaled(float(each)).to_bytes() for each in range(3)]
    loaded: list[bytes] = []

    def load(data: bytes) -> bytes:
        loaded.append(data)
        return data

    probe = GraphCache(1 << 30, lambda data: decode_graph(data, LIMITS)).find(graphs[0])
    cache = GraphCache(2 * probe.nbytes, lambda data: decode_graph(data, LIMITS))
    for each in (0, 1, 0, 2, 0, 1):
        data = graphs[each]
        entry = cache.find_saved(sha256(data).digest(), lambda data=data: load(data))
        assert entry.data == data
    assert loaded == [graphs[each] for each in (0, 1, 2, 1)]
    assert len(cache) == 2


def test_store_that_cannot_be_reached_is_not_a_server_that_is_gone(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, LIMITS)
    server = EmbeddedServer(LIMITS, store=store)
    store.close()
    with gw.connect(server.address) as connection:
        with pytest.raises(gw.UnavailableError, match="the store of graphs: ") as failure:
            connection.save_graph(scaled(1.0))
        assert failure.value.reason == "STORE_UNAVAILABLE"
        assert connection.evaluate(scaled(1.0), {"x": [1, 1, 1]})["f"].value == 3.0
    server.close()


def test_store_that_lost_bytes_gives_no_other_graph() -> None:
    class Forgetful(MemoryStore):
        def read(self, digest: bytes, offset: int = 0) -> Iterator[bytes]:
            yield from super().read(digest, offset + 1)

    server = EmbeddedServer(LIMITS, store=Forgetful(LIMITS))
    with gw.connect(server.address) as connection:
        connection.save_graph(scaled(1.0), "f")
        with pytest.raises(gw.ServerError, match="are not the graph"):
            connection.get_graph("f")
    server.close()


def test_command_evaluates_a_graph_by_its_name(server: EmbeddedServer) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        found = CliRunner().invoke(main, [*arguments, "--server", server.address])
        assert found.exit_code == code, found.output
        return found.output.strip()

    graph = scaled(2.0)
    with gw.connect(server.address) as connection:
        connection.save_graph(graph, "models/double")
    for known in ("models/double", graph.digest):
        found = json.loads(run("eval", known, "--set", "x=[1, 2, 3]", "--json"))
        assert found["outputs"] == {"f": [12.0]}
    said = run("eval", "models/double", code=1)
    assert said.startswith("gradwire: models/double: input 'x' has no value; add --set x=@x.npy")
    said = run("eval", "models/double", "--set", "x=[1, 2, 3]", "--set", "image=1", code=1)
    assert said == "gradwire: there is no input or parameter 'image'"
    assert "output out = 5" in run("eval", "x + y", "--set", "x=2", "--set", "y=3")


def test_commands_save_list_get_and_delete(server: EmbeddedServer, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        found = CliRunner().invoke(main, [*arguments, "--server", server.address])
        assert found.exit_code == code, found.output
        return found.output.strip()

    graph = scaled(2.0)
    file, copy = str(tmp_path / "f.gate"), str(tmp_path / "g.gate")
    graph.save(file)
    assert run("save", file, "--name", "f", "--expect", "nothing") == graph.digest
    assert "expected not to exist" in run(
        "save", file, "--name", "f", "--expect", "nothing", code=1
    )
    assert run("list").split()[0::3][0] == graph.digest
    row = json.loads(run("list", "f", "--json"))
    assert (row["name"], row["size"]) == ("f", len(graph.to_bytes()))
    assert run("get", "f", "-o", copy) == graph.digest
    assert Path(copy).read_bytes() == Path(file).read_bytes()
    assert run("delete", "f") == graph.digest
    assert "no graph is saved under the name 'f'" in run("get", "f", "-o", copy, code=1)
    assert run("get", graph.digest, "-o", copy) == graph.digest
    assert run("delete", graph.digest) == graph.digest
    assert run("list") == ""
