"""Memory shared between a client and a server on one machine: the same results, and no way in."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from patience import PATIENCE

import gradwire as gw
from gradwire import requests
from gradwire.results import decode_result
from gradwire.segments import INLINE, Exchange, Pool, Segment
from gradwire.v1 import graph_pb2, service_pb2, service_pb2_grpc, tensor_pb2
from gradwire_server.entry import EmbeddedServer, Server
from gradwire_server.limits import Limits
from gradwire_server.segments import MOST_SEGMENTS, Region, Segments, SharedMemoryError

SIZE = 20_000
LIMITS = Limits(max_message_bytes=1 << 22, max_shared_bytes=1 << 26)


def squares() -> gw.Graph:
    """Large arguments, a large parameter and a large output, besides small ones."""
    graph = gw.Graph()
    x, y = graph.input("x", shape=(SIZE,)), graph.input("y", shape=(2, SIZE))
    w, b = graph.parameter("w", np.linspace(0, 1, SIZE)), graph.parameter("b", 2.0)
    rows = w * x * x * y + b
    graph.output("rows", rows)
    graph.output("f", gw.reduce_sum(rows, keepdims=0))
    return graph


def points(number: int = 1) -> Any:
    chance = np.random.default_rng(number)
    return {"x": chance.normal(size=SIZE), "y": chance.normal(size=(SIZE, 2)).T}


SEEDS = {"f": 1.0, "rows": np.random.default_rng(0).normal(size=(2, SIZE))}


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    embedded = EmbeddedServer(LIMITS, shares_memory=True)
    yield embedded
    embedded.close()


@pytest.fixture
def stub(server: EmbeddedServer) -> Iterator[service_pb2_grpc.GradientServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)


@pytest.fixture
def path(stub: service_pb2_grpc.GradientServiceStub) -> str:
    found: str = stub.DescribeServer(service_pb2.DescribeServerRequest()).shared_memory_socket
    return found


def assert_same(found: gw.Result, expected: gw.Result) -> None:
    np.testing.assert_equal(found.outputs, expected.outputs)
    np.testing.assert_equal(found.gradients, expected.gradients)
    np.testing.assert_equal(found.node_values, expected.node_values)


def is_shared(array: Any) -> bool:
    """Whether the array is a view of a segment."""
    return isinstance(array.base, np.ndarray) and array.base.dtype == np.uint8


# ---- the same results


@pytest.mark.parametrize("options", [{}, {"values": True, "gradients": True}], ids=["few", "all"])
def test_evaluation_is_the_same_with_shared_memory(
    server: EmbeddedServer, options: dict[str, Any]
) -> None:
    with (
        gw.connect(server.address) as plain,
        gw.connect(server.address, shared_memory=True) as sharing,
    ):
        expected = plain.evaluate(squares(), points(), seeds=SEEDS, **options)
        for _ in range(3):
            found = sharing.evaluate(squares(), points(), seeds=SEEDS, **options)
            assert_same(found, expected)
    large = [found.outputs["rows"], *(found.gradients[name] for name in "xyw")]
    assert all(map(is_shared, large))
    assert not is_shared(found.gradients["b"])
    assert not any(each.flags.writeable for each in large)


def test_batches_and_streams_are_the_same_with_shared_memory(server: EmbeddedServer) -> None:
    graph = gw.Graph()
    graph.output("f", gw.reduce_sum_square(graph.input("x", shape=(SIZE,)), keepdims=0))
    x = np.random.default_rng(2).normal(size=(3, SIZE))
    with (
        gw.connect(server.address) as plain,
        gw.connect(server.address, shared_memory=True) as sharing,
    ):
        expected = plain.evaluate(graph, {"x": x}, batched=["x"])
        assert_same(sharing.evaluate(graph, {"x": x}, batched=["x"]), expected)
        streams = [
            [*each.stream(squares(), points(), seeds=SEEDS)] for each in (plain, sharing, sharing)
        ]
    for stream in streams:
        for mine, theirs in zip(stream[:-1], streams[0][:-1], strict=True):
            assert isinstance(mine, gw.Event)
            assert isinstance(theirs, gw.Event)
            assert (mine.kind, mine.id) == (theirs.kind, theirs.id)
            np.testing.assert_array_equal(mine.content, theirs.content)
        assert isinstance(stream[-1], gw.Result)
        assert isinstance(streams[0][-1], gw.Result)
        assert_same(stream[-1], streams[0][-1])
    assert isinstance(streams[2][-1], gw.Result)
    assert is_shared(streams[2][-1].gradients["x"])


def test_pipelined_steps_never_mix_their_segments(server: EmbeddedServer) -> None:
    """Every result is kept until the end, while later steps are sent and answered."""
    graph, many = squares(), [points(number) for number in range(12)]
    with (
        gw.connect(server.address) as plain,
        gw.connect(server.address, shared_memory=True) as sharing,
        sharing.session(graph, many[0], seeds=SEEDS) as session,
    ):
        alone = [session.step(each) for each in many]
        together = session.steps(many)
        again = session.steps(many)
        backward = session.backward({"rows": SEEDS["rows"]})
        expected = [plain.evaluate(graph, each, seeds=SEEDS) for each in many]
        last = plain.evaluate(graph, many[-1], seeds={"rows": SEEDS["rows"]})
    for found in (alone, together, again):
        for mine, theirs in zip(found, expected, strict=True):
            assert_same(mine, theirs)
    np.testing.assert_equal(backward.gradients, last.gradients)
    assert is_shared(again[0].gradients["x"])


def test_asyncio_has_shared_memory_too(server: EmbeddedServer) -> None:
    graph, many = squares(), [points(number) for number in range(4)]

    async def ask() -> list[gw.Result]:
        async with gw.connect_async(server.address, shared_memory=True) as sharing:
            found = [await sharing.evaluate(graph, many[0], seeds=SEEDS)]
            found += await asyncio.gather(
                *(sharing.evaluate(graph, each, seeds=SEEDS) for each in many)
            )
            async for item in sharing.stream(graph, many[1], seeds=SEEDS):
                if isinstance(item, gw.Result):
                    found.append(item)
            async with await sharing.session(graph, many[0], seeds=SEEDS) as session:
                found += await session.steps(many)
                found.append(await session.step(many[2]))
        return found

    order = [0, *range(4), 1, *range(4), 2]
    with gw.connect(server.address) as plain:
        expected = [plain.evaluate(graph, each, seeds=SEEDS) for each in many]
    found = asyncio.run(ask())
    for number, result in zip(order, found, strict=True):
        assert_same(result, expected[number])
    assert is_shared(found[-1].gradients["x"])


def test_embedded_server_shares_memory() -> None:
    with gw.local(shared_memory=True) as server:
        found = server.evaluate(squares(), points(), seeds=SEEDS)
    assert is_shared(found.gradients["x"])


# ---- whose a segment is


def test_segment_is_used_again_only_when_the_last_view_is_gone(server: EmbeddedServer) -> None:
    with gw.connect(server.address, shared_memory=True) as sharing:
        kept = [sharing.evaluate(squares(), points(n), seeds=SEEDS) for n in range(3)]
        before = [result.gradients["x"].copy() for result in kept]
        part = kept.pop().gradients["x"][5:10]  # keeps all of its segment
        sharing.evaluate(squares(), points(7), seeds=SEEDS)
        for result, x in zip(kept, before, strict=False):
            np.testing.assert_array_equal(result.gradients["x"], x)
        np.testing.assert_array_equal(part, before[2][5:10])
        owner = weakref.ref(part.base)
        del part
        gc.collect()
        assert owner() is None
        for number in range(20):
            sharing.evaluate(squares(), points(number), seeds=SEEDS)
        assert sharing._memory._pool is not None
        assert len(sharing._memory._pool._segments) <= 8


def test_threads_share_a_connection_and_no_segment(server: EmbeddedServer) -> None:
    graph, many = squares(), [points(number) for number in range(4)]
    with (
        gw.connect(server.address) as plain,
        gw.connect(server.address, shared_memory=True) as sharing,
        ThreadPoolExecutor(len(many)) as threads,
    ):
        expected = [plain.evaluate(graph, each, seeds=SEEDS) for each in many]

        def ask(number: int) -> list[gw.Result]:
            return [sharing.evaluate(graph, many[number], seeds=SEEDS) for _ in range(8)]

        for number, found in enumerate(threads.map(ask, range(len(many)))):
            for result in found:
                assert_same(result, expected[number])


def test_client_shares_memory_with_the_server_that_answers_next(tmp_path: Path) -> None:
    meeting, address = str(tmp_path / "meeting"), f"unix:{tmp_path}/socket"
    first = Server(LIMITS, shared_memory=meeting)
    first.start(address)
    with gw.connect(address, shared_memory=True) as sharing:
        expected = sharing.evaluate(squares(), points(), seeds=SEEDS)
        first.stop(0)
        second = Server(LIMITS, shared_memory=meeting)
        second.start(address)
        wait_until_ready(sharing._channel)
        with pytest.raises(gw.InvalidRequestError) as refused:
            sharing.evaluate(squares(), points(), seeds=SEEDS)
        assert refused.value.reason == "SHARED_MEMORY_INVALID"
        found = sharing.evaluate(squares(), points(), seeds=SEEDS)
        assert_same(found, expected)
        assert is_shared(found.gradients["x"])
    second.stop(0)


def wait_until_ready(channel: grpc.Channel) -> None:
    """Until a channel has found a new server at its address."""
    ready = Event()
    channel.subscribe(
        lambda state: ready.set() if state is grpc.ChannelConnectivity.READY else None,
        try_to_connect=True,
    )
    assert ready.wait(PATIENCE)


def test_results_outlive_their_connection(server: EmbeddedServer) -> None:
    with gw.connect(server.address, shared_memory=True) as sharing:
        found = sharing.evaluate(squares(), points(), seeds=SEEDS)
    server.close()
    with gw.local() as other:
        assert_same(found, other.evaluate(squares(), points(), seeds=SEEDS))


def test_segments_of_a_failed_call_are_not_used_again(path: str) -> None:
    pool = Pool(path, "here")
    sent = service_pb2.EvaluateRequest()
    with contextlib.suppress(KeyError), Exchange(pool) as exchange:
        exchange.put(np.zeros(SIZE))
        exchange.offer(sent)
        used = {*exchange._arguments, exchange._results}
        raise KeyError
    assert not used & pool._segments
    assert not used & set(pool._free)
    pool.close()


def test_without_room_arrays_travel_in_messages(server: EmbeddedServer) -> None:
    """More results kept than the client has segments, or than the server allows bytes."""
    with gw.connect(server.address, shared_memory=True) as sharing:
        kept = [sharing.evaluate(squares(), points(n), seeds=SEEDS) for n in range(80)]
    shared = [is_shared(result.gradients["x"]) for result in kept]
    assert any(shared)
    assert not all(shared)
    with gw.local() as other:
        for number in (0, 79):
            expected = other.evaluate(squares(), points(number), seeds=SEEDS)
            assert_same(kept[number], expected)


def test_answer_that_refers_to_anything_else_is_refused(path: str) -> None:
    pool = Pool(path, "here")
    with Exchange(pool) as exchange:
        exchange.put(np.zeros(SIZE))
        exchange.offer(service_pb2.EvaluateRequest())
        assert exchange._results is not None
        name, size = exchange._results.name, exchange._results.size
        for region in (
            {"segment": "0" * 32, "size": 64},
            {"segment": name, "offset": size, "size": 64},
            {"segment": name, "offset": 1, "size": 64},
            {"segment": name, "offset": 2**64 - 64, "size": 64},
            {"segment": name, "size": 56},
        ):
            tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT64, shape=[8])
            tensor.shared.CopyFrom(tensor_pb2.SharedRegion(**region))
            answer = service_pb2.Result(outputs=[tensor_pb2.NamedTensor(name="f", tensor=tensor)])
            with pytest.raises(gw.ServerError, match="are not where its results were to go"):
                decode_result(answer, gw.Graph(), exchange)
            with pytest.raises(gw.ServerError):
                decode_result(answer, gw.Graph())
    pool.close()


# ---- hostile clients


def hand_over(path: str, descriptor: int, data: bytes = b"segment") -> tuple[socket.socket, str]:
    """A connection on which the file was handed over, and the answer."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(PATIENCE)
    client.connect(path)
    socket.send_fds(client, [data], [descriptor] if descriptor >= 0 else [])
    return client, client.recv(1024).decode()


def memfd(size: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def binding(name: str, offset: int = 0, size: int = 8 * SIZE, elements: int = SIZE) -> bytes:
    """A serialized request whose x is in shared memory."""
    graph = gw.Graph()
    graph.output("f", gw.reduce_sum(graph.input("x", shape=("n",)), keepdims=0))
    region = tensor_pb2.SharedRegion(segment=name, offset=offset, size=size)
    tensor = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_FLOAT64, shape=[elements], shared=region
    )
    asked = service_pb2.Evaluation(bindings=[service_pb2.Binding(leaf="x", tensor=tensor)])
    request = service_pb2.EvaluateRequest(graph=requests.source(graph), evaluation=asked)
    return request.SerializeToString()


def refusal(stub: service_pb2_grpc.GradientServiceStub, request: Any) -> tuple[str, str]:
    """Reason and sentence of a refused call."""
    if isinstance(request, bytes):
        request = service_pb2.EvaluateRequest.FromString(request)
    with pytest.raises(grpc.RpcError) as failed:
        stub.Evaluate(request, timeout=PATIENCE)
    info = error_details_pb2.ErrorInfo()
    rpc_status.from_call(failed.value).details[0].Unpack(info)
    return info.reason, failed.value.details()


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../../etc/passwd", ".", "..", "socket", "a\0b", "0" * 32, "é" * 1000],
)
def test_name_that_the_server_has_not_given_is_refused(
    name: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    reason, sentence = refusal(stub, binding(name))
    assert reason == "SHARED_MEMORY_INVALID"
    assert sentence.startswith("binding of leaf 'x': this server was given no segment")


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        ({"offset": 1 << 20}, "SHARED_MEMORY_INVALID"),
        ({"offset": (1 << 20) - 8 * SIZE + 1}, "SHARED_MEMORY_INVALID"),
        ({"offset": 2**64 - 1}, "SHARED_MEMORY_INVALID"),
        ({"offset": 2**64 - 8 * SIZE}, "SHARED_MEMORY_INVALID"),
        ({"size": 2**64 - 8}, "TENSOR_INVALID"),
        ({"size": 8 * SIZE + 8}, "TENSOR_INVALID"),
        ({"elements": SIZE - 1}, "TENSOR_INVALID"),
        ({"elements": 2**60, "size": 2**63}, "LIMIT_EXCEEDED"),
        ({"elements": 1 << 19, "size": 1 << 22}, "LIMIT_EXCEEDED"),
    ],
)
def test_region_outside_the_segment_or_of_another_size_is_refused(
    region: dict[str, int], reason: str, path: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    segment = Segment(path, 1 << 20)
    assert refusal(stub, binding(segment.name, **region))[0] == reason
    whole = service_pb2.EvaluateRequest.FromString(binding(segment.name))
    assert stub.Evaluate(whole).result.outputs
    segment.close()


def test_results_outside_a_segment_are_refused_before_anything_is_computed(
    path: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    segment = Segment(path, 1 << 20)
    request = service_pb2.EvaluateRequest.FromString(binding(segment.name))
    for region in (
        {"segment": "0" * 32, "size": 64},
        {"segment": segment.name, "offset": 64, "size": 1 << 20},
        {"segment": segment.name, "offset": 2**64 - 1, "size": 2},
    ):
        request.results_in.CopyFrom(tensor_pb2.SharedRegion(**region))
        reason, sentence = refusal(stub, request)
        assert (reason, sentence[:12]) == ("SHARED_MEMORY_INVALID", "results_in: ")
    request.results_in.CopyFrom(tensor_pb2.SharedRegion(segment=segment.name, size=100))
    (gradient,) = stub.Evaluate(request).result.gradients
    assert gradient.tensor.data == np.ones(SIZE).tobytes()  # no room: in the answer
    segment.close()


def test_refused_step_with_shared_memory_changes_nothing(server: EmbeddedServer) -> None:
    with (
        gw.connect(server.address, shared_memory=True) as sharing,
        sharing.session(squares(), points(1), seeds=SEEDS) as session,
    ):
        first = session.step({})
        bad = service_pb2.SessionRequest(step=service_pb2.Step())
        bad.results_in.segment = "0" * 32
        with pytest.raises(gw.InvalidRequestError) as refused:
            session._result(bad.SerializeToString(), INLINE)
        assert refused.value.reason == "SHARED_MEMORY_INVALID"
        assert_same(session.step({}), first)  # and shares other segments from now on


def test_thousand_references_to_one_segment_pass_no_limit(
    path: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    segment = Segment(path, 1 << 20)
    step = service_pb2.EvaluateRequest.FromString(binding(segment.name))
    given = step.evaluation.bindings[0]
    graph = gw.Graph()
    inputs = [graph.input(f"x{number}", shape=(SIZE,)) for number in range(1000)]
    graph.output("f", gw.reduce_sum(inputs[0], keepdims=0))
    request = service_pb2.EvaluateRequest(graph=requests.source(graph))
    for number in range(1000):
        given.leaf = f"x{number}"
        request.evaluation.bindings.append(given)
    reason, sentence = refusal(stub, request)
    assert reason == "LIMIT_EXCEEDED"
    assert "--max-message-bytes" in sentence
    assert sentence.startswith("binding of leaf 'x25'")  # four megabytes, and no more
    segment.close()


@pytest.mark.parametrize(
    "kind", ["unsealed", "file", "fifo", "directory", "socket", "empty", "read-only", "large"]
)
def test_anything_but_sealed_memory_is_not_taken(kind: str, path: str, tmp_path: Path) -> None:
    if kind == "unsealed":
        descriptor = memfd(4096, fcntl.F_SEAL_GROW)
    elif kind == "file":
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, 4096)
    elif kind == "fifo":
        os.mkfifo(tmp_path / "fifo")
        descriptor = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)
    elif kind == "directory":
        descriptor = os.open(tmp_path, os.O_RDONLY)
    elif kind == "socket":
        descriptor = socket.socket(socket.AF_UNIX).detach()
    elif kind == "empty":
        descriptor = memfd(0)
    elif kind == "read-only":
        descriptor = memfd(4096, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    else:
        descriptor = memfd(LIMITS.max_shared_bytes + 1)
    client, answer = hand_over(path, descriptor)
    assert " " in answer  # a sentence, no name
    assert client.recv(1) == b""
    client.close()
    os.close(descriptor)
    Segment(path, 4096).close()


def test_segment_cannot_shrink_under_the_server(
    path: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    descriptor = memfd(1 << 20)
    client, name = hand_over(path, descriptor)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, np.ones(SIZE).tobytes(), 0)
    punch_hole(descriptor, 1 << 20)  # which is read as zeros
    whole = service_pb2.EvaluateRequest.FromString(binding(name))
    (output,) = stub.Evaluate(whole).result.outputs
    assert np.frombuffer(output.tensor.data) == 0
    client.close()
    os.close(descriptor)


def punch_hole(descriptor: int, size: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
    keep_size, punch = 1, 2
    assert call(descriptor, keep_size | punch, 0, size) == 0, os.strerror(ctypes.get_errno())


def test_more_than_one_segment_a_connection_is_not_taken(path: str) -> None:
    descriptor = memfd(4096)
    client, name = hand_over(path, descriptor)
    assert len(name) == 32
    socket.send_fds(client, [b"segment"], [descriptor])
    assert client.recv(1024) == b""
    empty, answer = hand_over(path, -1)
    assert answer == ""
    client.close()
    empty.close()
    os.close(descriptor)


def test_silent_connections_take_no_more_than_their_number(path: str) -> None:
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(MOST_SEGMENTS)]
    for each in silent:
        each.connect(path)
    with pytest.raises(OSError, match=r"no room for more|reset|Broken pipe|temporarily"):
        Segment(path, 4096)  # the last where the server has yet to take the others
    for each in silent:
        each.close()
    while True:  # until the server has seen that all others are gone
        with contextlib.suppress(OSError):
            Segment(path, 4096).close()
            break


def test_limit_holds_for_all_segments_together(path: str) -> None:
    half = LIMITS.max_shared_bytes // 2
    first, second = Segment(path, half), Segment(path, half)
    with pytest.raises(OSError, match="--max-shared-bytes"):
        Segment(path, 1 << 12)
    first.close()
    second.close()


def test_segment_ends_with_its_connection(
    path: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    segment = Segment(path, 1 << 20)
    segment.close()
    other = Segment(path, 1 << 20)  # the server has seen the end of the first when it takes this
    assert refusal(stub, binding(segment.name))[0] == "SHARED_MEMORY_INVALID"
    other.close()


def test_graph_with_a_value_in_shared_memory_is_refused(
    path: str, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    segment = Segment(path, 1 << 20)
    request = service_pb2.EvaluateRequest.FromString(binding(segment.name))
    graph = graph_pb2.Graph.FromString(request.graph.graph)
    graph.circuit.inputs[0].value.CopyFrom(request.evaluation.bindings[0].tensor)
    request.graph.graph = graph.SerializeToString()
    reason, sentence = refusal(stub, request)
    assert (reason, "a graph holds its own bytes" in sentence) == ("TENSOR_INVALID", True)
    segment.close()


def test_values_that_change_meanwhile_cannot_pass_the_checks() -> None:
    """What is checked is the server's own copy."""
    own = Segments(tempfile.mkdtemp(), 1 << 20)
    segment = Segment(own.path, 4096)
    segment.memory[:4] = b"good"
    copy = own.read(Region(segment.name, 0, 4))
    sink = own.sink(Region(segment.name, 0, 4096))
    segment.memory[:4] = b"evil"
    assert copy == b"good"
    segment.close()
    own.close()
    assert sink.put(b"x" * 64) == Region(segment.name, 0, 64)  # still mapped for who began before


# ---- servers


def test_server_without_shared_memory_names_the_flag() -> None:
    server = EmbeddedServer(LIMITS)
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        reason, sentence = refusal(stub, binding("0" * 32))
        assert reason == "SHARED_MEMORY_UNSUPPORTED"
        assert "--shared-memory DIRECTORY" in sentence
        request = service_pb2.EvaluateRequest.FromString(binding("0" * 32))
        request.evaluation.bindings[0].tensor.data = np.ones(SIZE).tobytes()
        request.results_in.segment = "0" * 32
        assert refusal(stub, request)[0] == "SHARED_MEMORY_UNSUPPORTED"
    with (
        gw.connect(server.address, shared_memory=True) as sharing,
        pytest.raises(gw.UnsupportedError, match="start it with --shared-memory"),
    ):
        sharing.evaluate(squares(), points(), seeds=SEEDS)
    server.close()


def test_client_that_cannot_reach_the_socket_says_so(tmp_path: Path) -> None:
    with pytest.raises(gw.UnsupportedError, match="connect without shared_memory, unless as"):
        Pool(str(tmp_path / "nowhere.socket"), "host:1")


def test_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(SharedMemoryError, match="mode 0755"):
        Segments(str(tmp_path), 1)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SharedMemoryError, match="not a directory"):
        Segments(str(tmp_path / "link"), 1)
    with pytest.raises(SharedMemoryError, match="name a directory"):
        Segments(str(tmp_path / "no" / "parent"), 1)
    made = tmp_path / "made"
    Segments(str(made), 1).close()
    assert made.stat().st_mode & 0o777 == 0o700
    with pytest.raises(SharedMemoryError, match="short path"):
        Segments(str(made / ("long" * 30)), 1)


CLIENT = """
import sys, threading
import numpy as np
import gradwire as gw
graph = gw.Graph()
graph.output("f", gw.reduce_sum_square(graph.input("x", shape=(20_000,)), keepdims=0))
with gw.connect(sys.argv[1], shared_memory=True) as server:
    kept = server.evaluate(graph, {"x": np.ones(20_000)})
    print(kept.gradients["x"].base.dtype, flush=True)
    threading.Event().wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_client_and_killed_server_leave_nothing(workers: str, tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    command = [sys.executable, "-m", "gradwire.cli", "serve", "--listen", "127.0.0.1:0"]
    command += ["--shared-memory", str(meeting), "--workers", workers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        run = [sys.executable, "-c", CLIENT, address]
        with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "uint8\n"
            client.send_signal(signal.SIGKILL)
        assert len([*meeting.iterdir()]) == int(workers)
        server.send_signal(signal.SIGTERM)
        server.wait()
    assert not [*meeting.iterdir()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        server.stdout.readline()
        live = {*meeting.iterdir()}
        (meeting / "notes.txt").write_text("not a socket of ours")
        dead = meeting / f"{'0' * 16}.socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
            killed.bind(str(dead))
        second = Segments(str(meeting), 1)
        assert {*meeting.iterdir()} == {*live, meeting / "notes.txt", Path(second.path)}
        second.close()
        server.terminate()
        server.wait()
    assert [each.name for each in meeting.iterdir()] == ["notes.txt"]
