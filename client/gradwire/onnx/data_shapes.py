"""Operators that yield as many elements as the data decide.

Where the data are known, so is what they yield. Where a point is given, it is taken as it is there
and moved from the operator's inputs by gates, through which gradients flow; the graph asserts what
decided it. Where neither is, the operator's own gate tells the server, which knows integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gradwire import tensors
from gradwire.errors import LimitError
from gradwire.onnx.values import (
    MOST_ELEMENTS,
    Value,
    computed,
    elements_of,
    point_of,
    require_elements,
    require_tensors,
)

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader


def _is_taken(value: Value) -> bool:
    """Whether a point decides its elements."""
    return elements_of(value) is None and point_of(value) is not None


def _nonzero(reader: Reader, call: Call) -> list[Value] | None:
    (x,) = require_tensors(call.inputs)
    if not _is_taken(x):
        return None
    holds = x
    if x.dtype != "bool":
        (holds,) = reader.emit("Cast", [x], {"to": tensors.data_type("bool")})
    mask = require_elements(holds, "the mask of elements that are not 0")
    return [reader.constant(np.argwhere(mask).T)]


def _compress(reader: Reader, call: Call) -> list[Value] | None:
    x, condition = require_tensors(call.inputs)
    if not _is_taken(condition):
        return None
    places = np.flatnonzero(require_elements(condition, "its condition"))
    axis = call.attributes.get("axis")
    if axis is None:
        (x,) = reader.emit("Reshape", [x, reader.constant([-1])])
    return reader.emit("Gather", [x, reader.constant(places)], {"axis": axis or 0})


def _unique(reader: Reader, call: Call) -> list[Value] | None:
    (x,) = require_tensors(call.inputs)
    if not _is_taken(x):
        return None
    (places,) = reader.emit("UniqueInverse", [x], call.attributes)
    inverse = require_elements(places, "the pattern of equal elements")
    _, first, counts = np.unique(inverse, return_index=True, return_counts=True)
    axis = call.attributes.get("axis")
    if axis is None:
        (x,) = reader.emit("Reshape", [x, reader.constant([-1])])
    unique = reader.emit("Gather", [x, reader.constant(first)], {"axis": axis or 0})
    return [*unique, *map(reader.constant, (first, inverse, counts))]


def _range(reader: Reader, call: Call) -> list[Value] | None:
    """Its numbers from start and delta, by a count that is taken."""
    start, limit, delta = given = require_tensors(call.inputs)
    if not any(map(_is_taken, given)) or not start.of_floats | limit.of_floats | delta.of_floats:
        return None
    scalar = reader.constant([])
    start, limit, delta = (reader.emit("Reshape", [each, scalar])[0] for each in given)

    def wide(value: Value) -> Value:
        """In float64, as the gate counts."""
        return reader.emit("Cast", [value], {"to": tensors.data_type("float64")})[0]

    if start.dtype == "int64":  # large ones fit into float64 only by their difference
        span = wide(reader.emit("Sub", [limit, start])[0])
    else:
        (span,) = reader.emit("Sub", [wide(limit), wide(start)])
    (ratio,) = reader.emit("Div", [span, wide(delta)])
    (steps,) = reader.emit("Ceil", [ratio])
    (count,) = reader.emit("Cast", [steps], {"to": tensors.data_type("int64")})
    number = max(int(require_elements(count, "the number of elements")), 0)
    if number > MOST_ELEMENTS:
        raise LimitError(
            "LIMIT_EXCEEDED", f"yields {number} elements; {MOST_ELEMENTS} are the most"
        )
    places = reader.constant(np.arange(number), start.dtype)
    (along,) = reader.emit("Mul", [places, delta])
    return reader.emit("Add", [start, along])


def _non_max_suppression(reader: Reader, call: Call) -> list[Value] | None:
    """The rows of the selection that are no padding."""
    require_tensors(call.inputs)
    if call.input(2) is None:  # none are kept
        return [reader.constant(np.zeros((0, 3)))]
    attributes = {"center_point_box": 0, **call.attributes}
    rows = computed("NonMaxSuppression", call.inputs, attributes)
    if rows is None:
        (padded,) = reader.emit("PaddedNonMaxSuppression", call.inputs, attributes)
        rows = require_elements(padded, "the selection of boxes")
        rows = rows[rows[:, 0] >= 0]
    return [reader.constant(rows)]


#: What reads each operator; None leaves it to its gate.
OPERATORS: dict[str, Callable[[Reader, Call], list[Value] | None]] = {
    "Compress": _compress,
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": _nonzero,
    "Range": _range,
    "Unique": _unique,
}
