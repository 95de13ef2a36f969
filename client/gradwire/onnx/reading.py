"""ONNX models as gate graphs.

A model is read node by node, in order. What its nodes yield are `Value`s: pure constants stay
arrays until a gate uses them, floating initializers become parameters when one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from gradwire import tensors
from gradwire.builder import OPERATOR_SET_VERSION, Graph, Handle
from gradwire.errors import (
    GradwireError,
    InvalidRequestError,
    LimitError,
    UnsupportedError,
    nearest,
)
from gradwire.models import read_apart
from gradwire.onnx import control, data_shapes, ordering, quantized, sequences, upgrading
from gradwire.onnx.counting import MAX_DEPTH, Names, least_steps
from gradwire.onnx.domains import DOMAINS, with_all_missing
from gradwire.onnx.messages import (
    Model,
    array_of,
    attribute_of,
    axes_of,
    declaration_of,
    dense_array_of,
    domain_of,
    dtype_of,
    load_model,
    require_inferable,
    resolved,
    tensor_dtype,
    versions_of,
    without_absent,
)
from gradwire.onnx.points import Point
from gradwire.onnx.refusals import REFUSED_DOMAINS, REFUSED_OPERATORS
from gradwire.onnx.values import (
    Group,
    Origin,
    Value,
    require_elements,
    require_tensors,
    type_of,
)
from gradwire.onnx.weights import GRAPH, Key, parameter_names
from gradwire.signature import Input
from gradwire.signatures import SIGNATURES
from gradwire.tensors import Array

MAX_NODES = 1_000_000
#: Of all names, which is some hundreds for each of MAX_NODES.
_MOST_LETTERS = 1 << 29
_LONGEST_SHOWN = 200
_LONGEST = 2**63 - 1  # what ONNX and the contract can write
_DATA_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def from_onnx(
    model: Model,
    *,
    fixed: Mapping[str, Any] | None = None,
    at: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    parameters: str = "weights",
    straight_through: bool = False,
    max_nodes: int = MAX_NODES,
    isolated: bool = False,
) -> Graph:
    """A gate graph that computes what an ONNX model does, with the model's names.

    `fixed` makes inputs constants, so that shapes, branches and trip counts that depend on them
    are known; sequences and optionals must be among them, as lists and None. `at` keeps inputs, and
    takes shapes, branches and trip counts as they are at these values: the graph refuses to be
    evaluated where one would differ (ASSERTION_FAILED). `sizes` binds symbols, where an axis
    without a name is called "x.0" after its input. `shapes` gives inputs axes that the model does
    not declare: sizes, symbols, or None. Loops are unrolled and functions are written out, to at
    most `max_nodes` nodes.

    `parameters` says what becomes one: floating "initializers"; also constants that are "weights"
    of layers; or "all" floating constants; but never one that decides a shape, a branch or a trip
    count, for the graph is made for what it says. With `straight_through` the gradients of
    QuantizeLinear, DynamicQuantizeLinear and rounding are those of the identity, inside their
    range.

    `isolated` is for models that are not trusted: another process reads them, with limits of
    memory (4 GiB, and 8 times the model) and of processor time (300 seconds), and it alone can
    crash.

    FILE_INVALID, MODEL_INVALID, OPERATOR_UNKNOWN, OPERATOR_SET_UNSUPPORTED, DATA_TYPE_UNSUPPORTED,
    INPUT_NOT_KNOWN, LIMIT_EXCEEDED, ...
    """
    if isolated:
        given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        asked = {
            "fixed": fixed, "at": at, "sizes": sizes, "shapes": shapes, "parameters": parameters,
            "straight_through": straight_through, "max_nodes": max_nodes,
        }  # fmt: skip
        return read_apart(given, asked, "if you trust it, read it with isolated=False").graph
    options = Options(
        fixed or {}, at or {}, sizes or {}, shapes or {}, parameters, straight_through, max_nodes
    )
    loaded = load_model(model)
    try:
        reader = Reader(loaded, options)
        decided_by = reader.deciding_parameters()
        if decided_by:  # a request could set them, and the graph would not change
            reader = Reader(loaded, options, decided_by)
    except MemoryError:
        message = "reading the model takes more memory than there is"
        raise LimitError("LIMIT_EXCEEDED", message) from None
    return reader.graph


@dataclass(frozen=True)
class Options:
    """How a model is read; `from_onnx` says what each means."""

    fixed: Mapping[str, Any]
    at: Mapping[str, Any]
    sizes: Mapping[str, int]
    shapes: Mapping[str, Sequence[int | str | None]]
    parameters: str
    straight_through: bool
    max_nodes: int


@dataclass(frozen=True)
class Scope:
    """The names that nodes may use: of a graph, a function, or an iteration of a loop."""

    versions: Mapping[str, int]
    values: dict[str, Value] = field(default_factory=dict)
    outer: Scope | None = None
    #: Put before the names of values, where a graph is written out.
    prefix: str = ""
    #: Attributes of the function that is written out.
    attributes: Mapping[str, onnx.AttributeProto] = field(default_factory=dict)
    #: The function that is written out: None for one that ONNX defines.
    function: Key | None = GRAPH
    #: The subgraph that is read.
    body: int = 0
    depth: int = 0

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._find(name) is not None

    def find(self, name: str) -> Value:
        """The value of that name, of this scope or one around it (MODEL_INVALID)."""
        found = self._find(name)
        if found is None:
            raise InvalidRequestError(
                "MODEL_INVALID", f"uses the value {name!r}, which nothing before it yields"
            )
        return found

    def _find(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None

    def inside(self, prefix: str = "") -> Scope:
        """A new scope that sees this one."""
        if self.depth >= MAX_DEPTH:
            raise LimitError("LIMIT_EXCEEDED", f"is nested more than {MAX_DEPTH} graphs deep")
        return replace(
            self, values={}, outer=self, prefix=self.prefix + prefix, depth=self.depth + 1
        )


@dataclass
class Call:
    """One use of an operator, as the model says it."""

    node: onnx.NodeProto
    operator: str
    version: int
    inputs: list[Value | None]
    attributes: dict[str, Any]
    outputs: int

    @property
    def label(self) -> str:
        """How messages and names call it."""
        return self.node.name or next(filter(None, self.node.output), "")

    @property
    def place(self) -> str:
        """How messages begin."""
        return f"node {_shown(self.label)} ({self.node.op_type})"

    def input(self, slot: int) -> Value | None:
        """An input, or None where it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def graph(self, name: str) -> onnx.GraphProto:
        """An attribute that is a subgraph (ATTRIBUTE_INVALID)."""
        found = self.attributes.get(name)
        if not isinstance(found, onnx.GraphProto):
            raise InvalidRequestError("ATTRIBUTE_INVALID", f"attribute {name!r} must be a graph")
        return found

    def required(self, slot: int) -> Value:
        """An input that must be given (INPUT_COUNT_INVALID)."""
        found = self.input(slot)
        if found is None:
            raise InvalidRequestError("INPUT_COUNT_INVALID", f"its input {slot} is left out")
        return found


class Reader:
    """Reads one model into `graph`; what is in `constant_names` becomes no parameter."""

    def __init__(
        self, model: onnx.ModelProto, options: Options, constant_names: Container[str] = ()
    ) -> None:
        self.graph = Graph()
        self._constant_names = constant_names
        self._named_leaves: list[Value] = []
        self.place = ""  # of the node that is read
        self._point = Point(self, options.at, [each.name for each in model.graph.input])
        self._max_nodes = options.max_nodes
        self._straight_through = options.straight_through
        self._parameters = parameter_names(model, options.parameters)
        self._weights: dict[tuple[Key, int, str], Value] = {}
        self._leaf_names = Names(each.name for each in model.graph.input)
        self._leaf_names.add(each.name for each in model.graph.initializer)
        self._steps = self._letters = 0
        self._names: dict[int, tuple[int, str, str]] = {}  # depth, prefix and name
        self._initializers: dict[int, tuple[onnx.GraphProto, dict[str, Value]]] = {}
        self.functions = {
            (domain_of(each.domain), each.name, each.overload): each for each in model.functions
        }
        self.require_steps(least_steps(model.graph.node, self.functions))
        scope = Scope(versions_of(model.opset_import))
        scope.values.update(self.initializers(model.graph, scope))
        self._read_inputs(model.graph, scope, options)
        try:
            self.read_nodes(model.graph.node, scope)
        except UnsupportedError as error:
            raise with_all_missing(error, model) from None
        for output in model.graph.output:
            with _at(f"output {output.name!r}"):
                self._output(output.name, scope.find(output.name))
        self._apply_names()

    # -- leaves ---------------------------------------------------------------------------------

    def initializers(self, graph: onnx.GraphProto, scope: Scope) -> dict[str, Value]:
        """The initializers of a graph; the same ones each time a loop's body is read."""
        if id(graph) not in self._initializers:
            found = {}
            for each in graph.initializer:
                with _at(f"initializer {each.name!r}"):
                    self._count_letters(len(scope.prefix) + len(each.name))
                    name = scope.prefix + each.name
                    found[each.name] = self._leaf(name, array_of(each))
            for sparse in graph.sparse_initializer:
                with _at(f"initializer {sparse.values.name!r}"):
                    self._count_letters(len(scope.prefix) + len(sparse.values.name))
                    name = scope.prefix + sparse.values.name
                    found[sparse.values.name] = self._leaf(name, dense_array_of(sparse))
            self._initializers[id(graph)] = graph, found  # the graph is kept, so its id is too
        return self._initializers[id(graph)][1]

    def _leaf(self, name: str, array: Array) -> Value:
        """Numbers of the model with a name, under which floats can be a parameter."""
        found = constant(array)
        if name not in self._constant_names:
            found.name = name
            self._named_leaves.append(found)
        return found

    def deciding_parameters(self) -> set[str]:
        """Parameters whose elements decided what the graph is."""
        return {
            each.name
            for each in self._named_leaves
            if each.decides and each.of_floats and each.handle is not None
        }

    def _read_inputs(self, graph: onnx.GraphProto, scope: Scope, options: Options) -> None:
        names = [each.name for each in graph.input]
        if repeated := [name for name, times in Counter(names).items() if times > 1]:
            raise InvalidRequestError("MODEL_INVALID", f"has two inputs {repeated[0]!r}")
        fixed, sizes = options.fixed, options.sizes
        for name in (*fixed, *options.shapes):
            if name not in names:
                raise InvalidRequestError(
                    "LEAF_UNKNOWN",
                    f"there is no input {name!r} to {'fix' if name in fixed else 'shape'}"
                    f"{nearest(name, names)}",
                )
        for symbol, size in sizes.items():
            if not 0 <= size <= _LONGEST:
                raise InvalidRequestError(
                    "SHAPE_MISMATCH", f"size {symbol!r} is {size}, but must be 0 to {_LONGEST}"
                )
        symbols: set[str] = set()
        unused = set(names) - ordering.names_used(graph)
        for each in graph.input:
            with _at(f"input {each.name!r}"):
                if each.name in fixed:
                    if each.name in self._point.arrays:
                        raise InvalidRequestError(
                            "LEAF_INVALID", "is given twice: in fixed and in at"
                        )
                    scope.values[each.name] = _fixed(each.type, fixed[each.name])
                elif each.name not in scope.values:
                    scope.values[each.name] = self._input(each, options, symbols)
                elif each.name in unused:  # its default: whoever gives the input must be heard
                    default = scope.values[each.name].array
                    assert default is not None
                    self.graph.input(each.name, default.shape, str(default.dtype), default)
        for symbol in sizes:
            if symbol not in symbols:
                hint = nearest(symbol, symbols) or f"; there are {sorted(symbols)[:8]}"
                raise InvalidRequestError("LEAF_UNKNOWN", f"no input has an axis {symbol!r}{hint}")

    def _input(self, info: onnx.ValueInfoProto, options: Options, symbols: set[str]) -> Value:
        kind = (info.type.WhichOneof("value") or "").removesuffix("_type")
        if kind in ("sequence", "optional"):
            hint = "items" if kind == "sequence" else "element, or None,"
            raise UnsupportedError(
                "DATA_TYPE_UNSUPPORTED",
                f"is of kind {kind}, but gate graphs have only tensors; give its {hint} as "
                f"fixed={{{info.name!r}: ...}}",
                {"data_type": kind},
            )
        dtype = tensor_dtype(info.type)
        axes: list[int | str] = []
        for axis in axes_of(info, options.shapes.get(info.name)):
            symbols.update(axis.names)
            sizes = [options.sizes[name] for name in axis.names if name in options.sizes]
            axes.append(sizes[0] if sizes else axis.extent)
        handle = self.graph.input(info.name, axes, dtype)
        known = onnx.helper.make_tensor_type_proto(tensors.data_type(dtype), axes)
        value = Value(info.name, handle, type=known, of_floats=dtype in tensors.FLOATS)
        if info.name in self._point.arrays:
            self._point.begin(value, axes)
        return value

    def _output(self, name: str, value: Value) -> None:
        """An output; of a sequence, one for each item (DATA_TYPE_UNSUPPORTED of text)."""
        if isinstance(value, Group) and value.kind == "text":
            raise UnsupportedError(
                "DATA_TYPE_UNSUPPORTED",
                "is text, as labels of a classifier, which gate graphs do not have; give the "
                "classes numbers, or take the output out of the model",
                {"data_type": "string"},
            )
        if isinstance(value, Group):
            self.count_steps(len(value.items))
            for place, item in enumerate(value.items):
                self.graph.output(f"{name}[{place}]", self.handle(item))
        else:
            self.graph.output(name, self.handle(value))

    # -- nodes ----------------------------------------------------------------------------------

    def read_nodes(self, nodes: Iterable[onnx.NodeProto], scope: Scope) -> None:
        """Reads nodes, each after those it uses; their outputs come into the scope."""
        for node in ordering.ordered(nodes, scope):
            place = f"node {_shown(node.name or next(iter(node.output), ''))} ({node.op_type})"
            around, self.place = self.place, place
            with _at(place):
                self.count_steps()
                call = self._call(node, scope)
                outputs = self._run(call, scope)
                for name, value in zip(node.output, outputs, strict=False):
                    if name:
                        scope.values[name] = value
                        self._note_name(value, scope, name)
                missing = [name for name in node.output[len(outputs) :] if name]
                if missing:
                    raise UnsupportedError(
                        "OUTPUT_COUNT_INVALID", f"its output {missing[0]!r} has no counterpart here"
                    )
            self.place = around

    def read_body(
        self, graph: onnx.GraphProto, scope: Scope, inputs: Sequence[Value]
    ) -> list[Value]:
        """Outputs of a subgraph, read into `scope` with these inputs."""
        if len(inputs) != len(graph.input):
            raise InvalidRequestError(
                "MODEL_INVALID",
                f"the graph {graph.name!r} takes {len(graph.input)} inputs but is given "
                f"{len(inputs)}",
            )
        self.count_steps(_steps_of_entry(graph))
        self._count_letters(len(scope.prefix))
        known = replace(scope, values=self.initializers(graph, scope))
        scope = replace(scope, outer=known, body=id(graph))  # which `initializers` keeps
        for each, value in zip(graph.input, inputs, strict=True):
            scope.values[each.name] = value
        self.read_nodes(graph.node, scope)
        return [scope.find(each.name) for each in graph.output]

    def emit(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
    ) -> list[Value]:
        """The values of a new node of the graph, with the gradients that the options ask for."""
        made = self.emit_plain(operator, inputs, attributes, outputs)
        if not self._straight_through or made[0].origin is None:
            return made
        return quantized.with_gradients(self, made[0].origin)

    def emit_plain(
        self,
        operator: str,
        inputs: Sequence[Value | None],
        attributes: Mapping[str, Any] | None = None,
        outputs: int = 1,
    ) -> list[Value]:
        """The values of a new node, with the gradient of its gate."""
        given = {name: each for name, each in (attributes or {}).items() if each is not None}
        require_inferable(operator, given, outputs)
        declared = SIGNATURES[operator].declared_inputs(len(inputs))
        handles = [
            None if each is None else self._known(each, slot) if slot.known else self.handle(each)
            for each, slot in zip(inputs, declared, strict=True)
        ]
        made = self.graph.apply(operator, handles, given, outputs)
        of_floats = any(
            each is not None and each.of_floats and slot.elements
            for each, slot in zip(inputs, declared, strict=True)
        )
        found = [
            Value(handle=each, of_floats=of_floats or each.dtype in tensors.FLOATS) for each in made
        ]
        origin = Origin(operator, inputs, given, found)
        for each in found:
            each.origin = origin
        return found

    def one(self, operator: str, *inputs: Value | None, **attributes: Any) -> Value:
        """The first value of a new node."""
        return self.emit(operator, inputs, attributes)[0]

    def constant(self, numbers: Any, dtype: str = "int64") -> Value:
        """A value of numbers (ATTRIBUTE_INVALID where the data type cannot hold them)."""
        try:
            return constant(np.asarray(numbers, dtype))
        except (OverflowError, TypeError, ValueError) as failure:
            raise InvalidRequestError(
                "ATTRIBUTE_INVALID", f"an attribute cannot be {dtype}: {failure}"
            ) from None

    def _constant(self, call: Call, scope: Scope) -> Value:
        """A constant of the model, or the parameter that it is: the same one in each trip."""
        array, name = _stored(call), next(iter(call.node.output), "")
        is_floating = str(array.dtype) in tensors.FLOATS
        if scope.function is None or not array.ndim or not is_floating:
            return constant(array)
        if name not in self._parameters(scope.function):
            return constant(array)
        key = scope.function, scope.body, name
        if key not in self._weights:
            self._count_letters(len(scope.prefix) + len(name))
            free = self._leaf_names.take(scope.prefix + name)
            self._weights[key] = self._leaf(free, array)
        return self._weights[key]

    def handle(self, value: Value) -> Handle:
        """The handle of a tensor, which makes its leaf where there is none yet."""
        require_tensors([value])
        if value.handle is None:
            assert value.array is not None
            if value.name and str(value.array.dtype) in tensors.FLOATS:
                value.handle = self.graph.parameter(value.name, value.array)
            else:
                value.handle = self.graph.constant(value.array)
        return value.handle

    def _known(self, value: Value, slot: Input) -> Handle:
        """The handle of a value that must be known, as the server can know it."""
        if value.of_floats and (value.origin is not None or value.point is not None):
            array = require_elements(value, f"its input {slot.name!r}")
            if value.asserted is not None:
                return self.handle(value.asserted)
            return self.graph.constant(array)
        if value.origin is None and value.array is not None:
            value.decides = True
            return self.graph.constant(value.array)  # not a parameter, which one may override
        return self.handle(value)

    def _call(self, node: onnx.NodeProto, scope: Scope) -> Call:
        inputs = [scope.find(name) if name else None for name in node.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        domain = domain_of(node.domain)
        version = scope.versions.get(domain, 0)
        given = list(resolved(node, scope.attributes))
        attributes = {each.name: attribute_of(each) for each in given}
        is_function = (domain, node.op_type, node.overload) in self.functions
        if not node.output and not is_function:
            raise InvalidRequestError("OUTPUT_COUNT_INVALID", "has no output, but must have one")
        of_onnx = None if is_function else declaration_of(node.op_type, version, domain)
        if of_onnx is not None:
            of_onnx.check(given, inputs)
        return Call(node, node.op_type, version, inputs, attributes, len(node.output))

    def _run(self, call: Call, scope: Scope) -> list[Value]:
        domain = domain_of(call.node.domain)
        key = domain, call.operator, call.node.overload
        if key in self.functions:
            return self._expand(self.functions[key], call, scope, key)
        reader = DOMAINS.get(domain, {}).get(call.operator)
        if reader is not None:
            _require_version(call)
            require_tensors(call.inputs)
            return reader(self, call)
        if domain:
            return self._expand_of_domain(domain, call, scope)
        if call.operator in REFUSED_OPERATORS:
            raise _unknown(call, REFUSED_OPERATORS[call.operator])
        _check_version(call)
        if call.operator == "Constant":
            return [self._constant(call, scope)]
        if call.operator in control.OPERATORS:
            return control.OPERATORS[call.operator](self, call, scope)
        if call.operator in data_shapes.OPERATORS:
            taken = data_shapes.OPERATORS[call.operator](self, call)
            if taken is not None:
                return taken
        if call.operator in sequences.OPERATORS:
            return sequences.OPERATORS[call.operator](self, call, scope)
        if call.operator == "Identity" and isinstance(call.input(0), Group):
            return [call.required(0)]
        require_tensors(call.inputs)
        finished = upgrading.upgrade(self, call)
        if finished is not None:
            return finished
        if call.operator not in SIGNATURES:
            return self._expand_of_domain(domain, call, scope)
        for name in _DATA_TYPE_ATTRIBUTES:
            if isinstance(call.attributes.get(name), int) and call.attributes[name]:
                dtype_of(call.attributes[name])
        if call.operator == "Identity" and _is_constant(call.input(0)):
            return call.inputs  # type: ignore[return-value]
        return self.emit(call.operator, call.inputs, call.attributes, _used_outputs(call))

    # -- functions ------------------------------------------------------------------------------

    def _expand(
        self, function: onnx.FunctionProto, call: Call, scope: Scope, key: Key | None = None
    ) -> list[Value]:
        """Outputs of a function, written out; `key` is that of one of the model's own."""
        attributes = {each.name: each for each in function.attribute_proto}
        attributes |= {each.name: each for each in resolved(call.node, scope.attributes)}
        self._count_letters(len(scope.prefix) + len(call.label))
        inside = replace(
            scope.inside(f"{call.label}/"),
            outer=None,
            versions={**scope.versions, **versions_of(function.opset_import)},
            attributes=attributes,
            function=key,
            body=0,
        )
        absent: set[str] = set()
        for slot, name in enumerate(function.input):
            value = call.input(slot)
            if value is None:
                absent.add(name)
            else:
                inside.values[name] = value
        self.read_nodes(without_absent(function.node, absent), inside)
        return [inside.find(name) for name in function.output[: call.outputs]]

    def _expand_of_domain(self, domain: str, call: Call, scope: Scope) -> list[Value]:
        """Outputs of an operator that ONNX itself defines by others (OPERATOR_UNKNOWN)."""
        if not onnx.defs.has(call.operator, domain):
            hint = "; add a function that computes it by ONNX's operators"
            if not domain:
                hint = nearest(call.operator, SIGNATURES)
            raise _unknown(
                call,
                f"there is no such operator in the domain {domain or 'ai.onnx'!r}, and no such "
                f"function in the model{hint}",
            )
        try:
            schema = onnx.defs.get_schema(call.operator, max(call.version, 1), domain)
        except onnx.defs.SchemaError:
            raise UnsupportedError(
                "OPERATOR_SET_UNSUPPORTED",
                f"is not in operator set {call.version} of {domain or 'ai.onnx'!r}, which is "
                "the one that the model imports",
            ) from None
        function = _definition(schema, call, scope)
        if function is None:
            raise _unknown(call, REFUSED_DOMAINS.get(domain, "no gate computes it"))
        return self._expand(function, call, scope)

    # -- names ----------------------------------------------------------------------------------

    def _note_name(self, value: Value, scope: Scope, name: str) -> None:
        """A name for a node's value; those further out win."""
        if value.handle is None or value.handle.key < 0:
            return
        taken = self._names.get(value.handle.key)
        if taken is None or taken[0] > scope.depth:
            self._count_letters(len(scope.prefix) + len(name))
            self._names[value.handle.key] = scope.depth, scope.prefix, name

    def _apply_names(self) -> None:
        names = Names(leaf.name for leaf in self.graph.leaves)
        for key, (_, prefix, name) in sorted(
            self._names.items(), key=lambda item: (item[1][0], item[0])
        ):
            self.graph.name(Handle(self.graph, key, ""), names.take(prefix + name))

    def _count_letters(self, count: int) -> None:
        """Counts letters of names that are written out, before they are (LIMIT_EXCEEDED)."""
        self._letters += count
        if self._letters > _MOST_LETTERS:
            raise LimitError(
                "LIMIT_EXCEEDED",
                "the names of the model, with its loops and functions written out, have more than "
                f"{_MOST_LETTERS} letters; give what is written out shorter names",
            )

    def count_steps(self, count: int = 1) -> None:
        """Counts what is read or written out (LIMIT_EXCEEDED)."""
        self.require_steps(count)
        self._steps += count

    def require_steps(self, count: int) -> None:
        """Refuses what takes so many steps more, before it takes them (LIMIT_EXCEEDED)."""
        if max(self._steps + count, self.graph.node_count) > self._max_nodes:
            raise LimitError(
                "LIMIT_EXCEEDED",
                f"the model, with its loops and functions written out, has more than "
                f"{self._max_nodes} nodes; raise max_nodes if that is meant",
                {"limit": "max_nodes"},
            )

    def steps_of_trip(self, body: onnx.GraphProto) -> int:
        """How many steps it takes at least to read the body of a loop."""
        return _steps_of_entry(body) + least_steps(body.node, self.functions)


def constant(array: Array) -> Value:
    """A value that is known."""
    return Value(array=array, of_floats=str(array.dtype) in tensors.FLOATS)


def _fixed(kind: onnx.TypeProto, given: Any) -> Value:
    """What is given for an input; a list for a sequence, None for an optional without element."""
    match kind.WhichOneof("value"):
        case "optional_type":
            element = kind.optional_type.elem_type
            return Group(kind="optional") if given is None else _fixed(element, given)
        case "sequence_type":
            if not isinstance(given, (list, tuple)):
                raise InvalidRequestError(
                    "TENSOR_INVALID", f"is a sequence, so fixed must be a list, not {given!r}"
                )
            return Group(items=tuple(_fixed(kind.sequence_type.elem_type, each) for each in given))
        case _:
            return constant(tensors.from_value("its fixed value", given, tensor_dtype(kind)))


def _stored(call: Call) -> Array:
    """The elements of a Constant."""
    attributes = call.attributes
    if len(attributes) != 1:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID", f"needs one attribute but has {len(attributes)}"
        )
    ((name, value),) = attributes.items()
    if name == "sparse_value":
        return dense_array_of(value)
    if name.startswith("value_string"):
        raise UnsupportedError(
            "DATA_TYPE_UNSUPPORTED",
            "holds text, which gate graphs do not have",
            {"data_type": "string"},
        )
    if name == "value":
        return np.asarray(value)
    if name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise InvalidRequestError("ATTRIBUTE_INVALID", f"there is no attribute {name!r}")
    return np.asarray(value, "float32" if name.startswith("value_float") else "int64")


def _shown(name: str) -> str:
    """A name in a message."""
    return repr(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}...")


def _is_constant(value: Value | None) -> bool:
    return value is not None and value.origin is None and not value.name


def _unknown(call: Call, why: str) -> UnsupportedError:
    return UnsupportedError("OPERATOR_UNKNOWN", why, {"operator": call.operator})


def _steps_of_entry(body: onnx.GraphProto) -> int:
    """Steps for what a subgraph takes and yields, which costs little unless it is much."""
    return 1 + (len(body.input) + len(body.output)) // 64


def _used_outputs(call: Call) -> int:
    """How many outputs a node must have."""
    least, most = SIGNATURES[call.operator].outputs
    if not most:
        return call.outputs
    used = max((slot for slot, name in enumerate(call.node.output, 1) if name), default=1)
    return min(max(used, least), most)


def _require_version(call: Call) -> None:
    if call.version <= 0:
        raise InvalidRequestError(
            "MODEL_INVALID", "the model imports no operator set that could give it a meaning"
        )


def _check_version(call: Call) -> None:
    """Refuses operators that changed after ours (OPERATOR_SET_UNSUPPORTED)."""
    _require_version(call)
    if call.version <= OPERATOR_SET_VERSION:
        return
    newest = onnx.defs.onnx_opset_version()
    since = None
    if call.version <= newest and onnx.defs.has(call.operator):
        since = onnx.defs.get_schema(call.operator, call.version).since_version
    if since is None or since > OPERATOR_SET_VERSION:
        raise UnsupportedError(
            "OPERATOR_SET_UNSUPPORTED",
            f"is of operator set {since or call.version}, but Gradwire implements operator set "
            f"{OPERATOR_SET_VERSION}",
        )


def _definition(schema: Any, call: Call, scope: Scope) -> onnx.FunctionProto | None:
    """ONNX's definition of an operator by others, if there is one; `schema` is ONNX's."""
    if schema.has_function:
        usable = [each for each in schema.function_opset_versions if each <= OPERATOR_SET_VERSION]
        body = schema.get_function_with_opset_version(max(usable)) if usable else b""
    elif schema.has_context_dependent_function:
        versions = schema.context_dependent_function_opset_versions
        usable = [each for each in versions if each <= OPERATOR_SET_VERSION]
        types = [onnx.TypeProto() if each is None else type_of(each) for each in call.inputs]
        if not usable:
            return None
        node = onnx.NodeProto()
        node.CopyFrom(call.node)
        del node.attribute[:]
        node.attribute.extend(resolved(call.node, scope.attributes))
        try:
            body = schema.get_context_dependent_function_with_opset_version(
                max(usable),
                node.SerializeToString(),
                [(each or onnx.TypeProto()).SerializeToString() for each in types],
            )
        except (RuntimeError, UnicodeDecodeError) as failure:
            raise UnsupportedError(
                "MODEL_INVALID", f"ONNX does not write it out: {failure}"
            ) from None
    else:
        return None
    return onnx.FunctionProto.FromString(body) if body else None


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Errors say where, once; a data type that is not ours is unsupported."""
    try:
        yield
    except GradwireError as error:
        if "place" in error.facts:
            raise
        kind = UnsupportedError if error.reason == "DATA_TYPE_UNSUPPORTED" else type(error)
        facts = {**error.facts, "place": place}
        raise kind(error.reason, f"{place}: {error.message}", facts) from None
