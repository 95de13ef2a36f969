"""Whole graphs, with their versions, circuits and modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from gradwire.payloads import WHOLE, Lifted, lifted_graph
from gradwire.v1 import graph_pb2
from gradwire_server.codec.rows_and_leaves import (
    decode_leaf,
    decode_module_input,
    decode_row,
    encode_leaf,
    encode_row,
)
from gradwire_server.errors import Invalid, OverLimit, Refusal, Unsupported, within
from gradwire_server.gates import OPERATOR_SETS
from gradwire_server.graph import (
    Graph,
    Ids,
    Leaf,
    Output,
    OwnGradient,
    Row,
    Rows,
    check_structure,
    check_unused,
    first_repeat,
)
from gradwire_server.limits import Limits
from gradwire_server.modules import Module, check_modules, flatten

M = TypeVar("M")
T = TypeVar("T")

FORMAT_VERSION = 1
FEATURES = frozenset({"modules"})


def decode_graph(data: bytes, limits: Limits) -> Graph:
    """A serialized Graph, checked (the reasons of graph.check_structure, and those here)."""
    message, beside = graph_pb2.Graph(), lifted_graph(data)
    try:
        message.ParseFromString(beside.message)
    except DecodeError:
        raise Invalid(
            "GRAPH_INVALID",
            f"the {len(data)} bytes are not a serialized gradwire.v1.Graph; send Graph itself, "
            "not the GraphFile around it",
        ) from None
    _check_versions(message)
    _check_notes(message)
    if not message.HasField("circuit"):
        raise Invalid("GRAPH_INVALID", "the graph has no circuit", field="circuit")
    modules = message.modules
    if modules and "modules" not in message.required_features:
        raise Invalid(
            "FEATURE_UNSUPPORTED",
            "the graph has modules, so its required_features must name 'modules'",
            field="required_features",
        )
    if len(modules) > limits.max_nodes:
        raise OverLimit.of("max-nodes", limits.max_nodes, len(modules), "number of modules")
    rows = Rows(_each(message.gates, "gates", lambda gate: decode_row(gate, modules)))
    with within("circuit"):
        graph = _decode_circuit(message.circuit, rows, limits, beside)
    check_structure(graph, limits)
    if not modules:
        check_unused(rows, [graph])
        return graph
    decoded = [*_each(modules, "modules", lambda module: _decode_module(module, rows, limits))]
    check_modules(rows, decoded, graph, limits)
    bodies = [each.circuit for each in decoded]
    gradients = [each.gradient for each in decoded if each.gradient is not None]
    check_unused(rows, [graph, *bodies, *gradients])
    return flatten(graph, decoded, limits)


def _each(messages: Iterable[M], field: str, decode: Callable[[M], T]) -> Iterator[T]:
    """Each message of a repeated field, decoded."""
    for number, message in enumerate(messages):
        try:
            yield decode(message)
        except Refusal as refusal:
            raise refusal.within(f"{field}[{number}]") from None


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
        what = "the graph has no format_version; versions start at 1"
        raise Invalid("GRAPH_INVALID", what, field="format_version")
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
        field = f"notes[{keys.index('')}].key"
        raise Invalid("NAME_INVALID", "a note has an empty key", field=field)
    if len(set(keys)) < len(keys):
        number = first_repeat(keys)
        what = f"the note key {keys[number]!r} is used {keys.count(keys[number])} times"
        raise Invalid("NAME_INVALID", what, field=f"notes[{number}].key")


def _decode_circuit(
    circuit: graph_pb2.Circuit,
    rows: Rows,
    limits: Limits,
    beside: Lifted = WHOLE,
    *,
    of_module: bool = False,
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
            field="names",
        )
    named_ids = _ids(circuit.named_ids)
    falls = np.flatnonzero(np.diff(named_ids) <= 0)
    if falls.size:
        number = int(falls[0]) + 1
        before, after = named_ids[number - 1 : number + 1]
        what = f"named ids do not ascend: {after} follows {before}; sort them"
        raise Invalid("NAME_INVALID", what, field=f"named_ids[{number}]")
    decode_stored = partial(decode_leaf, beside=beside)
    decode_input = decode_module_input if of_module else decode_stored
    return Graph(
        rows=rows,
        leaves=(
            *_each(circuit.inputs, "inputs", partial(decode_input, "input")),
            *_each(circuit.parameters, "parameters", partial(decode_stored, "parameter")),
            *_each(circuit.constants, "constants", partial(decode_stored, "constant")),
        ),
        node_rows=_ids(circuit.node_gates),
        node_inputs=_ids(circuit.node_inputs),
        outputs=tuple(Output(output.name, _ids(output.value_ids)) for output in circuit.outputs),
        names=dict(zip(named_ids.tolist(), circuit.names, strict=True)),
    )


def _ids(column: Sequence[int]) -> Ids:
    if hasattr(column, "__array__"):  # from protobuf 7.34 on, a hundred times as fast
        return np.array(column, np.int64)
    return np.fromiter(column, np.int64, len(column))


def _decode_module(message: graph_pb2.Module, rows: Rows, limits: Limits) -> Module:
    place = f"module {message.name!r}"
    if not message.HasField("circuit"):
        raise Invalid("MODULE_INVALID", f"{place}: has no circuit", field="circuit")
    parts = []
    for field, what, present, circuit in (
        ("circuit", place, True, message.circuit),
        ("gradient", f"the gradient of {place}", message.HasField("gradient"), message.gradient),
    ):
        try:
            if circuit.parameters:
                raise Invalid(
                    "MODULE_INVALID",
                    f"has the parameter {circuit.parameters[0].name!r}; make it an input, and the "
                    "parameter one of the graph",
                    field="parameters[0]",
                )
            decoded = _decode_circuit(circuit, rows, limits, of_module=True)
        except Refusal as refusal:
            raise refusal.at(what, field=field) from None
        parts.append(decoded if present else None)
    found, gradient = parts
    assert found is not None
    return Module(message.name, found, gradient)


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
    tables.encode_circuit(message.circuit, graph, map(encode_leaf, graph.leaves))
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
            graph_pb2.Leaf(name=leaf.name) if leaf.kind == "input" else encode_leaf(leaf)
            for leaf in whole.leaves
        )
        self.encode_circuit(message.gradient, whole, leaves)
        self._module_places[own] = len(self.modules)
        self.modules.append(message)

    def _place(self, row: Row) -> int:
        """Where a row is in the table of gates."""
        if row.own is None:
            gate = encode_row(row)
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
