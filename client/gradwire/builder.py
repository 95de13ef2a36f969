"""Builds gate graphs from Python expressions, and writes and reads their serialized form.

A handle stands for a value that a server will compute. It knows its data type; shapes are found
when the graph is evaluated.
"""

from __future__ import annotations

import os
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from google.protobuf.message import DecodeError

from gradwire import blob_files, columns, files, paths, tensors
from gradwire.errors import FileError, GradwireError, InvalidRequestError, LimitError
from gradwire.signature import Attribute, Signature
from gradwire.signatures import SIGNATURES
from gradwire.v1 import graph_pb2, tensor_pb2
from gradwire.version import __version__

FORMAT_VERSION = 1
OPERATOR_SET_VERSION = 28
#: What this reader understands beyond the format's version.
FEATURES = frozenset({"blobs", "modules"})
#: Graphs with more bytes of stored values are written with blobs.
INLINE_BYTES = 1 << 30

_PACKAGE = os.path.dirname(__file__) + os.sep
_NUMPY = os.path.dirname(np.__file__) + os.sep
_LINES_SHOWN = 60
_MOST_VALUES = paths.MOST_VALUES
_MOST_TYPINGS = 64  # of one module, in one graph
_MOST_RANK = 32
_SHORT_BYTES = 64
_MESSAGE_BYTES = (1 << 31) - 1  # of protobuf and of gRPC
_TEXT_VALUES_PER_BYTE = 16

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
        sizes = (axis for axis in self.axes if isinstance(axis, int))
        return prod(sizes) if self.elements else 1


class Node(NamedTuple):
    """One use of an operator or a module; values by id, 0 for an omitted input."""

    operator: str  # or the module's name
    attributes: dict[str, Any]
    inputs: list[int]
    outputs: range
    module: Module | None = None


class Row(NamedTuple):
    """One entry of the gates table."""

    operator: str  # or the module's name
    attributes: dict[str, Any]
    inputs: int
    outputs: int
    module: int | None = None  # its position among the modules


@dataclass(frozen=True)
class Module:
    """A named sub-circuit of a graph, and its own gradient if it has one.

    Both are graphs that can be read and not changed. The gradient's inputs are the circuit's, then
    its outputs, then the gradients of these; its outputs, one for each input of the circuit, have
    no value where the module is not differentiable.
    """

    name: str
    circuit: Graph
    gradient: Graph | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(leaf.name for leaf in self.circuit.leaves if leaf.kind == "input")

    @property
    def circuits(self) -> tuple[Graph, ...]:
        """The circuit, and the gradient."""
        return (self.circuit,) if self.gradient is None else (self.circuit, self.gradient)


@dataclass
class Shared:
    """What the circuits of one graph have in common; only the innermost open one may be changed."""

    open: list[Graph]
    rows: dict[tuple[Any, ...], int] = field(default_factory=dict)
    row_list: list[Row] = field(default_factory=list)
    row_modules: array[int] = field(default_factory=lambda: array("q"))  # -1 where it is none
    has_uses: bool = False  # whether any row is a module's
    modules: list[Module] = field(default_factory=list)
    uses: list[paths.Uses] = field(default_factory=list)  # inside of each module
    made: dict[Any, Any] = field(default_factory=dict)  # modules by what they were traced with
    dtypes: dict[_Typing, tuple[str, ...]] = field(default_factory=dict)
    typings: Counter[int] = field(default_factory=Counter)

    def add_row(self, row: Row) -> None:
        """Adds an entry to the gates table."""
        self.rows.setdefault(_row_key(row), len(self.row_list))
        self.row_list.append(row)
        self.row_modules.append(-1 if row.module is None else row.module)
        self.has_uses = self.has_uses or row.module is not None

    def counts(self) -> _Counts:
        """The gates table in columns."""
        inputs = np.array([row.inputs for row in self.row_list], np.int64)
        outputs = np.array([row.outputs for row in self.row_list], np.int64)
        return inputs, outputs, np.array(self.row_modules, np.int64)

    def circuit(self, module: str) -> Graph:
        """A new circuit of a module."""
        return Graph._of(self, module)

    @contextmanager
    def opened(self, circuit: Graph) -> Iterator[None]:
        """Lets a circuit be changed, and none around it."""
        self.open.append(circuit)
        try:
            yield
        finally:
            self.open.pop()

    def add_module(self, module: Module) -> None:
        """Adds a module, after those that it uses."""
        self.modules.append(module)
        self.uses.append(module.circuit._uses())

    def settle(self, typed: Generator[_Typing, tuple[str, ...], tuple[str, ...]]) -> None:
        """Finds data types inside of modules, however deep, once for each module and its inputs'.

        LIMIT_EXCEEDED where a module is used with too many different data types.
        """
        known = self.dtypes
        waiting: list[tuple[_Typing | None, Any]] = [(None, typed)]
        answer: tuple[str, ...] | None = None
        while waiting:
            asked, circuit = waiting[-1]
            try:
                wanted = next(circuit) if answer is None else circuit.send(answer)
            except StopIteration as end:
                waiting.pop()
                answer = end.value
                if asked is not None:
                    known[asked] = end.value
                continue
            answer = known.get(wanted)
            if answer is None:
                module, given = wanted
                self.typings[module] += 1
                if self.typings[module] > _MOST_TYPINGS:
                    raise LimitError(
                        "LIMIT_EXCEEDED",
                        f"module {self.modules[module].name!r}: is used with over {_MOST_TYPINGS} "
                        "combinations of data types",
                    )
                waiting.append((wanted, self.modules[module].circuit.typed_inside(given)))

    def forget(self, rows: int, modules: int) -> None:
        """Takes back what was added beyond so many."""
        for row in self.row_list[rows:]:
            self.rows.pop(_row_key(row), None)
        del self.row_list[rows:], self.row_modules[rows:]
        del self.modules[modules:], self.uses[modules:]


#: A module with the data types of its inputs.
_Typing = tuple[int, tuple[str | None, ...]]
#: Inputs, outputs and module of each row of the gates table.
_Counts = tuple[columns.Ids, columns.Ids, columns.Ids]


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
        self._begin(Shared([self]), "")

    @classmethod
    def _of(cls, shared: Shared, module: str) -> Graph:
        """A circuit of a module of another graph."""
        circuit = cls.__new__(cls)
        circuit._begin(shared, module)
        return circuit

    def _begin(self, shared: Shared, module: str) -> None:
        self._shared = shared
        self._module = module  # the name of the one that this is a circuit of
        self._notes: dict[str, str] = {}
        self._operator_set_version = OPERATOR_SET_VERSION
        self._leaves: list[Leaf] = []
        self._leaf_slots: list[int] = []  # first key of each leaf, counted down from -1
        self._next_slot = 1
        self._rows = self._shared.rows
        self._row_list = self._shared.row_list
        self._node_rows = array("q")
        self._node_inputs = array("q")
        self._node_firsts = array("q")
        self._value_count = 0
        self._node_dtypes: list[tuple[str, ...]] = []  # the last is of all outputs after it, too
        self._kinds: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Handle] = {}
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._outputs: dict[str, list[int]] = {}
        self._made_at: dict[int, str] = {}  # by node; those read from a file have no line
        self._bytes: bytes | None = None
        self._blobs: blob_files.Blobs = {}  # what _bytes refers to
        self._inline: bytes | None = None
        self._truths: set[bytes] = set()  # blobs that hold bools
        self._known_paths: tuple[tuple[int, ...], paths.Paths] | None = None
        self._known_leaves: tuple[int, dict[str, range]] | None = None

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
        """A leaf with a stored value that an evaluation may override.

        An array that may not be written, such as a memory map, is kept; any other is copied.
        """
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
        content = tensors.elements(stored) if stored.size else b""
        if len(content) > _SHORT_BYTES:
            content = sha256(content).digest()
        key = (str(stored.dtype), stored.shape, bytes(content))
        if key not in self._constants:
            self._constants[key] = self._leaf("constant", "", stored.shape, key[0], stored)
        return self._constants[key]

    def name(self, handle: Handle, name: str) -> None:
        """Names a value, for people and for results (NAME_INVALID)."""
        self._own(handle)
        self._require_open()
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
        self._require_open()
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
        """Every node of the circuit, in evaluation order; not those inside of modules."""
        places = self._places()
        inputs = places.ids(self._node_inputs).tolist()
        modules = self._shared.modules
        start = 0
        for row, key in zip(self._node_rows, self._node_firsts, strict=True):
            operator, attributes, count, outputs, module = self._row_list[row]
            first = key + places.shift
            yield Node(
                operator,
                attributes,
                inputs[start : start + count],
                range(first, first + outputs),
                None if module is None else modules[module],
            )
            start += count

    def dtypes(self) -> list[str]:
        """Data type of every value, by id, but for those inside of modules.

        That of id 0, an omitted input, is empty.
        """
        self._settle_dtypes()
        return self._dtypes_by_id(iter(()), self._node_dtypes)

    def dtypes_inside(self, given: Sequence[str]) -> list[str]:
        """The same of a module's circuit, where data types of its inputs are given."""
        found: list[tuple[str, ...]] = []
        inputs = iter(given)
        leaves = [next(inputs) if leaf.kind == "input" else leaf.dtype for leaf in self._leaves]
        self._shared.settle(self._typed(leaves, found))
        return self._dtypes_by_id(iter(given), found)

    def _dtypes_by_id(self, given: Iterator[str], nodes: Sequence[tuple[str, ...]]) -> list[str]:
        """Data types of the leaves, but those that are given, and of nodes, in order."""
        found = [""]
        for leaf in self.leaves:
            found += [next(given, leaf.dtype)] * leaf.id_count
        for row, dtypes in zip(self._node_rows, nodes, strict=True):
            found += dtypes
            found += dtypes[-1:] * (self._row_list[row].outputs - len(dtypes))
        return found

    def output_ids(self) -> dict[str, list[int]]:
        """Value ids of every output."""
        places = self._places()
        return {name: places.ids(keys).tolist() for name, keys in self._outputs.items()}

    def output_dtype(self, name: str) -> str:
        """Data type of an output."""
        return self._dtype_of_key(self._outputs[name][0])

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules, each after those that it uses."""
        return tuple(self._shared.modules)

    @property
    def notes(self) -> dict[str, str]:
        """Notes that were read with the graph, under reverse-DNS keys."""
        return dict(self._notes)

    @property
    def operator_set_version(self) -> int:
        """Version of ONNX's operators that the graph was written for."""
        return self._operator_set_version

    @property
    def node_count(self) -> int:
        """Number of nodes."""
        return len(self._node_rows)

    @property
    def value_count(self) -> int:
        """Value ids are from 1 to this, inclusive; those inside of modules come last."""
        return self._own_count + self.inside_count

    @property
    def inside_count(self) -> int:
        """How many values are inside of modules."""
        return self._paths().root.inside

    @property
    def _own_count(self) -> int:
        return self._next_slot - 1 + self._value_count

    def apply(
        self,
        operator: str,
        inputs: Sequence[Operand | None],
        attributes: dict[str, Any],
        outputs: int = 1,
    ) -> tuple[Handle, ...]:
        """Adds a node; its outputs (INPUT_COUNT_INVALID, DATA_TYPE_MISMATCH, ...)."""
        made_at = _caller()
        try:
            return self.apply_at(made_at, operator, inputs, attributes, outputs)
        except GradwireError as error:
            raise type(error)(
                error.reason, f"{operator}: {error.message} (made at {made_at})", error.facts
            ) from None

    def apply_at(
        self,
        made_at: str,
        operator: str,
        inputs: Sequence[Operand | None],
        attributes: dict[str, Any],
        outputs: int = 1,
    ) -> tuple[Handle, ...]:
        """The same for a node that was made at a given place, which its errors do not tell."""
        signature = SIGNATURES[operator]
        given = list(inputs)
        while given and given[-1] is None and len(given) > 1:
            given.pop()
        handles = self._lift(signature, given)
        dtypes = [None if each is None else each.dtype for each in handles]
        signature.check_dtypes(dtypes)
        checked = signature.check_attributes(attributes)
        self._made_at[self.node_count] = made_at
        keys = [0 if each is None else each.key for each in handles]
        return self._add(
            operator, checked, keys, _result_dtypes(signature, dtypes, checked, outputs)
        )

    def with_modules(self) -> Graph:
        """A graph that has the same modules, and nothing else."""
        found = Graph()
        for row in self._row_list:
            found._shared.add_row(row)
        found._shared.modules += self._shared.modules
        found._shared.uses += self._shared.uses
        return found

    def apply_module(
        self, module: int, inputs: Sequence[Handle], dtypes: Sequence[str]
    ) -> tuple[Handle, ...]:
        """Adds a use of a module, by its position, with the data types of its outputs."""
        self._made_at[self.node_count] = _caller()
        keys = [handle.key for handle in inputs]
        return self._add(self._shared.modules[module].name, {}, keys, list(dtypes), module)

    def made_at(self, node: int) -> str | None:
        """The line of the program that made a node, such as "train.py:12", if it is known."""
        return self._made_at.get(node)

    def line_of(self, value_id: int) -> str | None:
        """The line that made the node of a value, of a module's function where it is inside."""
        if not self._next_slot <= value_id <= self.value_count:
            return None
        module, place = self._paths().inmost(value_id - self._next_slot)
        circuit = self if module is None else self._shared.modules[module].circuit
        return circuit.made_at(bisect_right(circuit._node_firsts, place + 1) - 1)

    def to_bytes(self) -> bytes:
        """The serialized Graph with all its values: the same bytes for the same graph.

        Those read, if unchanged. LIMIT_EXCEEDED where no message can hold the values.
        """
        data = self._serialized()
        if not self._blobs:
            return data
        if self._inline is None:
            self._require_inline(len(data))
            message = graph_pb2.Graph.FromString(data)
            message.required_features.remove("blobs")
            for leaf, written in zip(self.leaves, _leaves_of(message), strict=True):
                if leaf.value is not None and written.value.WhichOneof("content") == "blob":
                    written.value.data = leaf.value.tobytes()
            self._inline = message.SerializeToString(deterministic=True)
        return self._inline

    @property
    def digest(self) -> str:
        """SHA-256 of the serialized graph in hexadecimal: its identity.

        A graph with blobs refers to them by digest, so it is another than that with its values.
        """
        return sha256(self._serialized()).hexdigest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Graph:
        """Reads a serialized Graph (GRAPH_INVALID, FEATURE_UNSUPPORTED, ...)."""
        return cls._from(data, dict)

    @classmethod
    def _from(cls, data: bytes, find_blobs: Callable[[], blob_files.Blobs]) -> Graph:
        message = graph_pb2.Graph()
        try:
            message.ParseFromString(data)
        except DecodeError:
            raise InvalidRequestError(
                "GRAPH_INVALID", f"the {len(data)} bytes are not a serialized gradwire.v1.Graph"
            ) from None
        graph = cls()
        _check_versions(message)
        found = find_blobs() if "blobs" in message.required_features else {}
        try:
            graph._read(message, found)
        except (IndexError, KeyError, ValueError) as failure:
            raise InvalidRequestError(
                "GRAPH_INVALID", f"the graph cannot be read: {failure!r}"
            ) from None
        graph._bytes = data
        graph._blobs = found
        return graph

    def to_text(self) -> str:
        """The graph as text to read, edit and compare, which `gw.from_text` reads back.

        To the same digest, where the bytes are as a writer orders them; else a comment says so.
        """
        from gradwire import text

        data = self._serialized()
        inner = [each for module in self._shared.modules for each in module.circuits]
        values = sum(circuit._value_count for circuit in (self, *inner))
        if values > _TEXT_VALUES_PER_BYTE * len(data):
            raise InvalidRequestError(
                "GRAPH_INVALID", f"the nodes yield {values} values, too many to list"
            )
        message = graph_pb2.Graph.FromString(data)
        found = text.write(message)
        if text.parse(found).SerializeToString(deterministic=True) != data:
            found += f"# the bytes this was made of were ordered otherwise: {self.digest}\n"
        return found

    @classmethod
    def from_text(cls, source: str, blob_file: str | os.PathLike[str] | None = None) -> Graph:
        """Reads what `to_text` wrote, or a person (TEXT_INVALID with line and column, ...).

        `blob_file` has the values that the text says are blobs.
        """
        from gradwire import text

        data = text.parse(source).SerializeToString(deterministic=True)
        if blob_file is None:
            return cls.from_bytes(data)
        path = Path(blob_file)
        return cls._from(data, lambda: blob_files.load(path, str(path)))

    def save(self, path: str | os.PathLike[str], *, blobs: bool | None = None) -> None:
        """Writes a `.gate` file, whole or not at all (FILE_INVALID).

        With blobs, values of 4 KiB and more go into a file beside it. Unless told, a graph is
        written as it was read, and with blobs where its values are over 1 GiB.
        """
        if blobs is None:
            data, found = self._serialized(), self._blobs
        elif blobs:
            data, found = self._referring()
        else:
            data, found = self.to_bytes(), {}
        beside = blob_files.path_of(path, data) if found else None
        if beside is not None:
            blob_files.write(beside, found)
        files.write(path, data)
        blob_files.remove_others(path, beside)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Reads a `.gate` file (FileError: FILE_CUT, FILE_DAMAGED, FEATURE_UNSUPPORTED, ...).

        Its blobs are compared with their digests, and then stay in their file until they are used.
        """
        data = files.read(path)
        return cls._in_file(
            str(path), data, lambda: blob_files.load(blob_files.path_of(path, data), str(path))
        )

    @classmethod
    def from_file_bytes(cls, name: str, content: bytes) -> Graph:
        """Reads the bytes of a `.gate` file, which must hold all its values (FileError).

        Its name is for messages.
        """

        def beside() -> NoReturn:
            raise FileError(
                "BLOBS_MISSING",
                f"{name}: its large values are in a file beside it; open a copy that holds them, "
                "saved with graph.save(path, blobs=False)",
            )

        return cls._in_file(name, files.parse(name, content), beside)

    @classmethod
    def _in_file(cls, path: str, data: bytes, find_blobs: Callable[[], blob_files.Blobs]) -> Graph:
        try:
            return cls._from(data, find_blobs)
        except FileError:
            raise
        except InvalidRequestError as failure:
            raise FileError(failure.reason, f"{path}: {failure.message}", failure.facts) from None

    def _serialized(self) -> bytes:
        """The bytes that are the graph's identity; what they refer to is in `_blobs`."""
        if self._bytes is None:
            self._inline, self._blobs = None, {}
            if self._stored_bytes() > INLINE_BYTES:
                self._bytes, self._blobs = self._referring()
            else:
                self._bytes = self._message().SerializeToString(deterministic=True)
        return self._bytes

    def _referring(self) -> tuple[bytes, blob_files.Blobs]:
        """The bytes with blobs for the large values, and those."""
        if self._bytes is None:
            message = self._message(blob_files.LEAST_BYTES)
        else:
            message = graph_pb2.Graph.FromString(self._bytes)
        found: dict[bytes, tensors.Array] = {}
        for leaf, written in zip(self.leaves, _leaves_of(message), strict=True):
            if leaf.value is not None and leaf.value.nbytes >= blob_files.LEAST_BYTES:
                digest = blob_files.digest_of(leaf.value)
                written.value.blob = digest
                found[digest] = leaf.value
        if found and "blobs" not in message.required_features:
            message.required_features.append("blobs")
        return message.SerializeToString(deterministic=True), found

    def _stored_bytes(self) -> int:
        return sum(leaf.value.nbytes for leaf in self._leaves if leaf.value is not None)

    def _require_inline(self, others: int) -> None:
        needed = self._stored_bytes() + others
        if needed > _MESSAGE_BYTES:
            raise LimitError(
                "LIMIT_EXCEEDED",
                f"the graph has {needed} bytes with its stored values, but one message holds at "
                f"most {_MESSAGE_BYTES}, and blobs are not sent; make large parameters inputs, and "
                "bind them in several calls or in shared memory",
            )

    def find(self, name: str) -> range | None:
        """Value ids of what has a name, or a path inside of modules such as "layer1/scores"."""
        shift = self._next_slot - 1
        place = self._paths().root.place_of.get(name)
        if place is None and name in self._taken:
            return self._leaf_ids()[name]
        if place is None:
            place = self._paths().find(name)
        return None if place is None else range(shift + 1 + place, shift + 2 + place)

    def find_module(self, path: str) -> Module | None:
        """The module that is used at a path, such as "layer1/attention"."""
        found = self._paths().find_use(path)
        return None if found is None else self._shared.modules[found.module]

    def module_uses(self) -> Iterator[tuple[str, Module, int]]:
        """(path, module, id of its first node's first value) of every use, those inside too.

        The path is empty where the use, or one around it, has no name.
        """
        for use in self._paths().walk():
            yield use.path, self._shared.modules[use.module], self._next_slot + use.first

    def path_of(self, value_id: int) -> str:
        """The name of a node's value, or its path inside of modules; empty where it has none."""
        return self._paths().name(value_id - self._next_slot)

    def ids_by_name(self) -> dict[str, range]:
        """Value ids of every named leaf and node value; not of those inside of modules."""
        shift = self._next_slot - 1
        found = {name: range(key + shift, key + shift + 1) for key, name in self._names.items()}
        return found | self._leaf_ids()

    def _leaf_ids(self) -> dict[str, range]:
        """Value ids of every leaf but constants."""
        count = len(self._leaves)
        if self._known_leaves is None or self._known_leaves[0] != count:
            firsts = self._places().firsts.tolist()
            found = {
                leaf.name: range(first, first + leaf.id_count)
                for leaf, first in zip(self._leaves, firsts, strict=True)
                if leaf.kind != "constant"
            }
            self._known_leaves = count, found
        return self._known_leaves[1]

    def id_of(self, handle: Handle) -> int:
        """Value id of a handle in the serialized graph."""
        self._own(handle)
        return int(self._places().ids([handle.key])[0])

    def value_labels(self) -> list[tuple[int, str, str]]:
        """(id, name, operator) of every value but constants, by ascending id.

        Values inside of modules are named by their paths.
        """
        places = self._places()
        shift = places.shift
        found = []
        for leaf, start in zip(self._leaves, places.firsts.tolist(), strict=True):
            if leaf.kind != "constant":
                for element in range(leaf.id_count):
                    name = f"{leaf.name}[{element}]" if leaf.elements else leaf.name
                    found.append((start + element, name, leaf.kind))
        found.sort()
        found += self._node_labels(shift, None)
        for path, module, first in self.module_uses():
            found += module.circuit._node_labels(first - 1, path)
        return found

    def _node_labels(self, shift: int, path: str | None) -> Iterator[tuple[int, str, str]]:
        """Labels of the nodes' values; with a path, of those of one use of a module."""
        for node, row in enumerate(self._node_rows):
            first = self._node_firsts[node]
            for key in range(first, first + self._row_list[row].outputs):
                name = self._names.get(key, "")
                if path is not None and name:
                    name = f"{path}/{name}" if path else ""
                yield key + shift, name, self._row_list[row].operator

    def _paths(self) -> paths.Paths:
        """What is inside of modules, as of now."""
        size = (self.node_count, len(self._names), len(self._leaves))
        if self._known_paths is None or self._known_paths[0] != size:
            self._known_paths = size, paths.Paths(self._uses(), self._shared.uses)
        return self._known_paths[1]

    def _uses(self) -> paths.Uses:
        """The uses of modules, where all before them are known."""
        used = np.zeros(0, np.int64)
        if self._shared.has_uses:
            modules = np.frombuffer(self._shared.row_modules, np.int64)
            used = modules[np.frombuffer(self._node_rows, np.int64)]
        nodes = np.flatnonzero(used >= 0)
        places = np.frombuffer(self._node_firsts, np.int64)[nodes] - 1
        names = {key - 1: name for key, name in self._names.items()}
        return paths.uses_of(places, used[nodes], self._value_count, names, self._shared.uses)

    def label(self, key: int) -> str:
        """How a value is called in print and in messages: by its name, or its id."""
        if key > 0:
            return self._names.get(key) or f"%{key + self._next_slot - 1}"
        position = int(np.searchsorted(self._leaf_slots, -key, "right")) - 1
        leaf = self._leaves[position]
        if leaf.kind == "constant" and leaf.value is not None:
            return str(leaf.value.tolist()) if leaf.value.size <= 4 else f"{leaf.dtype} constant"
        return f"{leaf.name}[{-key - self._leaf_slots[position]}]" if leaf.elements else leaf.name

    def _repr_svg_(self) -> str | None:
        """How notebooks show it: drawn, but for large graphs, and where the extra is missing."""
        from gradwire.drawing import svg_of

        return svg_of(self)

    def __str__(self) -> str:
        lines = [_leaf_line(leaf) for leaf in self.leaves if leaf.kind != "constant"]
        lines += map(_module_line, self._shared.modules if not self._module else ())
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
            self._settle_dtypes()
            node = bisect_right(self._node_firsts, key) - 1
            dtypes = self._node_dtypes[node]
            return dtypes[min(key - self._node_firsts[node], len(dtypes) - 1)]
        return self._leaves[int(np.searchsorted(self._leaf_slots, -key, "right")) - 1].dtype

    def _node_line(self, node: int) -> str:
        operator, attributes, inputs, outputs, _ = self._row_list[self._node_rows[node]]
        start = self._input_start(node)
        given = [
            self.label(key) if key else "absent"
            for key in self._node_inputs[start : start + inputs]
        ]
        given += [f"{name}={value!r}" for name, value in attributes.items()]
        first = self._node_firsts[node]
        made = ", ".join(map(self.label, range(first, first + min(outputs, 8))))
        made += ", ..." if outputs > 8 else ""
        return f"{made} = {operator}({', '.join(given)})"

    def _input_start(self, node: int) -> int:
        counts = np.array([row.inputs for row in self._row_list])
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
        self._require_open()
        tensors.data_type(dtype)
        axes = tuple(shape)
        place = f"{kind} {name!r}"
        _check_axes(place, axes, elements)
        stored = None if value is None else tensors.kept(tensors.from_value(place, value, dtype))
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
        return self._add_leaf(Leaf(kind, name, dtype, axes, elements, stored), dtype)

    def module_input(self, name: str, dtype: str) -> Handle:
        """An input of a module, which declares no type: the data type is that of one use."""
        self._take(name)
        return self._add_leaf(Leaf("input", name, "", (), False, None), dtype)

    def _add_leaf(self, leaf: Leaf, dtype: str) -> Handle:
        handle = Handle(self, -self._next_slot, dtype)
        self._leaves.append(leaf)
        self._leaf_slots.append(self._next_slot)
        self._next_slot += leaf.id_count
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
            raise self._foreign(handle)

    def _foreign(self, handle: Handle) -> InvalidRequestError:
        """Why a handle cannot be used here."""
        if handle.graph._shared is not self._shared:
            why = "belongs to another graph; build in one graph"
        elif handle.graph in self._shared.open:
            inner = self._shared.open[-1]._module
            why = f"is outside of module {inner!r}; give it to the module's function as an argument"
        else:
            why = f"is inside of module {handle.graph._module!r}; return it from its function"
        return InvalidRequestError("GRAPH_INVALID", f"{handle!r} {why}")

    def _require_open(self) -> None:
        """A circuit can be changed unless one inside of it is being made, or it is made itself."""
        inner = self._shared.open[-1]
        if inner is self:
            return
        if self in self._shared.open:
            fault = f"the function of module {inner._module!r} adds to what is outside of it"
            raise InvalidRequestError("GRAPH_INVALID", f"{fault}; use only handles it is given")
        raise InvalidRequestError(
            "GRAPH_INVALID", f"module {self._module!r} is made and cannot be changed any more"
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
        self,
        operator: str,
        attributes: dict[str, Any],
        keys: list[int],
        dtypes: list[str],
        module: int | None = None,
    ) -> tuple[Handle, ...]:
        self._require_open()
        self._settle_dtypes()
        first = self._put(Row(operator, attributes, len(keys), len(dtypes), module), keys)
        self._node_dtypes.append(self._kinds.setdefault(tuple(dtypes), tuple(dtypes)))
        return tuple(Handle(self, first + slot, dtype) for slot, dtype in enumerate(dtypes))

    def _put(self, wanted: Row, keys: list[int]) -> int:
        """Adds a node, whose data types are to be found; the key of its first value."""
        row = self._rows.get(_row_key(wanted), len(self._row_list))
        if row == len(self._row_list):
            self._shared.add_row(wanted)
        first = self._value_count + 1
        self._node_rows.append(row)
        self._node_inputs.extend(keys)
        self._node_firsts.append(first)
        self._value_count += wanted.outputs
        self._bytes = None
        return first

    def _settle_dtypes(self) -> None:
        """Finds the data types of nodes that were read, which only few callers need."""
        if len(self._node_dtypes) == self.node_count:
            return
        found: list[tuple[str, ...]] = []
        self._shared.settle(self._typed([leaf.dtype for leaf in self._leaves], found))
        self._node_dtypes = found  # all or none

    def typed_inside(
        self, given: Sequence[str | None]
    ) -> Generator[_Typing, tuple[str, ...], tuple[str, ...]]:
        """Finds the data types of a module's outputs from those of its inputs."""
        inputs = iter(given)
        leaves = [
            next(inputs, None) if leaf.kind == "input" else leaf.dtype for leaf in self._leaves
        ]
        return self._typed(leaves, [])

    def _typed(
        self, leaves: Sequence[str | None], found: list[tuple[str, ...]]
    ) -> Generator[_Typing, tuple[str, ...], tuple[str, ...]]:
        """Finds the data types of nodes, where those of the leaves are given, and of the outputs.

        Asks for those of the outputs of each use of a module.
        """

        def of_value(key: int) -> str | None:
            if key <= 0:
                return leaves[bisect_right(self._leaf_slots, -key) - 1] if key else None
            node = bisect_right(self._node_firsts, key) - 1
            return found[node][min(key - self._node_firsts[node], len(found[node]) - 1)]

        known: dict[_Typing, tuple[str, ...]] = {}
        start = 0
        for number in self._node_rows:
            row = self._row_list[number]
            given = tuple(map(of_value, self._node_inputs[start : start + row.inputs]))
            start += row.inputs
            if (number, given) not in known:
                if row.module is None:
                    known[number, given] = _row_dtypes(row, given)
                else:
                    known[number, given] = yield row.module, given
            found.append(known[number, given])
        return tuple(of_value(keys[0]) or "" if keys else "" for keys in self._outputs.values())

    def _places(self) -> columns.Places:
        """Where the values are among the ids."""
        order = {"input": 0, "parameter": 1, "constant": 2}
        firsts = np.zeros(len(self._leaves), np.int64)
        next_id = 1
        for position in sorted(
            range(len(self._leaves)), key=lambda each: order[self._leaves[each].kind]
        ):
            firsts[position] = next_id
            next_id += self._leaves[position].id_count
        return columns.Places(np.array(self._leaf_slots, np.int64), firsts, next_id - 1)

    def _message(self, least_bytes: int | None = None) -> graph_pb2.Graph:
        """The graph, without the elements of values that have so many bytes."""
        if not self._outputs:
            raise InvalidRequestError(
                "GRAPH_INVALID", "the graph has no output; name at least one value"
            )
        written = self._written_rows()
        numbers = np.zeros(len(self._row_list), np.int64)
        numbers[written] = np.arange(len(written))
        message = graph_pb2.Graph(
            format_version=FORMAT_VERSION,
            operator_set_version=OPERATOR_SET_VERSION,
            gates=[_encode_row(self._row_list[row]) for row in written],
            producer=f"gradwire {__version__}",
            notes=[graph_pb2.Note(key=key, text=text) for key, text in self._notes.items()],
        )
        self._encode(message.circuit, numbers, least_bytes)
        for module in self._shared.modules:
            into = message.modules.add(name=module.name)
            module.circuit._encode(into.circuit, numbers)
            if module.gradient is not None:
                module.gradient._encode(into.gradient, numbers)
        if message.modules:
            message.required_features.append("modules")
        return message

    def _written_rows(self) -> list[int]:
        """Rows of the gates table, as they are written; with modules, in the order of their use."""
        if not self._shared.modules:
            return list(range(len(self._row_list)))
        found: dict[int, None] = {}
        inner = [each for module in self._shared.modules for each in module.circuits]
        for circuit in (*inner, self):
            rows, firsts = np.unique(np.frombuffer(circuit._node_rows, np.int64), return_index=True)
            found.update(dict.fromkeys(rows[np.argsort(firsts)].tolist()))
        return list(found)

    def _encode(
        self, circuit: graph_pb2.Circuit, numbers: columns.Ids, least_bytes: int | None = None
    ) -> None:
        """Writes the circuit, which is set even where it is empty."""
        circuit.SetInParent()
        places = self._places()
        columns_of = {
            "input": circuit.inputs,
            "parameter": circuit.parameters,
            "constant": circuit.constants,
        }
        for leaf in self._leaves:
            columns_of[leaf.kind].append(_encode_leaf(leaf, least_bytes))
        rows = numbers[np.frombuffer(self._node_rows, np.int64)]
        circuit.node_gates.extend(rows.tolist())
        circuit.node_inputs.extend(places.ids(self._node_inputs).tolist())
        for name, keys in self._outputs.items():
            circuit.outputs.add(name=name, value_ids=places.ids(keys).tolist())
        for key in sorted(self._names):
            circuit.named_ids.append(key + places.shift)
            circuit.names.append(self._names[key])

    def _read(self, message: graph_pb2.Graph, found: blob_files.Blobs) -> None:
        """Takes a message in, which is used up (GRAPH_INVALID, MODULE_INVALID, ...)."""
        self._notes = {note.key: note.text for note in message.notes}
        self._operator_set_version = message.operator_set_version
        if message.modules and "modules" not in message.required_features:
            raise InvalidRequestError(
                "FEATURE_UNSUPPORTED", "it has modules but does not require the feature 'modules'"
            )
        for gate in message.gates:
            self._shared.add_row(_decode_row(gate, message.modules))
        counts = self._shared.counts()
        names: set[str] = set()
        for number, module in enumerate(message.modules):
            if not module.name or module.name in names:
                raise InvalidRequestError(
                    "NAME_INVALID", f"the module name {module.name!r} is empty or used twice"
                )
            names.add(module.name)
            self._shared.add_module(self._read_module(module, number, counts))
        self._read_leaves(message.circuit, found)
        self._read_nodes(*columns.node_columns(message.circuit), counts, len(names))
        if self.value_count > _MOST_VALUES:
            raise InvalidRequestError(
                "NODE_INVALID",
                f"the graph has over {_MOST_VALUES} values with those inside of modules",
            )
        self._read_outputs(message.circuit)
        if not self._outputs:
            raise InvalidRequestError(
                "GRAPH_INVALID", "the graph has no output; name at least one value"
            )

    def _read_module(self, message: graph_pb2.Module, number: int, counts: _Counts) -> Module:
        """A module, which may use those before its number."""
        try:
            _check_module(message)
            circuit = self._read_inner(message.name, message.circuit, number, counts)
            if not message.HasField("gradient"):
                return Module(message.name, circuit)
            gradient = self._read_inner(message.name, message.gradient, number, counts, 0)
        except GradwireError as error:
            place = f"module {message.name!r}: {error.message}"
            raise type(error)(error.reason, place, error.facts) from None
        return Module(message.name, circuit, gradient)

    def _read_inner(
        self,
        name: str,
        message: graph_pb2.Circuit,
        number: int,
        counts: _Counts,
        least_values: int = 1,
    ) -> Graph:
        """A circuit of a module, whose outputs have at least so many values each."""
        inputs = message.inputs
        if message.parameters or any(
            leaf.HasField("type") or leaf.HasField("value") for leaf in inputs
        ):
            fault = "parameters" if message.parameters else "inputs with more than names"
            raise InvalidRequestError(
                "MODULE_INVALID", f"has {fault}; its inputs are what it is given"
            )
        if any(leaf.layout for leaf in (*inputs, *message.constants)):
            raise InvalidRequestError(
                "LEAF_INVALID", "a leaf has the layout ELEMENTS, which is for leaves of the graph"
            )
        if any(leaf.value.WhichOneof("content") == "blob" for leaf in message.constants):
            raise InvalidRequestError(
                "LEAF_INVALID", "a constant is a blob, but those of modules are stored inside"
            )
        circuit = self._shared.circuit(name)
        with self._shared.opened(circuit):
            for leaf in inputs:
                circuit.module_input(leaf.name, "")
            message.ClearField("inputs")
            circuit._read_leaves(message, {})
            circuit._read_nodes(*columns.node_columns(message), counts, number)
            circuit._read_outputs(message, least_values, 1)
        return circuit

    def _read_leaves(self, circuit: graph_pb2.Circuit, found: blob_files.Blobs) -> None:
        for kind, leaves in (
            ("input", circuit.inputs),
            ("parameter", circuit.parameters),
            ("constant", circuit.constants),
        ):
            for leaf in leaves:
                self._read_leaf(kind, leaf, found)
        if self._next_slot > _MOST_VALUES:
            raise InvalidRequestError(
                "LEAF_INVALID",
                f"the leaves take {self._next_slot - 1} value ids, over {_MOST_VALUES}",
            )

    def _read_nodes(
        self, rows: columns.Ids, inputs: columns.Ids, counts: _Counts, number: int
    ) -> None:
        """Nodes, which may use modules before that number."""
        table = len(self._row_list)
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
        shift = self._next_slot - 1
        self._value_count = int(yields.sum())
        if self._own_count > _MOST_VALUES:
            raise InvalidRequestError(
                "NODE_INVALID", f"the graph has {self._own_count} values, over {_MOST_VALUES}"
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
        if self._shared.has_uses:
            self._check_uses(counts[2][rows], takes, inputs, number)
        keys = np.where(inputs > shift, inputs - shift, -inputs)
        for column, found in (
            (self._node_rows, rows), (self._node_firsts, firsts), (self._node_inputs, keys)
        ):  # fmt: skip
            raw: Any = np.ascontiguousarray(found).view(np.uint8)
            column.frombytes(raw)

    def _check_uses(
        self, modules: columns.Ids, takes: columns.Ids, inputs: columns.Ids, number: int
    ) -> None:
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
        self, circuit: graph_pb2.Circuit, least_values: int = 1, most_values: int = _MOST_VALUES
    ) -> None:
        """Outputs of so many values each, and the names of values."""
        shift = self._next_slot - 1
        for output in circuit.outputs:
            ids = list(output.value_ids)
            wrong = [each for each in ids if not 1 <= each <= self._own_count]
            if wrong or not least_values <= len(ids) <= most_values:
                fault = f"value {wrong[0]} does not exist" if wrong else f"has {len(ids)} values"
                raise InvalidRequestError(
                    "OUTPUT_INVALID",
                    f"output {output.name!r}: {fault}; ids are from 1 to {self._own_count}"
                    + ("" if wrong or not ids else ", and outputs of modules are one value each"),
                )
            if not output.name or output.name in self._outputs:
                raise InvalidRequestError(
                    "NAME_INVALID", f"the output name {output.name!r} is empty or used twice"
                )
            self._outputs[output.name] = [each - shift if each > shift else -each for each in ids]
        last = shift
        for value_id, name in zip(circuit.named_ids, circuit.names, strict=True):
            if not last < value_id <= self._own_count:
                raise InvalidRequestError(
                    "NAME_INVALID",
                    f"name {name!r} is for value {value_id}, but those named are from {last + 1} "
                    f"to {self._own_count}, ascending",
                )
            last = value_id
            self._take(name)
            self._names[value_id - shift] = name

    def _read_leaf(self, kind: str, message: graph_pb2.Leaf, found: blob_files.Blobs) -> None:
        place = f"{kind} {message.name!r}"
        if len(message.type.axes) > _MOST_RANK or any(
            not axis.WhichOneof("extent") for axis in message.type.axes
        ):
            raise InvalidRequestError(
                "TENSOR_INVALID",
                f"{place}: has {len(message.type.axes)} axes; at most {_MOST_RANK} are allowed, "
                "each with a size or a symbol",
            )
        axes = [getattr(axis, axis.WhichOneof("extent") or "") for axis in message.type.axes]
        if message.layout not in graph_pb2.Leaf.Layout.values():
            raise InvalidRequestError(
                "LEAF_INVALID", f"{place}: layout {message.layout} is not known"
            )
        elements = message.layout == graph_pb2.Leaf.LAYOUT_ELEMENTS
        dtype = tensors.dtype_of(message.type.data_type)
        stored = self._stored(place, message.value, found) if message.HasField("value") else None
        if (stored is None and kind != "input") or (stored is not None and stored.dtype != dtype):
            has = "no stored value" if stored is None else f"a stored value of {stored.dtype}"
            raise InvalidRequestError("LEAF_INVALID", f"{place}: is {dtype} but has {has}")
        self._leaf(kind, message.name, axes, dtype, stored, elements)

    def _stored(
        self, place: str, value: tensor_pb2.Tensor, found: blob_files.Blobs
    ) -> tensors.Array:
        """A stored value: out of the message, or a blob where it lies (BLOBS_MISSING, ...)."""
        if value.WhichOneof("content") != "blob":
            return tensors.decode(value)
        if value.blob not in found:
            raise InvalidRequestError(
                "BLOBS_MISSING",
                f"{place}: its value is the blob {value.blob.hex()[:16]}..., which is not there; "
                "blobs are in the file beside the graph file",
            )
        dtype = tensors.dtype_of(value.data_type)
        if dtype == "bool" and value.blob not in self._truths:
            tensors.require_truths(found[value.blob])
            self._truths.add(value.blob)  # once, however many leaves share it
        return tensors.view(dtype, tuple(value.shape), found[value.blob])


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


def _row_dtypes(row: Row, given: Sequence[str | None]) -> tuple[str, ...]:
    """The data types of what a node of an operator yields, as far as they are declared."""
    signature = SIGNATURES.get(row.operator)
    sources = 1 if signature is None else len(signature.output_dtypes)
    dtypes = ["float64"] * sources
    if signature is not None:
        dtypes = _result_dtypes(signature, given, row.attributes, sources)
    return tuple(dtypes[: row.outputs])


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


def _module_line(module: Module) -> str:
    own = "" if module.gradient is None else ", own gradient"
    given = ", ".join(module.inputs)
    return f"module {module.name}({given}): {module.circuit.node_count} nodes{own}"


def _leaf_line(leaf: Leaf) -> str:
    if not leaf.dtype:
        return f"{leaf.kind} {leaf.name}"  # of a module
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


def _row_key(row: Row) -> tuple[Any, ...]:
    return (
        row.module,
        row.operator,
        *map(_hashable, row.attributes.items()),
        row.inputs,
        row.outputs,
    )


def _hashable(item: tuple[str, Any]) -> tuple[str, Any]:
    name, value = item
    if isinstance(value, np.ndarray):
        return name, (str(value.dtype), value.shape, value.tobytes())
    return name, repr(value)  # which tells 1 from 1.0, and 0.0 from -0.0


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


def _encode_row(row: Row) -> graph_pb2.Gate:
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


def _decode_row(gate: graph_pb2.Gate, modules: Sequence[graph_pb2.Module]) -> Row:
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


def _leaves_of(message: graph_pb2.Graph) -> list[graph_pb2.Leaf]:
    """In the order of `Graph.leaves`."""
    circuit = message.circuit
    return [*circuit.inputs, *circuit.parameters, *circuit.constants]


def _encode_leaf(leaf: Leaf, least_bytes: int | None) -> graph_pb2.Leaf:
    message = graph_pb2.Leaf(name=leaf.name)
    if not leaf.dtype:
        return message  # of a module
    message.type.data_type = tensors.data_type(leaf.dtype)
    for axis in leaf.axes:
        if isinstance(axis, str):
            message.type.axes.add(symbol=axis)
        else:
            message.type.axes.add(size=axis)
    if leaf.elements:
        message.layout = graph_pb2.Leaf.LAYOUT_ELEMENTS
    if leaf.value is not None:
        is_apart = least_bytes is not None and leaf.value.nbytes >= least_bytes
        encode = tensors.encode_type if is_apart else tensors.encode
        message.value.CopyFrom(encode(leaf.value))
    return message
