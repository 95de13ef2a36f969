"""If, Loop and Scan: branches taken and loops unrolled, where they are known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from gradwire import tensors
from gradwire.errors import InvalidRequestError, UnsupportedError
from gradwire.onnx import values
from gradwire.onnx.counting import cannot_end
from gradwire.onnx.values import Value

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader, Scope

_ENDLESS = 1 << 62


def _if(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """The outputs of the branch that is taken."""
    taken = _truth(call, 0, "its condition")
    branch = call.graph("then_branch" if taken else "else_branch")
    return reader.read_body(branch, scope.inside(), ())


def _loop(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """The carried values after the last trip, and what the trips yield, stacked."""
    body = call.graph("body")
    most, going = None, True
    if call.input(0) is not None:
        most = values.whole_number(_elements(call, 0, "its trip count"), "its trip count")
    if call.input(1) is not None:
        going = _truth(call, 1, "its condition")
    carried = [_given(each) for each in call.inputs[2:]]
    trips: list[list[Value]] = []
    trip = 0
    while going and (most is None or trip < most):
        inside = scope.inside(f"{call.label}[{trip}]/")
        given = [reader.constant(trip), reader.constant(True, "bool"), *carried]
        condition, *outputs = reader.read_body(body, inside, given)
        carried, yielded = outputs[: len(carried)], outputs[len(carried) :]
        trips.append(yielded)
        trip += 1
        if most is None or trip < most:
            going = bool(_require(condition, f"the condition after trip {trip}").all())
            if trip == 1 and going and cannot_end(body, reader.functions):
                rest = _ENDLESS if most is None else most - 1
                reader.require_steps(rest * reader.steps_of_trip(body))
    return carried + [
        _stacked(reader, [each[slot] for each in trips], 0, info)
        for slot, info in enumerate(body.output[1 + len(carried) :])
    ]


def _scan(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """The state after the last trip, and what the trips yield, stacked."""
    values.require_tensors(call.inputs)
    if call.version < 9:
        return _scan_rows(reader, call, scope)
    return _scanned(reader, call, scope, [_given(each) for each in call.inputs])


def _scan_rows(reader: Reader, call: Call, scope: Scope) -> list[Value]:
    """Scan as it was before operator set 9: for each row of a batch."""
    if call.input(0) is not None:
        raise UnsupportedError(
            "OPERATOR_SET_UNSUPPORTED",
            f"sequence_lens of operator set {call.version} has no counterpart in later ones",
        )
    inputs = [_given(each) for each in call.inputs[1:]]
    rows = _length(inputs[0], 0) if inputs else 0
    found = []
    for row in range(rows):
        reader.count_steps()
        at = reader.constant(row)
        given = [reader.emit("Gather", [each, at], {"axis": 0})[0] for each in inputs]
        found.append(_scanned(reader, call, scope.inside(f"{call.label}[row {row}]/"), given))
    infos = call.graph("body").output
    return [
        _stacked(reader, [each[slot] for each in found], 0, info) for slot, info in enumerate(infos)
    ]


def _scanned(reader: Reader, call: Call, scope: Scope, inputs: list[Value]) -> list[Value]:
    body = call.graph("body")
    count = call.attributes.get("num_scan_inputs", 0)
    states = len(inputs) - count
    if not 0 < count <= len(inputs) or states > len(body.output):
        raise InvalidRequestError(
            "MODEL_INVALID", f"num_scan_inputs is {count} but there are {len(inputs)} inputs"
        )
    yields = len(body.output) - states
    axes = _numbers(call, "scan_input_axes", count)
    out_axes = _numbers(call, "scan_output_axes", yields)
    before_9 = call.version < 9
    backwards = _numbers(call, "directions" if before_9 else "scan_input_directions", count)
    out_backwards = _numbers(call, "scan_output_directions", yields)
    state, scanned = inputs[:states], inputs[states:]
    lengths = {_length(each, axis) for each, axis in zip(scanned, axes, strict=True)}
    if len(lengths) != 1:
        raise InvalidRequestError(
            "SHAPE_MISMATCH", f"its scanned inputs have different lengths: {sorted(lengths)}"
        )
    (length,) = lengths
    trips = []
    if length > 1:  # else it costs less to read the body than to count
        reader.require_steps(length * reader.steps_of_trip(body))
    for trip in range(length):
        slices = [
            reader.emit(
                "Gather",
                [each, reader.constant(length - 1 - trip if back else trip)],
                {"axis": axis},
            )[0]
            for each, axis, back in zip(scanned, axes, backwards, strict=True)
        ]
        inside = scope.inside(f"{call.label}[{trip}]/")
        outputs = reader.read_body(body, inside, [*state, *slices])
        state = outputs[:states]
        trips.append(outputs[states:])
    return state + [
        _stacked(
            reader,
            [each[slot] for each in (reversed(trips) if out_backwards[slot] else trips)],
            out_axes[slot],
            info,
        )
        for slot, info in enumerate(body.output[states:])
    ]


#: What reads each operator.
OPERATORS: dict[str, Callable[[Reader, Call, Scope], list[Value]]] = {
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
}


def _stacked(reader: Reader, parts: list[Value], axis: int, info: onnx.ValueInfoProto) -> Value:
    """One value of those of the trips, along a new axis."""
    if parts:
        place = reader.constant([axis])
        raised = [reader.emit("Unsqueeze", [each, place])[0] for each in parts]
        return reader.emit("Concat", raised, {"axis": axis})[0]
    declared = info.type.tensor_type
    sizes = [each.dim_value if each.HasField("dim_value") else -1 for each in declared.shape.dim]
    if not declared.HasField("shape") or min(sizes, default=0) < 0:
        raise UnsupportedError(
            "SHAPE_MISMATCH",
            f"it makes no trip, and the shape of what its trips would yield as {info.name!r} is "
            "not declared",
        )
    sizes.insert(axis if axis >= 0 else axis + len(sizes) + 1, 0)
    try:
        return reader.constant(np.zeros(sizes), tensors.dtype_of(declared.elem_type))
    except ValueError as failure:  # without elements, but beyond what NumPy can count
        raise InvalidRequestError(
            "SHAPE_MISMATCH", f"what its trips would yield as {info.name!r}: {failure}"
        ) from None


def _given(value: Value | None) -> Value:
    if value is None:
        raise UnsupportedError("INPUT_COUNT_INVALID", "one of its values is left out")
    return value


def _truth(call: Call, slot: int, what: str) -> bool:
    return bool(_elements(call, slot, what).all())


def _elements(call: Call, slot: int, what: str) -> Any:
    value = call.input(slot)
    if value is None:
        raise InvalidRequestError("INPUT_COUNT_INVALID", f"{what} is left out")
    return _require(value, f"{what} {call.node.input[slot]!r}")


def _require(value: Value, what: str) -> Any:
    found = values.require_elements(value, what)
    if found.size != 1:
        raise InvalidRequestError(
            "SHAPE_MISMATCH", f"{what} has shape {found.shape} but must be one element"
        )
    return found


def _length(value: Value, axis: int) -> int:
    """Size of a scanned input along its axis."""
    what = f"the number of trips, the size of axis {axis} of an input,"
    return values.require_size(value, axis, what)


def _numbers(call: Call, name: str, count: int) -> tuple[int, ...]:
    found = tuple(call.attributes.get(name) or (0,) * count)
    if len(found) != count:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID", f"attribute {name!r} has {len(found)} numbers but needs {count}"
        )
    return found
