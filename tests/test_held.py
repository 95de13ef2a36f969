"""Memory held for peers that do not read is bounded, and costs those that do nothing for long."""

from __future__ import annotations

import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import grpc
import numpy as np
import pytest
from patience import PATIENCE, Clock
from wire import chain, module_neuron, neuron, source

import gradwire as gw
from gradwire.v1 import service_pb2, service_pb2_grpc
from gradwire_server import allocator, held, service
from gradwire_server.allocator import ReturnsFreedMemory
from gradwire_server.codec.answers import encode_response
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.engine.evaluation import Evaluation, everything, prepare
from gradwire_server.engine.runs import run
from gradwire_server.entry import Server
from gradwire_server.errors import OverLimit, Stopped
from gradwire_server.held import CALL_BYTES, SMALL_BYTES, Held, Holding, NeedsRoom
from gradwire_server.limits import Limits

MIB = 1 << 20
EVALUATE = "/gradwire.v1.GradientService/Evaluate"


def here() -> bool:
    """Nobody has left."""
    return False


def ended(*_: object) -> None:
    raise AssertionError("its peer is not late")


class Calls:
    """Holdings whose calls end when they are told to."""

    def __init__(self, all_held: Held) -> None:
        self._held = all_held
        self.ended: list[str] = []

    def hold(self, name: str, nbytes: int) -> Holding:
        def end() -> None:
            self.ended.append(name)
            holding.close()

        holding = self._held.holding(end)
        holding.take(nbytes, here)
        return holding


# ---- one limit


def test_what_is_held_is_counted_until_it_is_closed() -> None:
    all_held = Held(10 * MIB)
    first, second = all_held.holding(ended), all_held.holding(ended)
    first.take(MIB, here)
    second.take(2 * MIB, here)
    second.take(MIB, here)  # it holds more already
    assert all_held.nbytes == 3 * MIB
    second.resize(MIB)
    assert all_held.nbytes == 2 * MIB
    for each in (first, second, second):
        each.close()
    assert all_held.nbytes == 0


def test_no_room_now_is_said_at_once_where_a_call_must_not_wait() -> None:
    all_held = Held(10 * MIB)
    all_held.holding(ended).take(8 * MIB, here)
    other = all_held.holding(ended)
    with pytest.raises(NeedsRoom) as needed:
        other.take_now(MIB)
    assert needed.value.nbytes == MIB
    with pytest.raises(OverLimit, match="--max-held-bytes") as refused:
        other.grow(MIB)
    assert refused.value.facts["limit"] == "max-held-bytes"
    assert other.nbytes == 0


def test_small_answers_find_room_where_large_ones_do_not() -> None:
    all_held = Held(16 * MIB)
    all_held.holding(ended).take(14 * MIB, here)
    for _ in range(2 * MIB // SMALL_BYTES):
        all_held.holding(ended).take(SMALL_BYTES, here)
    with pytest.raises(OverLimit):
        all_held.holding(ended).grow(1)


def test_evaluation_larger_than_the_limit_has_it_alone() -> None:
    all_held = Held(16 * MIB)
    large = all_held.holding(ended)
    large.take(1 << 40, here)
    assert all_held.nbytes == 14 * MIB
    large.close()
    assert all_held.nbytes == 0


# ---- peers that keep the server waiting


def test_who_reads_loses_nothing_and_who_does_not_goes_latest_first() -> None:
    clock = Clock()
    all_held = Held(16 * MIB, clock)
    calls = Calls(all_held)
    reads, slow, slower = (calls.hold(name, 4 * MIB) for name in ("reads", "slow", "slower"))
    slower.offer(MIB)
    clock.pass_some()
    slow.offer(MIB)
    for _ in range(5):
        reads.offer(1)
        reads.go_on()
        clock.pass_some()
    all_held.holding(ended).take(4 * MIB, here)
    assert calls.ended == ["slower"]
    all_held.holding(ended).take(4 * MIB, here)
    assert calls.ended == ["slower", "slow"]


def test_more_bytes_may_take_longer() -> None:
    clock = Clock()
    calls = Calls(Held(16 * MIB, clock))
    much, little = calls.hold("much", 7 * MIB), calls.hold("little", 7 * MIB)
    much.offer(64 * MIB)
    little.offer(1)
    for _ in range(5):
        clock.pass_some()
    assert little.late(clock()) > 0 > much.late(clock())


def test_time_that_the_server_takes_is_not_the_peers() -> None:
    clock = Clock()
    call = Calls(Held(16 * MIB, clock)).hold("call", MIB)
    for _ in range(4):
        call.offer(1)
        call.go_on()
        clock.pass_some()
        clock.pass_some()
    call.offer(1)
    assert call.late(clock()) < 0


def test_dripping_reader_is_late_in_the_end() -> None:
    clock = Clock()
    call = Calls(Held(16 * MIB, clock)).hold("call", MIB)
    for _ in range(4):
        call.offer(1)
        clock.pass_some()
        call.go_on()
    call.offer(1)
    assert call.late(clock()) > 0


def test_silent_session_goes_after_a_minute_and_no_sooner() -> None:
    clock = Clock()
    calls = Calls(Held(16 * MIB, clock))
    session = calls.hold("session", 14 * MIB)
    session.idle()
    for _ in range(29):
        clock.pass_some()
    other = calls.hold("small", 1)
    with pytest.raises(OverLimit):
        other.grow(2 * MIB)
    clock.pass_some()
    clock.pass_some()
    other.grow(2 * MIB)
    assert calls.ended == ["session"]


def test_whoever_waits_has_room_as_soon_as_there_is_some() -> None:
    all_held = Held(16 * MIB)
    first = all_held.holding(ended)
    first.take(14 * MIB, here)
    found: SimpleQueue[int] = SimpleQueue()

    def wait() -> None:
        holding = all_held.holding(ended)
        holding.take(5 * MIB, here)
        found.put(holding.nbytes)

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for each in threads:
        each.start()
    while len(all_held._waiting) < 2:
        pass
    late = all_held.holding(ended)
    with pytest.raises(NeedsRoom):
        late.take_now(MIB)  # others are first
    first.close()
    assert [found.get(timeout=PATIENCE) for _ in threads] == [5 * MIB] * 2


def test_whoever_waits_in_vain_is_refused_and_who_leaves_is_not_waited_for() -> None:
    clock = Clock()
    all_held = Held(16 * MIB, clock)
    all_held.holding(ended).take(14 * MIB, here)

    def later() -> bool:
        clock.pass_some()
        return False

    with pytest.raises(OverLimit, match="peers have not read"):
        all_held.holding(ended).take(MIB, later)
    with pytest.raises(Stopped):
        all_held.holding(ended).take(MIB, lambda: True)
    assert all_held.nbytes == 14 * MIB


def test_full_lane_loses_the_call_that_waits_for_longest() -> None:
    clock = Clock()
    all_held = Held(16 * MIB, clock)
    gone: list[int] = []
    lanes = object(), object()
    for number in range(4):
        holding = all_held.holding(lambda each=number: gone.append(each), lanes[number % 2])
        holding.take(1, here)
        holding.offer(1)
        clock.pass_some()
    all_held.end_latest(lanes[1])
    all_held.end_latest(lanes[1])  # the other one is not late yet
    assert gone == [1]


# ---- what an answer will take is known before it is made


def tensors() -> bytes:
    graph = gw.Graph()
    x = graph.parameter("x", np.linspace(-1, 1, 20_000).reshape(10, -1))
    for _ in range(4):
        x = gw.tanh(x)
    graph.output("f", gw.reduce_sum(x, keepdims=0))
    graph.output("x", x)
    return graph.to_bytes()


@pytest.mark.parametrize("asked", [lambda each: each, everything], ids=["few", "all"])
@pytest.mark.parametrize(
    "made",
    [
        lambda: neuron().SerializeToString(),
        lambda: module_neuron().SerializeToString(),
        lambda: chain(2000).SerializeToString(),
        tensors,
    ],
    ids=["neuron", "modules", "chain", "tensors"],
)
def test_answers_are_as_large_as_was_foreseen(
    made: Callable[[], bytes], asked: Callable[[Evaluation], Evaluation]
) -> None:
    graph = decode_graph(made(), Limits())
    seeds = {"f": np.ones(())} if len(graph.outputs) > 1 else {}
    job = prepare(graph, asked(Evaluation(seeds=seeds)), Limits())
    size = len(encode_response(run(job, here)))
    assert size <= job.choice.nbytes <= 2.1 * size + 4096  # ids of numbers, at most


# ---- over gRPC


class Unread:
    """An HTTP/2 peer that calls, and reads nothing of the answers."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._stream = 1
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(4, 0, 0, b""))

    def call(self, path: str, message: bytes) -> None:
        headers = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "test",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        packed = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        data = struct.pack(">BI", 0, len(message)) + message
        self._socket.sendall(
            self._frame(1, 4, self._stream, packed) + self._frame(0, 1, self._stream, data)
        )
        self._stream += 2

    def close(self) -> None:
        self._socket.close()

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
        )


class Started:
    """A server whose accounts a test may look at."""

    def __init__(self, **limits: int) -> None:
        self.server = Server(Limits(**limits))
        self.address = self.server.start("127.0.0.1:0")
        self.held: Held = self.server._service.held

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def wait(self, until: Callable[[], bool]) -> None:
        """Until something is so, which it must become."""
        pause = threading.Event()
        for _ in range(100 * PATIENCE):
            if until():
                return
            pause.wait(0.01)
        pytest.fail(f"held: {self.held.nbytes}, calls: {len(self.held._holdings)}")

    def squares(self) -> None:
        with gw.connect(self.address, timeout=PATIENCE) as connection:
            assert float(connection.evaluate(gw.parse("x*x"), {"x": 3.0})["out"].value) == 9.0


@pytest.fixture
def started() -> Iterator[Started]:
    found = Started(max_held_bytes=16 * MIB)
    yield found
    found.server.stop(0)


def request(count: int) -> service_pb2.EvaluateRequest:
    graph = gw.Graph()
    graph.output("f", gw.expand(graph.parameter("x", 0.0), graph.constant(np.array([count]))))
    asked = service_pb2.EvaluateRequest(graph=service_pb2.GraphSource(graph=graph.to_bytes()))
    asked.evaluation.forward_only = True
    return asked


def test_answers_that_nobody_reads_are_held_within_the_limit(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_GRACE_SECONDS", math.inf)
    peer = Unread(started.port)
    for _ in range(40):
        peer.call(EVALUATE, request(MIB // 8).SerializeToString())
    started.wait(lambda: len(started.held._waiting) > 8)
    assert 12 * MIB < started.held.nbytes <= 14 * MIB
    started.squares()
    peer.close()
    started.wait(lambda: not started.held.nbytes)


def test_answers_that_nobody_reads_make_room_for_those_that_are_read(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(held, "_SLOWEST_BYTES", math.inf)
    peer = Unread(started.port)
    for _ in range(40):
        peer.call(EVALUATE, request(MIB // 8).SerializeToString())
    stub = service_pb2_grpc.GradientServiceStub(grpc.insecure_channel(
        started.address, [("grpc.max_receive_message_length", -1)]
    ))  # fmt: skip
    for _ in range(3):
        answer = stub.Evaluate(request(MIB), timeout=PATIENCE)
        assert len(answer.result.outputs[0].tensor.data) == 8 * MIB
    peer.close()
    started.wait(lambda: not started.held.nbytes)


def test_small_answers_that_nobody_reads_count_and_go_first() -> None:
    started = Started(max_held_bytes=2 * MIB)
    peer, answers = Unread(started.port), 400  # the first ones fit into the peer's window
    asked = service_pb2.EvaluateRequest(graph=source(neuron()))
    asked.evaluation.values.all = True
    assert CALL_BYTES * answers > 2 * started.held._limit
    for _ in range(answers):
        peer.call(EVALUATE, asked.SerializeToString())
        assert started.held.nbytes <= started.held._limit
    started.squares()
    peer.close()
    started.wait(lambda: not started.held.nbytes)
    started.server.stop(0)


def test_small_answers_make_room_for_small_ones_before_they_are_late() -> None:
    clock = Clock()
    calls = Calls(Held(4 * MIB, clock))
    unread = [calls.hold(str(each), SMALL_BYTES) for each in range(16)]
    for each in unread[:14]:
        each.offer(1)
        clock.pass_some() if each is unread[0] else None
    unread[14].idle()  # a session; the last one computes still
    calls.hold("more", SMALL_BYTES)
    assert calls.ended == ["0"]
    with pytest.raises(OverLimit):
        calls.hold("large", 0).grow(SMALL_BYTES + 1)


def test_streams_that_nobody_reads_hold_few_evaluations(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_GRACE_SECONDS", math.inf)
    asked = service_pb2.EvaluateStreamRequest(graph=source(chain(100_000)))
    with grpc.insecure_channel(started.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        streams = [stub.EvaluateStream(asked, timeout=PATIENCE) for _ in range(8)]
        begun = 0

        def others_wait() -> bool:
            """None has begun for a moment, where one fitted into the connection's window."""
            nonlocal begun
            begun = sum(each.nbytes > 0 for each in [*started.held._holdings])
            return begun > 0 and len(started.held._waiting) >= 5

        started.wait(others_wait)
        assert 1 <= begun <= 3
        started.squares()
        expected = None
        for each in streams:  # read one after the other: those that wait begin as others end
            found = [event.SerializeToString() for event in each]
            assert expected is None or found == expected
            expected = found
    started.wait(lambda: not started.held.nbytes)


def test_session_that_keeps_too_much_is_refused_and_goes_on(started: Started) -> None:
    graph = gw.Graph()
    x = graph.input("x", shape=("n",))
    graph.output("f", gw.reduce_sum(gw.sin(gw.sin(x)), keepdims=0))
    with gw.connect(started.address, timeout=PATIENCE) as connection:
        first, second = connection.session(graph), connection.session(graph)
        first.step({"x": np.ones(150_000)})
        with pytest.raises(gw.GradwireError, match="--max-held-bytes"):
            second.step({"x": np.ones(250_000)})
        second.step({"x": np.ones(1000)})
        first.close()
        second.close()
    started.wait(lambda: not started.held.nbytes)


# ---- memory goes back to the system


def test_freed_memory_is_given_back_when_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_QUIET_SECONDS", 0.0)
    trims: list[int] = []
    returns = ReturnsFreedMemory(trims.append)
    returns.freed(500 * MIB)
    returns.wait()
    assert trims == []
    returns.freed(12 * MIB)
    returns.wait()
    assert len(trims) == 1


def test_embedded_server_leaves_the_memory_of_its_host_alone() -> None:
    returns = ReturnsFreedMemory()
    returns.freed(1 << 40)
    returns.wait()


def test_memory_that_the_system_lacks_is_said(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(service, "Run", lacks)
    with gw.connect(started.address, timeout=PATIENCE) as connection:
        with pytest.raises(gw.GradwireError, match="no memory left") as failed:
            connection.evaluate(gw.parse("x*x"), {"x": 3.0})
        assert failed.value.reason == "LIMIT_EXCEEDED"
    started.wait(lambda: not started.held.nbytes)
