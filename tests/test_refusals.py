"""Every refusal through the wire: each malformed field has a reason, and each reason a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from wire import F64, field_of, gate, leaf, module_neuron, neuron, scalar, source

from gradwire.v1 import graph_pb2, service_pb2, service_pb2_grpc, tensor_pb2
from gradwire_server.entry import EmbeddedServer
from gradwire_server.errors import ADVICE, REASONS
from gradwire_server.limits import Limits

SMALL = Limits(max_nodes=100, max_values=200, max_memory_bytes=1 << 20, max_message_bytes=1 << 20)
INT64 = tensor_pb2.DATA_TYPE_INT64
#: Reasons that no server gives: the client reads files.
CLIENT_REASONS = {"FILE_INVALID"}
#: Of a server without shared memory, which this one has: see test_shared_memory.
OTHER_SERVERS_REASONS = {"SHARED_MEMORY_UNSUPPORTED"}
#: Of saved graphs: see test_saved_graphs and test_store.
STORE_REASONS = {
    "DIGEST_INVALID",
    "DIGEST_MISMATCH",
    "GRAPH_NOT_FOUND",
    "NAME_CONFLICT",
    "PAGE_TOKEN_INVALID",
    "STORE_UNAVAILABLE",
    "STORE_UNSUPPORTED",
    "UPLOAD_INVALID",
}
#: Of the page: see test_web.
PAGE_REASONS = {"CONTENT_TYPE_REFUSED", "HOST_REFUSED", "ORIGIN_REFUSED"}


@pytest.fixture(scope="module")
def stub() -> Iterator[service_pb2_grpc.GradientServiceStub]:
    server = EmbeddedServer(SMALL, shares_memory=True)
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GradientServiceStub(channel)
    server.close()


def reason_of(call: grpc.RpcError) -> str:
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.domain == "gradwire"
    return info.reason


def at_path(message: Any, path: str) -> Any:
    """What a request has at a path, such as evaluation.bindings[0].tensor."""
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?(?:\.|$)", path):
        message = getattr(message, name)
        if index:
            message = message[int(index)]
        if isinstance(message, bytes) and not path.endswith(name):
            message = graph_pb2.Graph.FromString(message)  # the path goes on in it
    return message


def require_field(request: Any, call: grpc.RpcError) -> None:
    """What is wrong with a request is in one of its fields, and the refusal says in which."""
    if call.code() is grpc.StatusCode.INVALID_ARGUMENT:
        assert at_path(request, field_of(call)) is not request, "a path that leads somewhere"


def integers(*values: int, rank: int = 1) -> tensor_pb2.Tensor:
    data = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
    return tensor_pb2.Tensor(data_type=INT64, shape=[len(values)] * rank, data=data)


def applied(operator: str, *leaves: graph_pb2.Leaf, outputs: int = 1) -> graph_pb2.Graph:
    """One node over leaves; those without a name are constants."""
    graph = graph_pb2.Graph(format_version=1, operator_set_version=28)
    graph.gates.append(gate(operator, len(leaves)))
    graph.gates[0].output_count = outputs
    for each in leaves:
        (graph.circuit.inputs if each.name else graph.circuit.constants).append(each)
    graph.circuit.node_gates.append(0)
    graph.circuit.node_inputs.extend(range(1, len(leaves) + 1))
    graph.circuit.outputs.add(name="f", value_ids=[len(leaves) + 1])
    return graph


def numbers(name: str, *shape: int) -> graph_pb2.Leaf:
    """A leaf of zeros."""
    count = 1
    for size in shape:
        count *= size
    stored = tensor_pb2.Tensor(data_type=F64, shape=shape, data=bytes(8 * count))
    found = leaf(name, None, *shape)
    found.value.CopyFrom(stored)
    return found


def whole_numbers(name: str, *values: int) -> graph_pb2.Leaf:
    found = leaf(name, None, len(values))
    found.type.data_type = INT64
    found.value.CopyFrom(integers(*values))
    return found


def asserted() -> graph_pb2.Graph:
    """A graph that was made for another w0."""
    graph = applied("AssertEqual", leaf("w0", None), numbers("", *()))
    graph.circuit.inputs[0].value.CopyFrom(scalar(1.0))
    return graph


def broken_graphs() -> Iterator[tuple[str, graph_pb2.Graph]]:
    """Graphs that no server takes, each with the reason."""
    graph = neuron()
    graph.required_features.append("quantum")
    yield "FEATURE_UNSUPPORTED", graph
    graph = neuron()
    graph.circuit.inputs[0].value.blob = bytes(32)
    yield "TENSOR_INVALID", graph
    graph = neuron()
    graph.format_version = 2
    yield "FORMAT_VERSION_UNSUPPORTED", graph
    graph = neuron()
    graph.operator_set_version = 1
    yield "OPERATOR_SET_UNSUPPORTED", graph
    graph = neuron()
    graph.gates[0].operator = "Mull"
    yield "OPERATOR_UNKNOWN", graph
    graph = neuron()
    graph.ClearField("circuit")
    yield "GRAPH_INVALID", graph
    graph = neuron()
    graph.circuit.node_inputs[0] = 14
    yield "NODE_INVALID", graph
    graph = neuron()
    graph.circuit.node_gates[0] = 9
    yield "NODE_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[1].name = "w0"
    yield "NAME_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].ClearField("type")
    yield "LEAF_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].value.data = b"short"
    yield "TENSOR_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].type.data_type = 8  # string, in ONNX
    yield "DATA_TYPE_UNSUPPORTED", graph
    graph = neuron()
    graph.circuit.outputs[0].value_ids[0] = 15
    yield "OUTPUT_INVALID", graph
    graph = neuron()
    graph.gates[0].input_count = 3
    yield "INPUT_COUNT_INVALID", graph
    graph = neuron()
    graph.gates[0].output_count = 2
    yield "OUTPUT_COUNT_INVALID", graph
    for made in (neuron(), module_neuron()):
        for operator, inputs, outputs in (("Max", 1 << 27, 1), ("Split", 1, 1 << 27)):
            graph = graph_pb2.Graph.FromString(made.SerializeToString())  # of a gate without nodes
            graph.gates.add(operator=operator, input_count=inputs, output_count=outputs)
            yield "INPUT_COUNT_INVALID", graph
    graph = neuron()
    graph.gates[0].attributes.add(name="alpha", float_value=1.0)
    yield "ATTRIBUTE_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].CopyFrom(leaf("w0"))
    yield "INPUT_MISSING", graph
    graph = neuron()
    graph.circuit.outputs.add(name="g", value_ids=[13])
    yield "SEED_MISSING", graph
    graph = neuron()
    graph.circuit.node_gates.extend([2] * 100)
    graph.circuit.node_inputs.extend([1] * 100)
    yield "LIMIT_EXCEEDED", graph
    yield from _undecodable()
    yield from _wrong_leaves()
    yield from _wrong_nodes()
    yield from _wrong_at_their_shapes()


def _undecodable() -> Iterator[tuple[str, graph_pb2.Graph]]:
    graph = neuron()
    graph.format_version = 0
    yield "GRAPH_INVALID", graph
    graph = neuron()
    del graph.circuit.outputs[:]
    yield "GRAPH_INVALID", graph
    graph = neuron()
    graph.gates[0].ClearField("target")
    yield "OPERATOR_UNKNOWN", graph
    graph = applied("LeakyRelu", numbers("x"))
    graph.gates[0].attributes.add(name="alpha")
    yield "ATTRIBUTE_INVALID", graph
    graph = applied("LeakyRelu", numbers("x"))
    graph.gates[0].attributes.add(name="alpha", string_value="steep")
    yield "ATTRIBUTE_INVALID", graph
    graph = applied("Selu", numbers("x"))
    graph.gates[0].attributes.add(name="gamma", float_value=2.0)
    graph.gates[0].attributes.add(name="alpha", float_value=2.0)
    yield "ATTRIBUTE_INVALID", graph
    graph = applied("Gelu", numbers("x"))
    graph.gates[0].attributes.add(name="approximate", string_value="fast")
    yield "ATTRIBUTE_INVALID", graph
    yield "ATTRIBUTE_INVALID", applied("Cast", numbers("x"))
    leaf_id = 1
    for ids, names in (
        ([], ["a"]), ([7], ["a", "b"]), ([8, 7], ["a", "b"]), ([7], [""]), ([leaf_id], ["a"])
    ):  # fmt: skip
        graph = neuron()
        graph.circuit.named_ids.extend(ids)
        graph.circuit.names.extend(names)
        yield "NAME_INVALID", graph
    graph = neuron()
    graph.circuit.outputs.add(name="f", value_ids=[13])
    yield "NAME_INVALID", graph
    for keys in ["org.example"] * 2, [""]:
        graph = neuron()
        for key in keys:
            graph.notes.add(key=key)
        yield "NAME_INVALID", graph


def _wrong_leaves() -> Iterator[tuple[str, graph_pb2.Graph]]:
    graph = neuron()
    graph.circuit.inputs[0].layout = 7  # type: ignore[assignment]
    yield "LEAF_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].CopyFrom(leaf("w0", None, "n"))
    graph.circuit.inputs[0].layout = graph_pb2.Leaf.LAYOUT_ELEMENTS
    yield "LEAF_INVALID", graph
    for kind in "parameters", "constants":
        graph = neuron()
        getattr(graph.circuit, kind).append(leaf("p"))
        yield "LEAF_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].value.CopyFrom(integers(1, rank=0))
    yield "LEAF_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].value.CopyFrom(numbers("w0", 2).value)
    yield "LEAF_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].type.axes.extend([tensor_pb2.Axis(size=1)] * 33)
    yield "TENSOR_INVALID", graph
    for axis in tensor_pb2.Axis(), tensor_pb2.Axis(symbol=""):
        graph = neuron()
        graph.circuit.inputs[0].type.axes.append(axis)
        yield "TENSOR_INVALID", graph
    graph = neuron()
    graph.circuit.inputs[0].type.data_type = tensor_pb2.DATA_TYPE_UNSPECIFIED
    yield "DATA_TYPE_UNSUPPORTED", graph
    graph = applied("Add", numbers("x", 2), numbers("y", 3))
    for each in graph.circuit.inputs:
        each.type.axes[0].symbol = "n"
    yield "SHAPE_MISMATCH", graph


def _wrong_nodes() -> Iterator[tuple[str, graph_pb2.Graph]]:
    graph = neuron()
    graph.circuit.node_inputs.append(1)
    yield "NODE_INVALID", graph
    graph = neuron()
    graph.circuit.node_inputs[0] = 0  # only an optional input may be absent
    yield "INPUT_COUNT_INVALID", graph
    graph = neuron()
    del graph.circuit.outputs[0].value_ids[:]
    yield "OUTPUT_INVALID", graph
    graph = neuron()
    graph.circuit.outputs[0].value_ids[0] = 0
    yield "OUTPUT_INVALID", graph
    graph = applied("Neg", numbers("x", 2))
    graph.circuit.outputs[0].value_ids.append(1)
    yield "OUTPUT_INVALID", graph
    graph = neuron()
    graph.gates.add(module=0, input_count=1, output_count=1)
    yield "MODULE_INVALID", graph


def _wrong_at_their_shapes() -> Iterator[tuple[str, graph_pb2.Graph]]:
    yield "SHAPE_MISMATCH", applied("MatMul", numbers("x", 2, 3), numbers("y", 2, 3))
    yield "SHAPE_MISMATCH", applied("Reshape", numbers("x", 2), whole_numbers("", *[1] * 32, 2))
    yield "DATA_TYPE_MISMATCH", applied("Add", numbers("x", 1), whole_numbers("", 1))
    yield "DATA_TYPE_UNSUPPORTED", applied("Exp", whole_numbers("x", 1))
    yield (
        "OUTPUT_COUNT_INVALID",
        applied("Split", numbers("x", 4), whole_numbers("", 2, 2), outputs=3),
    )
    yield "INDEX_OUT_OF_RANGE", applied("Gather", numbers("x", 1), whole_numbers("i", 1))
    yield "ASSERTION_FAILED", asserted()
    graph = applied("Gather", numbers("x", 1), numbers("y", 1))
    graph.gates.extend([gate("Cast", 1), gate("Reshape", 2), gate("Neg", 1)])
    graph.gates[1].attributes.add(name="to", int_value=INT64)
    graph.circuit.node_gates[:] = [3, 1, 2]
    graph.circuit.node_inputs[:] = [2, 3, 1, 4]
    graph.circuit.outputs[0].value_ids[0] = 5
    yield "INPUT_NOT_KNOWN", graph
    yield "SEED_MISSING", applied("Neg", numbers("x", 2))
    yield "SEED_MISSING", applied("Neg", whole_numbers("x", 1))


def bad_evaluations() -> Iterator[tuple[str, service_pb2.Evaluation]]:
    """What cannot be asked of the neuron, each with the reason."""
    binding = service_pb2.Binding(leaf="w0", tensor=scalar(1.0))
    one = tensor_pb2.NamedTensor(name="f", tensor=scalar(1.0))
    vector = tensor_pb2.Tensor(data_type=F64, shape=[2], data=bytes(16))
    single = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_FLOAT32, data=bytes(4))
    ask = service_pb2.Evaluation
    yield "BINDING_INVALID", ask(bindings=[binding, binding])
    yield "LEAF_UNKNOWN", ask(bindings=[service_pb2.Binding(leaf="w", tensor=scalar(1.0))])
    yield "TENSOR_INVALID", ask(bindings=[service_pb2.Binding(leaf="w0")])
    yield "SHAPE_MISMATCH", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=vector)])
    yield "DATA_TYPE_MISMATCH", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=single)])
    batched = service_pb2.Binding(leaf="w0", tensor=vector, batched=True)
    yield "BINDING_INVALID", ask(bindings=[batched])
    yield "SHAPE_MISMATCH", ask(bindings=[batched], batch_size=3)
    yield "SEED_INVALID", ask(seeds=[one, one])
    yield "SEED_INVALID", ask(seeds=[tensor_pb2.NamedTensor(name="f", tensor=vector)])
    unknown = tensor_pb2.NamedTensor(name="g", tensor=scalar(1.0))
    yield "OUTPUT_UNKNOWN", ask(seeds=[unknown])
    yield "SELECTION_INVALID", ask(forward_only=True, seeds=[one])
    every = service_pb2.Selection(all=True, names=["w0"])
    yield "SELECTION_INVALID", ask(values=every)
    yield "VALUE_UNKNOWN", ask(values=service_pb2.Selection(value_ids=[99]))
    yield "VALUE_UNKNOWN", ask(gradients=service_pb2.Selection(names=["w"]))
    yield "NOT_DIFFERENTIABLE", ask(gradients=service_pb2.Selection(value_ids=[6]))
    yield "LEAF_UNKNOWN", ask(with_respect_to=["w"])
    yield "LIMIT_EXCEEDED", ask(batch_size=1 << 20)
    yield "SELECTION_INVALID", ask(values=service_pb2.Selection(all=True, detail=7))
    yield "SELECTION_INVALID", ask(forward_only=True, with_respect_to=["w0"])
    yield "VALUE_UNKNOWN", ask(values=service_pb2.Selection(value_ids=[0]))
    truth = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BOOL, data=b"\x02")
    yield "TENSOR_INVALID", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=truth)])
    endless = tensor_pb2.Tensor(data_type=F64, shape=[0, 1 << 62])
    yield "TENSOR_INVALID", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=endless)])
    deep = tensor_pb2.Tensor(data_type=F64, shape=[1] * 33, data=bytes(8))
    yield "TENSOR_INVALID", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=deep)])
    untyped = tensor_pb2.Tensor(data=bytes(8))
    yield "DATA_TYPE_UNSUPPORTED", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=untyped)])
    yield "TENSOR_INVALID", ask(seeds=[tensor_pb2.NamedTensor(name="f")])
    beside = tensor_pb2.Tensor(data_type=F64, blob=bytes(32))
    yield "TENSOR_INVALID", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=beside)])
    region = tensor_pb2.SharedRegion(segment="0" * 32, size=8)
    shared = tensor_pb2.Tensor(data_type=F64, shared=region)
    yield "SHARED_MEMORY_INVALID", ask(bindings=[service_pb2.Binding(leaf="w0", tensor=shared)])
    whole = tensor_pb2.NamedTensor(name="f", tensor=single)
    yield "SEED_INVALID", ask(seeds=[whole])


def wrong_steps() -> Iterator[tuple[str, list[service_pb2.SessionRequest]]]:
    """What a session answers with an error, as its last request."""
    opened = service_pb2.SessionRequest(open=service_pb2.Open(graph=source(neuron())))
    forward_only = service_pb2.SessionRequest(
        open=service_pb2.Open(
            graph=source(neuron()), evaluation=service_pb2.Evaluation(forward_only=True)
        )
    )
    step = service_pb2.SessionRequest(step=service_pb2.Step())
    backward = service_pb2.SessionRequest(backward=service_pb2.Backward())
    yield "REQUEST_INVALID", [opened, opened]
    yield "REQUEST_INVALID", [opened, service_pb2.SessionRequest()]
    yield "REQUEST_INVALID", [opened, backward]
    yield "REQUEST_INVALID", [forward_only, step, backward]
    unknown = tensor_pb2.NamedTensor(name="g", tensor=scalar(1.0))
    seeded = service_pb2.SessionRequest(backward=service_pb2.Backward(seeds=[unknown]))
    yield "OUTPUT_UNKNOWN", [opened, step, seeded]


def bad_derivatives() -> Iterator[tuple[str, service_pb2.DifferentiateGraphRequest]]:
    """What DifferentiateGraph refuses."""
    ask = service_pb2.DifferentiateGraphRequest
    free = applied("Neg", leaf("x", None, "n"))
    yield "SYMBOL_UNBOUND", ask(graph=source(free))
    yield "LEAF_UNKNOWN", ask(graph=source(neuron()), with_respect_to=["w"])
    whole = applied("Neg", whole_numbers("x", 1))
    yield "NOT_DIFFERENTIABLE", ask(graph=source(whole), with_respect_to=["x"])
    yield "GRAPH_INVALID", ask(graph=service_pb2.GraphSource(graph=b"not a graph"))
    yield "GRAPH_INVALID", ask()
    wide = applied("Neg", numbers("x", 2))
    wide.circuit.inputs[0].type.axes[0].symbol = "n"
    size = service_pb2.SymbolSize(symbol="n", size=3)
    yield "SHAPE_MISMATCH", ask(graph=source(wide), symbol_sizes=[size])


@pytest.mark.parametrize(
    ("reason", "graph"), list(broken_graphs()), ids=lambda each: str(each)[:30]
)
def test_bad_graph_is_refused_with_its_reason(
    reason: str, graph: graph_pb2.Graph, stub: service_pb2_grpc.GradientServiceStub
) -> None:
    request = service_pb2.EvaluateRequest(graph=source(graph))
    streamed = service_pb2.EvaluateStreamRequest(graph=source(graph))
    for call in (lambda: stub.Evaluate(request), lambda: list(stub.EvaluateStream(streamed))):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert reason_of(failed.value) == reason, failed.value.details()
        require_field(request, failed.value)


@pytest.mark.parametrize(
    ("reason", "evaluation"), list(bad_evaluations()), ids=lambda each: str(each)[:30]
)
def test_bad_evaluation_is_refused_with_its_reason(
    reason: str,
    evaluation: service_pb2.Evaluation,
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    request = service_pb2.EvaluateRequest(graph=source(neuron()), evaluation=evaluation)
    with pytest.raises(grpc.RpcError) as failed:
        stub.Evaluate(request)
    assert reason_of(failed.value) == reason, failed.value.details()
    require_field(request, failed.value)


@pytest.mark.parametrize(
    ("reason", "requests"), list(wrong_steps()), ids=lambda each: str(each)[:30]
)
def test_bad_step_is_answered_with_its_reason(
    reason: str,
    requests: list[service_pb2.SessionRequest],
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    *before, last = stub.Session(iter(requests))
    assert not any(answer.HasField("error") for answer in before)
    assert last.error.reason == reason, last.error.message


@pytest.mark.parametrize(
    ("reason", "request_"), list(bad_derivatives()), ids=lambda each: str(each)[:30]
)
def test_graph_that_cannot_be_differentiated_is_refused_with_its_reason(
    reason: str,
    request_: service_pb2.DifferentiateGraphRequest,
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        stub.DifferentiateGraph(request_)
    assert reason_of(failed.value) == reason, failed.value.details()
    require_field(request_, failed.value)


def test_field_is_a_path_in_the_request(stub: service_pb2_grpc.GradientServiceStub) -> None:
    def field(call: Any) -> str:
        with pytest.raises(grpc.RpcError) as failed:
            call()
        return field_of(failed.value)

    bare, nothing = service_pb2.Binding(leaf="x0"), service_pb2.Evaluation()
    bound = service_pb2.Evaluation(
        bindings=[service_pb2.Binding(leaf="w0", tensor=scalar(1.0)), bare]
    )
    opening = service_pb2.Open(graph=source(neuron()), evaluation=bound)
    cut = neuron()
    cut.modules.add(name="m").circuit.constants.add(name="c", value=scalar(1.0))
    cut.required_features.append("modules")
    by_digest = service_pb2.GraphSource(digest=b"short")
    evaluate, ask = stub.Evaluate, service_pb2.EvaluateRequest
    assert field(lambda: evaluate(ask(graph=source(neuron()), evaluation=bound))) == (
        "evaluation.bindings[1].tensor"
    )
    assert field(lambda: [*stub.Session(iter([service_pb2.SessionRequest(open=opening)]))]) == (
        "open.evaluation.bindings[1].tensor"
    )
    assert field(lambda: evaluate(ask(graph=source(cut), evaluation=nothing))) == (
        "graph.graph.modules[0].circuit.constants[0].type"
    )
    assert field(lambda: evaluate(ask(graph=by_digest))) == "graph.digest"
    assert field(lambda: evaluate(ask())) == "graph"


def test_refusal_while_computing_names_the_node(
    stub: service_pb2_grpc.GradientServiceStub,
) -> None:
    graph = applied("Gather", numbers("x", 1), whole_numbers("i", 1))
    with pytest.raises(grpc.RpcError) as failed:
        stub.Evaluate(service_pb2.EvaluateRequest(graph=source(graph)))
    assert failed.value.details().startswith("node 3 (Gather): ")


def test_every_limit_that_refuses_says_what_helps() -> None:
    others = {
        "max-evaluations",  # more wait
        "max-cache-bytes",  # the oldest go
        "max-shared-bytes",  # in a message of its own, to the client that shares
        "max-read-bytes",  # in a message of its own, as is the next
        "max-read-seconds",
        "session-idle-seconds",  # in a message of its own, as is the next
        "first-message-seconds",
        "upload-idle-seconds",  # the next call begins again
    }
    assert {limit.name for limit in Limits().describe()} == {*ADVICE} | others


def test_every_reason_is_provoked_here() -> None:
    tables = (broken_graphs(), bad_evaluations(), wrong_steps(), bad_derivatives())
    provoked = {reason for table in tables for reason, _ in table}
    elsewhere = CLIENT_REASONS | OTHER_SERVERS_REASONS | STORE_REASONS | PAGE_REASONS
    assert provoked == {*REASONS} - elsewhere
