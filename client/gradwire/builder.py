"""Builds gate graphs from Python expressions, and writes and reads their serialized form.

A handle stands for a value that a server will compute. It knows its data type; shapes are found
when the graph is evaluated.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from gradwire import files, tensors
from gradwire.errors import GradwireError, InvalidRequestError
from gradwire.signature import Attribute, Signature
from gradwire.signatures import SIGNATURES
from gradwire.v1 import graph_pb2
from gradwire.version import __version__

FORMAT_VERSION = 1
OPERATOR_SET_VERSION = 28

_PACKAGE = os.path.dirname(__file__) + os.sep
_NUMPY = os.path.dirname(np.__file__) + os.sep
_LINES_SHOWN = 60

#: What a function of handles takes: at least one operand must be a handle.
Operand = Any


@dataclass(frozen=True)
class Leaf:
    """An input, a parameter or a constant, as declared."""

    kind: str
    name: str
    dtype: str
    axes: tuple[int | str, ...]
    elements: bool
    value: tensors.Array | None

    @property
    def id_count(self) -> int:
        """How many value ids it takes: one, or one for each element."""
        return _slots(self)


class Node(NamedTuple):
    """One use of an operator; inputs and outputs by value id, 0 for an omitted input."""

    operator: str
    attributes: dict[str, Any]
    inputs: list[int]
    outputs: range


class Handle:
    """A value of a graph under construction."""

    __slots__ = ("dtype", "graph", "key")
    __array_priority__ = 1000
    __hash__ = object.__hash__

    def __init__(self, graph: Graph, key: int, dtype: str) -> None:
        self.graph = graph
        self.key = key
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"<gradwire.Handle {self.graph.label(self.key)}: {self.dtype}>"

    def named(self, name: str) -> Handle:
        """The same handle, with a name in the graph (NAME_INVALID where it is taken)."""
        self.graph.name(self, name)
        return self

    def __bool__(self) -> bool:
        raise TypeError("a handle has no value yet, so it cannot be branched on; use gw.where")

    def __iter__(self) -> Any:
        raise TypeError("a handle's shape is not known yet; use gw.split or gw.gather")

    def __neg__(self) -> Handle:
        return _one("Neg", self)

    def __abs__(self) -> Handle:
        return _one("Abs", self)

    def __add__(self, other: Operand) -> Handle:
        return _one("Add", self, other)

    def __radd__(self, other: Operand) -> Handle:
        return _one("Add", other, self)

    def __sub__(self, other: Operand) -> Handle:
        return _one("Sub", self, other)

    def __rsub__(self, other: Operand) -> Handle:
        return _one("Sub", other, self)

    def __mul__(self, other: Operand) -> Handle:
        return _one("Mul", self, other)

    def __rmul__(self, other: Operand) -> Handle:
        return _one("Mul", other, self)

    def __truediv__(self, other: Operand) -> Handle:
        return _one("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Handle:
        return _one("Div", other, self)

    def __pow__(self, other: Operand) -> Handle:
        return _one("Pow", self, other)

    def __rpow__(self, other: Operand) -> Handle:
        return _one("Pow", other, self)

    def __matmul__(self, other: Operand) -> Handle:
        return _one("MatMul", self, other)

    def __rmatmul__(self, other: Operand) -> Handle:
        return _one("MatMul", other, self)

    def __lt__(self, other: Operand) -> Handle:
        return _one("Less", self, other)

    def __le__(self, other: Operand) -> Handle:
        return _one("LessOrEqual", self, other)

    def __gt__(self, other: Operand) -> Handle:
        return _one("Greater", self, other)

    def __ge__(self, other: Operand) -> Handle:
        return _one("GreaterOrEqual", self, other)

    def __and__(self, other: Operand) -> Handle:
        return _one("And", self, other)

    def __or__(self, other: Operand) -> Handle:
        return _one("Or", self, other)

    def __xor__(self, other: Operand) -> Handle:
        return _one("Xor", self, other)

    def __invert__(self) -> Handle:
        return _one("Not", self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Handle:
        from gradwire.numpy_functions import call_ufunc

        return call_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Handle:
        from gradwire.numpy_functions import call_function

        return call_function(function, args, kwargs)


class Graph:
    """A gate graph: leaves, nodes, outputs.

    Built with `input`, `parameter`, operators and functions on handles, and `output`; or read with
    `from_bytes` and `load`.
    """

    def __init__(self) -> None:
        self._leaves: list[Leaf] = []
        self._leaf_slots: list[int] = []  # first key of each leaf, counted down from -1
        self._next_slot = 1
        self._rows: dict[tuple[Any, ...], int] = {}
        self._row_list: list[tuple[str, dict[str, Any], int, int]] = []
        self._node_rows = array("q")
        self._node_inputs = array("q")
        self._node_firsts = array("q")
        self._value_count = 0
        self._dtypes: list[str] = []  # of each node value
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Handle] = {}
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._outputs: dict[str, list[int]] = {}
        self._made_at: dict[int, str] = {}  # by node; those read from a file have no line
        self._bytes: bytes | None = None

    def input(
        self,
        name: str,
        shape: int | Sequence[int | str] = (),
        dtype: Any = "float64",
        value: Any = None,
    ) -> Handle:
        """A leaf that every evaluation gives; or `value`, where one does not (LEAF_INVALID).

        `shape` has a size, or a symbol such as "batch", for each axis.
        """
        axes = (shape,) if isinstance(shape, int) else tuple(shape)
        return self._leaf("input", name, axes, tensors.dtype_name(dtype), value)

    def parameter(self, name: str, value: Any, dtype: Any = None) -> Handle:
        """A leaf with a stored value that an evaluation may override."""
        wanted = tensors.dtype_name(dtype or _dtype_of(value))
        stored = tensors.from_value(f"parameter {name!r}", value, wanted)
        return self._leaf("parameter", name, stored.shape, str(stored.dtype), stored)

    def elements(
        self, name: str, shape: int | Sequence[int], dtype: Any = "float64", value: Any = None
    ) -> list[Handle]:
        """An input with one handle for each element, row-major: one tensor feeds many gates."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        known = tensors.dtype_name(dtype)
        first = self._leaf("input", name, sizes, known, value, elements=True)
        return [Handle(self, first.key - offset, known) for offset in range(prod(sizes))]

    def constant(self, value: Any, dtype: Any = None) -> Handle:
        """A stored value that is never differentiated; equal ones are stored once."""
        wanted = tensors.dtype_name(dtype or _dtype_of(value))
        stored = tensors.from_value("a constant", value, wanted)
        key = (str(stored.dtype), stored.shape, stored.tobytes())
        if key not in self._constants:
            self._constants[key] = self._leaf("constant", "", stored.shape, key[0], stored)
        return self._constants[key]

    def name(self, handle: Handle, name: str) -> None:
        """Names a value, for people and for results (NAME_INVALID)."""
        self._own(handle)
        if handle.key < 0:
            raise InvalidRequestError("NAME_INVALID", f"{self.label(handle.key)} is a leaf")
        self._take(name)
        self._names[handle.key] = name
        self._bytes = None

    def output(self, name: str, *handles: Handle) -> None:
        """Names a result: one value; or several scalars, stacked into a vector."""
        if not handles or not name or name in self._outputs:
            fault = "has no value" if not handles else "is empty" if not name else "is used twice"
            reason = "OUTPUT_INVALID" if not handles else "NAME_INVALID"
            raise InvalidRequestError(reason, f"the output name {name!r} {fault}")
        for handle in handles:
            self._own(handle)
        self._outputs[name] = [handle.key for handle in handles]
        self._bytes = None

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Inputs, then parameters, then constants, as they are written."""
        order = ("input", "parameter", "constant")
        return tuple(sorted(self._leaves, key=lambda leaf: order.index(leaf.kind)))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(self._outputs)

    def nodes(self) -> Iterator[Node]:
        """Every node, in evaluation order."""
        places, shift = self._places()
        inputs = _ids(self._node_inputs, places, shift)
        start = 0
        for row, key in zip(self._node_rows, self._node_firsts, strict=True):
            operator, attributes, count, outputs = self._row_list[row]
            first = key + shift
            yield Node(
                operator, attributes, inputs[start : start + count], range(first, first + outputs)
            )
            start += count

    def dtypes(self) -> list[str]:
        """Data type of every value, by id; that of id 0, an omitted input, is empty."""
        leaves = [leaf.dtype for leaf in self.leaves for _ in range(leaf.id_count)]
        return ["", *leaves, *self._dtypes]

    def output_ids(self) -> dict[str, list[int]]:
        """Value ids of every output."""
        places, shift = self._places()
        return {
            name: [key + shift if key > 0 else int(places[-key]) for key in keys]
            for name, keys in self._outputs.items()
        }

    def output_dtype(self, name: str) -> str:
        """Data type of an output."""
        return self._dtype_of_key(self._outputs[name][0])

    @property
    def node_count(self) -> int:
        """Number of nodes."""
        return len(self._node_rows)

    @property
    def value_count(self) -> int:
        """Value ids are from 1 to this, inclusive."""
        return self._next_slot - 1 + self._value_count

    def apply(
        self,
        operator: str,
        inputs: Sequence[Operand | None],
        attributes: dict[str, Any],
        outputs: int = 1,
    ) -> tuple[Handle, ...]:
        """Adds a node; its outputs (INPUT_COUNT_INVALID, DATA_TYPE_MISMATCH, ...)."""
        signature = SIGNATURES[operator]
        made_at = _caller()
        try:
            given = list(inputs)
            while given and given[-1] is None and len(given) > 1:
                given.pop()
            handles = self._lift(signature, given)
            dtypes = [None if each is None else each.dtype for each in handles]
            signature.check_dtypes(dtypes)
            checked = signature.check_attributes(attributes)
        except GradwireError as error:
            raise type(error)(
                error.reason, f"{operator}: {error.message} (made at {made_at})", error.facts
            ) from None
        self._made_at[self.node_count] = made_at
        keys = [0 if each is None else each.key for each in handles]
        return self._add(
            operator, checked, keys, _result_dtypes(signature, dtypes, checked, outputs)
        )

    def made_at(self, node: int) -> str | None:
        """The line of the program that made a node, such as "train.py:12", if it is known."""
        return self._made_at.get(node)

    def to_bytes(self) -> bytes:
        """The serialized Graph: the same bytes for the same graph; those read, if unchanged."""
        if self._bytes is None:
            self._bytes = self._message().SerializeToString(deterministic=True)
        return self._bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the serialized graph in hexadecimal: its identity."""
        return sha256(self.to_bytes()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Graph:
        """Reads a serialized Graph (GRAPH_INVALID, FEATURE_UNSUPPORTED, ...)."""
        message = graph_pb2.Graph()
        try:
            message.ParseFromString(data)
        except DecodeError:
            raise InvalidRequestError(
                "GRAPH_INVALID", f"the {len(data)} bytes are not a serialized gradwire.v1.Graph"
            ) from None
        graph = cls()
        try:
            graph._read(message)
        except (IndexError, KeyError, ValueError) as failure:
            raise InvalidRequestError(
                "GRAPH_INVALID", f"the graph cannot be read: {failure!r}"
            ) from None
        graph._bytes = data
        return graph

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.gate` file, whole or not at all."""
        files.write(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Reads a `.gate` file (FILE_INVALID)."""
        return cls.from_bytes(files.read(path))

    def ids_by_name(self) -> dict[str, range]:
        """Value ids of every named leaf and node value."""
        places, shift = self._places()
        found = {name: range(key + shift, key + shift + 1) for key, name in self._names.items()}
        for leaf, slot in zip(self._leaves, self._leaf_slots, strict=True):
            if leaf.kind != "constant":
                first = int(places[slot]) if _slots(leaf) else 1
                found[leaf.name] = range(first, first + _slots(leaf))
        return found

    def id_of(self, handle: Handle) -> int:
        """Value id of a handle in the serialized graph."""
        self._own(handle)
        places, shift = self._places()
        return int(places[-handle.key]) if handle.key < 0 else handle.key + shift

    def value_labels(self) -> list[tuple[int, str, str]]:
        """(id, name, operator) of every value but constants, by ascending id."""
        places, shift = self._places()
        found = []
        for leaf, slot in zip(self._leaves, self._leaf_slots, strict=True):
            if leaf.kind != "constant":
                count = _slots(leaf)
                for element in range(count):
                    name = f"{leaf.name}[{element}]" if leaf.elements else leaf.name
                    found.append((int(places[slot + element]), name, leaf.kind))
        found.sort()
        for node, row in enumerate(self._node_rows):
            operator, _, _, outputs = self._row_list[row]
            first = self._node_firsts[node]
            found.extend(
                (key + shift, self._names.get(key, ""), operator)
                for key in range(first, first + outputs)
            )
        return found

    def label(self, key: int) -> str:
        """How a value is called in print and in messages: by its name, or its id."""
        if key > 0:
            return self._names.get(key) or f"%{key + self._next_slot - 1}"
        position = int(np.searchsorted(self._leaf_slots, -key, "right")) - 1
        leaf = self._leaves[position]
        if leaf.kind == "constant" and leaf.value is not None:
            return str(leaf.value.tolist()) if leaf.value.size <= 4 else f"{leaf.dtype} constant"
        return f"{leaf.name}[{-key - self._leaf_slots[position]}]" if leaf.elements else leaf.name

    def __str__(self) -> str:
        lines = [_leaf_line(leaf) for leaf in self.leaves if leaf.kind != "constant"]
        count = self.node_count
        shown = range(count)
        if count > _LINES_SHOWN:
            shown = range(_LINES_SHOWN // 2)
        lines.extend(map(self._node_line, shown))
        if count > _LINES_SHOWN:
            lines.append(f"... {count - _LINES_SHOWN} more nodes ...")
            lines.extend(map(self._node_line, range(count - _LINES_SHOWN // 2, count)))
        for name, keys in self._outputs.items():
            labels = ", ".join(map(self.label, keys[:8])) + (", ..." if len(keys) > 8 else "")
            lines.append(f"output {name} = {labels}")
        return "\n".join(lines)

    def _dtype_of_key(self, key: int) -> str:
        if key > 0:
            return self._dtypes[key - 1]
        return self._leaves[int(np.searchsorted(self._leaf_slots, -key, "right")) - 1].dtype

    def _node_line(self, node: int) -> str:
        operator, attributes, inputs, outputs = self._row_list[self._node_rows[node]]
        start = self._input_start(node)
        given = [
            self.label(key) if key else "absent"
            for key in self._node_inputs[start : start + inputs]
        ]
        given += [f"{name}={value!r}" for name, value in attributes.items()]
        first = self._node_firsts[node]
        made = ", ".join(map(self.label, range(first, first + outputs)))
        return f"{made} = {operator}({', '.join(given)})"

    def _input_start(self, node: int) -> int:
        counts = np.array([row[2] for row in self._row_list])
        return int(counts[np.frombuffer(self._node_rows, np.int64)[:node]].sum())

    def _leaf(
        self,
        kind: str,
        name: str,
        shape: Sequence[int | str],
        dtype: str,
        value: Any,
        elements: bool = False,
    ) -> Handle:
        tensors.data_type(dtype)
        axes = tuple(shape)
        place = f"{kind} {name!r}"
        _check_axes(place, axes, elements)
        stored = None if value is None else tensors.from_value(place, value, dtype).copy()
        if kind != "constant":
            self._take(name)
        if stored is not None and (
            len(axes) != stored.ndim
            or any(
                isinstance(axis, int) and axis != size
                for axis, size in zip(axes, stored.shape, strict=True)
            )
        ):
            raise InvalidRequestError(
                "LEAF_INVALID",
                f"{kind} {name!r}: declared with shape {axes} but its stored value has shape "
                f"{stored.shape}",
            )
        leaf = Leaf(kind, name, dtype, axes, elements, stored)
        handle = Handle(self, -self._next_slot, dtype)
        self._leaves.append(leaf)
        self._leaf_slots.append(self._next_slot)
        self._next_slot += _slots(leaf)
        self._bytes = None
        return handle

    def _take(self, name: str) -> None:
        if not name:
            raise InvalidRequestError("NAME_INVALID", "a value has an empty name")
        if name in self._taken:
            raise InvalidRequestError("NAME_INVALID", f"the value name {name!r} is used 2 times")
        self._taken.add(name)

    def _own(self, handle: Handle) -> None:
        if not isinstance(handle, Handle):
            raise TypeError(f"{handle!r} is no handle; make one with graph.input or graph.constant")
        if handle.graph is not self:
            raise InvalidRequestError(
                "GRAPH_INVALID", f"{handle!r} belongs to another graph; build in one graph"
            )

    def _lift(
        self, signature: Signature, operands: Sequence[Operand | None]
    ) -> list[Handle | None]:
        """Numbers and arrays as constants, of the data type of the handles in their group."""
        declared = signature.declared_inputs(len(operands))
        groups: dict[str, str] = {}
        for each, operand in zip(declared, operands, strict=True):
            if isinstance(operand, Handle):
                self._own(operand)
                groups.setdefault(each.group, operand.dtype)
        lifted: list[Handle | None] = []
        for each, operand in zip(declared, operands, strict=True):
            if operand is None or isinstance(operand, Handle):
                lifted.append(operand)
                continue
            weak = not isinstance(operand, (np.ndarray, np.generic))
            dtype = groups.get(each.group) if weak else None
            if dtype is None and weak and "int64" in each.dtypes and "float64" not in each.dtypes:
                dtype = "int64"
            lifted.append(self.constant(operand, dtype))
        return lifted

    def _add(
        self, operator: str, attributes: dict[str, Any], keys: list[int], dtypes: list[str]
    ) -> tuple[Handle, ...]:
        outputs = len(dtypes)
        row_key = (operator, *map(_hashable, attributes.items()), len(keys), outputs)
        row = self._rows.setdefault(row_key, len(self._rows))
        if row == len(self._row_list):
            self._row_list.append((operator, attributes, len(keys), outputs))
        first = self._value_count + 1
        self._node_rows.append(row)
        self._node_inputs.extend(keys)
        self._node_firsts.append(first)
        self._value_count += outputs
        self._dtypes.extend(dtypes)
        self._bytes = None
        return tuple(Handle(self, first + slot, dtype) for slot, dtype in enumerate(dtypes))

    def _places(self) -> tuple[Any, int]:
        """Value id of each leaf slot, and what is added to the key of a node value."""
        order = {"input": 0, "parameter": 1, "constant": 2}
        counts = [_slots(leaf) for leaf in self._leaves]
        places = np.zeros(self._next_slot, np.int64)
        next_id = 1
        for position in sorted(
            range(len(self._leaves)), key=lambda each: order[self._leaves[each].kind]
        ):
            slot, count = self._leaf_slots[position], counts[position]
            places[slot : slot + count] = np.arange(next_id, next_id + count)
            next_id += count
        return places, next_id - 1

    def _message(self) -> graph_pb2.Graph:
        if not self._outputs:
            raise InvalidRequestError(
                "GRAPH_INVALID", "the graph has no output; name at least one value"
            )
        places, shift = self._places()
        message = graph_pb2.Graph(
            format_version=FORMAT_VERSION,
            operator_set_version=OPERATOR_SET_VERSION,
            gates=[_encode_row(*row) for row in self._row_list],
            producer=f"gradwire {__version__}",
        )
        circuit = message.circuit
        columns = {
            "input": circuit.inputs,
            "parameter": circuit.parameters,
            "constant": circuit.constants,
        }
        for leaf in self._leaves:
            columns[leaf.kind].append(_encode_leaf(leaf))
        circuit.node_gates.extend(self._node_rows.tolist())
        circuit.node_inputs.extend(_ids(self._node_inputs, places, shift))
        for name, keys in self._outputs.items():
            circuit.outputs.add(name=name, value_ids=_ids(keys, places, shift))
        for key in sorted(self._names):
            circuit.named_ids.append(key + shift)
            circuit.names.append(self._names[key])
        return message

    def _read(self, message: graph_pb2.Graph) -> None:
        if message.required_features or message.format_version != FORMAT_VERSION:
            raise InvalidRequestError(
                "FEATURE_UNSUPPORTED"
                if message.required_features
                else "FORMAT_VERSION_UNSUPPORTED",
                f"the graph has format version {message.format_version} and requires "
                f"{list(message.required_features)}, but this client reads version "
                f"{FORMAT_VERSION} without features; use a newer gradwire",
            )
        circuit = message.circuit
        for kind, leaves in (
            ("input", circuit.inputs),
            ("parameter", circuit.parameters),
            ("constant", circuit.constants),
        ):
            for leaf in leaves:
                self._read_leaf(kind, leaf)
        shift = self._next_slot - 1

        def key_of(value_id: int) -> int:
            return value_id - shift if value_id > shift else -value_id

        rows = [_decode_row(gate) for gate in message.gates]
        start = 0
        inputs = circuit.node_inputs
        for row in circuit.node_gates:
            operator, attributes, count, outputs = rows[row]
            keys = [key_of(value_id) for value_id in inputs[start : start + count]]
            start += count
            signature = SIGNATURES.get(operator)
            dtypes = ["float64"] * outputs
            if signature is not None:
                given = [self._dtype_of_key(key) if key else None for key in keys]
                dtypes = _result_dtypes(signature, given, attributes, outputs)
            self._add(operator, attributes, keys, dtypes)
        for output in circuit.outputs:
            self._outputs[output.name] = [key_of(value_id) for value_id in output.value_ids]
        for value_id, name in zip(circuit.named_ids, circuit.names, strict=True):
            self._take(name)
            self._names[key_of(value_id)] = name

    def _read_leaf(self, kind: str, message: graph_pb2.Leaf) -> None:
        axes = [
            axis.symbol if axis.WhichOneof("extent") == "symbol" else axis.size
            for axis in message.type.axes
        ]
        stored = tensors.decode(message.value) if message.HasField("value") else None
        elements = message.layout == graph_pb2.Leaf.LAYOUT_ELEMENTS
        dtype = tensors.dtype_of(message.type.data_type)
        self._leaf(kind, message.name, axes, dtype, stored, elements)


def apply(operator: str, inputs: Sequence[Operand | None], attributes: dict[str, Any]) -> Handle:
    """Adds a node with one output to the graph of its handles."""
    return _graph_of(operator, inputs).apply(operator, inputs, attributes)[0]


def apply_several(
    operator: str, inputs: Sequence[Operand | None], attributes: dict[str, Any], outputs: int
) -> tuple[Handle, ...]:
    """Adds a node with several outputs."""
    return _graph_of(operator, inputs).apply(operator, inputs, attributes, outputs)


def apply_split(
    operator: str, inputs: Sequence[Operand | None], attributes: dict[str, Any]
) -> tuple[Handle, ...]:
    """Adds a Split: as many outputs as `num_outputs`, or as `split` has entries."""
    sizes = inputs[1]
    if attributes["num_outputs"] is None and not isinstance(sizes, (list, tuple, np.ndarray)):
        raise InvalidRequestError(
            "OUTPUT_COUNT_INVALID", f"{operator}: give num_outputs, or split as a list of sizes"
        )
    outputs = attributes["num_outputs"] or len(sizes or ())
    return _graph_of(operator, inputs).apply(operator, inputs, attributes, outputs)


def _one(operator: str, *operands: Operand) -> Handle:
    return apply(operator, operands, {})


def _graph_of(operator: str, operands: Iterable[Operand]) -> Graph:
    for operand in operands:
        if isinstance(operand, Handle):
            return operand.graph
    raise TypeError(f"{operator} needs a handle; make one with graph.input or graph.constant")


def _caller() -> str:
    """The nearest line outside this package and NumPy: the user's."""
    frame = sys._getframe(2)
    while frame.f_code.co_filename.startswith((_PACKAGE, _NUMPY)) and frame.f_back is not None:
        frame = frame.f_back
    name = os.path.basename(frame.f_code.co_filename)
    return sys.intern(f"{name}:{frame.f_lineno}")


def _dtype_of(value: Any) -> str:
    """float64 for floats, int64 for whole numbers, bool for truths; an array's own."""
    return str(np.asarray(value).dtype)


def _result_dtypes(
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


def _leaf_line(leaf: Leaf) -> str:
    line = f"{leaf.kind} {leaf.name}: {leaf.dtype}[{', '.join(map(str, leaf.axes))}]"
    if leaf.value is None:
        return line
    few = leaf.value.size <= 4
    return f"{line} = {leaf.value.tolist() if few else f'{leaf.value.size} stored elements'}"


def _check_axes(place: str, axes: tuple[int | str, ...], elements: bool) -> None:
    """Sizes or symbols, and only sizes for ELEMENTS (TENSOR_INVALID, LEAF_INVALID)."""
    for axis in axes:
        size = isinstance(axis, (int, np.integer)) and axis >= 0
        if not size and not (isinstance(axis, str) and axis):
            raise InvalidRequestError(
                "TENSOR_INVALID", f"{place}: axis {axis!r} is neither a size nor a symbol"
            )
        if elements and isinstance(axis, str):
            raise InvalidRequestError(
                "LEAF_INVALID",
                f"{place}: layout ELEMENTS needs fixed sizes but an axis is {axis!r}",
            )


def _slots(leaf: Leaf) -> int:
    return prod(axis for axis in leaf.axes if isinstance(axis, int)) if leaf.elements else 1


def _ids(keys: Iterable[int], places: Any, shift: int) -> list[int]:
    """Value ids of keys; `places` and `shift` are the graph's."""
    column = np.array(keys, np.int64)
    found = column + shift
    found[column == 0] = 0
    found[column < 0] = places[-column[column < 0]]
    numbers: list[int] = found.tolist()
    return numbers


def _hashable(item: tuple[str, Any]) -> tuple[str, Any]:
    name, value = item
    if isinstance(value, np.ndarray):
        return name, (str(value.dtype), value.shape, value.tobytes())
    return name, value


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


def _encode_row(
    operator: str, attributes: dict[str, Any], inputs: int, outputs: int
) -> graph_pb2.Gate:
    declared: dict[str, Attribute] = {each.name: each for each in SIGNATURES[operator].attributes}
    return graph_pb2.Gate(
        operator=operator,
        input_count=inputs,
        output_count=outputs,
        attributes=[
            _ENCODERS[declared[name].kind](name, value) for name, value in attributes.items()
        ],
    )


def _decode_row(gate: graph_pb2.Gate) -> tuple[str, dict[str, Any], int, int]:
    attributes: dict[str, Any] = {}
    for attribute in gate.attributes:
        kind = attribute.WhichOneof("value")
        value: Any = getattr(attribute, kind) if kind else None
        if kind in ("ints", "floats", "strings"):
            value = tuple(value.values)
        elif kind == "tensor":
            value = tensors.decode(value)
        attributes[attribute.name] = value
    return gate.operator, attributes, gate.input_count, gate.output_count


def _encode_leaf(leaf: Leaf) -> graph_pb2.Leaf:
    message = graph_pb2.Leaf(name=leaf.name)
    message.type.data_type = tensors.data_type(leaf.dtype)
    for axis in leaf.axes:
        if isinstance(axis, str):
            message.type.axes.add(symbol=axis)
        else:
            message.type.axes.add(size=axis)
    if leaf.elements:
        message.layout = graph_pb2.Leaf.LAYOUT_ELEMENTS
    if leaf.value is not None:
        message.value.CopyFrom(tensors.encode(leaf.value))
    return message
