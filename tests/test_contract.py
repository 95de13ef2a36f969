"""The server through the wire, with nothing but the generated stub."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from math import exp
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from patience import PATIENCE, Clock
from wire import F64, LEAVES, chain, leaf, neuron, scalar, source

from gradwire.v1 import graph_pb2, service_pb2, service_pb2_grpc, tensor_pb2
from gradwire_server import silence
from gradwire_server.engine import kernels
from gradwire_server.engine.runs import Found, Run
from gradwire_server.entry import EmbeddedServer
from gradwire_server.errors import REASONS
from gradwire_server.gates import GATES
from gradwire_server.limits import Limits

SMALL = Limits(max_nodes=100, max_values=200, max_memory_bytes=1 << 20, max_message_bytes=1 << 20)


@pytest.fixture(scope="module")
def stub() -> Iterator[service_pb2_grpc.GradientServiceStub]:
    server = EmbeddedServer(SMALL)
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)
    server.close()


def numbers(tensors: list[tensor_pb2.NamedTensor]) -> dict[str, float]:
    return {each.name: float(np.frombuffer(each.tensor.data)[0]) for each in tensors}


def expected_gradients() -> dict[str, float]:
    w0, w1, w2, x0, x1 = LEAVES.values()
    s = 1 / (1 + exp(-(w0 * x0 + w1 * x1 + w2)))
    slope = (1 - s) * s
    return {
        "w0": slope * x0,
        "w1": slope * x1,
        "w2": slope,
        "x0": slope * w0,
        "x1": slope * w1,
    }


def refused(call: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.domain == "gradwire"
    assert info.reason in REASONS
    return info


def test_neuron_has_the_gradients_of_its_formula(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    result = stub.Evaluate(service_pb2.EvaluateRequest(graph=source(neuron()))).result
    assert numbers(list(result.outputs))["f"] == pytest.approx(1 / (1 + exp(-1.0)), rel=1e-12)
    assert numbers(list(result.gradients)) == pytest.approx(expected_gradients(), rel=1e-12)


def test_stream_sends_values_then_gradients_then_finished(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    events = list(stub.EvaluateStream(service_pb2.EvaluateStreamRequest(graph=source(neuron()))))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert kinds.index("node_values") < kinds.index("node_gradients")
    finished = events[-1].finished
    assert numbers(list(finished.result.gradients)) == pytest.approx(
        expected_gradients(), rel=1e-12
    )
    assert finished.values_sent == finished.gradients_sent == 13  # 14 ids, one a constant


def test_session_answers_in_order_and_survives_a_bad_step(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    def requests() -> Iterator[service_pb2.SessionRequest]:
        yield service_pb2.SessionRequest(
            request_id=1, open=service_pb2.Open(graph=source(neuron()))
        )
        for number, name in enumerate(["w2", "nowhere", "w2"], 2):
            binding = service_pb2.Binding(leaf=name, tensor=scalar(-3.0))
            step = service_pb2.Step(bindings=[binding])
            yield service_pb2.SessionRequest(request_id=number, step=step)
        seed = tensor_pb2.NamedTensor(name="f", tensor=scalar(2.0))
        backward = service_pb2.Backward(seeds=[seed])
        yield service_pb2.SessionRequest(request_id=5, backward=backward)

    answers = list(stub.Session(requests()))
    assert [answer.request_id for answer in answers] == [1, 2, 3, 4, 5]
    assert answers[2].error.reason == "LEAF_UNKNOWN"
    assert answers[1].result == answers[3].result
    doubled = {name: 2 * grad for name, grad in expected_gradients().items()}
    assert numbers(list(answers[4].result.gradients)) == pytest.approx(doubled, rel=1e-12)


def open_and(action: service_pb2.SessionRequest) -> Iterator[service_pb2.SessionRequest]:
    yield service_pb2.SessionRequest(open=service_pb2.Open(graph=source(neuron())))
    yield action


def step(value: float, leaf: str = "w2") -> service_pb2.Step:
    return service_pb2.Step(bindings=[service_pb2.Binding(leaf=leaf, tensor=scalar(value))])


def test_many_steps_are_answered_as_each_alone(stub: service_pb2_grpc.GradientServiceStub) -> None:
    steps = [step(1.0), step(2.0, "nowhere"), step(-3.0, "w1"), service_pb2.Step(forward_only=True)]
    many = service_pb2.SessionRequest(request_id=7, steps=service_pb2.Steps(steps=steps))
    _, answer = stub.Session(open_and(many))
    assert answer.request_id == 7

    def one_by_one() -> Iterator[service_pb2.SessionRequest]:
        yield service_pb2.SessionRequest(open=service_pb2.Open(graph=source(neuron())))
        for each in steps:
            yield service_pb2.SessionRequest(step=each)

    _, *alone = stub.Session(one_by_one())
    kinds = [outcome.WhichOneof("outcome") for outcome in answer.outcomes.outcomes]
    assert kinds == ["result", "error", "result", "result"]
    for outcome, single in zip(answer.outcomes.outcomes, alone, strict=True):
        assert outcome.result == single.result
        assert outcome.error == single.error


def test_no_steps_at_all_are_refused(stub: service_pb2_grpc.GradientServiceStub) -> None:
    empty = service_pb2.SessionRequest(steps=service_pb2.Steps())
    _, answer = stub.Session(open_and(empty))
    assert answer.error.reason == "REQUEST_INVALID"


def test_steps_stop_where_their_results_grow_too_large(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    graph = chain(1)
    graph.circuit.inputs[0].CopyFrom(leaf("x", None, 10_000))
    x = tensor_pb2.Tensor(data_type=F64, shape=[10_000], data=bytes(80_000))
    given = [service_pb2.Binding(leaf="x", tensor=x)]
    evaluation = service_pb2.Evaluation(bindings=given, forward_only=True)
    steps = service_pb2.Steps(steps=[service_pb2.Step() for _ in range(20)])

    def requests() -> Iterator[service_pb2.SessionRequest]:
        opening = service_pb2.Open(graph=source(graph), evaluation=evaluation)
        yield service_pb2.SessionRequest(open=opening)
        yield service_pb2.SessionRequest(steps=steps)
        yield service_pb2.SessionRequest(step=service_pb2.Step())

    _, answer, after = stub.Session(requests())
    kinds = [outcome.WhichOneof("outcome") for outcome in answer.outcomes.outcomes]
    assert kinds == ["result"] * 14 + ["error"] * 6  # 14 times 80 kB are over 1 MiB
    assert answer.outcomes.outcomes[-1].error.reason == "LIMIT_EXCEEDED"
    assert after.WhichOneof("outcome") == "result"


def test_bytes_that_are_no_message_are_refused() -> None:
    server = EmbeddedServer(SMALL)
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary("/gradwire.v1.GradientService/Evaluate")
        with pytest.raises(grpc.RpcError) as failed:
            method(b"\xff\xff")
    server.close()
    assert refused(failed.value).reason == "REQUEST_INVALID"


def test_streams_over_the_limit_are_refused() -> None:
    server = EmbeddedServer(Limits(max_streams=1))
    request = service_pb2.EvaluateStreamRequest(graph=source(chain(300_000)))
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        first = stub.EvaluateStream(request)
        next(first)
        with pytest.raises(grpc.RpcError) as failed:
            next(stub.EvaluateStream(request))
        first.cancel()
    server.close()
    assert refused(failed.value).metadata["limit"] == "max-streams"
    assert failed.value.details() == (
        "open streams: 2 is over the limit of 1; read one to its end, ask again later, or start "
        "the server with a larger --max-streams"
    )


def test_gradient_graph_evaluates_to_the_gradients(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    made = stub.DifferentiateGraph(service_pb2.DifferentiateGraphRequest(graph=source(neuron())))
    found = stub.Evaluate(
        service_pb2.EvaluateRequest(
            graph=service_pb2.GraphSource(graph=made.graph),
            evaluation=service_pb2.Evaluation(forward_only=True),
        )
    ).result
    outputs = numbers(list(found.outputs))
    gradients = {f"grad/{name}": grad for name, grad in expected_gradients().items()}
    assert outputs == pytest.approx({"f": 1 / (1 + exp(-1.0)), **gradients}, rel=1e-12)


def test_too_many_values_are_refused(stub: service_pb2_grpc.GradientServiceStub) -> None:
    graph = neuron()
    graph.circuit.inputs.append(leaf("many", None, 1 << 40))
    graph.circuit.inputs[-1].layout = graph_pb2.Leaf.LAYOUT_ELEMENTS
    with pytest.raises(grpc.RpcError) as failed:
        stub.Evaluate(service_pb2.EvaluateRequest(graph=source(graph)))
    assert refused(failed.value).metadata["limit"] == "max-values"


def test_evaluations_over_the_queue_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, complete = threading.Event(), Run.complete

    def held(run: Run, stopped: Callable[[], bool]) -> Found:
        go_on.wait(PATIENCE)
        return complete(run, stopped)

    monkeypatch.setattr(Run, "complete", held)
    server = EmbeddedServer(Limits(max_evaluations=1, max_waiting=1))
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        request = service_pb2.EvaluateRequest(graph=source(neuron()))
        ended: SimpleQueue[Any] = SimpleQueue()
        for _ in range(20):
            stub.Evaluate.future(request).add_done_callback(ended.put)
        for _ in range(18):  # one computes, and one waits
            failure = ended.get(timeout=PATIENCE).exception()
            assert refused(failure).metadata["limit"] == "max-waiting"
            assert refused(failure).metadata["actual"] == "2"
        go_on.set()
        assert all(ended.get(timeout=PATIENCE).result().result.outputs for _ in range(2))
    server.close()


def test_silent_session_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(silence, "monotonic", clock)
    server = EmbeddedServer(Limits(session_idle_seconds=1))
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        hold = threading.Event()

        def requests() -> Iterator[service_pb2.SessionRequest]:
            yield service_pb2.SessionRequest(open=service_pb2.Open(graph=source(neuron())))
            hold.wait(PATIENCE)

        session = stub.Session(requests())
        assert next(session).WhichOneof("outcome") == "started"
        while not session.done():
            clock.pass_some()
        with pytest.raises(grpc.RpcError) as failed:
            next(session)
        hold.set()
        assert refused(failed.value).metadata["limit"] == "session-idle-seconds"
        assert failed.value.details() == (
            "no request came for 1 seconds, so the server ended the call; begin again, or start "
            "the server with a larger --session-idle-seconds"
        )
    server.close()


def test_session_begins_with_open(stub: service_pb2_grpc.GradientServiceStub) -> None:
    request = service_pb2.SessionRequest(step=service_pb2.Step())
    with pytest.raises(grpc.RpcError) as failed:
        next(stub.Session(iter([request])))
    assert refused(failed.value).reason == "REQUEST_INVALID"


def test_our_own_fault_is_told_with_a_request_id_and_explained_only_in_the_log(
    stub: service_pb2_grpc.GradientServiceStub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret of the house")

    monkeypatch.setattr(type(GATES["Neg"]), "infer", break_down)
    fresh = neuron()
    fresh.producer = "a graph that was never planned"
    with pytest.raises(grpc.RpcError) as failed:
        stub.Evaluate(service_pb2.EvaluateRequest(graph=source(fresh)))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in failed.value.details()
    (fault,) = (record for record in caplog.records if record.message == "fault")
    assert vars(fault)["request_id"] in failed.value.details()
    assert fault.exc_info
    assert "a secret of the house" in str(fault.exc_info[1])


def test_refusal_with_a_name_too_long_for_metadata_still_arrives(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    graph = neuron()
    for each in graph.circuit.inputs[:2]:
        each.name = "w" * 100_000
    with pytest.raises(grpc.RpcError) as failed:
        stub.Evaluate(service_pb2.EvaluateRequest(graph=source(graph)))
    assert refused(failed.value).reason == "NAME_INVALID"


def test_catalogue_and_limits_are_described(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    found = stub.DescribeServer(service_pb2.DescribeServerRequest())
    limits = {limit.name: limit.value for limit in found.limits}
    assert limits["max-nodes"] == SMALL.max_nodes
    assert found.kernels == kernels.level() != "numpy"
    sigmoid = next(gate for gate in found.gates if gate.operator == "Sigmoid")
    assert sigmoid.gradient == "d out/dX = (1 - out) * out"


def test_reflection_lists_the_service() -> None:
    server = EmbeddedServer(SMALL)
    with grpc.insecure_channel(server.address) as channel:
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = next(reflection.ServerReflectionInfo(iter([asked])))
    server.close()
    names = {service.name for service in answer.list_services_response.service}
    assert "gradwire.v1.GradientService" in names
