"""Nothing that arrives is trusted: mutated bytes never crash, hang or leak."""

from __future__ import annotations

import contextlib
import gc
import random
import signal
import tracemalloc
from collections.abc import Iterator
from typing import NoReturn

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from patience import PATIENCE
from wire import chain, module_neuron, neuron, scalar, source

import gradwire as gw
from gradwire.v1 import service_pb2, service_pb2_grpc, tensor_pb2
from gradwire_server.codec.answers import encode_response
from gradwire_server.codec.graphs import decode_graph, encode_graph
from gradwire_server.codec.requests import decode_evaluation, source_bytes
from gradwire_server.engine import evaluation as evaluate
from gradwire_server.engine import runs
from gradwire_server.engine.symbolic import gradient_graph
from gradwire_server.entry import EmbeddedServer
from gradwire_server.errors import REASONS, Refusal
from gradwire_server.limits import Limits

LIMITS = Limits(
    max_message_bytes=1 << 20, max_nodes=1000, max_values=2000, max_memory_bytes=1 << 22
)
MUTATIONS = 12_000
SERVICE = "/gradwire.v1.GradientService/"
METHOD = SERVICE + "Evaluate"


def seeds() -> list[bytes]:
    """Whole requests to mutate."""
    binding = service_pb2.Binding(leaf="w0", tensor=scalar(1.0))
    everything = service_pb2.Selection(all=True)
    figures = service_pb2.Selection(all=True, detail=service_pb2.DETAIL_SUMMARY)
    asked = [
        service_pb2.Evaluation(),
        service_pb2.Evaluation(bindings=[binding], values=everything, gradients=figures),
        service_pb2.Evaluation(batch_size=3, with_respect_to=["w0", "x1"]),
        service_pb2.Evaluation(forward_only=True, values=figures),
    ]
    region = tensor_pb2.SharedRegion(segment="0" * 32, offset=64, size=8)
    beside = service_pb2.EvaluateRequest(
        graph=source(neuron()), evaluation=asked[1], results_in=region
    )
    beside.evaluation.bindings[0].tensor.shared.CopyFrom(region)
    return [beside.SerializeToString()] + [
        service_pb2.EvaluateRequest(graph=source(graph), evaluation=each).SerializeToString()
        for graph in (neuron(), module_neuron(), chain(20))
        for each in asked
    ]


def seeds_of(method: str) -> list[bytes]:
    """Whole requests of a method to mutate."""
    if method in ("Evaluate", "EvaluateStream"):
        return seeds()  # the two requests have the same fields
    graphs = [source(neuron()), source(module_neuron()), source(chain(20))]
    if method == "DifferentiateGraph":
        asked = service_pb2.DifferentiateGraphRequest
        return [asked(graph=graph).SerializeToString() for graph in graphs]
    opened = [service_pb2.SessionRequest(open=service_pb2.Open(graph=graph)) for graph in graphs]
    return [each.SerializeToString() for each in opened]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Flips, overwrites, cuts, repeats or moves a few bytes."""
    mutated = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(mutated) + 1)
        length = chance.randint(1, 8)
        match chance.randrange(6):
            case 0 if at < len(mutated):
                mutated[at] ^= 1 << chance.randrange(8)
            case 1:
                mutated[at : at + length] = chance.randbytes(length)
            case 2:
                del mutated[at : at + length]
            case 3:
                mutated[at:at] = b"\xff" * length + b"\x01"
            case 4:
                mutated[at:at] = mutated[at : at + length]
            case _ if chance.random() < 0.1:
                del mutated[at:]
    return bytes(mutated)


def answer(data: bytes) -> str:
    """What the server does with the bytes of a request, without the transport."""
    request = service_pb2.EvaluateRequest()
    try:
        request.ParseFromString(data)
    except DecodeError:
        return "DECODE"
    try:
        graph = decode_graph(source_bytes(request.graph), LIMITS)
        asked = decode_evaluation(request.evaluation)
        job = evaluate.prepare(graph, asked, LIMITS)
        encode_response(runs.run(job, lambda: False))
        encode_graph(gradient_graph(graph, (), {}, LIMITS), "test")
    except Refusal as refusal:
        return refusal.reason
    return "OK"


def hangs(*_: object) -> NoReturn:
    raise TimeoutError("does not end")


def test_mutated_requests_are_answered_or_refused() -> None:
    before = signal.signal(signal.SIGALRM, hangs)
    chance = random.Random(5)
    originals = seeds()
    outcomes = set()
    with np.errstate(all="ignore"):
        for number in range(MUTATIONS):
            data = mutate(chance.choice(originals), chance)
            signal.alarm(PATIENCE)
            try:
                outcomes.add(answer(data))
            except Exception as fault:
                pytest.fail(f"answer({data!r}) raised {fault!r} (mutation {number})")
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert outcomes <= {"OK", "DECODE", *REASONS}
    assert len(outcomes) > 12, outcomes  # the mutations reach far into the checks


def test_refused_requests_leave_no_memory_behind() -> None:
    originals = seeds()

    def refuse_many(seed: int) -> int:
        chance = random.Random(seed)
        with np.errstate(all="ignore"):
            for _ in range(500):
                answer(mutate(chance.choice(originals), chance))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = refuse_many(6)
        after = refuse_many(6)
    finally:
        tracemalloc.stop()
    assert after - before < 100_000


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    server = EmbeddedServer(LIMITS, shares_memory=True)
    with grpc.insecure_channel(server.address) as channel:
        yield channel
    server.close()


@pytest.mark.parametrize("method", ["Evaluate", "EvaluateStream", "DifferentiateGraph", "Session"])
def test_mutated_bytes_on_the_wire_leave_the_server_serving(
    method: str, channel: grpc.Channel
) -> None:
    chance = random.Random(7)
    originals = seeds_of(method)
    mutated = [mutate(chance.choice(originals), chance) for _ in range(1000)]
    codes = {code_of(channel, method, data) for data in mutated}
    # bytes that are no message at all never reach us: grpc itself answers INTERNAL or UNKNOWN
    undecodable = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
    assert codes <= undecodable | {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    stub = service_pb2_grpc.GradientServiceStub(channel)
    assert stub.Evaluate(service_pb2.EvaluateRequest(graph=source(neuron()))).result.outputs


def code_of(channel: grpc.Channel, method: str, data: bytes) -> grpc.StatusCode:
    """How a call with these bytes ends; a session goes on with a step and a backward pass."""
    step = service_pb2.SessionRequest(step=service_pb2.Step()).SerializeToString()
    backward = service_pb2.SessionRequest(backward=service_pb2.Backward()).SerializeToString()
    requests = [data, step, backward] if method == "Session" else [data]
    call = channel.stream_stream(SERVICE + method, lambda sent: sent, lambda found: found)(
        iter(requests), timeout=PATIENCE
    )
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    code: grpc.StatusCode = call.code()
    return code


def test_message_over_the_limit_is_refused(channel: grpc.Channel) -> None:
    raw = channel.unary_unary(METHOD, lambda data: data, lambda data: data)
    with pytest.raises(grpc.RpcError) as failed:
        raw(bytes(LIMITS.max_message_bytes + 1))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_long_axis_is_refused_although_the_tensor_is_empty() -> None:
    graph = gw.Graph()
    x = graph.input("x", (0, 10**12))
    graph.output("part", gw.slice(x, [1], [10**12], [1]))
    decoded = decode_graph(graph.to_bytes(), LIMITS)
    binding = evaluate.Binding(np.zeros((0, 10**12)))
    asked = evaluate.Evaluation({"x": binding}, seeds={"part": np.zeros((0, 10**12 - 1))})
    with pytest.raises(Refusal, match="max-memory-bytes"):
        evaluate.prepare(decoded, asked, LIMITS)
    with pytest.raises(Refusal, match="max-memory-bytes"):
        gradient_graph(decoded, (), {}, LIMITS)
