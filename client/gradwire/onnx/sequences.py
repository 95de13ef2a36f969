"""Operators on sequences and optionals, which leave no trace in the graph.

While a model is read, a sequence is its values one by one, and an optional is its element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradwire.errors import InvalidRequestError, LimitError
from gradwire.onnx.values import Group, Value, require_elements, require_size, require_tensors
from gradwire.tensors import Array

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader, Scope

#: A sequence that is put together item by item is copied each time.
MOST_ITEMS = 1 << 16
_COPIED_IN_A_STEP = 16


def _construct(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    return [_sequence(require_tensors(call.inputs))]


def _empty(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    return [_sequence([])]


def _at(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    items = _items(call, 0)
    return [items[_position(call, 1, items, len(items))]]


def _insert(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    items = _items(call, 0)
    place = len(items)
    if call.input(2) is not None:
        place = _position(call, 2, items, len(items) + 1)
    (item,) = require_tensors([call.required(1)])
    _count_copies(reader, items)
    items.insert(place, item)
    return [_sequence(items)]


def _erase(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    items = _items(call, 0)
    _count_copies(reader, items)
    if call.input(1) is not None:
        del items[_position(call, 1, items, len(items))]
    elif items:
        items.pop()
    else:
        raise InvalidRequestError("MODEL_INVALID", f"the sequence {_name(call, 0)} is empty")
    return [_sequence(items)]


def _length(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    return [reader.constant(len(_items(call, 0)))]


def _concatenate(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """The items along one axis, which is new with `new_axis`."""
    items, axis = _items(call, 0), call.attributes.get("axis")
    if not items or not isinstance(axis, int):
        fault = "needs the attribute 'axis'" if items else f"the sequence {_name(call, 0)} is empty"
        raise InvalidRequestError("MODEL_INVALID", fault)
    reader.count_steps(len(items))
    if call.attributes.get("new_axis"):
        place = reader.constant([axis])
        items = [reader.emit("Unsqueeze", [each, place])[0] for each in items]
    return reader.emit("Concat", items, {"axis": axis})


def _split(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """Parts along an axis: of given sizes, of one size, or of one each."""
    (data,) = require_tensors([call.required(0)])
    axis, given = call.attributes.get("axis", 0), call.input(1)
    sizes = _part_sizes(call, data, axis)
    reader.count_steps(len(sizes))
    if not sizes:
        return [_sequence([])]
    parts = reader.emit("Split", [data, reader.constant(sizes)], {"axis": axis}, len(sizes))
    if given is None and not call.attributes.get("keepdims", 1):
        place = reader.constant([axis])
        parts = [reader.emit("Squeeze", [each, place])[0] for each in parts]
    return [_sequence(parts)]


def _part_sizes(call: Call, data: Value, axis: int) -> list[int]:
    """How long each part is along the axis (INPUT_NOT_KNOWN, SHAPE_MISMATCH, LIMIT_EXCEEDED)."""
    sizes = None
    if call.input(1) is not None:
        sizes = _whole_numbers(call, 1, f"the sizes {_name(call, 1)} of its parts")
        if sizes.ndim == 1:
            _require_few(sizes.size)
            return [int(each) for each in sizes]
    length = require_size(data, axis, f"the size of axis {axis} of {_name(call, 0)}")
    part = 1 if sizes is None else int(sizes.reshape(-1)[0]) if sizes.size == 1 else 0
    if part <= 0:
        assert sizes is not None
        raise InvalidRequestError(
            "SHAPE_MISMATCH", f"{_name(call, 1)} is {sizes.tolist()} but must be a positive size"
        )
    _require_few(-(-length // part))
    return [min(part, length - start) for start in range(0, length, part)]


def _map(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """A subgraph for each item; inputs that are no sequences are the same for all."""
    body = call.graph("body")
    count = len(_items(call, 0))
    reader.count_steps(count * (len(call.inputs) + len(body.output)))
    columns = [_items(call, 0)]
    for slot in range(1, len(call.inputs)):
        whole = call.required(slot)
        column = _items(call, slot) if isinstance(whole, Group) else [whole] * count
        if len(column) != count:
            raise InvalidRequestError(
                "SHAPE_MISMATCH",
                f"its sequences have different lengths: {_name(call, 0)} has {count} items and "
                f"{_name(call, slot)} has {len(column)}",
            )
        columns.append(column)
    found = [
        reader.read_body(body, scope.inside(f"{call.label}[{place}]/"), items)
        for place, items in enumerate(zip(*columns, strict=True))
    ]
    return [
        _sequence(require_tensors([each[slot] for each in found]))
        for slot in range(len(body.output))
    ]


def _optional(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """Its input, or nothing."""
    given = call.input(0)
    return [Group(kind="optional") if given is None else given]


def _has_element(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    return [reader.constant(not _is_nothing(call.input(0)), "bool")]


def _element(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    given = call.required(0)
    if _is_nothing(given):
        raise InvalidRequestError("MODEL_INVALID", f"the optional {_name(call, 0)} has no element")
    return [given]


#: What reads each operator.
OPERATORS: dict[str, Callable[[Reader, Call, Scope], list[Value]]] = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceAt": _at,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceLength": _length,
    "SequenceMap": _map,
    "ConcatFromSequence": _concatenate,
    "SplitToSequence": _split,
    "Optional": _optional,
    "OptionalHasElement": _has_element,
    "OptionalGetElement": _element,
}


def _sequence(items: list[Value]) -> Group:
    _require_few(len(items))
    return Group(items=tuple(items))


def _count_copies(reader: Reader, items: list[Value]) -> None:
    """A sequence that is put together item by item costs the square of them (LIMIT_EXCEEDED)."""
    reader.count_steps(len(items) // _COPIED_IN_A_STEP)


def _require_few(count: int) -> None:
    if count > MOST_ITEMS:
        raise LimitError(
            "LIMIT_EXCEEDED", f"a sequence of {count} items is over the limit of {MOST_ITEMS}"
        )


def _items(call: Call, slot: int) -> list[Value]:
    """The items of a sequence (MODEL_INVALID)."""
    given = call.required(slot)
    if not isinstance(given, Group) or given.kind != "sequence":
        raise InvalidRequestError(
            "MODEL_INVALID", f"{_name(call, slot)} is {given.kind_text}, but must be a sequence"
        )
    return [*given.items]


def _position(call: Call, slot: int, items: list[Value], count: int) -> int:
    """A place among `count`; negative ones count from the end of the items."""
    what = f"the position {_name(call, slot)} in the sequence {_name(call, 0)}"
    found = _whole_numbers(call, slot, what)
    place = int(found.reshape(-1)[0]) if found.size == 1 else count
    if not -len(items) <= place < count:
        raise InvalidRequestError(
            "SHAPE_MISMATCH",
            f"{what} of {len(items)} items is {found.tolist()}, which is not from {-len(items)} to "
            f"{count - 1}",
        )
    return place % len(items) if place < 0 else place


def _whole_numbers(call: Call, slot: int, what: str) -> Array:
    """The elements of an input of integers (INPUT_NOT_KNOWN, MODEL_INVALID)."""
    found = require_elements(call.required(slot), what)
    if found.dtype.kind not in "iu":
        raise InvalidRequestError("MODEL_INVALID", f"{what} is {found.dtype}, but must be int64")
    return found


def _is_nothing(value: Value | None) -> bool:
    return value is None or (isinstance(value, Group) and value.kind == "optional")


def _name(call: Call, slot: int) -> str:
    return repr(call.node.input[slot])
