"""Between messages and what the server computes with: the only module that knows both.

Nothing that arrives is trusted: sizes and counts are compared before anything is allocated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from math import prod
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2

from gradwire.payloads import LIFTED_BYTES, PATHS, WHOLE, Buffer, Lifted, field, lifted
from gradwire.v1 import graph_pb2, service_pb2, tensor_pb2
from gradwire_server.arrays import constant
from gradwire_server.catalogue import GateDescription
from gradwire_server.engine.evaluation import Binding, Evaluation, Selection
from gradwire_server.engine.runs import Found, Slab
from gradwire_server.errors import Invalid, OverLimit, Refusal, Unsupported
from gradwire_server.gates import OPERATOR_SETS
from gradwire_server.gates.base import AttributeValue
from gradwire_server.graph import (
    Graph,
    Ids,
    Leaf,
    Output,
    OwnGradient,
    Row,
    Rows,
    check_structure,
)
from gradwire_server.limits import Limit, Limits
from gradwire_server.modules import Module, check_modules, flatten
from gradwire_server.segments import Region, Segments, Sink
from gradwire_server.specs import ITEM_SIZES, ONNX_NUMBERS, USED_BITS, Shape, Tensor

FORMAT_VERSION = 1
FEATURES = frozenset({"modules"})

#: Bytes of elements in one column: large enough to be cheap, small enough to flow.
COLUMN_BYTES = 512 * 1024

M = TypeVar("M", bound=Message)

_MAX_RANK = 32
_SMALL_BYTES = 4096
_SHORT_NAME = 64
_NUMBERS = {name: tensor_pb2.DataType.ValueType(number) for name, number in ONNX_NUMBERS.items()}
_DTYPES = {number: name for name, number in _NUMBERS.items()}
_SCALARS = {
    number: np.dtype(name).newbyteorder("<")
    for name, number in _NUMBERS.items()
    if name not in USED_BITS
}
_NUMBERS_BY_DTYPE = {np.dtype(name): number for name, number in _NUMBERS.items()}


@dataclass
class Payloads:
    """What a message keeps outside of itself: lifted out of it, or in shared memory."""

    lifted: Lifted = WHOLE
    segments: Segments | None = None
    limit: int = 0  # bytes of a message, with what it has in shared memory
    counted: int = 0

    def found(self, data: bytes) -> Buffer:
        """The bytes of a field."""
        return self.lifted.found(data)

    def shared(self, place: str, message: tensor_pb2.SharedRegion) -> bytes:
        """A copy of a region (SHARED_MEMORY_INVALID, SHARED_MEMORY_UNSUPPORTED, LIMIT_EXCEEDED)."""
        segments = require_segments(place, self.segments)
        self.counted += message.size
        if self.counted > self.limit:
            raise OverLimit.of(
                "max-message-bytes", self.limit, self.counted,
                f"{place}: bytes of the message with its shared memory",
            )  # fmt: skip
        try:
            return segments.read(_region(message))
        except Refusal as refusal:
            raise refusal.at(place) from None


NOTHING_BESIDE = Payloads()


def require_segments(place: str, segments: Segments | None) -> Segments:
    """The server's segments (SHARED_MEMORY_UNSUPPORTED)."""
    if segments is None:
        raise Unsupported(
            "SHARED_MEMORY_UNSUPPORTED",
            f"{place}: is in shared memory, which this server does without; send the bytes "
            "themselves, or start the server with --shared-memory DIRECTORY",
            flag="--shared-memory",
        )
    return segments


def decode_graph(data: bytes, limits: Limits) -> Graph:
    """A serialized Graph, checked (the reasons of graph.check_structure, and those below)."""
    message = graph_pb2.Graph()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise Invalid(
            "GRAPH_INVALID",
            f"the {len(data)} bytes are not a serialized gradwire.v1.Graph; send Graph itself, "
            "not the GraphFile around it",
        ) from None
    _check_versions(message)
    _check_notes(message)
    if not message.HasField("circuit"):
        raise Invalid("GRAPH_INVALID", "the graph has no circuit")
    modules = message.modules
    if modules and "modules" not in message.required_features:
        raise Invalid(
            "FEATURE_UNSUPPORTED",
            "the graph has modules, so its required_features must name 'modules'",
        )
    if len(modules) > limits.max_nodes:
        raise OverLimit.of("max-nodes", limits.max_nodes, len(modules), "number of modules")
    rows = Rows(_decode_row(gate, modules) for gate in message.gates)
    graph = _decode_circuit(message.circuit, rows, limits)
    check_structure(graph, limits)
    if not modules:
        return graph
    decoded = [_decode_module(module, rows, limits) for module in modules]
    check_modules(rows, decoded, graph, limits)
    return flatten(graph, decoded, limits)


def _decode_circuit(
    circuit: graph_pb2.Circuit, rows: Rows, limits: Limits, *, of_module: bool = False
) -> Graph:
    """The columns of a circuit, its names and its leaves."""
    if len(circuit.node_gates) > limits.max_nodes:
        raise OverLimit.of(
            "max-nodes", limits.max_nodes, len(circuit.node_gates), "number of nodes"
        )
    if len(circuit.named_ids) != len(circuit.names):
        raise Invalid(
            "NAME_INVALID",
            f"there are {len(circuit.named_ids)} named ids but {len(circuit.names)} names",
        )
    named_ids = _ids(circuit.named_ids)
    if (np.diff(named_ids) <= 0).any():
        raise Invalid("NAME_INVALID", "named ids do not ascend")
    decode_input = _decode_module_input if of_module else _decode_leaf
    return Graph(
        rows=rows,
        leaves=(
            *(decode_input("input", leaf) for leaf in circuit.inputs),
            *(_decode_leaf("parameter", leaf) for leaf in circuit.parameters),
            *(_decode_leaf("constant", leaf) for leaf in circuit.constants),
        ),
        node_rows=_ids(circuit.node_gates),
        node_inputs=_ids(circuit.node_inputs),
        outputs=tuple(Output(output.name, _ids(output.value_ids)) for output in circuit.outputs),
        names=dict(zip(named_ids.tolist(), circuit.names, strict=True)),
    )


def _decode_module(message: graph_pb2.Module, rows: Rows, limits: Limits) -> Module:
    place = f"module {message.name!r}"
    if not message.HasField("circuit"):
        raise Invalid("MODULE_INVALID", f"{place}: has no circuit")
    parts = []
    for what, present, circuit in (
        (place, True, message.circuit),
        (f"the gradient of {place}", message.HasField("gradient"), message.gradient),
    ):
        try:
            if circuit.parameters:
                raise Invalid(
                    "MODULE_INVALID",
                    f"has the parameter {circuit.parameters[0].name!r}; make it an input, and the "
                    "parameter one of the graph",
                )
            decoded = _decode_circuit(circuit, rows, limits, of_module=True)
        except Refusal as refusal:
            raise refusal.at(what) from None
        parts.append(decoded if present else None)
    found, gradient = parts
    assert found is not None
    return Module(message.name, found, gradient)


def _decode_module_input(kind: str, message: graph_pb2.Leaf) -> Leaf:
    """An input that takes whatever a use of the module gives it."""
    for part in ("type", "value"):
        if message.HasField(part):
            raise Invalid(
                "MODULE_INVALID",
                f"{kind} {message.name!r}: has a {part}, but an input of a module has only a name",
            )
    return Leaf(kind, message.name, "", (), bool(message.layout))


def encode_graph(graph: Graph, producer: str) -> bytes:
    """The canonical bytes of a flat graph: ascending attributes, none at its default.

    Where modules had their own gradients, modules that only have these are written, under their
    names, so that they are used again.
    """
    tables = _Tables()
    message = graph_pb2.Graph(
        format_version=FORMAT_VERSION, operator_set_version=OPERATOR_SETS[1], producer=producer
    )
    for own in sorted(_own_gradients(graph), key=lambda each: each.number):
        tables.add_module(own)
    tables.encode_circuit(message.circuit, graph, map(_encode_leaf, graph.leaves))
    message.gates.extend(tables.gates)
    message.modules.extend(tables.modules)
    if tables.modules:
        message.required_features.append("modules")
    return message.SerializeToString(deterministic=True)


def _own_gradients(graph: Graph) -> set[OwnGradient]:
    """Those of a graph, and those that they use."""
    found: set[OwnGradient] = set()
    waiting = [graph]
    while waiting:
        used = {row.own for row in waiting.pop().rows if row.own is not None}
        waiting.extend(own.gradient for own in used - found)
        found |= used
    return found


class _Tables:
    """The gates and modules that circuits share, filled while these are encoded."""

    def __init__(self) -> None:
        self.gates: list[graph_pb2.Gate] = []
        self.modules: list[graph_pb2.Module] = []
        self._gate_places: dict[bytes, int] = {}
        self._module_places: dict[OwnGradient, int] = {}

    def encode_circuit(
        self, message: graph_pb2.Circuit, graph: Graph, leaves: Iterable[graph_pb2.Leaf]
    ) -> None:
        """Columns, names and leaves, these in the graph's order."""
        columns = {
            "input": message.inputs,
            "parameter": message.parameters,
            "constant": message.constants,
        }
        for leaf, encoded in zip(graph.leaves, leaves, strict=True):
            columns[leaf.kind].append(encoded)
        rows = np.array([self._place(row) for row in graph.rows], np.int64)
        message.node_gates.extend(rows[graph.node_rows].tolist())
        message.node_inputs.extend(graph.node_inputs.tolist())
        for output in graph.outputs:
            message.outputs.add(name=output.name, value_ids=output.value_ids.tolist())
        names = graph.all_names()
        for value_id in sorted(names):
            message.named_ids.append(value_id)
            message.names.append(names[value_id])

    def add_module(self, own: OwnGradient) -> None:
        """A module that hands on its last inputs, and has this gradient for the others."""
        message = graph_pb2.Module(name=own.name)
        gradient, takes, made = own.gradient, len(own.gradient.outputs), own.outputs[1]
        names = [leaf.name for leaf in gradient.leaves if leaf.kind == "input"]
        inner = _fresh(names[takes : takes + made], names)
        message.circuit.inputs.extend(
            graph_pb2.Leaf(name=name) for name in (*names[:takes], *inner)
        )
        for place, name in enumerate(names[takes : takes + made], takes + 1):
            message.circuit.outputs.add(name=name, value_ids=[place])

        def behind(ids: Ids) -> Ids:
            return np.where(ids > takes, ids + made, ids)  # the inner values come between

        handed_on = [Leaf("input", name, "", ()) for name in inner]
        whole = Graph(
            rows=gradient.rows,
            leaves=(*gradient.leaves[:takes], *handed_on, *gradient.leaves[takes:]),
            node_rows=gradient.node_rows,
            node_inputs=behind(gradient.node_inputs),
            outputs=(
                *(Output(each.name, behind(each.value_ids)) for each in gradient.outputs),
                *(Output(name, np.zeros(0, np.int64)) for name in inner),
            ),
            names={value_id + made: name for value_id, name in gradient.all_names().items()},
        )
        leaves = (
            graph_pb2.Leaf(name=leaf.name) if leaf.kind == "input" else _encode_leaf(leaf)
            for leaf in whole.leaves
        )
        self.encode_circuit(message.gradient, whole, leaves)
        self._module_places[own] = len(self.modules)
        self.modules.append(message)

    def _place(self, row: Row) -> int:
        """Where a row is in the table of gates."""
        if row.own is None:
            gate = _encode_row(row)
        else:
            gate = graph_pb2.Gate(
                module=self._module_places[row.own],
                input_count=row.input_count,
                output_count=row.output_count,
            )
        place = self._gate_places.setdefault(gate.SerializeToString(), len(self.gates))
        if place == len(self.gates):
            self.gates.append(gate)
        return place


def _fresh(names: Sequence[str], taken: Iterable[str]) -> list[str]:
    """The names behind a prefix that makes them new."""
    known = set(taken)
    for number in count(1):
        found = [f"inner{number}/{name}" for name in names]
        if known.isdisjoint(found):
            return found
    raise AssertionError("counting ends nowhere")


def decode_request(
    kind: type[M], data: bytes, segments: Segments | None = None, limit: int = 0
) -> tuple[M, Payloads]:
    """A request, and the large payloads that were kept out of it (REQUEST_INVALID)."""
    beside = lifted(data, PATHS[kind.DESCRIPTOR.name])
    try:
        message = kind.FromString(beside.message)
        return message, Payloads(beside, segments, limit, len(data))
    except DecodeError:
        raise Invalid(
            "REQUEST_INVALID",
            f"the {len(data)} bytes are not a serialized {kind.DESCRIPTOR.full_name}",
        ) from None


def source_bytes(source: service_pb2.GraphSource, payloads: Payloads = NOTHING_BESIDE) -> Buffer:
    """The serialized graph of a request (GRAPH_INVALID where there is none)."""
    if source.WhichOneof("source") != "graph":
        raise Invalid("GRAPH_INVALID", "the request has no graph")
    return payloads.found(source.graph)


def decode_evaluation(
    message: service_pb2.Evaluation, payloads: Payloads = NOTHING_BESIDE
) -> Evaluation:
    """What a request asks for. Names and ids are compared with the graph later."""
    return Evaluation(
        bindings=decode_bindings(message.bindings, payloads),
        batch_size=message.batch_size,
        seeds=decode_seeds(message.seeds, payloads),
        forward_only=message.forward_only,
        with_respect_to=tuple(message.with_respect_to),
        values=_decode_selection("values", message.values),
        gradients=_decode_selection("gradients", message.gradients),
    )


def decode_bindings(
    messages: Iterable[service_pb2.Binding], payloads: Payloads = NOTHING_BESIDE
) -> dict[str, Binding]:
    """Bindings by the leaf's name (BINDING_INVALID where one repeats)."""
    bindings: dict[str, Binding] = {}
    for message in messages:
        if message.leaf in bindings:
            raise Invalid("BINDING_INVALID", f"leaf {message.leaf!r} is bound twice")
        array = _decode_array("binding of leaf", message.leaf, message, payloads)
        bindings[message.leaf] = Binding(array, message.batched)
    return bindings


def decode_seeds(
    messages: Iterable[tensor_pb2.NamedTensor], payloads: Payloads = NOTHING_BESIDE
) -> dict[str, Any]:
    """Seeds by the output's name (SEED_INVALID where one repeats)."""
    seeds: dict[str, Any] = {}
    for message in messages:
        if message.name in seeds:
            raise Invalid("SEED_INVALID", f"output {message.name!r} has two seeds")
        seeds[message.name] = _decode_array("seed of output", message.name, message, payloads)
    return seeds


def results_sink(
    request: service_pb2.EvaluateRequest
    | service_pb2.EvaluateStreamRequest
    | service_pb2.SessionRequest,
    segments: Segments | None,
) -> Sink | None:
    """Where a request wants its large results; None: in the answer.

    SHARED_MEMORY_INVALID, SHARED_MEMORY_UNSUPPORTED.
    """
    if not request.HasField("results_in"):
        return None
    try:
        return require_segments("results_in", segments).sink(_region(request.results_in))
    except Invalid as refusal:
        raise refusal.at("results_in") from None


def encode_response(found: Found, sink: Sink | None = None) -> bytes:
    """An EvaluateResponse, serialized: the arrays are copied once, behind their heads."""
    pieces = _result(*found, sink=sink)
    return b"".join((field(1, _size(pieces)), *pieces))


def encode_answer(request_id: int, found: Found, sink: Sink | None = None) -> bytes:
    """A SessionResponse with a result, serialized."""
    pieces = _result(*found, sink=sink)
    return b"".join((_answer_head(request_id), field(3, _size(pieces)), *pieces))


def encode_outcome(found: Found | Refusal, sink: Sink | None = None) -> bytes:
    """An Outcome in its field, serialized."""
    if isinstance(found, Refusal):
        error = service_pb2.Outcome(error=encode_error(found)).SerializeToString()
        return field(1, len(error)) + error
    pieces = _result(*found, sink=sink)
    head = field(1, _size(pieces))
    return b"".join((field(1, len(head) + _size(pieces)), head, *pieces))


def encode_outcomes(request_id: int, outcomes: Sequence[bytes]) -> bytes:
    """A SessionResponse with what became of several steps, serialized."""
    return b"".join((_answer_head(request_id), field(5, _size(outcomes)), *outcomes))


def encode_events(kind: str, slabs: Iterable[Slab]) -> Iterator[bytes]:
    """EvaluateStreamResponses with columns of node_values or node_gradients, serialized."""
    number = service_pb2.EvaluateStreamResponse.DESCRIPTOR.fields_by_name[kind].number
    for head, data in _columns(slabs):
        yield b"".join((field(number, len(head) + len(data)), head, data))


def encode_finished(
    outputs: Iterable[tuple[str, Any]],
    gradients: Iterable[tuple[str, Any]],
    sent: Sequence[int],
    sink: Sink | None = None,
) -> bytes:
    """The EvaluateStreamResponse that ends a stream, serialized."""
    pieces = _result(outputs, gradients, sink=sink)
    counts = service_pb2.Finished(values_sent=sent[0], gradients_sent=sent[1]).SerializeToString()
    result_head = field(1, _size(pieces))
    size = len(counts) + len(result_head) + _size(pieces)
    return b"".join((field(4, size), counts, result_head, *pieces))


def encode_error(refusal: Refusal) -> service_pb2.Error:
    """A refusal as an answer inside a session."""
    return service_pb2.Error(
        code=code_pb2.Code.Value(refusal.status),
        reason=refusal.reason,
        message=refusal.message,
        facts=[service_pb2.Fact(key=key, value=fact) for key, fact in refusal.facts.items()],
    )


def encode_started(graph: Graph) -> service_pb2.Started:
    """What a client needs to read columns."""
    started = service_pb2.Started(value_count=graph.id_count)
    inside = graph.inside
    if inside is not None and len(inside.use_modules):
        started.module_uses.paths.extend(inside.paths)
        started.module_uses.modules.extend(inside.use_modules.tolist())
        started.module_uses.first_value_ids.extend(inside.use_first_ids.tolist())
    return started


def encode_description(
    version: str,
    limits: Iterable[Limit],
    gates: Iterable[GateDescription],
    segments: Segments | None = None,
    store: str = "",
) -> service_pb2.DescribeServerResponse:
    """What the server is."""
    return service_pb2.DescribeServerResponse(
        version=version,
        format_version=FORMAT_VERSION,
        min_operator_set_version=OPERATOR_SETS[0],
        max_operator_set_version=OPERATOR_SETS[1],
        features=sorted(FEATURES),
        limits=[
            service_pb2.Limit(name=limit.name, value=limit.value, unit=limit.unit)
            for limit in limits
        ],
        gates=[_encode_gate_description(gate) for gate in gates],
        shared_memory_socket="" if segments is None else segments.path,
        store=store,
    )


def _check_versions(message: graph_pb2.Graph) -> None:
    unknown = sorted(set(message.required_features) - FEATURES)
    if unknown:
        raise Unsupported(
            "FEATURE_UNSUPPORTED",
            f"the graph requires the feature {unknown[0]!r}, which this server (format version "
            f"{FORMAT_VERSION}) lacks; the graph has format version {message.format_version}",
            feature=unknown[0],
        )
    if message.format_version == 0:
        raise Invalid("GRAPH_INVALID", "the graph has no format_version; versions start at 1")
    if message.format_version > FORMAT_VERSION:
        raise Unsupported(
            "FORMAT_VERSION_UNSUPPORTED",
            f"the graph has format version {message.format_version} but this server reads "
            f"up to {FORMAT_VERSION}; use a newer server",
        )
    oldest, newest = OPERATOR_SETS
    if not oldest <= message.operator_set_version <= newest:
        raise Unsupported(
            "OPERATOR_SET_UNSUPPORTED",
            f"the graph's operator_set_version is {message.operator_set_version} but this server "
            f"knows {oldest} to {newest}",
        )


def _check_notes(message: graph_pb2.Graph) -> None:
    keys = [note.key for note in message.notes]
    if "" in keys:
        raise Invalid("NAME_INVALID", "a note has an empty key")
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Invalid("NAME_INVALID", f"the note key {twice!r} is used {keys.count(twice)} times")


def _ids(column: Sequence[int]) -> Ids:
    if hasattr(column, "__array__"):  # from protobuf 7.34 on, a hundred times as fast
        return np.array(column, np.int64)
    return np.fromiter(column, np.int64, len(column))


def _decode_row(message: graph_pb2.Gate, modules: Sequence[graph_pb2.Module]) -> Row:
    target = message.WhichOneof("target")
    if target is None:
        raise Unsupported("OPERATOR_UNKNOWN", "a row of the gates table names no operator")
    attributes: dict[str, AttributeValue] = {}
    for attribute in message.attributes:
        if attributes and attribute.name <= next(reversed(attributes)):
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"gate {message.operator}: attribute {attribute.name!r} follows "
                f"{next(reversed(attributes))!r}; names ascend and are unique",
            )
        attributes[attribute.name] = _decode_attribute(message.operator, attribute)
    counts = message.input_count, message.output_count
    if target == "module":
        if message.module >= len(modules):
            raise Invalid(
                "MODULE_INVALID",
                f"a gate names module {message.module}, but the graph has {len(modules)} modules",
            )
        name = f"module {modules[message.module].name}"
        return Row(name, attributes, *counts, module=message.module)
    return Row(message.operator, attributes, *counts)


def _decode_attribute(operator: str, message: graph_pb2.Attribute) -> AttributeValue:
    kind = message.WhichOneof("value")
    if kind is None:
        raise Invalid(
            "ATTRIBUTE_INVALID", f"gate {operator}: attribute {message.name!r} has no value"
        )
    if kind == "tensor":
        return decode_tensor(f"gate {operator}, attribute {message.name!r}", message.tensor)
    value = getattr(message, kind)
    return tuple(value.values) if kind in ("ints", "floats", "strings") else value


def _encode_row(row: Row) -> graph_pb2.Gate:
    declared = {attribute.name: attribute for attribute in row.gate.attributes}
    return graph_pb2.Gate(
        operator=row.operator,
        input_count=row.input_count,
        output_count=row.output_count,
        attributes=[
            _encode_attribute(name, declared[name].kind, value)
            for name, value in sorted(row.attributes.items())
            if value is not None and value != declared[name].default
        ],
    )


def _encode_attribute(name: str, kind: str, value: AttributeValue) -> graph_pb2.Attribute:
    match kind:
        case "int":
            return graph_pb2.Attribute(name=name, int_value=value)
        case "float":
            return graph_pb2.Attribute(name=name, float_value=value)
        case "string":
            return graph_pb2.Attribute(name=name, string_value=value)
        case "ints":
            return graph_pb2.Attribute(name=name, ints=graph_pb2.Ints(values=value))
        case "floats":
            return graph_pb2.Attribute(name=name, floats=graph_pb2.Floats(values=value))
        case "strings":
            return graph_pb2.Attribute(name=name, strings=graph_pb2.Strings(values=value))
        case _:
            return graph_pb2.Attribute(name=name, tensor=_encode_tensor(value))


def _decode_leaf(kind: str, message: graph_pb2.Leaf) -> Leaf:
    place = f"{kind} {message.name!r}"
    if not message.HasField("type"):
        raise Invalid("LEAF_INVALID", f"{place}: has no type")
    if len(message.type.axes) > _MAX_RANK:
        raise Invalid(
            "TENSOR_INVALID", f"{place}: has rank {len(message.type.axes)}, over {_MAX_RANK}"
        )
    if message.layout not in (
        graph_pb2.Leaf.LAYOUT_UNSPECIFIED, graph_pb2.Leaf.LAYOUT_ELEMENTS
    ):  # fmt: skip
        raise Invalid("LEAF_INVALID", f"{place}: layout {message.layout} is not known")
    stored = decode_tensor(place, message.value) if message.HasField("value") else None
    return Leaf(
        kind,
        message.name,
        _decode_dtype(place, message.type.data_type),
        tuple(_decode_axis(place, axis) for axis in message.type.axes),
        message.layout == graph_pb2.Leaf.LAYOUT_ELEMENTS,
        stored,
    )


def _decode_axis(place: str, message: tensor_pb2.Axis) -> int | str:
    extent = message.WhichOneof("extent")
    if extent == "size":
        return message.size
    if extent is None or not message.symbol:
        raise Invalid("TENSOR_INVALID", f"{place}: an axis has neither a size nor a symbol")
    return message.symbol


def _encode_leaf(leaf: Leaf) -> graph_pb2.Leaf:
    layout = graph_pb2.Leaf.LAYOUT_ELEMENTS if leaf.elements else graph_pb2.Leaf.LAYOUT_UNSPECIFIED
    return graph_pb2.Leaf(
        name=leaf.name,
        type=tensor_pb2.TensorType(
            data_type=_NUMBERS[leaf.dtype],
            axes=[
                tensor_pb2.Axis(symbol=axis)
                if isinstance(axis, str)
                else tensor_pb2.Axis(size=axis)
                for axis in leaf.axes
            ],
        ),
        layout=layout,
        value=None if leaf.value is None else _encode_tensor(leaf.value),
    )


def _encode_tensor(tensor: Tensor) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(data_type=_NUMBERS[tensor.dtype], shape=tensor.shape, data=tensor.data)


def _decode_dtype(place: str, number: tensor_pb2.DataType.ValueType) -> str:
    if number not in _DTYPES:
        names = {value: name for name, value in tensor_pb2.DataType.items()}
        raise Unsupported(
            "DATA_TYPE_UNSUPPORTED",
            f"{place}: data type {names.get(number, number)} is not one of " + ", ".join(_NUMBERS),
        )
    return _DTYPES[number]


def decode_tensor(
    place: str, message: tensor_pb2.Tensor, payloads: Payloads | None = None
) -> Tensor:
    """A tensor whose bytes fit its shape and type (TENSOR_INVALID, DATA_TYPE_UNSUPPORTED).

    Without payloads it is part of a graph, which holds its own bytes.
    """
    dtype = _decode_dtype(place, message.data_type)
    shape = tuple(message.shape)
    shared = message.HasField("shared")
    if shared and payloads is None:
        raise Invalid(
            "TENSOR_INVALID", f"{place}: is in shared memory, but a graph holds its own bytes"
        )
    if message.HasField("blob"):
        raise Invalid(
            "TENSOR_INVALID",
            f"{place}: refers to a blob, which lies beside a graph file; send its bytes",
        )
    data: Buffer = message.data if payloads is None else payloads.found(message.data)
    held = message.shared.size if shared else len(data)
    if len(shape) > _MAX_RANK:
        raise Invalid("TENSOR_INVALID", f"{place}: has rank {len(shape)}, over {_MAX_RANK}")
    needed = prod(shape) * ITEM_SIZES[dtype]
    if held != needed:
        raise Invalid(
            "TENSOR_INVALID",
            f"{place}: {dtype} of shape {shape} needs {needed} bytes but has {held}",
        )
    if needed == 0 and max(shape, default=0) > np.iinfo(np.int64).max >> 8:
        raise Invalid("TENSOR_INVALID", f"{place}: shape {shape} is too large")
    if shared and payloads is not None:
        data = payloads.shared(place, message.shared)
    data = bytes(data)  # of its own, so that it is aligned and the message around it can go
    _require_used_bits(place, dtype, data)
    return Tensor(dtype, shape, data)


def _require_used_bits(place: str, dtype: str, data: bytes) -> None:
    """The other bits of each byte are 0 (TENSOR_INVALID)."""
    if dtype not in USED_BITS:
        return
    wrong = data.translate(None, bytes(range(1 << USED_BITS[dtype])))
    if wrong and dtype == "bool":
        raise Invalid("TENSOR_INVALID", f"{place}: a bool is neither 0 nor 1")
    if wrong:
        raise Invalid(
            "TENSOR_INVALID",
            f"{place}: a byte is 0x{wrong[0]:02X}, but {dtype} has the low {USED_BITS[dtype]} bits "
            "of a byte, and the others are 0",
        )


def _decode_array(what: str, name: str, message: Any, payloads: Payloads) -> Any:
    if not message.HasField("tensor"):
        raise Invalid("TENSOR_INVALID", f"{what} {name!r}: has no tensor")
    tensor = message.tensor
    if not tensor.shape and tensor.data_type in _SCALARS:  # most messages hold little else
        data, dtype = tensor.data, _SCALARS[tensor.data_type]
        if len(data) == dtype.itemsize:
            return np.frombuffer(data, dtype).reshape(())
    return constant(decode_tensor(f"{what} {name!r}", tensor, payloads))


def _decode_selection(place: str, message: service_pb2.Selection) -> Selection:
    if message.all and (message.names or message.value_ids or message.modules):
        raise Invalid(
            "SELECTION_INVALID",
            f"{place}: `all` is set, so names, ids and modules must be empty",
        )
    if message.detail not in (service_pb2.DETAIL_UNSPECIFIED, service_pb2.DETAIL_SUMMARY):
        raise Invalid("SELECTION_INVALID", f"{place}: detail {message.detail} is not known")
    return Selection(
        all=message.all,
        names=tuple(message.names),
        value_ids=tuple(message.value_ids),
        modules=tuple(message.modules),
        summary=message.detail == service_pb2.DETAIL_SUMMARY,
    )


def _result(
    outputs: Iterable[tuple[str, Any]],
    gradients: Iterable[tuple[str, Any]],
    node_values: Iterable[Slab] = (),
    node_gradients: Iterable[Slab] = (),
    sink: Sink | None = None,
) -> list[Buffer]:
    """The pieces of a serialized Result; large arrays go into the sink while it has room."""
    pieces: list[Buffer] = []
    for number, named in ((1, outputs), (2, gradients)):
        for name, array in named:
            data = _data(array)
            region = sink.put(data) if sink is not None and len(data) >= LIFTED_BYTES else None
            if region is not None:
                pieces.append(_named_region(number, name, array, region))
                continue
            pieces.append(_named_head(number, name, array, len(data)))
            pieces.append(data)
    for number, slabs in ((3, node_values), (4, node_gradients)):
        for head, data in _columns(slabs):
            pieces += field(number, len(head) + len(data)), head, data
    return pieces


def _answer_head(request_id: int) -> bytes:
    return service_pb2.SessionResponse(request_id=request_id).SerializeToString()


def _size(pieces: Sequence[Buffer]) -> int:
    return sum(map(len, pieces))


def _named_head(number: int, name: str, array: Any, size: int) -> bytes:
    """What comes before the elements of a NamedTensor in a field."""
    head = _short_head if len(name) <= _SHORT_NAME else _short_head.__wrapped__
    return head(number, name, _NUMBERS_BY_DTYPE[array.dtype], array.shape, size)


def _region(message: tensor_pb2.SharedRegion) -> Region:
    return Region(message.segment, message.offset, message.size)


def _named_region(number: int, name: str, array: Any, region: Region) -> bytes:
    """A NamedTensor in a field, its elements in shared memory."""
    shared = tensor_pb2.SharedRegion(**region._asdict())
    tensor = tensor_pb2.Tensor(
        data_type=_NUMBERS_BY_DTYPE[array.dtype], shape=array.shape, shared=shared
    )
    data = tensor_pb2.NamedTensor(name=name, tensor=tensor).SerializeToString()
    return field(number, len(data)) + data


@lru_cache(4096)
def _short_head(
    number: int, name: str, dtype: tensor_pb2.DataType.ValueType, shape: Shape, size: int
) -> bytes:
    head = _named_tensor_head(name, dtype, shape, size)
    return field(number, len(head) + size) + head


def _named_tensor_head(
    name: str, dtype: tensor_pb2.DataType.ValueType, shape: Shape, size: int
) -> bytes:
    tensor = tensor_pb2.Tensor(data_type=dtype, shape=shape).SerializeToString() + field(3, size)
    named = tensor_pb2.NamedTensor(name=name).SerializeToString()
    return named + field(2, len(tensor) + size) + tensor


def _data(array: Any) -> Buffer:
    """The elements, little-endian and row-major; not copied where they are many and so already."""
    if sys.byteorder == "big":
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.nbytes <= _SMALL_BYTES:
        small: bytes = array.tobytes()
        return small
    contiguous: Any = np.ascontiguousarray(array)
    return memoryview(contiguous.reshape(-1).view(np.uint8))  # bfloat16 has no buffer of its own


def _set_ids(column: service_pb2.Column, ids: Ids) -> None:
    column.count = len(ids)
    column.ClearField("value_ids")
    if int(ids[-1]) - int(ids[0]) + 1 == len(ids):
        column.first_value_id = int(ids[0])
    else:
        column.first_value_id = 0
        column.value_ids.extend(ids.tolist())


def _columns(slabs: Iterable[Slab]) -> Iterator[tuple[bytes, Buffer]]:
    """Columns of at most about COLUMN_BYTES, larger tensors in pieces: heads, and elements."""
    for slab in slabs:
        column = service_pb2.Column(data_type=_NUMBERS[slab.dtype], shape=slab.shape)
        if slab.summary is not None:
            _set_ids(column, slab.ids)
            column.summary.CopyFrom(_encode_summary(slab.summary))
            yield column.SerializeToString(), b""
        elif prod(slab.shape) * ITEM_SIZES[slab.dtype] > COLUMN_BYTES:
            yield from _tensor_columns(column, slab)
        else:
            yield from _stacked_columns(column, slab)


def _tensor_columns(column: service_pb2.Column, slab: Slab) -> Iterator[tuple[bytes, Buffer]]:
    """Each tensor in pieces."""
    step = COLUMN_BYTES // ITEM_SIZES[slab.dtype]
    column.count = 1
    for value_id, array in zip(slab.ids.tolist(), slab.arrays(), strict=True):
        column.first_value_id = value_id
        data = _data(array)
        for start in range(0, prod(slab.shape), step):
            column.first_element = start
            at = start * ITEM_SIZES[slab.dtype]
            yield _column(column, data[at : at + COLUMN_BYTES])


def _stacked_columns(column: service_pb2.Column, slab: Slab) -> Iterator[tuple[bytes, Buffer]]:
    """Many values a column."""
    step = max(1, COLUMN_BYTES // max(1, prod(slab.shape) * ITEM_SIZES[slab.dtype]))
    for start in range(0, len(slab.ids), step):
        _set_ids(column, slab.ids[start : start + step])
        yield _column(column, _data(slab.stacked(start, start + step)))


def _column(column: service_pb2.Column, data: Buffer) -> tuple[bytes, Buffer]:
    return column.SerializeToString() + field(6, len(data)), data


def _encode_summary(figures: Mapping[str, Sequence[float]]) -> service_pb2.Summary:
    summary = service_pb2.Summary()
    for name, figure in figures.items():
        getattr(summary, name).extend(figure)
    return summary


def _encode_gate_description(gate: GateDescription) -> service_pb2.GateDescription:
    return service_pb2.GateDescription(
        operator=gate.operator,
        summary=gate.summary,
        formula=gate.formula,
        gradient=gate.gradient,
        subgradient=gate.subgradient,
        shapes=gate.shapes,
        inputs=[
            service_pb2.InputDescription(
                name=each.name, optional=each.optional, variadic=each.variadic, known=each.known
            )
            for each in gate.inputs
        ],
        min_outputs=gate.min_outputs,
        max_outputs=gate.max_outputs,
        attributes=[
            service_pb2.AttributeDescription(
                name=each.name,
                kind=each.kind,
                required=each.required,
                default_value=None
                if each.default is None
                else _encode_attribute(each.name, each.kind, each.default),
            )
            for each in gate.attributes
        ],
    )
