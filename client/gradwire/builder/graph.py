"""Graphs as users see them: built, read and written, and asked for what is in them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gradwire import blob_files, files, paths, tensors
from gradwire.builder import listing, reading, writing
from gradwire.builder.callers import caller
from gradwire.builder.circuit import Circuit
from gradwire.builder.handles import Handle, Operand, lifted
from gradwire.builder.leaves import Leaf
from gradwire.builder.rows import Row, result_dtypes
from gradwire.builder.shared import Module, Node, Shared, nodes_of
from gradwire.errors import FileError, GradwireError, InvalidRequestError, nearest
from gradwire.signature import Signature
from gradwire.signatures import SIGNATURES
from gradwire.v1 import graph_pb2

_SHORT_BYTES = 64
_TEXT_VALUES_PER_BYTE = 16


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
        self._operator_set_version = writing.OPERATOR_SET_VERSION
        self._circuit = Circuit(shared.table)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Handle] = {}
        self._made_at: dict[int, str] = {}  # by node; those read from a file have no line
        self._bytes: bytes | None = None
        self._blobs: blob_files.Blobs = {}  # what _bytes refers to
        self._inline: bytes | None = None

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
        axes = _axes(name, shape)
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
        axes = _axes(name, shape)
        known = tensors.dtype_name(dtype)
        first = self._leaf("input", name, axes, known, value, elements=True)
        sizes = (axis for axis in axes if isinstance(axis, int))  # all of them
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
        self._shared.require_open(self)
        if handle.key < 0:
            raise InvalidRequestError("NAME_INVALID", f"{self.label(handle.key)} is a leaf")
        self._circuit.take(name)
        self._circuit.names[handle.key] = name
        self._bytes = None

    def output(self, name: str, *handles: Handle) -> None:
        """Names a result: one value; or several scalars, stacked into a vector."""
        if not isinstance(name, str):
            raise InvalidRequestError(
                "NAME_INVALID", f"an output's name is {name!r}; write graph.output('f', handle)"
            )
        if not handles or not name or name in self._circuit.outputs:
            fault = "has no value" if not handles else "is empty" if not name else "is used twice"
            reason = "OUTPUT_INVALID" if not handles else "NAME_INVALID"
            raise InvalidRequestError(reason, f"the output name {name!r} {fault}")
        self._shared.require_open(self)
        for handle in handles:
            self._own(handle)
        self._circuit.outputs[name] = [handle.key for handle in handles]
        self._bytes = None

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Inputs, then parameters, then constants, as they are written."""
        return self._circuit.ordered_leaves

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(self._circuit.outputs)

    def nodes(self) -> Iterator[Node]:
        """Every node of the circuit, in evaluation order; not those inside of modules."""
        return nodes_of(self._circuit, self._shared.modules)

    def dtypes(self) -> list[str]:
        """Data type of every value, by id, but for those inside of modules.

        That of id 0, an omitted input, is empty.
        """
        self._settle_dtypes()
        return self._circuit.dtypes_by_id(iter(()), self._circuit.node_dtypes)

    def dtypes_inside(self, given: Sequence[str]) -> list[str]:
        """The same of a module's circuit, where data types of its inputs are given."""
        found: list[tuple[str, ...]] = []
        inputs = iter(given)
        leaves = [
            next(inputs) if leaf.kind == "input" else leaf.dtype for leaf in self._circuit.leaves
        ]
        self._shared.settle(self._circuit.typed(leaves, found))
        return self._circuit.dtypes_by_id(iter(given), found)

    def output_ids(self) -> dict[str, list[int]]:
        """Value ids of every output."""
        places = self._circuit.places()
        return {name: places.ids(keys).tolist() for name, keys in self._circuit.outputs.items()}

    def output_dtype(self, name: str) -> str:
        """Data type of an output."""
        key = self._circuit.outputs[name][0]
        if key > 0:
            self._settle_dtypes()
        return self._circuit.dtype_of(key)

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
        return self._circuit.node_count

    @property
    def value_count(self) -> int:
        """Value ids are from 1 to this, inclusive; those inside of modules come last."""
        return self._circuit.own_count + self.inside_count

    @property
    def inside_count(self) -> int:
        """How many values are inside of modules."""
        return self._paths().root.inside

    def apply(
        self,
        operator: str,
        inputs: Sequence[Operand | None],
        attributes: dict[str, Any],
        outputs: int = 1,
    ) -> tuple[Handle, ...]:
        """Adds a node; its outputs (INPUT_COUNT_INVALID, DATA_TYPE_MISMATCH, ...)."""
        made_at = caller()
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
        signature = _signature(operator)
        given = list(inputs)
        while given and given[-1] is None and len(given) > 1:
            given.pop()
        checked = signature.check_attributes(attributes)
        handles = lifted(self, made_at, signature, given)
        dtypes = [None if each is None else each.dtype for each in handles]
        self._made_at[self._circuit.node_count] = made_at
        keys = [0 if each is None else each.key for each in handles]
        return self._add(
            operator, checked, keys, result_dtypes(signature, dtypes, checked, outputs)
        )

    def lift(self, operator: str, inputs: Sequence[Operand]) -> list[Handle]:
        """Handles of what a node of an operator would take, numbers and arrays as constants."""
        handles = lifted(self, caller(), _signature(operator), inputs)
        return [each for each in handles if each is not None]

    def rank(self, handle: Handle) -> int | None:
        """How many axes a leaf has; None of other values, and of the inputs of modules."""
        leaf = self._circuit.leaf_of(handle.key) if handle.key < 0 else None
        if leaf is None or not leaf.dtype:
            return None
        return 0 if leaf.elements else len(leaf.axes)

    def with_modules(self) -> Graph:
        """A graph that has the same modules, and nothing else."""
        found = Graph()
        for row in self._circuit.table.rows:
            found._shared.table.add(row)
        found._shared.modules += self._shared.modules
        found._shared.uses += self._shared.uses
        return found

    def apply_module(
        self, module: int, inputs: Sequence[Handle], dtypes: Sequence[str]
    ) -> tuple[Handle, ...]:
        """Adds a use of a module, by its position, with the data types of its outputs."""
        self._made_at[self._circuit.node_count] = caller()
        keys = [handle.key for handle in inputs]
        return self._add(self._shared.modules[module].name, {}, keys, list(dtypes), module)

    def made_at(self, node: int) -> str | None:
        """The line of the program that made a node, such as "train.py:12", if it is known."""
        return self._made_at.get(node)

    def line_of(self, value_id: int) -> str | None:
        """The line that made the node of a value, of a module's function where it is inside."""
        if not self._circuit.next_slot <= value_id <= self.value_count:
            return None
        module, place = self._paths().inmost(value_id - self._circuit.next_slot)
        circuit = self if module is None else self._shared.modules[module].circuit
        return circuit.made_at(bisect_right(circuit._circuit.node_firsts, place + 1) - 1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled by its bytes; handles stay those of the original."""
        if self._module:
            raise TypeError(
                f"the circuit of module {self._module!r} cannot be copied or pickled alone; do "
                "that with the graph that uses it"
            )
        return Graph.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The serialized Graph with all its values: the same bytes for the same graph.

        Those read, if unchanged. LIMIT_EXCEEDED where no message can hold the values.
        """
        data = self._serialized()
        if not self._blobs:
            return data
        if self._inline is None:
            self._inline = writing.without_blobs(data, self.leaves)
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
        message = reading.parse(data)
        graph = cls()
        graph._notes = {note.key: note.text for note in message.notes}
        graph._operator_set_version = message.operator_set_version
        graph._blobs = find_blobs() if "blobs" in message.required_features else {}
        reading.read(message, graph._blobs, graph._circuit, graph._shared)
        graph._bytes = data
        return graph

    def to_text(self) -> str:
        """The graph as text to read, edit and compare, which `gw.from_text` reads back.

        To the same digest, where the bytes are as a writer orders them; else a comment says so.
        """
        from gradwire import text

        data = self._serialized()
        inner = [each for module in self._shared.modules for each in module.circuits]
        values = sum(each._circuit.value_count for each in (self, *inner))
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
            if writing.stored_bytes(self._circuit.leaves) > writing.INLINE_BYTES:
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
        return writing.with_blobs(message, self.leaves)

    def _message(self, least_bytes: int | None = None) -> graph_pb2.Graph:
        """The graph, without the elements of values that have so many bytes."""
        return writing.message_of(self._circuit, self._shared.modules, self._notes, least_bytes)

    def find(self, name: str) -> range | None:
        """Value ids of what has a name, or a path inside of modules such as "layer1/scores"."""
        shift = self._circuit.next_slot - 1
        place = self._paths().root.place_of.get(name)
        if place is None and name in self._circuit.taken:
            return self._circuit.leaf_ids()[name]
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
            yield use.path, self._shared.modules[use.module], self._circuit.next_slot + use.first

    def path_of(self, value_id: int) -> str:
        """The name of a node's value, or its path inside of modules; empty where it has none."""
        return self._paths().name(value_id - self._circuit.next_slot)

    def ids_by_name(self) -> dict[str, range]:
        """Value ids of every named leaf and node value; not of those inside of modules."""
        shift = self._circuit.next_slot - 1
        found = {
            name: range(key + shift, key + shift + 1) for key, name in self._circuit.names.items()
        }
        return found | self._circuit.leaf_ids()

    def id_of(self, handle: Handle) -> int:
        """Value id of a handle in the serialized graph."""
        self._own(handle)
        return int(self._circuit.places().ids([handle.key])[0])

    def value_labels(self) -> list[tuple[int, str, str]]:
        """(id, name, operator) of every value but constants, by ascending id.

        Values inside of modules are named by their paths.
        """
        found = self._circuit.leaf_labels()
        found += self._circuit.node_labels(self._circuit.next_slot - 1, None)
        for path, module, first in self.module_uses():
            found += module.circuit._circuit.node_labels(first - 1, path)
        return found

    def _paths(self) -> paths.Paths:
        """What is inside of modules, as of now."""
        return self._circuit.inner_paths(self._shared.uses)

    def label(self, key: int) -> str:
        """How a value is called in print and in messages: by its name, or its id."""
        return self._circuit.label(key)

    def _repr_svg_(self) -> str | None:
        """How notebooks show it: drawn, but for large graphs, and where the extra is missing."""
        from gradwire.drawing import svg_of

        return svg_of(self)

    def __str__(self) -> str:
        return listing.listed(self._circuit, () if self._module else self._shared.modules)

    def _leaf(
        self,
        kind: str,
        name: str,
        shape: Sequence[int | str],
        dtype: str,
        value: Any,
        elements: bool = False,
    ) -> Handle:
        self._shared.require_open(self)
        key = self._circuit.declare_leaf(kind, name, shape, dtype, value, elements)
        self._bytes = None
        return Handle(self, key, dtype)

    def module_input(self, name: str, dtype: str) -> Handle:
        """An input of a module, which declares no type: the data type is that of one use."""
        self._circuit.take(name)
        self._bytes = None
        return Handle(self, self._circuit.add_leaf(Leaf("input", name, "", (), False, None)), dtype)

    def _own(self, handle: Handle) -> None:
        if not isinstance(handle, Handle):
            several = isinstance(handle, (list, tuple)) and any(
                isinstance(each, Handle) for each in handle
            )
            instead = (
                "unpack it with *" if several else "make one with graph.input or graph.constant"
            )
            raise TypeError(f"{handle!r} is no handle; {instead}")
        if handle.graph is not self:
            raise self._shared.foreign(handle)

    def _add(
        self,
        operator: str,
        attributes: dict[str, Any],
        keys: list[int],
        dtypes: list[str],
        module: int | None = None,
    ) -> tuple[Handle, ...]:
        self._shared.require_open(self)
        self._settle_dtypes()
        row = Row(operator, attributes, len(keys), len(dtypes), module)
        first = self._circuit.add(row, keys, dtypes)
        self._bytes = None
        return tuple(Handle(self, first + slot, dtype) for slot, dtype in enumerate(dtypes))

    def _settle_dtypes(self) -> None:
        """Finds the data types of nodes that were read, which only few callers need."""
        circuit = self._circuit
        if len(circuit.node_dtypes) == circuit.node_count:
            return
        found: list[tuple[str, ...]] = []
        self._shared.settle(circuit.typed([leaf.dtype for leaf in circuit.leaves], found))
        circuit.node_dtypes = found  # all or none


def _axes(name: str, shape: Any) -> tuple[int | str, ...]:
    """A size or a symbol for each axis (TENSOR_INVALID)."""
    if isinstance(shape, (int, np.integer)):
        return (int(shape),)
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise InvalidRequestError(
            "TENSOR_INVALID",
            f"input {name!r}: its shape is {shape!r}; give a size or a symbol for each axis, as in "
            "('batch', 3)",
        )
    return tuple(int(axis) if isinstance(axis, np.integer) else axis for axis in shape)


def _signature(operator: str) -> Signature:
    if operator not in SIGNATURES:
        raise InvalidRequestError(
            "OPERATOR_UNKNOWN", f"there is no operator {operator!r}{nearest(operator, SIGNATURES)}"
        )
    return SIGNATURES[operator]


def _dtype_of(value: Any) -> str:
    """float64 for floats, int64 for whole numbers, bool for truths; an array's own."""
    return str(np.asarray(value).dtype)
