"""Values while a model is read, and what is known of them before anything runs.

Elements and shapes are found only where they are asked for: where a trip count, a branch, or an
input that a gate must know depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from gradwire import tensors
from gradwire.builder import OPERATOR_SET_VERSION, Handle
from gradwire.errors import InvalidRequestError, UnsupportedError
from gradwire.signature import Input
from gradwire.signatures import SIGNATURES
from gradwire.tensors import Array

if TYPE_CHECKING:
    from gradwire.onnx.points import Point

#: No more elements than these are computed while a model is read.
MOST_ELEMENTS = 1 << 24
_MOST_SHOWN = 8

_OPSETS = [onnx.helper.make_opsetid("", OPERATOR_SET_VERSION)]
#: Operators that yield sizes of an input.
_MEASURING = ("Shape", "Size")
#: Operators whose every element is one of the first input; of all inputs, for Concat.
_MOVING = ("Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")
#: Operators that compute every element from those at its place.
_BY_ELEMENT = (
    "Abs", "Add", "And", "Cast", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Sub", "Xor",
)  # fmt: skip
#: Operators that yield no more elements than they take, but as many as these decide.
_SELECTING = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
#: Operators whose numbers are drawn, by our own generator.
_DRAWN = ("Dropout",)


@dataclass(eq=False, slots=True)
class Value:
    """A leaf, or what a node yields.

    A leaf has a `name`, if it is no constant, and its elements as an `array`, if they are known.
    """

    name: str = ""
    handle: Handle | None = None
    array: Array | None = None
    #: Where only some are: all of them, with 1 for the others, and which are known.
    partly: tuple[Array, Array] | None = None
    origin: Origin | None = None
    type: onnx.TypeProto | None = None
    #: Whether floating elements decide it: what is computed of shapes and integers alone is known
    #: to the server.
    of_floats: bool = False
    #: What was looked for: "elements", "type".
    sought: frozenset[str] = frozenset()
    #: Yields floats that have a gradient where this, as an integer, has none.
    stand_in: Callable[[], Value] | None = None
    #: Its elements at the point where the model is read, if they were evaluated.
    here: Array | None = None
    point: Point | None = None
    #: What has its elements as they are there, and asserts it.
    asserted: Value | None = None
    #: Whether its elements were taken while the model is read.
    decides: bool = False

    @property
    def dtype(self) -> str:
        """Data type, by name."""
        if self.handle is not None:
            return self.handle.dtype
        assert self.array is not None
        return str(self.array.dtype)

    @property
    def kind_text(self) -> str:
        """What messages say that it is."""
        return "a tensor"


@dataclass(eq=False, slots=True)
class Group(Value):
    """A sequence, an optional without an element, or text: no tensor, so no gate takes it."""

    items: tuple[Value, ...] = ()
    kind: str = "sequence"  # or "optional", or "text"

    @property
    def kind_text(self) -> str:
        """What messages say that it is."""
        if self.kind == "optional":
            return "an optional without an element"
        if self.kind == "text":
            return "text"
        return f"a sequence of {len(self.items)} items"


@dataclass(eq=False, slots=True)
class Origin:
    """The node that yields a value."""

    operator: str
    inputs: Sequence[Value | None]
    attributes: Mapping[str, Any]
    outputs: list[Value]


def elements_of(value: Value) -> Array | None:
    """The elements of a value, where no input decides them."""
    _seek(value, "elements")
    return value.array


def taken_elements(value: Value) -> Array | None:
    """The elements of a value, where no input decides them; whose floats did is marked."""
    found = elements_of(value)
    waiting = [] if found is None else [value]
    while waiting:
        each = waiting.pop()
        if each.decides or not each.of_floats or each.asserted is not None:
            continue
        each.decides = True
        if each.origin is not None:
            waiting.extend(it for it, slot in slots_of(each.origin) if slot.elements)
    return found


def require_elements(value: Value, what: str) -> Array:
    """The elements of a tensor (INPUT_NOT_KNOWN, saying which input decides them)."""
    require_tensors([value])
    found = taken_elements(value)
    if found is not None:
        return found
    point = point_of(value)
    if point is not None:
        return point.take(value, what)
    raise _not_known(what, value)


def whole_number(elements: Array, what: str) -> int:
    """The only element, which may be of floats but is a whole number (SHAPE_MISMATCH)."""
    found: Any = elements.reshape(-1)[0].item() if elements.size == 1 else None
    is_whole = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
    if not is_whole or not -(1 << 63) <= found < 1 << 63:
        shown = elements.tolist() if elements.size <= _MOST_SHOWN else f"of shape {elements.shape}"
        raise InvalidRequestError("SHAPE_MISMATCH", f"{what} is {shown}, but must be one integer")
    return int(found)


def require_size(value: Value, axis: int, what: str) -> int:
    """The size of an axis (INPUT_NOT_KNOWN, saying which input decides it; SHAPE_MISMATCH)."""
    shape = shape_of(value)
    if shape is not None and not -len(shape) <= axis < len(shape):
        raise InvalidRequestError(
            "SHAPE_MISMATCH", f"there is no axis {axis} among the {len(shape)} of an input"
        )
    size = None if shape is None else shape[axis]
    if size is not None:
        return size
    point = point_of(value)
    if point is None:
        raise _not_known(what, value, by_shape=True)
    return point.take_size(value, axis, what)


def require_tensors(given: Sequence[Value | None]) -> list[Value]:
    """Those that are given, none of them a sequence or an optional (MODEL_INVALID)."""
    for each in given:
        if isinstance(each, Group):
            raise InvalidRequestError(
                "MODEL_INVALID", f"one of its inputs is {each.kind_text}, but must be a tensor"
            )
    return [each for each in given if each is not None]


def point_of(value: Value) -> Point | None:
    """The point that decides what is open of a value; None where an input is not given there."""
    points = {leaf.point for leaf in _undecided(value)}
    return points.pop() if len(points) == 1 else None


def _undecided(value: Value) -> list[Value]:
    """What has to be known first: inputs, or what was evaluated at a point."""
    found, seen, waiting = [], {id(value)}, [value]
    while waiting:
        each = waiting.pop()
        if each.here is not None or each.origin is None:
            found.append(each)
            continue
        for it in each.origin.inputs:
            if it is not None and it.array is None and id(it) not in seen:
                seen.add(id(it))
                waiting.append(it)
    return found


def _not_known(what: str, value: Value, by_shape: bool = False) -> UnsupportedError:
    """A refusal that says what to give."""
    leaf, of_shape = _decided_by(value)
    by_shape = by_shape or of_shape
    if not leaf.name:
        return UnsupportedError(
            "INPUT_NOT_KNOWN", f"{what} is computed, and cannot be known before"
        )
    axes = ", ".join(
        repr(axis.dim_param)
        for axis in (leaf.type.tensor_type.shape.dim if leaf.type else ())
        if axis.dim_param
    )
    name = leaf.name
    sizes = f"sizes for {axes} as sizes={{...}} (--size SYMBOL=N)"
    elements = (
        f"its elements as at={{{name!r}: ...}} (--at {name}=...), which keeps the input, or as "
        f"fixed={{{name!r}: ...}} (--fix {name}=...), which makes it a constant"
    )
    hint = sizes if by_shape and axes else elements
    return UnsupportedError(
        "INPUT_NOT_KNOWN",
        f"{what} depends on the {'shape of the ' if by_shape else ''}input {leaf.name!r}, but must "
        f"be known while the model is read; give {hint}",
        {"input": leaf.name},
    )


def fix_hint(name: str) -> str:
    """What to give where an input must be known."""
    return f"its elements as fixed={{{name!r}: ...}} (--fix {name}=...)"


def type_of(value: Value) -> onnx.TypeProto | None:
    """Data type and shape of a value, as far as they are known."""
    if value.type is None and value.array is not None:
        value.type = _type_of_array(value.array)
    _seek(value, "type")
    return value.type


def shape_of(value: Value) -> tuple[int | None, ...] | None:
    """The sizes of a value that are known; None where not even their number is."""
    found = type_of(value)
    if found is None or not found.tensor_type.HasField("shape"):
        return None
    return tuple(
        axis.dim_value if axis.HasField("dim_value") else None
        for axis in found.tensor_type.shape.dim
    )


def _decided_by(value: Value) -> tuple[Value, bool]:
    """A leaf because of which elements are not known, and whether its shape alone is."""
    by_shape = False
    while value.origin is not None:
        unknown = [
            (each, slot.elements)
            for each, slot in slots_of(value.origin)
            if each.array is None and each.point is None
        ]
        if not unknown:
            break
        value, of_elements = unknown[0]
        by_shape = by_shape or not of_elements
    return value, by_shape


def slots_of(origin: Origin) -> list[tuple[Value, Input]]:
    """Inputs that are there, each with its declaration."""
    declared = SIGNATURES[origin.operator].declared_inputs(len(origin.inputs))
    return [
        (each, slot) for each, slot in zip(origin.inputs, declared, strict=True) if each is not None
    ]


def _seek(value: Value, what: str) -> None:
    """Finds elements or type of a value, after those of the values they depend on."""
    waiting = [(value, what)]
    while waiting:
        each, wanted = waiting[-1]
        if _is_found(each, wanted):
            waiting.pop()
            continue
        missing = [need for need in _needs(each, wanted) if not _is_found(*need)]
        if missing:
            waiting.extend(missing)
            continue
        waiting.pop()
        _find(each, wanted)


def _is_found(value: Value, what: str) -> bool:
    return (
        value.origin is None
        or what in value.sought
        or (value.array is not None if what == "elements" else value.type is not None)
    )


def _needs(value: Value, what: str) -> list[tuple[Value, str]]:
    origin = value.origin
    assert origin is not None
    given = slots_of(origin)
    if what == "elements":
        return [
            *((each, "elements") for each, slot in given if slot.elements),
            (value, "type"),
        ]
    return [(each, "type") for each, _ in given] + [(each, "elements") for each in _shaping(origin)]


def _shaping(origin: Origin) -> list[Value]:
    """Inputs whose elements decide the shape of the outputs."""
    return [each for each, slot in slots_of(origin) if slot.known]


def _find(value: Value, what: str) -> None:
    origin = value.origin
    assert origin is not None
    for output in origin.outputs:
        output.sought |= {what}
    if what == "type":
        _infer(origin)
    elif origin.operator in _MEASURING:
        _measure(origin)
    elif origin.operator not in _DRAWN:
        _compute(origin)
        _compute_partly(origin)


def _infer(origin: Origin) -> None:
    """Types of the outputs of a node, as ONNX infers them."""
    if not onnx.defs.has(origin.operator):  # a gate of our own
        return
    node = _node(origin)
    types, data = {}, {}
    shaping = _shaping(origin)
    for name, each in zip(node.input, origin.inputs, strict=True):
        if each is None:
            continue
        types[name] = type_of(each) or _type_without_shape(each.dtype)
        if each in shaping and each.array is not None and each.array.size <= MOST_ELEMENTS:
            data[name] = onnx.numpy_helper.from_array(each.array, name)
    schema = onnx.defs.get_schema(origin.operator, OPERATOR_SET_VERSION)
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, node, types, data, opset_imports=_OPSETS
        )
    except onnx.shape_inference.InferenceError:  # the server will say what is wrong
        return
    for name, output in zip(node.output, origin.outputs, strict=True):
        output.type = found.get(name)


def _measure(origin: Origin) -> None:
    """Elements of Shape and Size."""
    (data,) = origin.inputs
    assert data is not None
    sizes = shape_of(data)
    if sizes is None:
        return
    first, last = origin.attributes.get("start", 0), origin.attributes.get("end")
    measured = sizes if origin.operator == "Size" else sizes[first:last]
    if None in measured:
        if origin.operator == "Shape":
            whole = np.array([1 if each is None else each for each in measured], np.int64)
            known = np.array([each is not None for each in measured])
            origin.outputs[0].partly = whole, known
        return
    counted = np.array(measured, np.int64)
    origin.outputs[0].array = counted.prod() if origin.operator == "Size" else counted
    origin.outputs[0].array = np.asarray(origin.outputs[0].array)


def _compute(origin: Origin) -> None:
    """Elements of a node's outputs, by ONNX's own evaluator."""
    arrays = _present(_whole(each, slot) for each, slot in slots_of(origin))
    found = None if arrays is None else _evaluate(origin, arrays)
    for output, array in zip(origin.outputs, found or (), strict=False):
        output.array = array


def computed(
    operator: str, inputs: Sequence[Value | None], attributes: Mapping[str, Any]
) -> Array | None:
    """What an operator without a gate yields, where the elements of all inputs are known."""
    arrays = _present(taken_elements(each) for each in inputs if each is not None)
    if arrays is None:
        return None
    found = _evaluate(Origin(operator, inputs, attributes, [Value()]), arrays)
    return None if found is None else found[0]


def _present(arrays: Iterable[Array | None]) -> list[Array] | None:
    """All of them; None where one is missing."""
    found = list(arrays)
    present = [each for each in found if each is not None]
    return present if len(present) == len(found) else None


def _whole(value: Value, slot: Input) -> Array | None:
    """All elements, if they are known; anything in its shape where they do not count."""
    shape = None if slot.elements or value.array is not None else shape_of(value)
    if shape is None or None in shape:
        return value.array
    return np.broadcast_to(np.zeros((), value.dtype), [size or 0 for size in shape])


def _compute_partly(origin: Origin) -> None:
    """Those elements of the output that the known ones of the inputs decide."""
    given, (output, *others) = [each for each, _ in slots_of(origin)], origin.outputs
    if others or output.array is not None or not any(each.partly for each in given):
        return
    arrays = _present(each.array if each.partly is None else each.partly[0] for each in given)
    found = None if arrays is None else _evaluate(origin, arrays)
    if arrays is None or found is None:
        return
    masks = [
        np.ones(array.shape, bool) if each.partly is None else each.partly[1]
        for each, array in zip(given, arrays, strict=True)
    ]
    known = _known_places(origin, arrays, masks)
    if known is not None and known.all():
        output.array = found[0]
    elif known is not None:
        output.partly = found[0], known


def _known_places(origin: Origin, arrays: list[Array], masks: list[Array]) -> Array | None:
    """Which elements of the output come from known ones alone; None where that cannot be said."""
    if origin.operator in _BY_ELEMENT:
        both: Array = np.logical_and.reduce(np.broadcast_arrays(*masks))
        return both
    moved = len(arrays) if origin.operator == "Concat" else 1
    if origin.operator not in _MOVING or not all(mask.all() for mask in masks[moved:]):
        return None
    places = [mask.astype(np.int64) for mask in masks[:moved]]
    found = _evaluate(origin, [*places, *arrays[moved:]])
    return None if found is None else found[0].astype(bool)


def _evaluate(origin: Origin, arrays: Sequence[Array]) -> list[Array] | None:
    """Outputs of a node for inputs that are there, if they are small, by ONNX's own evaluator."""
    if origin.operator not in _SELECTING and not all(map(_is_small, origin.outputs)):
        return None
    node = _node(origin)
    given = dict(zip(filter(None, node.input), arrays, strict=True))
    types = {name: onnx.helper.make_tensor_type_proto(1, None) for name in node.output}
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_value_info(name, _type_of_array(x)) for name, x in given.items()],
        [onnx.helper.make_value_info(name, each) for name, each in types.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=_OPSETS)
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(each) for each in ReferenceEvaluator(model).run(None, given)]
    except MemoryError:
        raise
    except Exception:
        return None


def _is_small(value: Value) -> bool:
    shape = shape_of(value)
    if shape is None or None in shape:
        return False
    return prod(size for size in shape if size is not None) <= MOST_ELEMENTS


def _node(origin: Origin) -> onnx.NodeProto:
    attributes: dict[str, Any] = {
        name: onnx.numpy_helper.from_array(each) if isinstance(each, np.ndarray) else each
        for name, each in origin.attributes.items()
        if each is not None
    }
    return onnx.helper.make_node(
        origin.operator,
        ["" if each is None else f"x{slot}" for slot, each in enumerate(origin.inputs)],
        [f"y{slot}" for slot in range(len(origin.outputs))],
        **attributes,
    )


def _type_of_array(array: Array) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(tensors.data_type(str(array.dtype)), array.shape)


def _type_without_shape(dtype: str) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(tensors.data_type(dtype), None)
