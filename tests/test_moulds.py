"""A request known by its bytes is answered as one that is parsed, and nobody can tell."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import grpc
import numpy as np
import pytest
from wire import F64, neuron, scalar, source

from gradwire.holes import request_id_of, with_request_id
from gradwire.v1 import graph_pb2, service_pb2, service_pb2_grpc, tensor_pb2
from gradwire_server.codec.graphs import decode_graph
from gradwire_server.codec.requests import (
    decode_bindings,
    decode_evaluation,
    find_bound,
)
from gradwire_server.engine.evaluation import Binding, Evaluation, prepare
from gradwire_server.entry import EmbeddedServer
from gradwire_server.limits import Limits
from gradwire_server.mould import Mould, movable
from gradwire_server.service import GradientService
from gradwire_server.session import Session

LIMITS = Limits()


def never() -> bool:
    return False


def binding(name: str, value: float) -> service_pb2.Binding:
    return service_pb2.Binding(leaf=name, tensor=scalar(value))


def request(graph: graph_pb2.Graph | None = None, **values: float) -> service_pb2.EvaluateRequest:
    bindings = [binding(*each) for each in values.items()]
    return service_pb2.EvaluateRequest(
        graph=source(graph or neuron()), evaluation=service_pb2.Evaluation(bindings=bindings)
    )


def step(request_id: int, **values: float) -> service_pb2.SessionRequest:
    bindings = [binding(*each) for each in values.items()]
    return service_pb2.SessionRequest(
        request_id=request_id, step=service_pb2.Step(bindings=bindings)
    )


def bindings_in(message: service_pb2.EvaluateRequest) -> Sequence[service_pb2.Binding]:
    return message.evaluation.bindings


def holes(data: bytes) -> list[bytes] | None:
    """What a request has where its holes are."""
    message = service_pb2.EvaluateRequest.FromString(data)
    bound = decode_bindings(message.evaluation.bindings)
    found = find_bound(data, service_pb2.EvaluateRequest, bindings_in, bound)
    if found is None:
        return None
    for hole in found:
        assert data[hole.place] == bound[hole.leaf].array.tobytes()
    return [data[hole.place] for hole in found]


def mould() -> tuple[Mould, bytes]:
    data = request(x0=0.5, x1=0.25).SerializeToString()
    wanted = decode_evaluation(request(x0=0.5, x1=0.25).evaluation)
    graph = decode_graph(neuron().SerializeToString(), LIMITS)
    found = find_bound(data, service_pb2.EvaluateRequest, bindings_in, wanted.bindings)
    assert found is not None
    return Mould.of(prepare(graph, wanted, LIMITS), movable(graph), data, found), data


def test_mould_takes_other_numbers_and_nothing_else() -> None:
    made, _ = mould()
    poured = made.pour(request(x0=-7.0, x1=np.nan).SerializeToString())
    assert poured is not None
    np.testing.assert_array_equal(poured.point.arrays[3:5], [-7.0, np.nan])

    def changed(**fields: object) -> service_pb2.EvaluateRequest:
        other = request(x0=0.5, x1=0.25)
        other.evaluation.MergeFrom(service_pb2.Evaluation(**fields))
        return other

    renamed = neuron()
    renamed.producer = "other"
    shaped = request(x0=0.5, x1=0.25)
    shaped.evaluation.bindings[0].tensor.data_type = tensor_pb2.DATA_TYPE_INT64
    others = [
        request(x0=0.5),
        request(x1=0.25, x0=0.5),
        request(x0=0.5, w1=0.25),
        request(renamed, x0=0.5, x1=0.25),
        changed(forward_only=True),
        changed(with_respect_to=["x0"]),
        changed(batch_size=2),
        changed(values=service_pb2.Selection(value_ids=[14])),
        changed(seeds=[tensor_pb2.NamedTensor(name="f", tensor=scalar(2.0))]),
        shaped,
    ]
    assert [made.pour(other.SerializeToString()) for other in others] == [None] * len(others)


def test_mould_keeps_nothing_that_a_caller_sent() -> None:
    made, data = mould()
    assert made.job.point.arrays[3:5] == (None, None)
    secret = np.float64(0.5).tobytes()
    assert secret in data
    assert not any(secret in fixed for _, fixed in made.fixed)


def test_holes_are_found_wherever_the_numbers_are() -> None:
    plain = request(x0=0.5, x1=0.25)
    expected = [np.float64(each).tobytes() for each in (0.5, 0.25)]
    assert holes(plain.SerializeToString()) == expected
    graph_last = b"".join(
        service_pb2.EvaluateRequest(**part).SerializeToString()
        for part in ({"evaluation": plain.evaluation}, {"graph": plain.graph})
    )
    assert holes(graph_last) == expected
    assert holes(request(x0=0.0, x1=0.0).SerializeToString()) == [bytes(8)] * 2


def test_numbers_that_are_in_the_graph_too_are_told_apart() -> None:
    graph = neuron()
    for parameter in graph.circuit.inputs:
        parameter.value.CopyFrom(scalar(0.5))
    data = request(graph, x0=0.5, x1=0.5).SerializeToString()
    message = service_pb2.EvaluateRequest.FromString(data)
    bound = decode_bindings(message.evaluation.bindings)
    found = find_bound(data, service_pb2.EvaluateRequest, bindings_in, bound)
    assert found is not None
    after_graph = data.index(graph.SerializeToString()) + graph.ByteSize()
    assert all(hole.place.start > after_graph for hole in found)
    assert len({hole.place.start for hole in found}) == 2


@pytest.mark.parametrize("kind", ["bool", "empty"])
def test_arrays_whose_elements_are_checked_make_no_mould(kind: str) -> None:
    tensor = (
        tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BOOL, data=b"\1")
        if kind == "bool"
        else tensor_pb2.Tensor(data_type=F64, shape=[0])
    )
    asked = request(x0=0.5)
    asked.evaluation.bindings.add(leaf="x1", tensor=tensor)
    assert holes(asked.SerializeToString()) is None


def test_third_request_is_known_by_its_bytes_and_answered_as_if_parsed() -> None:
    service = GradientService(LIMITS)
    points = [(0.5, 0.25), (-1.0, 2.0), (0.75, np.inf), (0.1, 0.2)]
    data = [request(x0=x0, x1=x1).SerializeToString() for x0, x1 in points]
    known, answers = [], []
    for each in data:
        known.append(service._cache.pour(each) is not None)
        answers.append(service.evaluate(each, never))
    assert known == [False, False, True, True]
    assert answers == [GradientService(LIMITS).evaluate(each, never) for each in data]
    service.close()


def test_numbers_that_cannot_be_found_leave_others_to_try() -> None:
    graph = neuron()
    graph.producer = "\0" * 400
    service = GradientService(LIMITS)
    zeros, others = (request(graph, x0=x0).SerializeToString() for x0 in (0.0, 0.5))
    for _ in range(2):
        service.evaluate(zeros, never)
    assert service._cache.pour(zeros) is None
    service.evaluate(others, never)
    assert service._cache.pour(zeros) is not None
    service.close()


def test_request_that_asks_at_length_makes_no_mould() -> None:
    """What a mould holds is counted, whatever a caller asks for."""
    asked = request(x0=0.5)
    asked.evaluation.values.value_ids.extend([14] * 10_000)
    service = GradientService(LIMITS)
    for _ in range(3):
        service.evaluate(asked.SerializeToString(), never)
    assert service._cache.pour(asked.SerializeToString()) is None
    service.close()


def test_mould_goes_with_its_graph() -> None:
    service = GradientService(LIMITS)
    data = request(x0=0.5, x1=0.25).SerializeToString()
    for _ in range(2):
        service.evaluate(data, never)
    assert service._cache.pour(data) is not None
    (key,) = service._cache._entries
    service._cache.forget(key)
    assert service._cache.pour(data) is None
    assert not service._cache._moulds
    service.close()


def test_graphs_as_long_as_each_other_keep_their_moulds() -> None:
    service = GradientService(LIMITS)
    asked = []
    for weight in (1.0, 2.0, 3.0):
        graph = neuron()
        graph.circuit.inputs[0].value.CopyFrom(scalar(weight))
        asked.append(request(graph, x0=0.5, x1=0.25).SerializeToString())
    answers = [[service.evaluate(each, never) for each in asked] for _ in range(3)]
    assert all(service._cache.pour(each) is not None for each in asked)
    assert answers[0] == answers[1] == answers[2]
    assert len(set(answers[0])) == 3
    service.close()


def test_graph_that_is_named_by_its_digest_is_looked_up_each_time() -> None:
    service = GradientService(LIMITS)
    service.evaluate(request(x0=0.5).SerializeToString(), never)
    named = request(x0=0.5)
    named.graph.digest = sha256(neuron().SerializeToString()).digest()
    for _ in range(3):
        service.evaluate(named.SerializeToString(), never)
    assert service._cache.pour(named.SerializeToString()) is None
    service.close()


def test_id_that_a_request_begins_with_is_taken_off() -> None:
    for number in (0, 1, 127, 128, 300, 1 << 40, (1 << 63) - 1):
        data = step(number, x0=0.5).SerializeToString()
        found, start = request_id_of(data)
        assert (found, data[start:]) == (number, step(0, x0=0.5).SerializeToString())
        assert not number or data[:start] == with_request_id(number)
    for odd in (b"", b"\x08", b"\x08\x80", b"\x08" + b"\xff" * 9 + b"\1"):
        assert request_id_of(odd) == (0, 0)


def test_step_like_the_last_ones_is_known_by_its_bytes() -> None:
    graph = decode_graph(neuron().SerializeToString(), LIMITS)
    session = Session(graph, Evaluation(), LIMITS)
    data = step(0, x0=0.5).SerializeToString()
    bound = {"x0": Binding(np.array(0.5))}
    session.step(bound, False, never)
    assert not session.wants_mould, "there may be no second one"
    session.step(bound, False, never)
    assert session.wants_mould
    found = find_bound(data, service_pb2.SessionRequest, lambda each: each.step.bindings, bound)
    session.cast(data, found)
    session.step({"x1": Binding(np.array(4.0))}, False, never)
    job = session.pour(step(0, x0=-3.0).SerializeToString())
    assert job is not None
    np.testing.assert_array_equal(job.point.arrays[3:5], [-3.0, 4.0])
    session.step(bound, True, never)
    assert session.pour(data) is None, "the last step was forward only"


STEPS = [
    {"x0": 0.5, "x1": 0.25}, {"x0": 1.5, "x1": -1.0}, {"x0": 2.5, "x1": 3.0},
    {"x0": -2.5, "x1": 0.0}, {"x1": 9.0}, {"x0": 4.0, "x1": 5.0}, {"w0": 0.5}, {"w0": -0.5},
    {"x0": 4.5, "x1": 5.5}, {"x0": 4.75, "x1": 5.0},
]  # fmt: skip


def test_every_step_of_a_session_is_answered_as_a_call_of_its_own() -> None:
    """Steps bind these and those, some computed forward only, with a bad one and a backward."""
    bad = step(77, x0=1.0, nothing=2.0)
    forward = step(78, x0=0.125)
    forward.step.forward_only = True
    again = service_pb2.SessionRequest(request_id=79)
    again.backward.seeds.add(name="f", tensor=scalar(1.0))
    asked = [step(number * 50, **each) for number, each in enumerate(STEPS)]
    asked = [*asked[:4], bad, *asked[4:8], forward, *asked[8:], again]
    server = EmbeddedServer(LIMITS)
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GradientServiceStub(channel)
        opening = service_pb2.SessionRequest(open=service_pb2.Open(graph=source(neuron())))
        started, *answers = stub.Session(iter([opening, *asked]))
    server.close()
    assert started.HasField("started")
    assert [answer.request_id for answer in answers] == [each.request_id for each in asked]
    point: dict[str, float] = {}
    for each, answer in zip(asked, answers, strict=True):
        if each is bad:
            assert answer.error.reason == "LEAF_UNKNOWN"
            continue
        values = {b.leaf: np.frombuffer(b.tensor.data)[0] for b in each.step.bindings}
        point |= values
        alone = GradientService(LIMITS).evaluate(request(**point).SerializeToString(), never)
        expected = service_pb2.EvaluateResponse.FromString(alone).result
        if each is forward:
            expected.ClearField("gradients")
        if each is again:
            expected.ClearField("outputs")
        assert answer.result == expected
