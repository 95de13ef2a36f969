"""Writes a graph as a message: the same bytes for the same graph, its large values as blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradwire import blob_files, columns, tensors
from gradwire.builder.circuit import Circuit
from gradwire.builder.leaves import Leaf, encode_leaf
from gradwire.builder.rows import encode_row
from gradwire.builder.shared import Module
from gradwire.errors import InvalidRequestError, LimitError
from gradwire.v1 import graph_pb2
from gradwire.version import __version__

FORMAT_VERSION = 1
OPERATOR_SET_VERSION = 28
#: Graphs with more bytes of stored values are written with blobs.
INLINE_BYTES = 1 << 30

_MESSAGE_BYTES = (1 << 31) - 1  # of protobuf and of gRPC


def with_blobs(message: graph_pb2.Graph, leaves: Sequence[Leaf]) -> tuple[bytes, blob_files.Blobs]:
    """The bytes of a message with blobs for the large values, and those."""
    found: dict[bytes, tensors.Array] = {}
    for leaf, written in zip(leaves, _leaves_of(message), strict=True):
        if leaf.value is not None and leaf.value.nbytes >= blob_files.LEAST_BYTES:
            digest = blob_files.digest_of(leaf.value)
            written.value.blob = digest
            found[digest] = leaf.value
    if found and "blobs" not in message.required_features:
        message.required_features.append("blobs")
    return message.SerializeToString(deterministic=True), found


def without_blobs(data: bytes, leaves: Sequence[Leaf]) -> bytes:
    """The bytes with all values (LIMIT_EXCEEDED where no message can hold them)."""
    _require_inline(stored_bytes(leaves) + len(data))
    message = graph_pb2.Graph.FromString(data)
    message.required_features.remove("blobs")
    for leaf, written in zip(leaves, _leaves_of(message), strict=True):
        if leaf.value is not None and written.value.WhichOneof("content") == "blob":
            written.value.data = leaf.value.tobytes()
    return message.SerializeToString(deterministic=True)


def stored_bytes(leaves: Sequence[Leaf]) -> int:
    """How many bytes the stored values have."""
    return sum(leaf.value.nbytes for leaf in leaves if leaf.value is not None)


def _require_inline(needed: int) -> None:
    if needed > _MESSAGE_BYTES:
        raise LimitError(
            "LIMIT_EXCEEDED",
            f"the graph has {needed} bytes with its stored values, but one message holds at "
            f"most {_MESSAGE_BYTES}, and blobs are not sent; make large parameters inputs, and "
            "bind them in several calls or in shared memory",
        )


def message_of(
    circuit: Circuit,
    modules: Sequence[Module],
    notes: Mapping[str, str],
    least_bytes: int | None = None,
) -> graph_pb2.Graph:
    """The graph, without the elements of values that have so many bytes."""
    if not circuit.outputs:
        raise InvalidRequestError(
            "GRAPH_INVALID", "the graph has no output; name at least one value"
        )
    written = _written_rows(circuit, modules)
    numbers = np.zeros(len(circuit.table.rows), np.int64)
    numbers[written] = np.arange(len(written))
    message = graph_pb2.Graph(
        format_version=FORMAT_VERSION,
        operator_set_version=OPERATOR_SET_VERSION,
        gates=[encode_row(circuit.table.rows[row]) for row in written],
        producer=f"gradwire {__version__}",
        notes=[graph_pb2.Note(key=key, text=text) for key, text in notes.items()],
    )
    _encode(circuit, message.circuit, numbers, least_bytes)
    for module in modules:
        into = message.modules.add(name=module.name)
        _encode(module.circuit._circuit, into.circuit, numbers)
        if module.gradient is not None:
            _encode(module.gradient._circuit, into.gradient, numbers)
    if message.modules:
        message.required_features.append("modules")
    return message


def _written_rows(circuit: Circuit, modules: Sequence[Module]) -> list[int]:
    """Rows of the gates table, as they are written; with modules, in the order of their use."""
    if not modules:
        return list(range(len(circuit.table.rows)))
    found: dict[int, None] = {}
    inner = [each._circuit for module in modules for each in module.circuits]
    for used in (*inner, circuit):
        rows, firsts = np.unique(np.frombuffer(used.node_rows, np.int64), return_index=True)
        found.update(dict.fromkeys(rows[np.argsort(firsts)].tolist()))
    return list(found)


def _encode(
    circuit: Circuit,
    message: graph_pb2.Circuit,
    numbers: columns.Ids,
    least_bytes: int | None = None,
) -> None:
    """Writes the circuit, which is set even where it is empty."""
    message.SetInParent()
    places = circuit.places()
    columns_of = {
        "input": message.inputs,
        "parameter": message.parameters,
        "constant": message.constants,
    }
    for leaf in circuit.leaves:
        columns_of[leaf.kind].append(encode_leaf(leaf, least_bytes))
    rows = numbers[np.frombuffer(circuit.node_rows, np.int64)]
    message.node_gates.extend(rows.tolist())
    message.node_inputs.extend(places.ids(circuit.node_inputs).tolist())
    for name, keys in circuit.outputs.items():
        message.outputs.add(name=name, value_ids=places.ids(keys).tolist())
    for key in sorted(circuit.names):
        message.named_ids.append(key + places.shift)
        message.names.append(circuit.names[key])


def _leaves_of(message: graph_pb2.Graph) -> list[graph_pb2.Leaf]:
    """In the order of `Graph.leaves`."""
    circuit = message.circuit
    return [*circuit.inputs, *circuit.parameters, *circuit.constants]
