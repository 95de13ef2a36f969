"""What a circuit is made of: rows of the gates table, with their attributes, and leaves."""

from __future__ import annotations

from collections.abc import Sequence

from gradwire.payloads import WHOLE, Lifted
from gradwire.v1 import graph_pb2, tensor_pb2
from gradwire_server.codec.tensors import (
    MAX_RANK,
    NUMBERS,
    decode_dtype,
    decode_tensor,
    encode_tensor,
)
from gradwire_server.errors import Invalid, Unsupported, within
from gradwire_server.gates.base import AttributeValue
from gradwire_server.graph import Leaf, Row


def decode_row(message: graph_pb2.Gate, modules: Sequence[graph_pb2.Module]) -> Row:
    """A row of the gates table (OPERATOR_UNKNOWN, ATTRIBUTE_INVALID, MODULE_INVALID)."""
    target = message.WhichOneof("target")
    if target is None:
        raise Unsupported("OPERATOR_UNKNOWN", "a row of the gates table names no operator")
    attributes: dict[str, AttributeValue] = {}
    for number, attribute in enumerate(message.attributes):
        if attributes and attribute.name <= next(reversed(attributes)):
            raise Invalid(
                "ATTRIBUTE_INVALID",
                f"gate {message.operator}: attribute {attribute.name!r} follows "
                f"{next(reversed(attributes))!r}; names ascend and are unique",
                field=f"attributes[{number}].name",
            )
        with within(f"attributes[{number}]"):
            attributes[attribute.name] = _decode_attribute(message.operator, attribute)
    counts = message.input_count, message.output_count
    if target == "module":
        if message.module >= len(modules):
            raise Invalid(
                "MODULE_INVALID",
                f"a gate names module {message.module}, but the graph has {len(modules)} modules",
                field="module",
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
        with within("tensor"):
            return decode_tensor(f"gate {operator}, attribute {message.name!r}", message.tensor)
    value = getattr(message, kind)
    return tuple(value.values) if kind in ("ints", "floats", "strings") else value


def encode_row(row: Row) -> graph_pb2.Gate:
    """An operator's row: ascending attributes, none at its default."""
    declared = {attribute.name: attribute for attribute in row.gate.attributes}
    return graph_pb2.Gate(
        operator=row.operator,
        input_count=row.input_count,
        output_count=row.output_count,
        attributes=[
            encode_attribute(name, declared[name].kind, value)
            for name, value in sorted(row.attributes.items())
            if value is not None and value != declared[name].default
        ],
    )


def encode_attribute(name: str, kind: str, value: AttributeValue) -> graph_pb2.Attribute:
    """An attribute of the kind that its gate declares."""
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
            return graph_pb2.Attribute(name=name, tensor=encode_tensor(value))


def decode_leaf(kind: str, message: graph_pb2.Leaf, beside: Lifted = WHOLE) -> Leaf:
    """A declaration and its stored value (LEAF_INVALID, TENSOR_INVALID, DATA_TYPE_UNSUPPORTED).

    `beside` has the large values that were lifted out of the graph.
    """
    place = f"{kind} {message.name!r}"
    if not message.HasField("type"):
        raise Invalid("LEAF_INVALID", f"{place}: has no type", field="type")
    if len(message.type.axes) > MAX_RANK:
        what = f"{place}: has rank {len(message.type.axes)}, over {MAX_RANK}"
        raise Invalid("TENSOR_INVALID", what, field="type.axes")
    if message.layout not in (
        graph_pb2.Leaf.LAYOUT_UNSPECIFIED, graph_pb2.Leaf.LAYOUT_ELEMENTS
    ):  # fmt: skip
        what = f"{place}: layout {message.layout} is not known"
        raise Invalid("LEAF_INVALID", what, field="layout")
    stored = None
    if message.HasField("value"):
        with within("value"):
            stored = decode_tensor(place, message.value, beside=beside)
    return Leaf(
        kind,
        message.name,
        decode_dtype(place, message.type.data_type),
        tuple(_decode_axis(place, number, axis) for number, axis in enumerate(message.type.axes)),
        message.layout == graph_pb2.Leaf.LAYOUT_ELEMENTS,
        stored,
    )


def decode_module_input(kind: str, message: graph_pb2.Leaf) -> Leaf:
    """An input that takes whatever a use of the module gives it."""
    for part in ("type", "value"):
        if message.HasField(part):
            raise Invalid(
                "MODULE_INVALID",
                f"{kind} {message.name!r}: has a {part}, but an input of a module has only a name",
                field=part,
            )
    return Leaf(kind, message.name, "", (), bool(message.layout))


def _decode_axis(place: str, number: int, message: tensor_pb2.Axis) -> int | str:
    extent = message.WhichOneof("extent")
    if extent == "size":
        return message.size
    if extent is None or not message.symbol:
        what = f"{place}: axis {number} has neither a size nor a symbol"
        raise Invalid("TENSOR_INVALID", what, field=f"type.axes[{number}]")
    return message.symbol


def encode_leaf(leaf: Leaf) -> graph_pb2.Leaf:
    """A leaf's declaration, with its stored value."""
    layout = graph_pb2.Leaf.LAYOUT_ELEMENTS if leaf.elements else graph_pb2.Leaf.LAYOUT_UNSPECIFIED
    return graph_pb2.Leaf(
        name=leaf.name,
        type=tensor_pb2.TensorType(
            data_type=NUMBERS[leaf.dtype],
            axes=[
                tensor_pb2.Axis(symbol=axis)
                if isinstance(axis, str)
                else tensor_pb2.Axis(size=axis)
                for axis in leaf.axes
            ],
        ),
        layout=layout,
        value=None if leaf.value is None else encode_tensor(leaf.value),
    )
