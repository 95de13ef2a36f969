"""What is lifted out of a message, and written behind one, is what protobuf would have read."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from wire import F64, chain, leaf, scalar

from gradwire.payloads import LIFTED_BYTES, PATHS, Paths, field, lifted, varint
from gradwire.v1 import graph_pb2, service_pb2, tensor_pb2
from gradwire_server.codec.answers import COLUMN_BYTES
from gradwire_server.codec.requests import decode_request, source_bytes
from gradwire_server.errors import Refusal
from gradwire_server.limits import Limits
from gradwire_server.service import GradientService

LARGE = 3 * LIFTED_BYTES // 8


def large_request(shape: tuple[int, ...] = (LARGE,)) -> service_pb2.EvaluateRequest:
    data = np.random.default_rng(0).random(LARGE).tobytes()
    tensor = tensor_pb2.Tensor(data_type=F64, shape=shape, data=data)
    return service_pb2.EvaluateRequest(
        graph=service_pb2.GraphSource(graph=bytes(2 * LIFTED_BYTES)),
        evaluation=service_pb2.Evaluation(
            bindings=[
                service_pb2.Binding(leaf="small", tensor=scalar(1.0)),
                service_pb2.Binding(leaf="large", tensor=tensor, batched=True),
            ],
            seeds=[tensor_pb2.NamedTensor(name="f", tensor=tensor)],
        ),
    )


def test_large_payloads_are_lifted_and_found_again() -> None:
    request = large_request()
    found, payloads = decode_request(service_pb2.EvaluateRequest, request.SerializeToString())
    assert len(payloads.lifted.payloads) == 3
    assert found.ByteSize() < 1000
    assert source_bytes(found.graph, payloads) == request.graph.graph
    for mine, whole in zip(
        (*found.evaluation.bindings, *found.evaluation.seeds),
        (*request.evaluation.bindings, *request.evaluation.seeds),
        strict=True,
    ):
        assert payloads.found(mine.tensor.data) == whole.tensor.data
    assert found.evaluation.bindings[1].batched


def test_small_message_is_left_as_it_is() -> None:
    data = large_request().SerializeToString()[:1000]
    assert lifted(data, PATHS["EvaluateRequest"]).message is data


def test_repeated_field_means_what_protobuf_says() -> None:
    """The last of a field that occurs twice counts, and messages are merged."""
    parts = large_request(), large_request()
    parts[1].graph.graph = bytes([1]) * (2 * LIFTED_BYTES)
    joined = b"".join(part.SerializeToString() for part in parts)
    whole = service_pb2.EvaluateRequest.FromString(joined)
    found, payloads = decode_request(service_pb2.EvaluateRequest, joined)
    assert source_bytes(found.graph, payloads) == whole.graph.graph
    assert [each.leaf for each in found.evaluation.bindings] == [
        each.leaf for each in whole.evaluation.bindings
    ]


def test_no_payload_is_found_by_guessing() -> None:
    request = large_request()
    request.evaluation.bindings[0].tensor.data = bytes(18)
    found, payloads = decode_request(service_pb2.EvaluateRequest, request.SerializeToString())
    assert payloads.found(found.evaluation.bindings[0].tensor.data) == bytes(18)


def test_cut_and_mutated_messages_are_read_as_protobuf_reads_them() -> None:
    chance = random.Random(3)
    data = large_request().SerializeToString()
    for _ in range(300):
        mutated = bytearray(data[: chance.randrange(LIFTED_BYTES, len(data))])
        for _ in range(3):
            mutated[chance.randrange(200)] ^= 1 << chance.randrange(8)
        try:
            whole = service_pb2.EvaluateRequest.FromString(bytes(mutated))
        except DecodeError:
            with pytest.raises(Refusal):
                decode_request(service_pb2.EvaluateRequest, bytes(mutated))
            continue
        found, payloads = decode_request(service_pb2.EvaluateRequest, bytes(mutated))
        for mine, theirs in zip(found.evaluation.bindings, whole.evaluation.bindings, strict=True):
            assert payloads.found(mine.tensor.data) == theirs.tensor.data
        assert payloads.found(found.graph.graph) == whole.graph.graph


def test_paths_lead_to_every_payload_of_the_contract() -> None:
    messages = service_pb2.DESCRIPTOR.message_types_by_name
    for name, paths in PATHS.items():
        assert set(_payloads(messages[name])) == set(_leads(paths)), name


def _payloads(message: Descriptor, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for each in message.fields:
        here = (*before, each.number)
        digests = ("digest", "blob")  # of 32 bytes
        if each.type == FieldDescriptor.TYPE_BYTES and each.name not in digests:
            yield here
        elif each.message_type is not None:
            yield from _payloads(each.message_type, here)


def _leads(paths: Paths, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    for number, further in paths.items():
        if further is None:
            yield (*before, number)
        else:
            yield from _leads(further, (*before, number))


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 1 << 21, (1 << 32) - 1])
def test_varint_is_read_back(value: int) -> None:
    message = tensor_pb2.Tensor.FromString(b"\x10" + varint(value))
    assert list(message.shape) == [value]
    assert field(3, 5) == b"\x1a\x05"


@pytest.mark.parametrize("size", [0, 1, LARGE])
@pytest.mark.parametrize("name", ["y", "y" * 100], ids=["short", "long"])
def test_answer_is_what_protobuf_would_have_written(size: int, name: str) -> None:
    graph = graph_pb2.Graph()
    graph.CopyFrom(chain(1))
    graph.circuit.inputs.append(leaf(name, None, size))
    graph.circuit.outputs[0].value_ids[0] += 1
    x = np.random.default_rng(1).random(size)
    tensor = tensor_pb2.Tensor(data_type=F64, shape=[size], data=x.tobytes())
    chosen = service_pb2.Selection(all=True)
    request = service_pb2.EvaluateRequest(
        graph=service_pb2.GraphSource(graph=graph.SerializeToString()),
        evaluation=service_pb2.Evaluation(
            bindings=[service_pb2.Binding(leaf=name, tensor=tensor)], values=chosen
        ),
    )
    data = GradientService(Limits()).evaluate(request.SerializeToString(), lambda: False)
    answer = service_pb2.EvaluateResponse.FromString(data)
    assert service_pb2.EvaluateResponse.FromString(answer.SerializeToString()) == answer
    assert [each.name for each in answer.result.outputs] == ["f"]
    gradient = answer.result.gradients[-1]
    assert (gradient.name, list(gradient.tensor.shape)) == (name, [size])
    assert gradient.tensor.data == bytes(8 * size)
    columns = [each for each in answer.result.node_values if list(each.shape) == [size]]
    assert b"".join(each.data for each in columns) == x.tobytes()
    assert [each.first_element for each in columns] == [*range(0, max(1, size), COLUMN_BYTES // 8)]
