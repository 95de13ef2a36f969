"""Messages that several tests send, made with nothing but the generated stubs."""

from __future__ import annotations

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gradwire.v1 import graph_pb2, service_pb2, tensor_pb2

F64 = tensor_pb2.DATA_TYPE_FLOAT64
LEAVES = {"w0": 2.0, "w1": -3.0, "w2": -3.0, "x0": -1.0, "x1": -2.0}


def scalar(value: float) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(data_type=F64, data=np.float64(value).tobytes())


def leaf(name: str, value: float | None = None, *axes: int | str) -> graph_pb2.Leaf:
    declared = [
        tensor_pb2.Axis(symbol=axis) if isinstance(axis, str) else tensor_pb2.Axis(size=axis)
        for axis in axes
    ]
    stored = None if value is None else scalar(value)
    kind = tensor_pb2.TensorType(data_type=F64, axes=declared)
    return graph_pb2.Leaf(name=name, type=kind, value=stored)


def gate(operator: str, inputs: int) -> graph_pb2.Gate:
    return graph_pb2.Gate(operator=operator, input_count=inputs, output_count=1)


def neuron() -> graph_pb2.Graph:
    """1 / (1 + exp(-(w0*x0 + w1*x1 + w2))), with its inputs stored."""
    operators = {"Mul": 2, "Add": 2, "Neg": 1, "Exp": 1, "Reciprocal": 1}
    graph = graph_pb2.Graph(
        format_version=1,
        operator_set_version=28,
        gates=[gate(operator, inputs) for operator, inputs in operators.items()],
    )
    graph.circuit.inputs.extend(leaf(name, value) for name, value in LEAVES.items())
    graph.circuit.constants.append(leaf("", 1.0))
    graph.circuit.node_gates.extend([0, 0, 1, 1, 2, 3, 1, 4])
    graph.circuit.node_inputs.extend([1, 4, 2, 5, 7, 8, 9, 3, 10, 11, 6, 12, 13])
    graph.circuit.outputs.append(graph_pb2.Output(name="f", value_ids=[14]))
    return graph


def module_neuron() -> graph_pb2.Graph:
    """The same, its last four nodes as a module `sigmoid` with its own gradient (1 - s) * s."""
    graph = neuron()
    graph.required_features.append("modules")
    graph.gates.append(gate("Sub", 2))
    graph.gates.add(module=0, input_count=1, output_count=1)
    sigmoid = graph.modules.add(name="sigmoid")
    for circuit, names in ((sigmoid.circuit, ["x"]), (sigmoid.gradient, ["x", "s", "grad"])):
        circuit.inputs.extend(graph_pb2.Leaf(name=name) for name in names)
        circuit.constants.extend(graph.circuit.constants)
    sigmoid.circuit.node_gates.extend([2, 3, 1, 4])
    sigmoid.circuit.node_inputs.extend([1, 3, 4, 2, 5])
    sigmoid.circuit.named_ids.append(4)
    sigmoid.circuit.names.append("e")
    sigmoid.circuit.outputs.add(name="s", value_ids=[6])
    sigmoid.gradient.node_gates.extend([5, 0, 0])
    sigmoid.gradient.node_inputs.extend([4, 2, 5, 2, 6, 3])
    sigmoid.gradient.outputs.add(name="x", value_ids=[7])
    del graph.circuit.constants[:], graph.circuit.node_gates[4:], graph.circuit.node_inputs[:]
    graph.circuit.node_gates.append(6)
    graph.circuit.node_inputs.extend([1, 4, 2, 5, 6, 7, 8, 3, 9])
    graph.circuit.outputs[0].value_ids[:] = [10]
    graph.circuit.named_ids.append(10)
    graph.circuit.names.append("f")
    return graph


def chain(nodes: int) -> graph_pb2.Graph:
    """sin(sin(...sin(x))): long to evaluate."""
    graph = graph_pb2.Graph(format_version=1, operator_set_version=28, gates=[gate("Sin", 1)])
    graph.circuit.inputs.append(leaf("x", 1.0))
    graph.circuit.node_gates.extend([0] * nodes)
    graph.circuit.node_inputs.extend(range(1, nodes + 1))
    graph.circuit.outputs.append(graph_pb2.Output(name="f", value_ids=[nodes + 1]))
    return graph


def source(graph: graph_pb2.Graph) -> service_pb2.GraphSource:
    return service_pb2.GraphSource(graph=graph.SerializeToString())


def field_of(call: grpc.RpcError) -> str:
    """The path of the field that a refusal is about; empty where it names none."""
    status = rpc_status.from_call(call)
    assert status is not None
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            (violation,) = bad.field_violations
            assert violation.description == call.details()
            return violation.field
    return ""
