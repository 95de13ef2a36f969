"""What classifiers and ensembles of ai.onnx.ml make of their sums: probabilities and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradwire import tensors
from gradwire.errors import InvalidRequestError, UnsupportedError
from gradwire.onnx.values import Group, Value

if TYPE_CHECKING:
    from gradwire.onnx.reading import Call, Reader


def floats_of(reader: Reader, value: Value, keep: tuple[str, ...] = ("float64",)) -> Value:
    """A tensor as float32, or as it is where its data type may be kept."""
    if value.dtype in ("float32", *keep):
        return value
    return reader.one("Cast", value, to=int(tensors.data_type("float32")))


def class_labels(call: Call, ints: str) -> tuple[Any, ...]:
    """The names of the classes, numbers or text."""
    return tuple(call.attributes.get(ints) or call.attributes.get("classlabels_strings") or ())


def labelled(reader: Reader, place: Value, labels: tuple[Any, ...]) -> Value:
    """The labels at places among the classes."""
    if not labels:
        return place
    if isinstance(labels[0], str):
        return Group(kind="text")  # nothing can use it
    return reader.one("Gather", reader.constant(labels), place)


def of_two_classes(
    reader: Reader,
    call: Call,
    score: Value,
    labels: tuple[Any, ...],
    is_share: bool,
    complement: bool,
) -> tuple[Value, Value]:
    """Labels, and two scores of one: as ONNX Runtime has it, LOGISTIC is the only transform.

    A share is the second class's from 0.5 on, a margin from 0 on; the first class has 1 less the
    score as `complement`, else its negative.
    """
    if len(labels) != 2:
        raise InvalidRequestError(
            "ATTRIBUTE_INVALID", f"it has one score for {len(labels)} classes, but must for two"
        )
    kind = call.attributes.get("post_transform", "NONE")
    if kind == "PROBIT":
        raise UnsupportedError(
            "ATTRIBUTE_INVALID", "PROBIT of one score for two classes is not read"
        )
    limit = reader.constant(0.5 if is_share else 0, score.dtype)
    above = reader.one("Reshape", reader.one("Greater", score, limit), reader.constant([-1]))
    place = reader.one("Cast", above, to=int(tensors.data_type("int64")))
    other = reader.one("Neg", score)
    if kind == "LOGISTIC":
        scores = reader.emit("Concat", [other, score], {"axis": 1})[0]
        return labelled(reader, place, labels), reader.one("Sigmoid", scores)
    if complement or is_share:
        other = reader.one("Sub", reader.constant(1, score.dtype), score)
    return labelled(reader, place, labels), reader.emit("Concat", [other, score], {"axis": 1})[0]


def post_transformed(reader: Reader, scores: Value, call: Call) -> Value:
    """Scores as probabilities, or as the attribute post_transform says."""
    match call.attributes.get("post_transform", "NONE"):
        case "NONE" | 0:
            return scores
        case "LOGISTIC" | 2:
            return reader.one("Sigmoid", scores)
        case "SOFTMAX" | 1:
            return reader.one("Softmax", scores, axis=1)
        case "SOFTMAX_ZERO" | 3:
            return _softmax_zero(reader, scores)
        case "PROBIT" | 4:
            return _probit(reader, scores)
        case other:
            raise unknown_choice("post_transform", other)


def _softmax_zero(reader: Reader, scores: Value) -> Value:
    """Softmax among scores that are not 0; those near 0 keep what little they are."""
    largest = reader.one("ReduceMax", scores, reader.constant([1]))
    raised = reader.one("Exp", reader.one("Sub", scores, largest))
    near = reader.one("Mul", scores, reader.one("Exp", reader.one("Neg", largest)))
    small = reader.constant(1e-7, scores.dtype)
    is_far = reader.one("Greater", reader.one("Abs", scores), small)
    parts = reader.one("Where", is_far, raised, near)
    total = reader.one("ReduceSum", parts, reader.constant([1]))
    is_empty = reader.one("Equal", total, reader.constant(0, scores.dtype))
    whole = reader.one("Where", is_empty, reader.constant(1, scores.dtype), total)
    half = reader.constant(0.5, scores.dtype)
    return reader.one("Where", is_empty, half, reader.one("Div", parts, whole))


def _probit(reader: Reader, scores: Value) -> Value:
    """sqrt(2) times the inverse of erf at 2 * score - 1, by the formula of ONNX Runtime.

    It is written so that nothing cancels, and the derivative at 1/2 is not 0 over 0. As there, a
    score of 0 or 1 yields 0.
    """

    def number(value: float) -> Value:
        return reader.constant(value, scores.dtype)

    x = reader.one("Sub", reader.one("Mul", scores, number(2)), number(1))
    square = reader.one("Mul", x, x)
    is_end = reader.one("Equal", square, number(1))
    is_near = reader.one("Less", square, number(1e-5))
    apart = reader.one("Where", reader.one("Or", is_end, is_near), number(0.5), square)
    log = reader.one("Log", reader.one("Sub", number(1), apart))
    series = reader.one("Add", number(1), reader.one("Mul", square, number(0.5)))
    ratio = reader.one("Neg", reader.one("Div", log, apart))  # -log(1 - x^2) / x^2
    ratio = reader.one("Where", is_near, series, ratio)
    log = reader.one("Neg", reader.one("Mul", ratio, square))
    first = reader.one("Add", number(2 / (3.14159 * 0.147)), reader.one("Mul", log, number(0.5)))
    second = reader.one("Mul", log, number(1 / 0.147))
    root = reader.one("Sqrt", reader.one("Sub", reader.one("Mul", first, first), second))
    total = reader.one("Mul", reader.one("Add", first, root), number(0.147))
    slope = reader.one("Sqrt", reader.one("Div", ratio, total))
    found = reader.one("Mul", reader.one("Mul", x, slope), number(1.41421356))
    return reader.one("Where", is_end, number(0), found)


def unknown_choice(name: str, value: Any) -> UnsupportedError:
    return UnsupportedError(
        "ATTRIBUTE_INVALID", f"attribute {name!r} is {value!r}, which is unknown"
    )
