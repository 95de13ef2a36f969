"""Evaluation of a model at a point while it is read: shapes, branches and trip counts as they are
there, each with an assertion in the graph that refuses other inputs where it would differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradwire import tensors
from gradwire.builder import Graph, Handle
from gradwire.errors import InvalidRequestError, UnsupportedError, nearest
from gradwire.onnx.values import Origin, Value, require_tensors
from gradwire.tensors import Array

if TYPE_CHECKING:
    from gradwire.onnx.reading import Reader


class Point:
    """The inputs of a model at which it is read, and what was evaluated there."""

    def __init__(self, reader: Reader, arrays: Mapping[str, Any], names: Sequence[str]) -> None:
        for name in arrays:
            if name not in names:
                raise InvalidRequestError(
                    "LEAF_UNKNOWN", f"there is no input {name!r} to be at{nearest(name, names)}"
                )
        self.arrays = arrays
        self._reader = reader
        self._symbols: dict[str, int] = {}

    def begin(self, value: Value, axes: Sequence[int | str]) -> None:
        """An input is here (TENSOR_INVALID, SHAPE_MISMATCH)."""
        array = tensors.from_value("its value in at", self.arrays[value.name], value.dtype)
        fits = len(axes) == array.ndim
        for axis, size in zip(axes, array.shape, strict=False):
            expected = self._symbols.setdefault(axis, size) if isinstance(axis, str) else axis
            fits = fits and size == expected
        if not fits:
            raise InvalidRequestError(
                "SHAPE_MISMATCH",
                f"has the axes {list(axes)} but its value in at has shape {array.shape}"
                + (f", where {self._symbols}" if self._symbols else ""),
            )
        value.here, value.point = array, self

    def take(self, value: Value, what: str) -> Array:
        """The elements of a value here; from now on known, for the graph asserts them."""
        array = self.elements(value)
        expected = Value(array=array)
        subject = f"the {what[4:]}" if what.startswith("its ") else what
        described = {"what": f"{subject.removesuffix(',')} of {self._reader.place}"}
        (value.asserted,) = self._reader.emit("AssertEqual", [value, expected], described)
        value.array = array
        return array

    def take_size(self, value: Value, axis: int, what: str) -> int:
        """The size of an axis, as it is here (SHAPE_MISMATCH)."""
        rank = self.elements(value).ndim
        if not -rank <= axis < rank:
            raise InvalidRequestError(
                "SHAPE_MISMATCH", f"there is no axis {axis} among the {rank} of an input"
            )
        along = axis % rank
        (sizes,) = self._reader.emit("Shape", [value], {"start": along, "end": along + 1})
        return int(self.take(sizes, what)[0])

    def elements(self, value: Value) -> Array:
        """The elements of a value here, of which nothing is asserted."""
        if value.here is None:
            self._evaluate(_unevaluated(value))
        assert value.here is not None
        return value.here

    def _evaluate(self, origins: list[Origin]) -> None:
        """Runs nodes whose inputs are evaluated, or are among them and come before."""
        if not origins:
            return
        part = Graph()
        handles: dict[int, Handle] = {}
        bound: dict[str, Array] = {}

        def handle(value: Value) -> Handle:
            if id(value) not in handles:
                array = value.here if value.array is None else value.array
                assert array is not None, "it was evaluated before"
                name = f"x{len(bound)}"
                handles[id(value)] = part.input(name, array.shape, str(array.dtype))
                bound[name] = array
            return handles[id(value)]

        made: dict[str, Value] = {}
        for origin in origins:
            given = [None if each is None else handle(each) for each in origin.inputs]
            found = part.apply(origin.operator, given, dict(origin.attributes), len(origin.outputs))
            for each, own in zip(origin.outputs, found, strict=True):
                handles[id(each)] = own
                name = f"y{len(made)}"
                made[name] = each
                part.output(name, own)
        for name, array in _evaluated(part, bound).items():
            made[name].here, made[name].point = array, self


def _unevaluated(value: Value) -> list[Origin]:
    """The nodes that must run for a value, in order."""
    order: list[Origin] = []
    seen: set[int] = set()
    waiting: list[tuple[Value, bool]] = [(value, False)]
    while waiting:
        each, is_ready = waiting.pop()
        origin = each.origin
        if origin is None or each.here is not None or each.array is not None:
            continue
        if is_ready:
            order.append(origin)
        elif id(origin) not in seen:
            seen.add(id(origin))
            waiting.append((each, True))
            waiting.extend((it, False) for it in require_tensors(origin.inputs))
    return order


def _evaluated(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    try:
        from gradwire.in_process import outputs_of
    except ModuleNotFoundError as failure:
        if not (failure.name or "").startswith("gradwire_server"):
            raise
        raise UnsupportedError(
            "FEATURE_UNSUPPORTED",
            "to read a model at a point is to evaluate it, which needs the package "
            "gradwire_server; install gradwire whole: pip install gradwire",
        ) from None
    return outputs_of(graph, inputs)
