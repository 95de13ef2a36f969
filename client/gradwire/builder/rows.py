"""Rows of the gates table: which operator or module a gate is, with which attributes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gradwire import columns, tensors
from gradwire.errors import InvalidRequestError
from gradwire.signature import Attribute, Signature
from gradwire.signatures import SIGNATURES
from gradwire.v1 import graph_pb2

#: Inputs, outputs and module of each row.
Counts = tuple[columns.Ids, columns.Ids, columns.Ids]


class Row(NamedTuple):
    """One entry of the gates table."""

    operator: str  # or the module's name
    attributes: dict[str, Any]
    inputs: int
    outputs: int
    module: int | None = None  # its position among the modules


@dataclass
class GatesTable:
    """The different gates of a graph, which its nodes refer to by number."""

    rows: list[Row] = field(default_factory=list)
    modules: array[int] = field(default_factory=lambda: array("q"))  # -1 where it is none
    has_uses: bool = False  # whether any row is a module's
    _numbers: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Adds a row, even where there is an equal one."""
        self._numbers.setdefault(_row_key(row), len(self.rows))
        self.rows.append(row)
        self.modules.append(-1 if row.module is None else row.module)
        self.has_uses = self.has_uses or row.module is not None

    def number_of(self, wanted: Row) -> int:
        """The number of the first row that equals this one, which is added if there is none."""
        number = self._numbers.get(_row_key(wanted), len(self.rows))
        if number == len(self.rows):
            self.add(wanted)
        return number

    def forget(self, count: int) -> None:
        """Takes back the rows beyond so many."""
        for row in self.rows[count:]:
            self._numbers.pop(_row_key(row), None)
        del self.rows[count:], self.modules[count:]

    def counts(self) -> Counts:
        """The table in columns."""
        inputs = np.array([row.inputs for row in self.rows], np.int64)
        outputs = np.array([row.outputs for row in self.rows], np.int64)
        return inputs, outputs, np.array(self.modules, np.int64)


def row_dtypes(row: Row, given: Sequence[str | None]) -> tuple[str, ...]:
    """The data types of what a node of an operator yields, as far as they are declared."""
    signature = SIGNATURES.get(row.operator)
    sources = 1 if signature is None else len(signature.output_dtypes)
    dtypes = ["float64"] * sources
    if signature is not None:
        dtypes = result_dtypes(signature, given, row.attributes, sources)
    return tuple(dtypes[: row.outputs])


def result_dtypes(
    signature: Signature, dtypes: Sequence[str | None], attributes: dict[str, Any], outputs: int
) -> list[str]:
    """The data type of each output; the last one declared holds for those after it."""
    sources = signature.output_dtypes
    last = len(sources) - 1
    return [_result_dtype(sources[min(slot, last)], dtypes, attributes) for slot in range(outputs)]


def _result_dtype(source: str, dtypes: Sequence[str | None], attributes: dict[str, Any]) -> str:
    """What an entry of `Signature.output_dtypes` means here."""
    for alternative in source.split("|"):
        kind, _, place = alternative.partition(":")
        if not place:
            return kind
        which, _, means = place.partition("=")
        if kind in ("input", "computed"):
            found = dtypes[int(which)] if int(which) < len(dtypes) else None
            if found:
                return "float32" if kind == "computed" and found in tensors.HALVES else found
        elif which in attributes:
            return means or _attribute_dtype(attributes[which])
    return "float64"


def _attribute_dtype(value: Any) -> str:
    """That of a tensor, or the one that ONNX's number means."""
    return str(value.dtype) if isinstance(value, np.ndarray) else tensors.dtype_of(value)


def _row_key(row: Row) -> tuple[Any, ...]:
    return (
        row.module,
        row.operator,
        *((name, tensors.key_of(value)) for name, value in row.attributes.items()),
        row.inputs,
        row.outputs,
    )


_ENCODERS: dict[str, Callable[[str, Any], graph_pb2.Attribute]] = {
    "int": lambda name, value: graph_pb2.Attribute(name=name, int_value=value),
    "float": lambda name, value: graph_pb2.Attribute(name=name, float_value=value),
    "string": lambda name, value: graph_pb2.Attribute(name=name, string_value=value),
    "ints": lambda name, value: graph_pb2.Attribute(name=name, ints=graph_pb2.Ints(values=value)),
    "floats": lambda name, value: graph_pb2.Attribute(
        name=name, floats=graph_pb2.Floats(values=value)
    ),
    "strings": lambda name, value: graph_pb2.Attribute(
        name=name, strings=graph_pb2.Strings(values=value)
    ),
    "tensor": lambda name, value: graph_pb2.Attribute(name=name, tensor=tensors.encode(value)),
}


def encode_row(row: Row) -> graph_pb2.Gate:
    if row.module is not None:
        return graph_pb2.Gate(module=row.module, input_count=row.inputs, output_count=row.outputs)
    declared: dict[str, Attribute] = {
        each.name: each for each in SIGNATURES[row.operator].attributes
    }
    return graph_pb2.Gate(
        operator=row.operator,
        input_count=row.inputs,
        output_count=row.outputs,
        attributes=[
            _ENCODERS[declared[name].kind](name, value) for name, value in row.attributes.items()
        ],
    )


def decode_row(gate: graph_pb2.Gate, modules: Sequence[graph_pb2.Module]) -> Row:
    match gate.WhichOneof("target"):
        case None:
            raise InvalidRequestError(
                "OPERATOR_UNKNOWN", "a row of the gates table names no operator"
            )
        case "module":
            return _decode_module_row(gate, modules)
    attributes: dict[str, Any] = {}
    last = ""
    for attribute in gate.attributes:
        kind = attribute.WhichOneof("value")
        if kind is None or attribute.name <= last:
            fault = "has no value" if kind is None else f"follows {last!r}; names ascend"
            raise InvalidRequestError(
                "ATTRIBUTE_INVALID", f"gate {gate.operator}: attribute {attribute.name!r} {fault}"
            )
        last = attribute.name
        value: Any = getattr(attribute, kind)
        if kind in ("ints", "floats", "strings"):
            value = tuple(value.values)
        elif kind == "tensor":
            value = tensors.decode(value)
        attributes[last] = value
    return Row(gate.operator, attributes, gate.input_count, gate.output_count)


def _decode_module_row(gate: graph_pb2.Gate, modules: Sequence[graph_pb2.Module]) -> Row:
    if gate.module >= len(modules):
        raise InvalidRequestError(
            "MODULE_INVALID",
            f"a row of the gates table names module {gate.module}, but there are {len(modules)}",
        )
    module = modules[gate.module]
    if not module.HasField("circuit"):
        raise InvalidRequestError("MODULE_INVALID", f"module {module.name!r}: has no circuit")
    given = gate.input_count, gate.output_count
    counts = len(module.circuit.inputs), len(module.circuit.outputs)
    for place, what in enumerate(("input", "output")):
        if given[place] != counts[place]:
            raise InvalidRequestError(
                f"{what.upper()}_COUNT_INVALID",
                f"module {module.name!r} has {counts[place]} {what}s, but a row of the gates table "
                f"says {given[place]}",
            )
    if gate.attributes:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID",
            f"module {module.name!r}: there is no attribute {gate.attributes[0].name!r}; modules "
            "have none",
        )
    return Row(module.name, {}, *given, gate.module)
