"""The page: the same answers as over gRPC, and nothing for other sites."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import queue
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np
import onnx
import pytest
from google.rpc import status_pb2
from patience import PATIENCE
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from wire import chain, neuron, source

import gradwire as gw
from gradwire import uploads
from gradwire.isolated import has_limits
from gradwire.local import PageOptions
from gradwire.v1 import graph_pb2, service_pb2, service_pb2_grpc
from gradwire_server.entry import Server
from gradwire_server.errors import REASONS
from gradwire_server.limits import Limits
from gradwire_server.store import MemoryStore
from gradwire_server.web.calls import Outbox
from gradwire_server.web.page import FILES, PORT, Web, bind, place_of
from gradwire_server.workers import AddressError

EVALUATE = "/gradwire.v1.GradientService/Evaluate"
STREAM = "/gradwire.v1.GradientService/EvaluateStream"
CONNECT, GRPC_WEB = "application/proto", "application/grpc-web+proto"
BYTES = "application/octet-stream"
ALL = [("GET", "/"), ("POST", EVALUATE), ("POST", "/open?name=x.gate"), ("POST", "/parse")]
TRAILERS = 0x80
SCRIPT = "export const page = 1;"


class Shown:
    """A server with its page, both in this process."""

    def __init__(self, folder: Path, limits: Limits, names: tuple[str, ...] = ()) -> None:
        self.server = Server(limits, store=MemoryStore(limits))
        self.address = self.server.start(f"unix:{folder}/socket")
        sockets = bind("127.0.0.1", 0)
        self.port: int = sockets[0].getsockname()[1]
        options = PageOptions(uploads.read_file, uploads.read_expression, None, names)
        self.server.show(replace(options.web(""), ui=folder / "ui"), sockets)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """One request; headers are written with underscores."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, named)
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        return answer, found

    def call(self, path: str, message: Any, kind: str = CONNECT) -> bytes:
        body = message.SerializeToString()
        if kind == GRPC_WEB:
            body = struct.pack(">BI", 0, len(body)) + body
        return self.ask("POST", path, body, content_type=kind)[1]

    def session(self, **options: Any) -> ClientConnection:
        options = {"open_timeout": PATIENCE, "ping_interval": None, **options}
        return connect(f"ws://{self.host}/session", compression=None, **options)

    def stub(self) -> service_pb2_grpc.GradientServiceStub:
        return service_pb2_grpc.GradientServiceStub(grpc.insecure_channel(self.address))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "ui" / "assets").mkdir(parents=True)
    (folder / "ui" / "index.html").write_text("<!doctype html><title>Gradwire</title>")
    (folder / "ui" / "assets" / "page-3f2a.js").write_text(SCRIPT)
    (folder / "secret").write_text("not for browsers")
    limits = Limits(max_message_bytes=20_000_000)
    shown = Shown(folder, limits, names=("gradients.example",))
    yield shown
    shown.server.stop(0)


class Outcomes(logging.Handler):
    """How calls ended, as the server logs it."""

    def __init__(self) -> None:
        super().__init__()
        self._found: queue.Queue[logging.LogRecord] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._found.put(record)

    def next_of(self, port: int) -> str:
        """That of the next call from a client's port to end."""
        while True:
            record = self._found.get(timeout=PATIENCE)
            if getattr(record, "peer", "").endswith(f":{port}"):
                found: str = getattr(record, "outcome", "")
                return found


@pytest.fixture
def outcomes() -> Iterator[Outcomes]:
    logger, handler = logging.getLogger("gradwire"), Outcomes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def frames(body: bytes) -> Iterator[tuple[int, bytes]]:
    """gRPC-Web's frames: flags, and message or trailers."""
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        yield flags, body[5 : 5 + size]
        body = body[5 + size :]


@contextmanager
def long_stream(
    page: Shown,
) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
    """A stream that has begun; it waits for its reader, as more follows than the way holds."""
    body = service_pb2.EvaluateStreamRequest(graph=source(chain(400_000))).SerializeToString()
    body = struct.pack(">BI", 0, len(body)) + body
    connection = http.client.HTTPConnection(page.host, timeout=PATIENCE)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    connection.sock.settimeout(PATIENCE)
    connection.sock.connect(("127.0.0.1", page.port))
    connection.request("POST", STREAM, body, {"Content-Type": GRPC_WEB})
    with closing(connection), connection.getresponse() as answer:
        assert answer.status == 200
        yield connection, answer


def session_request(number: int, **action: Any) -> bytes:
    return service_pb2.SessionRequest(request_id=number, **action).SerializeToString()


def opening(number: int = 1) -> bytes:
    return session_request(number, open=service_pb2.Open(graph=source(neuron())))


def heard(session: ClientConnection) -> service_pb2.SessionResponse:
    data = session.recv(timeout=PATIENCE)
    assert isinstance(data, bytes)
    return service_pb2.SessionResponse.FromString(data)


# Calls


def test_connect_answers_as_grpc_does(page: Shown) -> None:
    request = service_pb2.EvaluateRequest(graph=source(neuron()))
    found = service_pb2.EvaluateResponse.FromString(page.call(EVALUATE, request))
    assert found == page.stub().Evaluate(request)


def test_grpc_web_answers_as_grpc_does(page: Shown) -> None:
    request = service_pb2.EvaluateRequest(graph=source(neuron()))
    (_, message), (flags, trailers) = frames(page.call(EVALUATE, request, GRPC_WEB))
    assert service_pb2.EvaluateResponse.FromString(message) == page.stub().Evaluate(request)
    assert flags == TRAILERS
    assert b"grpc-status: 0" in trailers


def test_streams_bring_the_same_events_as_grpc(page: Shown) -> None:
    request = service_pb2.EvaluateStreamRequest(graph=source(neuron()))
    *events, (flags, trailers) = frames(page.call(STREAM, request, GRPC_WEB))
    found = [service_pb2.EvaluateStreamResponse.FromString(data) for _, data in events]
    assert found == list(page.stub().EvaluateStream(request))
    assert (flags, b"grpc-status: 0" in trailers) == (TRAILERS, True)


def test_refusals_carry_the_same_status_as_over_grpc(page: Shown) -> None:
    graph = neuron()
    graph.gates[0].operator = "Mull"
    request = service_pb2.EvaluateRequest(graph=source(graph))
    with pytest.raises(grpc.RpcError) as failed:
        page.stub().Evaluate(request)
    details = dict(failed.value.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    found = json.loads(page.call(EVALUATE, request))
    assert found["code"] == "unimplemented"
    assert found["message"] == status.message
    assert [each["type"] for each in found["details"]] == [
        each.type_url.partition("/")[2] for each in status.details
    ]


def test_what_is_no_message_is_refused(page: Shown) -> None:
    answer, body = page.ask("POST", EVALUATE, b"\xff\xff", content_type=CONNECT)
    assert answer.status == 400
    assert "2 bytes are not a serialized gradwire.v1.EvaluateRequest" in json.loads(body)["message"]


def test_messages_over_the_limit_are_refused(page: Shown) -> None:
    announced = struct.pack(">BI", 0, 20_000_001)
    _, found = page.ask("POST", EVALUATE, announced, content_type=GRPC_WEB)
    assert b"grpc-status: 8" in found
    answer, found = page.ask("POST", EVALUATE, bytes(20_000_001), content_type=CONNECT)
    assert (answer.status, json.loads(found)["code"]) == (429, "resource_exhausted")


def test_calls_that_browsers_cannot_make_are_not_offered(page: Shown) -> None:
    path = "/gradwire.v1.GradientService/UploadGraph"
    assert page.ask("POST", path, content_type=CONNECT)[0].status == 404


def test_closing_the_tab_stops_the_work(page: Shown, outcomes: Outcomes) -> None:
    with long_stream(page) as (connection, _):
        port = connection.sock.getsockname()[1]
    assert outcomes.next_of(port) == "CANCELLED"


def test_a_slow_reader_holds_up_the_sender() -> None:
    sent: list[int] = []

    async def read() -> None:
        outbox = Outbox(asyncio.get_running_loop())

        def send() -> None:
            for number in range(20):
                outbox.put(b"")
                sent.append(number)
            outbox.end(None)

        sender = threading.Thread(target=send)
        sender.start()
        taken = 0
        async for _ in outbox.messages():
            taken += 1
            assert len(sent) <= taken + 3
        sender.join()
        assert taken == 20

    asyncio.run(read())


def test_a_sender_whose_reader_has_gone_stops() -> None:
    async def leave() -> list[bool]:
        outbox = Outbox(asyncio.get_running_loop())
        outbox.close()
        return [outbox.put(b"") for _ in range(9)]

    assert asyncio.run(leave()) == [False] * 9


# Sessions


def test_session_answers_as_grpc_does(page: Shown) -> None:
    step = service_pb2.Step()
    with page.session() as session:
        session.send(opening(1))
        session.send(session_request(2, step=step))
        found = [heard(session), heard(session)]
    requests = [
        service_pb2.SessionRequest.FromString(each)
        for each in (opening(1), session_request(2, step=step))
    ]
    assert found == list(page.stub().Session(iter(requests)))


def test_refused_step_leaves_the_session_open(page: Shown) -> None:
    with page.session() as session:
        session.send(opening())
        session.send(session_request(2))
        session.send(session_request(3, step=service_pb2.Step()))
        answers = [heard(session) for _ in range(3)]
    assert [each.WhichOneof("outcome") for each in answers] == ["started", "error", "result"]


def test_session_that_fails_says_why_and_ends(page: Shown) -> None:
    with page.session() as session:
        session.send(session_request(1, step=service_pb2.Step()))
        error = heard(session).error
        assert (error.reason, error.message) == (
            "REQUEST_INVALID",
            "the first message of a session is open",
        )
        with pytest.raises(ConnectionClosed) as closed:
            session.recv(timeout=PATIENCE)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "REQUEST_INVALID")


def test_sessions_over_the_limit_are_refused(tmp_path: Path) -> None:
    page = Shown(tmp_path, Limits(max_sessions=1))
    with page.session() as first, page.session() as second:
        first.send(opening())
        assert heard(first).started.value_count == 14
        refused = heard(second).error
    page.server.stop(0)
    assert refused.reason == "LIMIT_EXCEEDED"
    assert {fact.key: fact.value for fact in refused.facts}["flag"] == "--max-sessions"


def test_closing_the_tab_ends_its_session(page: Shown, outcomes: Outcomes) -> None:
    with page.session() as session:
        session.send(opening())
        assert heard(session).started.value_count == 14
        port = session.local_address[1]
    assert outcomes.next_of(port) == "OK"


def test_text_ends_a_session(page: Shown) -> None:
    with page.session() as session:
        session.send("open")
        with pytest.raises(ConnectionClosed) as closed:
            session.recv(timeout=PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1003


def test_messages_over_the_limit_end_a_session(page: Shown) -> None:
    with page.session() as session:
        announced = struct.pack(">BBQ", 0x82, 0xFF, 20_000_001)  # a masked frame of bytes
        session.socket.sendall(announced + bytes(4))
        with pytest.raises(ConnectionClosed) as closed:
            session.recv(timeout=PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


# Files and expressions


def opened(page: Shown, name: str, content: bytes) -> tuple[int, Any]:
    answer, body = page.ask("POST", f"/open?name={name}", content, content_type=BYTES)
    if answer.status == 200:
        assert answer.headers["content-type"] == "application/x-protobuf"
        return 200, graph_pb2.Graph.FromString(body)
    return answer.status, json.loads(body)


def test_gate_file_opens(page: Shown, tmp_path: Path) -> None:
    graph = gw.Graph.from_bytes(neuron().SerializeToString())
    graph.save(tmp_path / "neuron.gate")
    content = (tmp_path / "neuron.gate").read_bytes()
    assert opened(page, "neuron.gate", content) == (200, neuron())
    assert opened(page, "neuron.txt", graph.to_text().encode()) == (200, neuron())


def test_model_opens_at_sizes_and_at_a_point(page: Shown) -> None:
    body = """g (float[n, m] x) => (float y) <float zero = {0}>
      { c = Greater(x, zero) i = NonZero(c) j = Transpose(i) p = GatherND(x, j)
        y = ReduceSum<keepdims = 0>(p) }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>{body}')
    content = model.SerializeToString()
    status, refusal = opened(page, "mask.onnx", content)
    assert (status, refusal["reason"], refusal["facts"]["input"]) == (400, "INPUT_NOT_KNOWN", "x")
    status, graph = opened(page, "mask.onnx&size=n=1&at=x=[[1,-2,3]]", content)
    assert status == 200
    assert "AssertEqual" in {each.operator for each in graph.gates}
    status, graph = opened(page, "mask.onnx&fix=x=[[1,-2,3]]", content)
    assert not graph.circuit.inputs
    for option in ("size=n", "size=n=x", "at=x={}", "fix=x=["):
        status, refusal = opened(page, f"mask.onnx&{option}", content)
        assert (status, refusal["reason"]) == (400, "REQUEST_INVALID")


def add_model() -> onnx.ModelProto:
    given = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in ("x", "y")]
    weight = onnx.numpy_helper.from_array(np.ones(2, "float32"), "w")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "add", given[:1], given[1:], [weight])
    return onnx.helper.make_model(graph)


def test_onnx_file_opens(page: Shown) -> None:
    status, graph = opened(page, "add.onnx", add_model().SerializeToString())
    assert status == 200
    assert [each.operator for each in graph.gates] == ["Add"]


#: Axes of GatherND's inputs, and batch_dims, at which shape inference crashes, or never ends.
CRASH, HANG = ("3, 3", "1, 2, 1", -100), ("1", "3, 2, 1, 1", -(2**31))


def gathering(data: str, indices: str, batch_dims: int) -> bytes:
    """A model whose number of trips depends on a shape that GatherND yields."""
    body = f"""g (float[4] x, float[{data}] q, int64[{indices}] k) => (float[4] y) {{
      w = GatherND<batch_dims = {batch_dims}>(q, k)  s = Shape(w)  m = ReduceMax<keepdims = 0>(s)
      y = Loop(m, , x) <body = body (int64 i, bool c, float[4] a) => (bool c2, float[4] b)
        {{ c2 = Identity(c)  b = Add(a, a) }}> }}"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18]>{body}')
    return bytes(model.SerializeToString())


def test_model_that_crashes_its_reader_ends_no_server(page: Shown) -> None:
    status, refusal = opened(page, "crash.onnx", gathering(*CRASH))
    assert (status, refusal["reason"]) == (400, "MODEL_INVALID")
    assert refusal["message"].startswith("crash.onnx: its reader ended by SIG")
    assert opened(page, "add.onnx", add_model().SerializeToString())[0] == 200


def test_reading_ends_when_whoever_sent_it_leaves(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Limits(max_read_seconds=1_000_000))
    for _ in range(2 * FILES):  # more than are read at the same time
        sent = http.client.HTTPConnection(shown.host, timeout=PATIENCE)
        sent.request("POST", "/open?name=hang.onnx", gathering(*HANG), {"Content-Type": BYTES})
        sent.close()
    assert opened(shown, "add.onnx", add_model().SerializeToString())[0] == 200
    shown.server.stop(0)


def test_a_server_that_stops_ends_what_it_reads(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Limits(max_read_seconds=1_000_000))
    with closing(http.client.HTTPConnection(shown.host, timeout=PATIENCE)) as sent:
        sent.request("POST", "/open?name=hang.onnx", gathering(*HANG), {"Content-Type": BYTES})
        status, _ = opened(shown, "add.onnx", add_model().SerializeToString())  # it has begun
        shown.server.stop(0)
    assert status == 200


@pytest.mark.skipif(not has_limits(), reason="the system has no such limit")
def test_time_for_reading_is_limited_by_its_flag(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Limits(max_read_seconds=1))
    status, refusal = opened(shown, "hang.onnx", gathering(*HANG))
    shown.server.stop(0)
    assert (status, refusal["reason"]) == (400, "LIMIT_EXCEEDED")
    assert refusal["message"].endswith("or start the server with a larger --max-read-seconds")
    assert refusal["facts"]["limit"] == "max-read-seconds"


def test_what_readers_make_is_checked_as_a_request_is(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Limits(max_nodes=3))
    answer, body = shown.ask("POST", "/parse", b"x+x+x+x+x", content_type=BYTES)
    shown.server.stop(0)
    assert answer.status == 413
    assert json.loads(body)["facts"]["limit"] == "max-nodes"


def test_onnx_file_reads_no_file_of_the_server(page: Shown) -> None:
    model = add_model()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret")
    status, refusal = opened(page, "add.onnx", model.SerializeToString())
    assert (status, refusal["reason"]) == (400, "TENSOR_INVALID")
    assert "add.onnx: initializer 'w': its elements are in another file" in refusal["message"]


def test_file_with_values_beside_it_says_what_to_do(page: Shown, tmp_path: Path) -> None:
    graph = gw.Graph()
    graph.output("f", graph.parameter("w", np.ones(5000)) * 2.0)
    graph.save(tmp_path / "big.gate", blobs=True)
    status, refusal = opened(page, "big.gate", (tmp_path / "big.gate").read_bytes())
    assert (status, refusal["reason"]) == (400, "BLOBS_MISSING")
    assert "big.gate: its large values are in a file beside it" in refusal["message"]


@pytest.mark.parametrize("name", ["broken.gate", "broken.onnx", "broken.png"])
def test_broken_file_is_refused_by_its_name(page: Shown, name: str) -> None:
    for content in (b"\x89PNG\r\n\x1a\n", b"\x0a\x0egradwire graph\x12"):
        status, refusal = opened(page, name, content)
        assert status == 400
        assert refusal["message"].startswith(f"{name}: ")
        assert "the model" not in refusal["message"]


@pytest.mark.parametrize("name", ["", "a/b.gate", "a%00.gate", "x" * 201])
def test_file_needs_a_name_of_its_own(page: Shown, name: str) -> None:
    status, refusal = opened(page, name, b"")
    assert (status, refusal["reason"]) == (400, "REQUEST_INVALID")


def test_file_over_the_limit_is_refused_before_it_is_read(page: Shown) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE) as raw:
        raw.sendall(
            f"POST /open?name=big.onnx HTTP/1.1\r\nHost: {page.host}\r\nContent-Type: {BYTES}\r\n"
            "Content-Length: 20000001\r\n\r\n".encode()
        )
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        refusal = json.loads(answer.read())
    assert answer.status == 413
    assert "20000001 is over the limit of 20000000" in refusal["message"]
    assert refusal["facts"]["flag"] == "--max-message-bytes"


def test_body_of_unknown_length_is_read_up_to_the_limit(page: Shown) -> None:
    connection = http.client.HTTPConnection(page.host, timeout=PATIENCE)
    pieces = (bytes(1_000_000) for _ in range(21))
    headers = {"Content-Type": BYTES}
    connection.request("POST", "/open?name=big.gate", pieces, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_expression_becomes_a_graph(page: Shown) -> None:
    answer, body = page.ask("POST", "/parse", b"f = 1/(1 + exp(-w*x))", content_type=BYTES)
    assert answer.status == 200
    graph = graph_pb2.Graph.FromString(body)
    assert [each.name for each in graph.circuit.inputs] == ["w", "x"]
    assert [each.name for each in graph.circuit.outputs] == ["f"]


def test_wrong_expression_says_in_which_column(page: Shown) -> None:
    answer, body = page.ask("POST", "/parse", b"w0 * * x", content_type=BYTES)
    refusal = json.loads(body)
    assert (answer.status, refusal["reason"]) == (400, "EXPRESSION_INVALID")
    assert refusal["facts"] == {"line": "1", "column": "6"}
    assert refusal["message"].startswith("line 1, column 6: ")


def test_expression_that_is_no_text_is_refused(page: Shown) -> None:
    answer, body = page.ask("POST", "/parse", b"x\xff", content_type=BYTES)
    assert (answer.status, json.loads(body)["message"]) == (400, "byte 1: is not UTF-8")


# The page's files


def test_page_is_never_old(page: Shown) -> None:
    answer, body = page.ask("GET", "/")
    assert b"<title>Gradwire" in body
    assert answer.headers["cache-control"] == "no-cache"


def test_files_with_a_digest_in_their_name_are_kept(page: Shown) -> None:
    answer, body = page.ask("GET", "/assets/page-3f2a.js")
    assert body.decode() == SCRIPT
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/javascript")
    missing, _ = page.ask("GET", "/assets/page-0000.js")
    assert (missing.status, missing.headers["cache-control"]) == (404, None)


@pytest.mark.parametrize("path", ["/../secret", "/%2e%2e/secret", "/assets/..%2f..%2fsecret"])
def test_no_other_file_is_served(page: Shown, path: str) -> None:
    answer, body = page.ask("GET", path)
    assert answer.status == 404
    assert b"not for browsers" not in body


def test_unbuilt_page_says_how_to_build_it(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Limits())
    answer, body = shown.ask("GET", "/")
    shown.server.stop(0)
    assert answer.status == 503
    assert b"npm ci && npm run build" in body


@pytest.mark.parametrize(("method", "path"), [*ALL, ("GET", "/assets/page-3f2a.js"), ("GET", "/x")])
def test_every_answer_tells_the_browser_what_is_allowed(
    page: Shown, method: str, path: str
) -> None:
    for host in (page.host, "evil.example"):
        answer, _ = page.ask(method, path, content_type=BYTES, host=host)
        policy = answer.headers["content-security-policy"].split("; ")
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert not any("unsafe-inline" in each or each == "'unsafe-eval'" for each in policy)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in answer.headers if name.startswith("access-control")]


# Other sites


def reason(page: Shown, method: str, path: str, **headers: str) -> str:
    answer, body = page.ask(method, path, **{"content_type": BYTES, **headers})
    if answer.status != 403:
        return ""
    found: str = json.loads(body)["reason"]
    assert found in REASONS
    return found


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5051", "127.0.0.1.evil.example", "localhost:x", "[::1"]
)
def test_names_that_are_not_the_servers_are_refused(
    page: Shown, method: str, path: str, host: str
) -> None:
    assert reason(page, method, path, host=host) == "HOST_REFUSED"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9000", "[::1]:80", "10.1.2.3", "gradients.example:8443"]
)
def test_names_of_the_server_are_its_own(page: Shown, host: str) -> None:
    assert reason(page, "GET", "/", host=host) == ""


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "http://localhost", ""]
)
def test_other_origins_are_refused(page: Shown, method: str, path: str, origin: str) -> None:
    assert reason(page, method, path, origin=origin) == "ORIGIN_REFUSED"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_pages_own_origin_may_call(page: Shown, scheme: str) -> None:
    assert reason(page, "POST", "/parse", origin=f"{scheme}://{page.host}") == ""


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_are_refused(page: Shown, method: str, path: str, site: str) -> None:
    assert reason(page, method, path, sec_fetch_site=site) == "ORIGIN_REFUSED"


def test_a_link_from_another_site_leads_to_the_page(page: Shown) -> None:
    headers = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert reason(page, "GET", "/", **headers, sec_fetch_dest="document") == ""
    assert reason(page, "GET", "/", **headers, sec_fetch_dest="iframe") == "ORIGIN_REFUSED"


@pytest.mark.parametrize(("method", "path"), ALL[1:])
@pytest.mark.parametrize(
    "kind", ["text/plain;charset=UTF-8", "multipart/form-data; boundary=x", "", "Text/Plain"]
)
def test_what_a_form_can_send_is_refused(page: Shown, method: str, path: str, kind: str) -> None:
    assert reason(page, method, path, content_type=kind) == "CONTENT_TYPE_REFUSED"


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:3000", "null"])
def test_other_origins_open_no_session(page: Shown, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        page.session(origin=origin)
    assert refused.value.response.status_code == 403


def test_the_pages_own_origin_opens_a_session(page: Shown) -> None:
    with page.session(origin=f"http://{page.host}") as session:
        session.send(opening())
        assert heard(session).started.value_count == 14


# The process


def test_draining_lets_a_stream_end_and_ends_sessions(tmp_path: Path) -> None:
    shown = Shown(tmp_path, Limits())
    with long_stream(shown) as (_, answer), shown.session() as session:
        session.send(opening())
        heard(session)
        stopping = threading.Thread(target=shown.server.stop, args=(PATIENCE,))
        stopping.start()
        with pytest.raises(ConnectionClosed) as closed:
            session.recv(timeout=PATIENCE)
        *_, (flags, trailers) = frames(answer.read())
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    assert (flags, b"grpc-status: 0" in trailers) == (TRAILERS, True)
    stopping.join()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", shown.port), timeout=PATIENCE)


def no_readers(limits: Limits) -> NoReturn:
    raise AssertionError(f"nobody came, and {limits} are asked for")


def test_page_moves_where_its_usual_port_is_taken() -> None:
    with ExitStack() as stack:
        try:
            held = bind("127.0.0.1", PORT)
        except AddressError:
            held = []  # by another server of this machine, which serves as well
        place, sentence = place_of("127.0.0.1:0", Web(no_readers), shared=False, stack=stack)
        assert place is not None
        assert place.port != PORT
        assert sentence.endswith(f"{place.url} (port {PORT} is taken)")
        for each in held:
            each.close()


@pytest.mark.parametrize("shared", [False, True])
def test_given_port_that_is_taken_is_an_error(shared: bool) -> None:
    (held,) = bind("127.0.0.1", 0)
    port = held.getsockname()[1]
    with (
        held,
        ExitStack() as stack,
        pytest.raises(AddressError, match=rf"127\.0\.0\.1:{port}: .*give another --web-port"),
    ):
        place_of("127.0.0.1:0", Web(no_readers, port), shared=shared, stack=stack)


def test_name_that_is_listened_on_is_the_pages_own() -> None:
    options = PageOptions(uploads.read_file, uploads.read_expression, None, ("proxy.example",))
    assert options.web("box.example:50051").names == ("proxy.example", "box.example")
    assert options.web(":50051").names == ("proxy.example",)


def test_unix_socket_has_a_page_only_where_it_is_asked_for() -> None:
    with ExitStack() as stack:
        place, sentence = place_of("unix:/tmp/x", Web(no_readers), shared=False, stack=stack)
        assert (place, sentence) == (None, "")
        place, _ = place_of("unix:/tmp/x", Web(no_readers, 0), shared=False, stack=stack)
        assert place is not None
        assert place.host == "127.0.0.1"


def test_host_that_cannot_be_had_costs_the_page_only() -> None:
    with ExitStack() as stack:
        web = Web(no_readers)
        place, sentence = place_of("ipv4:127.0.0.1:0", web, shared=False, stack=stack)
    assert place is None
    assert sentence.startswith("gradwire shows no page: cannot show the page on ipv4:127.0.0.1")


SERVE = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", "127.0.0.1:0"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_command_says_where_the_page_is(workers: str) -> None:
    command = [*SERVE, "--web-port", "0", "--workers", workers]
    request = service_pb2.EvaluateRequest(graph=source(neuron())).SerializeToString()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        sentence = process.stdout.readline()
        port = int(sentence.rpartition(":")[2].rstrip("/\n"))
        assert sentence == f"gradwire shows its page on http://127.0.0.1:{port}/\n"
        for _ in range(8):  # by whichever worker
            with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
                connection.request("POST", EVALUATE, request, {"Content-Type": CONNECT})
                answer = connection.getresponse()
                assert answer.status == 200
                assert service_pb2.EvaluateResponse.FromString(answer.read()).result.outputs
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0


@pytest.mark.slow
def test_command_without_the_page_shows_none() -> None:
    with subprocess.Popen([*SERVE, "--no-web"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.stdout.read() == ""


UNVISITED = """
import sys
from gradwire_server.entry import Server
from gradwire_server.limits import Limits
from gradwire_server.web.page import Web, bind
server = Server(Limits())
server.start("127.0.0.1:0")
server.show(Web(None), bind("127.0.0.1", 0))
server.stop(0)
print(sorted({"connectrpc", "starlette", "uvicorn", "websockets"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_page_that_nobody_visits_loads_nothing() -> None:
    found = subprocess.run(
        [sys.executable, "-c", UNVISITED], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
