"""Reads a message into a graph, and refuses what is wrong with it: nothing in it is trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from gradwire import blob_files, columns, paths
from gradwire.builder.circuit import Circuit
from gradwire.builder.leaves import StoredValues, read_leaf
from gradwire.builder.rows import Counts, decode_row
from gradwire.builder.shared import Module, Shared
from gradwire.builder.writing import FORMAT_VERSION
from gradwire.errors import GradwireError, InvalidRequestError
from gradwire.v1 import graph_pb2
from gradwire.version import __version__

if TYPE_CHECKING:
    from gradwire.builder.graph import Graph

#: What this reader understands beyond the format's version.
FEATURES = frozenset({"blobs", "modules"})

_MOST_VALUES = paths.MOST_VALUES


def parse(data: bytes) -> graph_pb2.Graph:
    """The message in bytes, of a version that this reader knows (GRAPH_INVALID, ...)."""
    message = graph_pb2.Graph()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InvalidRequestError(
            "GRAPH_INVALID", f"the {len(data)} bytes are not a serialized gradwire.v1.Graph"
        ) from None
    _check_versions(message)
    return message


def read(
    message: graph_pb2.Graph, blobs: blob_files.Blobs, circuit: Circuit, shared: Shared
) -> None:
    """Takes a message in, which is used up (GRAPH_INVALID, MODULE_INVALID, ...)."""
    try:
        _read(message, StoredValues(blobs), circuit, shared)
    except (IndexError, KeyError, ValueError) as failure:
        raise InvalidRequestError(
            "GRAPH_INVALID", f"the graph cannot be read: {failure!r}"
        ) from None


def _check_versions(message: graph_pb2.Graph) -> None:
    """Refuses what this reader does not know, by name (FEATURE_UNSUPPORTED, ...)."""
    unknown = sorted(set(message.required_features) - FEATURES)
    if unknown:
        raise InvalidRequestError(
            "FEATURE_UNSUPPORTED",
            f"it requires {', '.join(map(repr, unknown))}, which gradwire {__version__} (format "
            f"version {FORMAT_VERSION}) lacks; it has format version {message.format_version}: "
            "use a newer gradwire",
        )
    if not 1 <= message.format_version <= FORMAT_VERSION:
        raise InvalidRequestError(
            "FORMAT_VERSION_UNSUPPORTED",
            f"it has format version {message.format_version}, but gradwire {__version__} reads "
            f"versions 1 to {FORMAT_VERSION}"
            + ("; use a newer gradwire" if message.format_version else ""),
        )


def _read(message: graph_pb2.Graph, values: StoredValues, circuit: Circuit, shared: Shared) -> None:
    if message.modules and "modules" not in message.required_features:
        raise InvalidRequestError(
            "FEATURE_UNSUPPORTED", "it has modules but does not require the feature 'modules'"
        )
    for gate in message.gates:
        shared.table.add(decode_row(gate, message.modules))
    counts = shared.table.counts()
    names: set[str] = set()
    for number, module in enumerate(message.modules):
        if not module.name or module.name in names:
            raise InvalidRequestError(
                "NAME_INVALID", f"the module name {module.name!r} is empty or used twice"
            )
        names.add(module.name)
        shared.add_module(_read_module(module, number, counts, shared))
    _read_leaves(circuit, message.circuit, values)
    _read_nodes(circuit, *columns.node_columns(message.circuit), counts, len(names))
    inside = circuit.inner_paths(shared.uses).root.inside
    if circuit.own_count + inside > _MOST_VALUES:
        raise InvalidRequestError(
            "NODE_INVALID",
            f"the graph has over {_MOST_VALUES} values with those inside of modules",
        )
    _read_outputs(circuit, message.circuit)
    if not circuit.outputs:
        raise InvalidRequestError(
            "GRAPH_INVALID", "the graph has no output; name at least one value"
        )


def _read_module(message: graph_pb2.Module, number: int, counts: Counts, shared: Shared) -> Module:
    """A module, which may use those before its number."""
    try:
        _check_module(message)
        inner = _read_inner(shared, message.name, message.circuit, number, counts)
        if not message.HasField("gradient"):
            return Module(message.name, inner)
        gradient = _read_inner(shared, message.name, message.gradient, number, counts, 0)
    except GradwireError as error:
        place = f"module {message.name!r}: {error.message}"
        raise type(error)(error.reason, place, error.facts) from None
    return Module(message.name, inner, gradient)


def _check_module(message: graph_pb2.Module) -> None:
    """There is a circuit, and the gradient takes and yields what belongs to it (MODULE_INVALID)."""
    if not message.HasField("circuit"):
        raise InvalidRequestError("MODULE_INVALID", "has no circuit")  # where nothing uses it
    inputs, outputs = len(message.circuit.inputs), len(message.circuit.outputs)
    if not outputs:
        raise InvalidRequestError("MODULE_INVALID", "has no output; name at least one value")
    taken, yielded = len(message.gradient.inputs), len(message.gradient.outputs)
    if message.HasField("gradient") and (taken, yielded) != (inputs + 2 * outputs, inputs):
        raise InvalidRequestError(
            "MODULE_INVALID",
            f"its gradient has {taken} inputs and {yielded} outputs, but must have "
            f"{inputs + 2 * outputs} and {inputs}, as the module has {inputs} and {outputs}",
        )


def _read_inner(
    shared: Shared,
    name: str,
    message: graph_pb2.Circuit,
    number: int,
    counts: Counts,
    least_values: int = 1,
) -> Graph:
    """A circuit of a module, whose outputs have at least so many values each."""
    inputs = message.inputs
    if message.parameters or any(
        leaf.HasField("type") or leaf.HasField("value") for leaf in inputs
    ):
        fault = "parameters" if message.parameters else "inputs with more than names"
        raise InvalidRequestError("MODULE_INVALID", f"has {fault}; its inputs are what it is given")
    if any(leaf.layout for leaf in (*inputs, *message.constants)):
        raise InvalidRequestError(
            "LEAF_INVALID", "a leaf has the layout ELEMENTS, which is for leaves of the graph"
        )
    if any(leaf.value.WhichOneof("content") == "blob" for leaf in message.constants):
        raise InvalidRequestError(
            "LEAF_INVALID", "a constant is a blob, but those of modules are stored inside"
        )
    inner = shared.circuit(name)
    for leaf in inputs:
        inner.module_input(leaf.name, "")
    message.ClearField("inputs")
    circuit = inner._circuit
    _read_leaves(circuit, message, StoredValues({}))
    _read_nodes(circuit, *columns.node_columns(message), counts, number)
    _read_outputs(circuit, message, least_values, 1)
    return inner


def _read_leaves(circuit: Circuit, message: graph_pb2.Circuit, values: StoredValues) -> None:
    for kind, leaves in (
        ("input", message.inputs),
        ("parameter", message.parameters),
        ("constant", message.constants),
    ):
        for each in leaves:
            leaf = read_leaf(kind, each, values)
            circuit.declare_leaf(kind, leaf.name, leaf.axes, leaf.dtype, leaf.value, leaf.elements)
    if circuit.next_slot > _MOST_VALUES:
        raise InvalidRequestError(
            "LEAF_INVALID",
            f"the leaves take {circuit.next_slot - 1} value ids, over {_MOST_VALUES}",
        )


def _read_nodes(
    circuit: Circuit, rows: columns.Ids, inputs: columns.Ids, counts: Counts, number: int
) -> None:
    """Nodes, which may use modules before that number."""
    table = len(circuit.table.rows)
    if rows.size and rows.max() >= table:
        node = int(np.argmax(rows >= table))
        raise InvalidRequestError(
            "NODE_INVALID",
            f"node number {node}: names gate row {rows[node]} but the table has {table} rows",
        )
    takes, yields = counts[0][rows], counts[1][rows]
    if (needed := int(takes.sum())) != len(inputs):  # so few nodes of 32 bits that it fits
        raise InvalidRequestError(
            "NODE_INVALID",
            f"the nodes' gates take {needed} inputs in all but node_inputs has {len(inputs)}",
        )
    shift = circuit.next_slot - 1
    circuit.value_count = int(yields.sum())
    if circuit.own_count > _MOST_VALUES:
        raise InvalidRequestError(
            "NODE_INVALID", f"the graph has {circuit.own_count} values, over {_MOST_VALUES}"
        )
    ends = np.cumsum(yields)
    firsts = ends - yields + 1
    own = np.repeat(firsts + shift, takes)
    if (inputs >= own).any():
        slot = int(np.argmax(inputs >= own))
        raise InvalidRequestError(
            "NODE_INVALID",
            f"input {slot} of all nodes is value {inputs[slot]}, but a node may only use "
            f"values below its own first ({own[slot]})",
        )
    if circuit.table.has_uses:
        _check_uses(counts[2][rows], takes, inputs, number)
    keys = np.where(inputs > shift, inputs - shift, -inputs)
    for column, found in (
        (circuit.node_rows, rows), (circuit.node_firsts, firsts), (circuit.node_inputs, keys)
    ):  # fmt: skip
        raw: Any = np.ascontiguousarray(found).view(np.uint8)
        column.frombytes(raw)


def _check_uses(modules: columns.Ids, takes: columns.Ids, inputs: columns.Ids, number: int) -> None:
    """Nodes use modules before a number, and give them all inputs."""
    if modules.max(initial=-1) >= number:
        node = int(np.argmax(modules >= number))
        raise InvalidRequestError(
            "MODULE_INVALID",
            f"node number {node}: uses module number {modules[node]}, which is not before it; "
            "modules use only modules before them",
        )
    omitted = (inputs == 0) & np.repeat(modules >= 0, takes)
    if omitted.any():
        raise InvalidRequestError(
            "NODE_INVALID",
            f"input {int(np.argmax(omitted))} of all nodes is omitted, but modules take all of "
            "theirs",
        )


def _read_outputs(
    circuit: Circuit,
    message: graph_pb2.Circuit,
    least_values: int = 1,
    most_values: int = _MOST_VALUES,
) -> None:
    """Outputs of so many values each, and the names of values."""
    shift = circuit.next_slot - 1
    for output in message.outputs:
        ids = list(output.value_ids)
        wrong = [each for each in ids if not 1 <= each <= circuit.own_count]
        if wrong or not least_values <= len(ids) <= most_values:
            fault = f"value {wrong[0]} does not exist" if wrong else f"has {len(ids)} values"
            raise InvalidRequestError(
                "OUTPUT_INVALID",
                f"output {output.name!r}: {fault}; ids are from 1 to {circuit.own_count}"
                + ("" if wrong or not ids else ", and outputs of modules are one value each"),
            )
        if not output.name or output.name in circuit.outputs:
            raise InvalidRequestError(
                "NAME_INVALID", f"the output name {output.name!r} is empty or used twice"
            )
        circuit.outputs[output.name] = [each - shift if each > shift else -each for each in ids]
    last = shift
    for value_id, name in zip(message.named_ids, message.names, strict=True):
        if not last < value_id <= circuit.own_count:
            raise InvalidRequestError(
                "NAME_INVALID",
                f"name {name!r} is for value {value_id}, but those named are from {last + 1} "
                f"to {circuit.own_count}, ascending",
            )
        last = value_id
        circuit.take(name)
        circuit.names[value_id - shift] = name
