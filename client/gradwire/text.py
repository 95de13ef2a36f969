"""Graphs as text that a person can read, edit and compare; it reads back to the same bytes.

docs/files.md has the grammar. A line is a declaration or a node; inside brackets lines may break.
"""

from __future__ import annotations

import json
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf, isinf, isnan, nan, prod
from typing import Any, NamedTuple, NoReturn

import numpy as np

from gradwire import columns, tensors
from gradwire.errors import nearest, text_error
from gradwire.v1 import graph_pb2, tensor_pb2

HEADER = "gradwire text 1"

_NUMBERS_SHOWN = 64
_LINE_BYTES = 72  # whole elements of every data type
_KINDS = ("input", "parameter", "constant")
_RESERVED = {*_KINDS, "output", "gate", "note", "format", "operator_set", "producer", "requires"}
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./]*")
_TOKEN = re.compile(
    r"(?P<space>[ \t\r]+|\#[^\n]*)|(?P<end>\n)|(?P<string>\"[^\"\\\n]*+(?:\\.[^\"\\\n]*+)*+\")"
    r"|(?P<label>%[A-Za-z0-9_]+)|(?P<word>[A-Za-z_][A-Za-z0-9_./]*)"
    r"|(?P<number>[-+]?(?:0x[0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|inf))"
    r"|(?P<mark>->|[,=()\[\]{}:@])"
)
_LISTS = {"ints": graph_pb2.Ints, "floats": graph_pb2.Floats, "strings": graph_pb2.Strings}


def write(graph: graph_pb2.Graph) -> str:
    """The text of a graph that was checked."""
    return "\n".join((*_heading(graph), *_body(graph))) + "\n"


def _heading(graph: graph_pb2.Graph) -> Iterator[str]:
    yield HEADER
    yield f"format {graph.format_version}"
    yield f"operator_set {graph.operator_set_version}"
    if graph.producer:
        yield f"producer {_quoted(graph.producer)}"
    for feature in graph.required_features:
        yield f"requires {_quoted(feature)}"
    for note in graph.notes:
        yield f"note {_quoted(note.key)} {_quoted(note.text)}"


def _body(graph: graph_pb2.Graph) -> Iterator[str]:
    rows = [gate.SerializeToString(deterministic=True) for gate in graph.gates]
    gates = _Gates(graph, _first_equal(rows))
    circuits = [graph.circuit]
    for module in reversed(graph.modules):
        circuits += [module.gradient, module.circuit]
    used = dict.fromkeys(row for each in reversed(circuits) for row in each.node_gates)
    if list(dict.fromkeys(rows[row] for row in used)) != rows:
        yield ""
        yield from map(gates.line, graph.gates)
    for module in graph.modules:
        yield ""
        yield from _module_lines(module, gates)
        gates.declared.add(module.name)
    yield ""
    yield from _circuit_lines(graph.circuit, gates)


def _module_lines(module: graph_pb2.Module, gates: _Gates) -> Iterator[str]:
    yield f"module {_name(module.name)}({_given(module.circuit)}) {{"
    yield from _indented(_circuit_lines(module.circuit, gates))
    if module.HasField("gradient"):
        yield ""
        yield f"  gradient({_given(module.gradient)}) {{"
        yield from _indented(_indented(_circuit_lines(module.gradient, gates)))
        yield "  }"
    yield "}"


def _given(circuit: graph_pb2.Circuit) -> str:
    return ", ".join(_name(leaf.name) for leaf in circuit.inputs)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    """Lines without empty ones around them, one step to the right."""
    last = ""
    for line in lines:
        if line or last:
            last = line
            yield "  " + line.replace("\n", "\n  ") if line else line


def _circuit_lines(circuit: graph_pb2.Circuit, gates: _Gates) -> Iterator[str]:
    """Leaves, nodes, outputs; a module's inputs, which have no type, are in its head."""
    names = dict(zip(circuit.named_ids, circuit.names, strict=True))
    firsts: list[int] = []
    leaves: list[graph_pb2.Leaf] = []
    next_id = 1
    for kind, column in zip(
        _KINDS, (circuit.inputs, circuit.parameters, circuit.constants), strict=True
    ):
        for leaf in column:
            firsts.append(next_id)
            leaves.append(leaf)
            count = prod(axis.size for axis in leaf.type.axes) if leaf.layout else 1
            own = f"%{next_id}" if count else f"%empty{len(leaves)}"  # which takes no id
            if leaf.HasField("type"):
                yield _leaf_line(kind, leaf, own)
            next_id += count
    constants = len(leaves) - len(circuit.constants)
    slots = np.array(firsts, np.int64)

    def label(value_id: int) -> str:
        if value_id >= next_id:
            return _name(names[value_id]) if value_id in names else f"%{value_id}"
        if not value_id:
            return "_"
        position = int(np.searchsorted(slots, value_id, "right")) - 1
        leaf = leaves[position]
        named = f"%{firsts[position]}" if position >= constants else _name(leaf.name)
        return f"{named}[{value_id - firsts[position]}]" if leaf.layout else named

    yield ""
    yield from _node_lines(circuit, gates, next_id, label)
    yield ""
    for output in circuit.outputs:
        values = f" = {', '.join(map(label, output.value_ids))}" if output.value_ids else ""
        yield f"output {_name(output.name)}{values}"


class _Gates:
    """The gates table in words."""

    def __init__(self, graph: graph_pb2.Graph, same: list[int]) -> None:
        """`same` has the first row that equals each row."""
        self.same = same
        self.rows = graph.gates
        self.modules = graph.modules
        self.declared: set[str] = set()  # names of modules above
        self.attributes = [[_attribute(each) for each in gate.attributes] for gate in graph.gates]

    def line(self, gate: graph_pb2.Gate) -> str:
        counts = f"{gate.input_count} -> {gate.output_count}"
        attributes = [_attribute(each) for each in gate.attributes]
        if gate.WhichOneof("target") == "module":
            return f"gate module {_name(self.modules[gate.module].name)}({counts})"
        return f"gate {_name(gate.operator)}({', '.join([counts, *attributes])})"

    def called(self, gate: graph_pb2.Gate) -> str:
        """What a node applies: an operator says so where a module has its name."""
        if gate.WhichOneof("target") == "module":
            return _name(self.modules[gate.module].name)
        name = _name(gate.operator)
        return f"operator {name}" if gate.operator in self.declared else name


def _first_equal(rows: Sequence[bytes]) -> list[int]:
    """For each row, the first that equals it."""
    first: dict[bytes, int] = {}
    return [first.setdefault(row, number) for number, row in enumerate(rows)]


def _node_lines(
    circuit: graph_pb2.Circuit, gates: _Gates, first: int, label: Callable[[int], str]
) -> Iterator[str]:
    inputs = circuit.node_inputs
    start = 0
    for row in circuit.node_gates:
        gate = gates.rows[row]
        given = [label(each) for each in inputs[start : start + gate.input_count]]
        start += gate.input_count
        made = ", ".join(map(label, range(first, first + gate.output_count))) or "()"
        first += gate.output_count
        which = "" if gates.same[row] == row else f" @{row}"
        yield f"{made} = {gates.called(gate)}({', '.join(given + gates.attributes[row])}){which}"


def _leaf_line(kind: str, leaf: graph_pb2.Leaf, label: str) -> str:
    name = _name(leaf.name) if kind != "constant" else label
    if kind == "constant" and leaf.name:
        name += f" {_quoted(leaf.name)}"
    axes = [
        str(axis.size) if axis.WhichOneof("extent") == "size" else _name(axis.symbol)
        for axis in leaf.type.axes
    ]
    dtype = tensors.dtype_of(leaf.type.data_type)
    line = f"{kind} {name}: {dtype}[{', '.join(axes)}]" + (" elements" if leaf.layout else "")
    if not leaf.HasField("value"):
        return line
    shape = list(map(str, leaf.value.shape))
    return f"{line} = {_typed(leaf.value) if shape != axes else _literal(leaf.value)}"


def _attribute(message: graph_pb2.Attribute) -> str:
    kind = message.WhichOneof("value") or ""
    value = getattr(message, kind)
    if kind == "tensor":
        text = _typed(value)
    elif kind in _LISTS:
        words = ", ".join(map(_scalar_word, value.values))
        text = f"[{words}]" if words else f"{kind}[]"
    else:
        text = _scalar_word(value)
    return f"{_name(message.name)}={text}"


def _typed(tensor: tensor_pb2.Tensor) -> str:
    axes = ", ".join(map(str, tensor.shape))
    return f"{tensors.dtype_of(tensor.data_type)}[{axes}] {_literal(tensor)}"


def _literal(tensor: tensor_pb2.Tensor) -> str:
    content = tensor.WhichOneof("content")
    if content is None:
        return "none"
    if content == "blob":
        return f'blob("{tensor.blob.hex()}")'
    dtype, shape = tensors.dtype_of(tensor.data_type), tuple(tensor.shape)
    if 1 <= prod(shape) <= _NUMBERS_SHOWN and dtype not in tensors.STORED:
        array = tensors.from_bytes(dtype, shape, tensor.data)
        return _nested([_number(each, dtype) for each in array.reshape(-1)], shape)
    pieces = [
        f'  "{b64encode(tensor.data[at : at + _LINE_BYTES]).decode()}"\n'
        for at in range(0, len(tensor.data), _LINE_BYTES)
    ]
    return "bytes(" + ("\n" + "".join(pieces) if pieces else "") + ")"


def _nested(words: Sequence[str], shape: tuple[int, ...]) -> str:
    for size in reversed(shape):
        words = [f"[{', '.join(words[at : at + size])}]" for at in range(0, len(words), size)]
    return words[0]


def _number(value: Any, dtype: str) -> str:
    if dtype == "bool":
        return "true" if value else "false"
    if dtype not in tensors.FLOATS:
        return str(int(value))
    with np.errstate(invalid="ignore"):  # a signalling NaN says so
        is_nan = bool(np.isnan(value))
    if is_nan:
        bits = int.from_bytes(np.asarray(value).tobytes(), "little")
        plain = int.from_bytes(np.asarray(nan, dtype).tobytes(), "little")
        return "nan" if bits == plain else f"nan(0x{bits:x})"
    return str(value) if dtype == "float32" else repr(float(value))


def _scalar_word(value: int | float | str) -> str:
    """A number or a string of an attribute."""
    if isinstance(value, str):
        return _quoted(value)
    return _number(np.float64(value), "float64") if isnan(value) else repr(value)


def _name(name: str) -> str:
    plain = _WORD.fullmatch(name) and name not in _RESERVED and name != "_"
    return name if plain else _quoted(name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def parse(text: str) -> graph_pb2.Graph:
    """The graph that a text stands for (TEXT_INVALID, with line and column)."""
    return _Parser(text).graph()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Scope:
    """One circuit, and what is known in it."""

    def __init__(self, circuit: graph_pb2.Circuit) -> None:
        self.circuit = circuit
        self.leaves: list[tuple[str, graph_pb2.Leaf]] = []
        self.firsts: list[int] = []  # first slot of each leaf, from 1
        self.next_slot = 1
        self.values = 0  # of nodes
        self.known: dict[str, int] = {}  # a value's key: from 1 on, or a leaf's slot below 0
        self.elements: dict[str, int] = {}
        self.node_inputs: list[int] = []
        self.outputs: list[list[int]] = []
        self.names: list[tuple[int, str]] = []

    def add_leaf(self, kind: str, leaf: graph_pb2.Leaf, count: int) -> None:
        """A leaf that is so many values."""
        self.leaves.append((kind, leaf))
        self.firsts.append(self.next_slot)
        self.next_slot += count

    def resolve(self) -> None:
        """Keys become ids: inputs, parameters and constants first, in this order."""
        circuit = self.circuit
        columns_of = (circuit.inputs, circuit.parameters, circuit.constants)
        firsts = np.zeros(len(self.leaves), np.int64)
        slots = np.array(self.firsts, np.int64)
        ends = np.append(slots[1:], self.next_slot)
        next_id = 1
        for kind, column in zip(_KINDS, columns_of, strict=True):
            for position, (each, leaf) in enumerate(self.leaves):
                if each == kind:
                    column.append(leaf)
                    firsts[position] = next_id
                    next_id += int(ends[position] - slots[position])
        places = columns.Places(slots, firsts, next_id - 1)
        circuit.node_inputs.extend(places.ids(self.node_inputs).tolist())
        for output, keys in zip(circuit.outputs, self.outputs, strict=True):
            output.value_ids.extend(places.ids(keys).tolist())
        circuit.named_ids.extend(key + places.shift for key, _ in self.names)
        circuit.names.extend(name for _, name in self.names)


class _Parser:
    """One pass over a text, one token ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._message = graph_pb2.Graph()
        self._rows: dict[bytes, int] = {}
        self._given_rows = 0
        self._given_uses: dict[str, list[tuple[int, int]]] = {}  # of modules, by gate lines
        self._nodes = 0
        self._modules: dict[str, int] = {}
        self._in = _Scope(self._message.circuit)
        self._next = _Token("end", "", 0)

    def graph(self) -> graph_pb2.Graph:
        first, _, _ = self._text.partition("\n")
        if first.rstrip() != HEADER:
            self._fail(0, f"expected the line {HEADER!r} but found {first[:60]!r}")
        self._next = self._scan(len(HEADER))
        message = self._message
        message.format_version, message.operator_set_version = 1, 28
        while self._next.kind != "done":
            if self._next.kind == "end":
                self._advance()
                continue
            self._line()
            self._end_line()
        self._in.resolve()
        for name, given in self._given_uses.items():
            self._fail(given[0][1], f"there is no module {name!r}")
        if message.modules and "modules" not in message.required_features:
            message.required_features.append("modules")
        return message

    def _line(self) -> None:
        word = self._next
        if word.text == "module" and self._behind(word).kind in ("word", "string"):
            self._module()
            return
        if word.kind != "word" or word.text not in _RESERVED:
            self._node()
            return
        self._advance()
        match word.text:
            case "input" | "parameter" | "constant":
                self._leaf(word.text)
            case "output":
                self._output()
            case "gate":
                self._gate()
            case "note":
                key, text = self._string(), self._string()
                self._message.notes.add(key=key, text=text)
            case "producer":
                self._message.producer = self._string()
            case "requires":
                self._message.required_features.append(self._string())
            case "format":
                self._message.format_version = self._size(32)
            case _:
                self._message.operator_set_version = self._size(32)

    def _module(self) -> None:
        """A module with its gradient; names in it are its own."""
        self._advance()
        token = self._next
        name = self._name()
        if name in self._modules:
            self._fail(token.at, f"the module {name!r} is declared twice")
        module = self._message.modules.add(name=name)
        outside = self._in
        self._in = _Scope(module.circuit)
        self._given()
        while not self._is("}"):
            word = self._next
            if word.text == "gradient" and self._behind(word).text == "(":
                if module.HasField("gradient"):
                    self._fail(word.at, f"module {name!r} has a gradient already")
                self._gradient(module)
            elif word.kind != "end":
                self._inner_line(False)
            self._require_line_end()
        self._in.resolve()
        self._in = outside
        self._mark("}")
        number = self._modules[name] = len(self._modules)
        for row, _ in self._given_uses.pop(name, []):
            gate = self._message.gates[row]
            gate.module = number
            self._rows.setdefault(gate.SerializeToString(deterministic=True), row)

    def _gradient(self, module: graph_pb2.Module) -> None:
        circuit = self._in
        self._advance()
        module.gradient.SetInParent()
        self._in = _Scope(module.gradient)
        self._given()
        while not self._is("}"):
            if self._next.kind != "end":
                self._inner_line(True)
            self._require_line_end()
        self._in.resolve()
        self._in = circuit
        self._mark("}")

    def _given(self) -> None:
        """The inputs of a module, and the brace behind them."""
        self._in.circuit.SetInParent()
        self._mark("(")
        for _ in self._items(")"):
            token = self._next
            leaf = graph_pb2.Leaf(name=self._name())
            self._define(self._key(token), -self._in.next_slot, token.at)
            self._in.add_leaf("input", leaf, 1)
        self._mark("{")

    def _inner_line(self, in_gradient: bool) -> None:
        """A line of a module; an output of a gradient may have no value."""
        word = self._next
        if word.kind != "word" or word.text not in _RESERVED:
            self._node()
        elif word.text == "constant":
            self._advance()
            self._leaf("constant")
        elif word.text == "output":
            self._advance()
            self._output(in_gradient)
        else:
            self._expected("a constant, a node, an output, a gradient or '}'")

    def _require_line_end(self) -> None:
        """Lines of a module end before its brace; what is not closed is told."""
        if self._next.kind == "end":
            self._advance()
        elif not self._is("}"):
            self._expected("the end of the line")

    def _leaf(self, kind: str) -> None:
        leaf = graph_pb2.Leaf()
        token = self._next
        at = token.at
        if kind == "constant":
            self._take("label")
            if self._next.kind == "string":
                leaf.name = self._string()
        else:
            leaf.name = self._name()
        label = self._key(token)
        self._mark(":")
        leaf.type.data_type = tensors.data_type(self._dtype())
        self._mark("[")
        for _ in self._items("]"):
            if self._next.kind == "number":
                leaf.type.axes.add(size=self._size(64))
            else:
                leaf.type.axes.add(symbol=self._name())
        if self._next.kind == "word" and self._next.text == "elements":
            self._advance()
            leaf.layout = graph_pb2.Leaf.LAYOUT_ELEMENTS
        if self._is("="):
            self._advance()
            self._value(leaf)
        self._define(label, -self._in.next_slot, at)
        count = prod(axis.size for axis in leaf.type.axes) if leaf.layout else 1
        if leaf.layout:
            self._in.elements[label] = count
        self._in.add_leaf(kind, leaf, count)
        if self._in.next_slot >= 1 << 32:
            self._fail(at, "the leaves take more value ids than 32 bits can number")

    def _value(self, leaf: graph_pb2.Leaf) -> None:
        """A stored value, of the declared type unless it says its own."""
        if self._next.kind == "word" and self._next.text in tensors.DTYPES:
            self._tensor(leaf.value)
            return
        leaf.value.data_type = leaf.type.data_type
        for axis in leaf.type.axes:
            if axis.WhichOneof("extent") == "symbol":
                self._fail(
                    self._next.at,
                    f"expected a data type and a shape, since axis {axis.symbol!r} is a symbol",
                )
            leaf.value.shape.append(axis.size)
        self._content(leaf.value)

    def _tensor(self, tensor: tensor_pb2.Tensor) -> None:
        tensor.data_type = tensors.data_type(self._dtype())
        self._mark("[")
        for _ in self._items("]"):
            tensor.shape.append(self._size(64))
        self._content(tensor)

    def _content(self, tensor: tensor_pb2.Tensor) -> None:
        token = self._next
        if token.kind == "word" and token.text == "none":
            self._advance()
        elif token.kind == "word" and token.text == "blob":
            self._advance()
            self._mark("(")
            tensor.blob = self._digest()
            self._mark(")")
        elif token.kind == "word" and token.text == "bytes":
            self._advance()
            self._mark("(")
            pieces = []
            while not self._is(")"):
                pieces.append(self._base64())
            self._mark(")")
            tensor.data = b"".join(pieces)
        else:
            dtype = tensors.dtype_of(tensor.data_type)
            shape = tuple(tensor.shape)
            if not prod(shape) or len(shape) > 32:
                self._fail(token.at, f"expected bytes(), since shape {shape} holds no numbers")
            if dtype in tensors.STORED:
                self._fail(token.at, f"expected bytes(), since {dtype} is not written in numbers")
            pieces = []
            self._numbers(dtype, shape, pieces)
            tensor.data = b"".join(pieces)

    def _numbers(self, dtype: str, shape: tuple[int, ...], pieces: list[bytes]) -> None:
        if not shape:
            pieces.append(self._element(dtype))
            return
        self._mark("[")
        for place in range(shape[0]):
            if place:
                self._mark(",", f"',' and {shape[0] - place} more of {shape[0]}")
            self._numbers(dtype, shape[1:], pieces)
        self._mark("]", f"']' after {shape[0]}")

    def _element(self, dtype: str) -> bytes:
        token = self._next
        kind = np.dtype(dtype).newbyteorder("<")
        if dtype == "bool":
            if token.text not in ("true", "false"):
                self._expected("true or false")
            self._advance()
            return bytes([token.text == "true"])
        value, bits = self._scalar()
        if bits is not None:
            if dtype not in tensors.FLOATS or bits >= 1 << 8 * kind.itemsize:
                self._fail(token.at, f"{token.text}(0x{bits:x}) does not fit {dtype}")
            return bits.to_bytes(kind.itemsize, "little")
        is_whole = isinstance(value, int)
        if dtype not in tensors.FLOATS and not is_whole:
            self._fail(token.at, f"expected a whole number for {dtype} but found {token.text}")
        try:
            with np.errstate(over="ignore"):
                found: Any = np.array(float(value) if dtype in tensors.FLOATS else value, kind)
        except OverflowError:
            self._fail(token.at, f"{token.text} does not fit {dtype}")
        if dtype in tensors.FLOATS and np.isinf(found) and not isinf(value):
            self._fail(token.at, f"{token.text} does not fit {dtype}")
        data: bytes = found.tobytes()
        return data

    def _scalar(self) -> tuple[int | float, int | None]:
        """A number; or the bits of a NaN."""
        token = self._next
        if token.kind == "word" and token.text in ("nan", "inf"):
            self._advance()
            if token.text == "nan" and self._is("("):
                self._mark("(")
                bits = self._take("number", "bits such as 0x7ff8000000000001")
                if not bits.text.startswith("0x"):
                    self._fail(bits.at, f"expected bits in hexadecimal but found {bits.text[:40]}")
                self._mark(")")
                return nan, int(bits.text, 16)
            return (nan if token.text == "nan" else inf), None
        text = self._take("number").text
        is_whole = "x" in text or not set(text) & set(".eEi")
        try:
            return (int(text, 0) if is_whole else float(text)), None
        except ValueError:
            self._fail(token.at, f"{text[:40]} is not a number")

    def _base64(self) -> bytes:
        token = self._take("string", "a string of base64 or ')'")
        try:
            return b64decode(json.loads(token.text), validate=True)
        except ValueError:
            self._fail(token.at, "this string is not base64")

    def _digest(self) -> bytes:
        token = self._take("string", "a digest in quotes")
        if not re.fullmatch('"[0-9a-f]{64}"', token.text):
            self._fail(token.at, "a digest is 64 digits of hexadecimal in lower case")
        return bytes.fromhex(token.text[1:-1])

    def _gate(self) -> None:
        at = self._next.at
        if self._nodes:
            self._fail(at, "gates come before the nodes")
        gate = self._message.gates.add()
        word = self._next
        if word.text == "module" and self._behind(word).text != "(":
            self._advance()
            self._given_uses.setdefault(self._name(), []).append((self._given_rows, at))
        else:
            gate.operator = self._name()
        self._mark("(")
        gate.input_count = self._size(32)
        self._mark("->")
        gate.output_count = self._size(32)
        while self._is(","):
            self._advance()
            self._attribute(gate, self._name())
        self._mark(")")
        if gate.WhichOneof("target"):
            self._rows.setdefault(gate.SerializeToString(deterministic=True), self._given_rows)
        self._given_rows += 1

    def _node(self) -> None:
        made = self._made()
        self._mark("=")
        gate = graph_pb2.Gate(output_count=len(made))
        word = self._next
        if word.text == "operator" and self._behind(word).text != "(":
            self._advance()
            gate.operator = self._name("an operator")
        else:
            name = self._name("an operator or a module")
            if name in self._modules:
                gate.module = self._modules[name]
            else:
                gate.operator = name
        self._mark("(")
        for _ in self._items(")"):
            self._argument(gate)
        row = self._row(gate)
        self._nodes += 1
        self._in.circuit.node_gates.append(row)
        for token in made:
            self._in.values += 1
            self._define(self._key(token), self._in.values, token.at)
            if token.kind != "label":
                self._in.names.append((self._in.values, self._text_of(token)))

    def _made(self) -> list[_Token]:
        """What a node yields, before it is known."""
        if self._is("("):
            self._mark("(")
            self._mark(")")
            return []
        made = []
        while True:
            if self._next.kind not in ("word", "string", "label"):
                self._expected("a value's name, %label, or a declaration")
            made.append(self._advance())
            if not self._is(","):
                return made
            self._advance()

    def _row(self, gate: graph_pb2.Gate) -> int:
        if self._is("@"):
            self._advance()
            at = self._next.at
            row = self._size(32)
            key = gate.SerializeToString(deterministic=True)  # NaNs are never equal
            given = self._message.gates[row : row + 1]
            if key not in [each.SerializeToString(deterministic=True) for each in given]:
                self._fail(at, f"gate {row} is not declared as this node uses it")
            return row
        key = gate.SerializeToString(deterministic=True)
        row = self._rows.setdefault(key, len(self._message.gates))
        if row == len(self._message.gates):
            self._message.gates.append(gate)
        return row

    def _argument(self, gate: graph_pb2.Gate) -> None:
        """An input, or an attribute after all inputs."""
        token = self._next
        if token.kind in ("word", "string"):
            self._advance()
            if self._is("="):
                self._attribute(gate, self._text_of(token))
                return
            key = 0 if token.text == "_" else self._reference(token)
        else:
            key = self._reference(self._take("label", "an input or an attribute"))
        if gate.attributes:
            self._fail(token.at, "inputs come before attributes")
        self._in.node_inputs.append(key)
        gate.input_count += 1

    def _attribute(self, gate: graph_pb2.Gate, name: str) -> None:
        self._mark("=")
        attribute = gate.attributes.add(name=name)
        token = self._next
        if token.kind == "string":
            attribute.string_value = self._string()
        elif token.kind == "word" and token.text in _LISTS:
            self._advance()
            self._mark("[")
            self._mark("]")
            getattr(attribute, token.text).SetInParent()
        elif token.kind == "word" and token.text in tensors.DTYPES:
            self._tensor(attribute.tensor)
        elif self._is("["):
            self._list(attribute)
        else:
            value = self._plain("a number, a string, a list, or a data type")
            if isinstance(value, int):
                self._fitting(token, lambda: setattr(attribute, "int_value", value))
            else:
                attribute.float_value = value

    def _list(self, attribute: graph_pb2.Attribute) -> None:
        at = self._next.at
        self._mark("[")
        values: list[Any] = []
        for _ in self._items("]"):
            token = self._next
            values.append(self._string() if token.kind == "string" else self._plain("a number"))
        kinds = {type(value) for value in values}
        if len(kinds) != 1:
            self._fail(at, "expected numbers of one kind, or ints[], floats[] or strings[]")
        name = {int: "ints", float: "floats", str: "strings"}[kinds.pop()]
        self._fitting(_Token("", "", at), lambda: getattr(attribute, name).values.extend(values))

    def _plain(self, what: str) -> int | float:
        """A number as an attribute has it."""
        if self._next.kind != "number" and self._next.text not in ("nan", "inf"):
            self._expected(what)
        token = self._next
        value, bits = self._scalar()
        if bits is None:
            return value
        if bits >= 1 << 64:
            self._fail(token.at, f"0x{bits:x} is over 64 bits")
        found: float = struct.unpack("<d", bits.to_bytes(8, "little"))[0]
        return found

    def _output(self, may_be_empty: bool = False) -> None:
        self._in.circuit.outputs.add(name=self._name())
        keys: list[int] = []
        self._in.outputs.append(keys)
        if may_be_empty and not self._is("="):
            return
        self._mark("=")
        while True:
            if self._next.kind not in ("word", "string", "label"):
                self._expected("a value's name or %label")
            keys.append(self._reference(self._advance()))
            if not self._is(","):
                break
            self._advance()

    def _reference(self, token: _Token) -> int:
        """The key of a value, or of one element of a leaf."""
        name = self._key(token)
        if name not in self._in.known:
            known = self._in.known if len(self._in.known) < 1000 else ()
            near = nearest(name.lstrip('"'), [each.lstrip('"') for each in known])
            self._fail(token.at, f"there is no value {token.text[:60]} before this line{near}")
        key = self._in.known[name]
        if name not in self._in.elements:
            return key
        self._mark("[", f"'[' and the element of {token.text}")
        at = self._next.at
        element = self._size(32)
        self._mark("]")
        if element >= self._in.elements[name]:
            self._fail(at, f"{token.text} has {self._in.elements[name]} elements, from 0 on")
        return key - element

    def _define(self, name: str, key: int, at: int) -> None:
        if name in self._in.known:
            self._fail(at, f"the name {name.lstrip(chr(34))!r} is used twice")
        self._in.known[name] = key

    def _items(self, closing: str) -> Iterator[None]:
        """As many items, with commas between them, as come before a closing mark."""
        while not self._is(closing):
            yield
            if not self._is(closing):
                self._mark(",", f"',' or {closing!r}")
        self._mark(closing)

    def _dtype(self) -> str:
        token = self._take("word", "a data type")
        if token.text not in tensors.DTYPES:
            near = nearest(token.text, tensors.DTYPES)
            self._fail(token.at, f"expected a data type but found {token.text!r}{near}")
        return token.text

    def _name(self, what: str = "a name") -> str:
        if self._next.kind not in ("word", "string"):
            self._expected(what)
        return self._text_of(self._advance())

    def _text_of(self, token: _Token) -> str:
        if token.kind == "word":
            return token.text
        try:
            text: str = json.loads(token.text)
            text.encode()
        except ValueError as failure:
            self._fail(token.at, f"this string cannot be read: {failure}")
        return text

    def _key(self, token: _Token) -> str:
        """How `_known` calls a value: %label, or its name behind a quote."""
        return token.text if token.kind == "label" else '"' + self._text_of(token)

    def _string(self) -> str:
        return self._text_of(self._take("string"))

    def _size(self, bits: int) -> int:
        token = self._take("number", "a whole number")
        if not token.text.isdigit() or len(token.text) > 20 or int(token.text) >= 1 << bits:
            self._fail(token.at, f"expected a whole number of {bits} bits, found {token.text[:40]}")
        return int(token.text)

    def _fitting(self, token: _Token, put: Callable[[], None]) -> None:
        try:
            put()
        except (ValueError, OverflowError):
            self._fail(token.at, "a whole number does not fit 64 bits")

    def _behind(self, token: _Token) -> _Token:
        """The token that follows one."""
        return self._scan(token.at + len(token.text))

    def _is(self, mark: str) -> bool:
        return self._next.kind == "mark" and self._next.text == mark

    def _mark(self, mark: str, what: str = "") -> None:
        if not self._is(mark):
            self._expected(what or repr(mark))
        self._depth += (mark in "([") - (mark in ")]")
        self._advance()

    def _take(self, kind: str, what: str = "") -> _Token:
        names = {"word": "a word", "string": "a quoted string", "label": "a %label"}
        if self._next.kind != kind:
            self._expected(what or names.get(kind, f"a {kind}"))
        return self._advance()

    def _end_line(self) -> None:
        if self._next.kind not in ("end", "done"):
            self._expected("the end of the line")

    def _advance(self) -> _Token:
        token = self._next
        self._next = self._scan(token.at + len(token.text))
        return token

    def _scan(self, at: int) -> _Token:
        while at < len(self._text):
            found = _TOKEN.match(self._text, at)
            if found is None:
                self._fail(at, f"{self._text[at]!r} cannot be read here")
            kind = found.lastgroup or ""
            if kind == "space" or (kind == "end" and self._depth):
                at = found.end()
                continue
            return _Token(kind, found.group(), at)
        return _Token("done", "", at)

    def _expected(self, what: str) -> NoReturn:
        token = self._next
        found = {"end": "the end of the line", "done": "the end of the text"}.get(token.kind)
        self._fail(token.at, f"expected {what} but found {found or token.text[:60]}")

    def _fail(self, at: int, what: str) -> NoReturn:
        raise text_error("TEXT_INVALID", self._text, at, what) from None
